//! Renders templates as responses, with security headers.

use std::collections::HashMap;
use std::sync::LazyLock;

use flate2::Compression;
use rocket::Request;
use rocket::http::{ContentType, Header, Status};
use rocket::response::{self, Responder, Response};
use serde_json::Value;
use tera::Tera;

use super::assets::Assets;
use super::compression;
use crate::config::origin::AllowedOrigins;

/// Forbids resources from other hosts, and inline scripts and styles. The origins that may embed the page follow.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors ";

/// Renders the pages.
pub(crate) struct Pages {
    assets: serde_json::Map<String, Value>,
}

/// The templates. They are parsed for the first page, so that they do not delay the start.
static TEMPLATES: LazyLock<Tera> = LazyLock::new(parse);

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../templates/", $name, ".tera")))),*]
    };
}

fn parse() -> Tera {
    let mut tera = Tera::default();
    tera.register_filter("segment", segment);
    let templates = templates![
        "base.html",
        "macros.html",
        "sign-in.html",
        "schools.html",
        "problem.html",
        "overview.html",
        "jobs.html",
        "job.html",
        "subjects.html",
        "devices.html",
        "device.html",
        "characteristics.html",
        "characteristic.html",
        "violations.html",
        "system.html",
        "embed.html",
    ];
    tera.add_raw_templates(templates)
        .expect("the embedded templates are valid: a test renders each of them");
    tera
}

impl Pages {
    pub(super) fn new(assets: &Assets) -> Pages {
        let files = assets.files();
        Pages {
            assets: files
                .map(|(name, file)| (name.replace('.', "_"), file.into()))
                .collect(),
        }
    }

    pub(super) fn render(&self, template: &str, view: &Value) -> Html {
        let mut context = tera::Context::from_value(view.clone()).unwrap_or_default();
        context.insert("assets", &self.assets);
        context.insert("version", env!("CARGO_PKG_VERSION"));
        match TEMPLATES.render(template, &context) {
            Ok(text) => Html {
                status: Status::Ok,
                text,
                ancestors: None,
            },
            Err(error) => {
                tracing::error!(template, ?error, "a page could not be rendered");
                Html {
                    status: Status::InternalServerError,
                    text: "The page could not be rendered; the cause is in the server's log."
                        .into(),
                    ancestors: None,
                }
            }
        }
    }
}

/// A rendered page.
pub(super) struct Html {
    status: Status,
    text: String,
    /// The origins whose pages may show it in a frame, as sources of a policy. If absent, no page may.
    ancestors: Option<String>,
}

impl Html {
    pub(super) fn with_status(self, status: Status) -> Html {
        Html { status, ..self }
    }

    /// Lets pages of these origins show it in a frame.
    pub(super) fn framed_by(self, origins: &AllowedOrigins) -> Html {
        Html {
            ancestors: (!origins.is_empty()).then(|| origins.in_policy()),
            ..self
        }
    }
}

impl<'r> Responder<'r, 'static> for Html {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let Html {
            status,
            text,
            ancestors,
        } = self;
        // The length of a compressed page reveals nothing: no page contains a secret that is not in its URL.
        let packed = match compression::accepts_gzip(request) {
            true => compression::gzip(text.as_bytes(), Compression::fast()),
            false => None,
        };
        let mut response = Response::build();
        compression::set_headers(&mut response, packed.is_some());
        let body = packed.unwrap_or_else(|| text.into_bytes());
        response
            .status(status)
            .header(ContentType::HTML)
            .sized_body(body.len(), std::io::Cursor::new(body));
        for (name, value) in [
            ("Cache-Control", "no-store"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Referrer-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
        ] {
            response.header(Header::new(name, value));
        }
        // `X-Frame-Options` cannot name single origins.
        if ancestors.is_none() {
            response.header(Header::new("X-Frame-Options", "DENY"));
        }
        let ancestors = ancestors.unwrap_or_else(|| "'none'".to_owned());
        let policy = format!("{CONTENT_SECURITY_POLICY}{ancestors}");
        response.header(Header::new("Content-Security-Policy", policy));
        response.ok()
    }
}

/// Encodes an id as a segment of a path.
fn segment(value: &tera::Value, _: &HashMap<String, tera::Value>) -> tera::Result<tera::Value> {
    let id = value.as_str().unwrap_or_default();
    Ok(
        percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC)
            .to_string()
            .into(),
    )
}
