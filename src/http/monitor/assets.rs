//! Style sheets, scripts and icons: embedded in the binary, named by a hash of their content, cached by browsers for a year.

use std::sync::{LazyLock, OnceLock};

use flate2::Compression;
use rocket::http::{ContentType, Header, Status};
use rocket::response::{self, Responder, Response};
use rocket::{Request, State, get};
use sha2::{Digest, Sha256};

use super::compression;

/// The `Cache-Control` of files that are named by their content.
const KEEP: &str = "public, max-age=31536000, immutable";

/// All files that the pages load.
pub(crate) struct Assets(&'static [Asset]);

static FILES: LazyLock<Vec<Asset>> = LazyLock::new(files);

struct Asset {
    /// The name that templates use.
    name: &'static str,
    /// The name under which the file is served, with its fingerprint.
    file: String,
    content_type: ContentType,
    bytes: &'static [u8],
    /// Compressed for the first client that accepts it.
    packed: OnceLock<Option<Vec<u8>>>,
}

impl Asset {
    fn packed(&self) -> Option<&[u8]> {
        let pack = || compression::gzip(self.bytes, Compression::best());
        self.packed.get_or_init(pack).as_deref()
    }
}

fn files() -> Vec<Asset> {
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
            packed: OnceLock::new(),
        }
    };
    let style = include_bytes!("../../../templates/monitor.css");
    let sign_in = include_bytes!("../../../templates/signin.js");
    let icon = include_bytes!("../../../templates/icon.svg");
    let embed = include_bytes!("../../../templates/embed.css");
    // Both are built by `npm run embed` in `clients/js`, and checked in, so that the server needs no Node to be built.
    let script = include_bytes!("../../../templates/monitor.bundle.js");
    let elements = include_bytes!("../../../templates/elements.js");
    vec![
        asset("monitor.css", ContentType::CSS, style),
        asset("monitor.js", ContentType::JavaScript, script),
        asset("signin.js", ContentType::JavaScript, sign_in),
        asset("icon.svg", ContentType::SVG, icon),
        asset("embed.css", ContentType::CSS, embed),
        asset("elements.js", ContentType::JavaScript, elements),
    ]
}

impl Assets {
    pub(super) fn new() -> Assets {
        Assets(&FILES)
    }

    /// Returns a file by the name under which it is served.
    pub(super) fn file(&self, file: &str) -> Option<Loaded> {
        let mut all = self.0.iter();
        all.find(|asset| asset.file == file).map(Loaded)
    }

    /// Returns the names that templates use with those under which the files are served.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|asset| (asset.name, asset.file.as_str()))
    }
}

/// A file that a page loads.
pub(super) struct Loaded(&'static Asset);

impl<'r> Responder<'r, 'static> for Loaded {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let Loaded(asset) = self;
        let packed = match compression::accepts_gzip(request) {
            true => asset.packed(),
            false => None,
        };
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
pub(super) fn asset(file: &str, assets: &State<Assets>) -> Result<Loaded, Status> {
    assets.file(file).ok_or(Status::NotFound)
}
