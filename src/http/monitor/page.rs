//! Renders templates as responses, with security headers.

use std::collections::HashMap;

use flate2::Compression;
use rocket::Request;
use rocket::http::{ContentType, Header, Status};
use rocket::response::{self, Responder, Response};
use serde_json::Value;
use tera::Tera;

use super::assets::Assets;
use super::compression;

/// Forbids resources from other hosts, inline scripts and styles, and embedding in a frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The templates, parsed once.
pub(crate) struct Pages {
    tera: Tera,
    assets: serde_json::Map<String, Value>,
}

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../templates/", $name, ".tera")))),*]
    };
}

impl Pages {
    pub(super) fn new(assets: &Assets) -> Pages {
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
        ];
        tera.add_raw_templates(templates)
            .expect("the embedded templates are valid: a test renders each of them");
        let files = assets.files();
        Pages {
            tera,
            assets: files
                .map(|(name, file)| (name.replace('.', "_"), file.into()))
                .collect(),
        }
    }

    pub(super) fn render(&self, template: &str, view: &Value) -> Html {
        let mut context = tera::Context::from_value(view.clone()).unwrap_or_default();
        context.insert("assets", &self.assets);
        context.insert("version", env!("CARGO_PKG_VERSION"));
        match self.tera.render(template, &context) {
            Ok(text) => Html {
                status: Status::Ok,
                text,
            },
            Err(error) => {
                tracing::error!(template, ?error, "a page could not be rendered");
                Html {
                    status: Status::InternalServerError,
                    text: "The page could not be rendered; the cause is in the server's log."
                        .into(),
                }
            }
        }
    }
}

/// A rendered page.
pub(super) struct Html {
    status: Status,
    text: String,
}

impl Html {
    pub(super) fn with_status(self, status: Status) -> Html {
        Html { status, ..self }
    }
}

impl<'r> Responder<'r, 'static> for Html {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let Html { status, text } = self;
        // Compression is safe: pages contain no secret whose content their length could reveal.
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
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Referrer-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ] {
            response.header(Header::new(name, value));
        }
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
