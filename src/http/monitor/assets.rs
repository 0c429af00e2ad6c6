//! Style sheets, scripts and icons: embedded in the binary, named by a hash of their content, cached by browsers for a year.

use flate2::Compression;
use rocket::http::{ContentType, Header, Status};
use rocket::response::{self, Responder, Response};
use rocket::{Request, State, get};
use sha2::{Digest, Sha256};

use super::compression;

/// The `Cache-Control` of files that are named by their content.
const KEEP: &str = "public, max-age=31536000, immutable";

/// All files that the pages load.
pub(crate) struct Assets(Vec<Asset>);

struct Asset {
    /// The name that templates use.
    name: &'static str,
    /// The name under which the file is served, with its fingerprint.
    file: String,
    content_type: ContentType,
    bytes: &'static [u8],
    packed: Option<Vec<u8>>,
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
                packed: compression::gzip(bytes, Compression::best()),
            }
        };
        let style = include_bytes!("../../../templates/monitor.css");
        let sign_in = include_bytes!("../../../templates/signin.js");
        let icon = include_bytes!("../../../templates/icon.svg");
        let embed = include_bytes!("../../../templates/embed.css");
        // Both are built by `npm run embed` in `clients/js`, and checked in, so that the server needs no Node to be built.
        let script = include_bytes!("../../../templates/monitor.bundle.js");
        let elements = include_bytes!("../../../templates/elements.js");
        Assets(vec![
            asset("monitor.css", ContentType::CSS, style),
            asset("monitor.js", ContentType::JavaScript, script),
            asset("signin.js", ContentType::JavaScript, sign_in),
            asset("icon.svg", ContentType::SVG, icon),
            asset("embed.css", ContentType::CSS, embed),
            asset("elements.js", ContentType::JavaScript, elements),
        ])
    }

    /// Returns a file by the name under which it is served.
    pub(super) fn file(&self, file: &str) -> Option<Loaded<'_>> {
        let mut all = self.0.iter();
        all.find(|asset| asset.file == file).map(Loaded)
    }

    /// Returns the names that templates use with those under which the files are served.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|asset| (asset.name, asset.file.as_str()))
    }
}

/// A file that a page loads.
pub(super) struct Loaded<'a>(&'a Asset);

impl<'r, 'a: 'r> Responder<'r, 'a> for Loaded<'a> {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'a> {
        let Loaded(asset) = self;
        let packed = asset.packed.as_deref();
        let packed = packed.filter(|_| compression::accepts_gzip(request));
        let bytes = packed.unwrap_or(asset.bytes);
        let mut response = Response::build();
        compression::set_headers(&mut response, packed.is_some());
        response
            .header(asset.content_type.clone())
            .header(Header::new("Cache-Control", KEEP))
            .header(Header::new("X-Content-Type-Options", "nosniff"))
            .sized_body(bytes.len(), std::io::Cursor::new(bytes))
            .ok()
    }
}

#[get("/monitor/assets/<file>")]
pub(super) fn asset<'a>(file: &str, assets: &'a State<Assets>) -> Result<Loaded<'a>, Status> {
    assets.file(file).ok_or(Status::NotFound)
}
