//! Style sheet, script and the like: embedded in the binary, named by their content, kept by browsers for a year.

use rocket::http::{ContentType, Header, Status};
use rocket::response::{self, Responder, Response};
use rocket::{Request, State, get};
use sha2::{Digest, Sha256};

/// How long a browser may keep what is named by its content.
const KEEP: &str = "public, max-age=31536000, immutable";

/// Everything that pages load.
pub(crate) struct Assets(Vec<Asset>);

struct Asset {
    /// As templates name it.
    name: &'static str,
    /// As it is served: with its fingerprint.
    file: String,
    content_type: ContentType,
    bytes: &'static [u8],
}

impl Assets {
    pub(super) fn new() -> Assets {
        let asset = |name: &'static str, content_type, bytes: &'static [u8]| {
            let digest = Sha256::digest(bytes);
            let print: String = digest[..6]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
            Asset {
                name,
                file: format!("{stem}.{print}.{extension}"),
                content_type,
                bytes,
            }
        };
        let style = include_bytes!("../../../templates/monitor.css");
        let script = include_bytes!("../../../templates/monitor.js");
        let icon = include_bytes!("../../../templates/icon.svg");
        Assets(vec![
            asset("monitor.css", ContentType::CSS, style),
            asset("monitor.js", ContentType::JavaScript, script),
            asset("icon.svg", ContentType::SVG, icon),
        ])
    }

    /// Names as templates have them, and files as they are served.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|asset| (asset.name, asset.file.as_str()))
    }
}

/// A file that a page loads.
pub(super) struct Loaded(ContentType, &'static [u8]);

impl<'r> Responder<'r, 'static> for Loaded {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        let Loaded(content_type, bytes) = self;
        Response::build()
            .header(content_type)
            .header(Header::new("Cache-Control", KEEP))
            .header(Header::new("X-Content-Type-Options", "nosniff"))
            .sized_body(bytes.len(), std::io::Cursor::new(bytes))
            .ok()
    }
}

#[get("/monitor/assets/<file>")]
pub(super) fn asset(file: &str, assets: &State<Assets>) -> Result<Loaded, Status> {
    let found = assets.0.iter().find(|asset| asset.file == file);
    let asset = found.ok_or(Status::NotFound)?;
    Ok(Loaded(asset.content_type.clone(), asset.bytes))
}
