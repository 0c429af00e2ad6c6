//! `/badge/<scope>.svg`: the state of a scope as a small image, by a signed link.
//!
//! Every answer is an image, also that of an error: image proxies and browsers show an image whatever its status is, and a
//! page that shows a badge has no other place for "expired". The signature is checked before anything is read. A badge is
//! read at most once in [`BADGE_AGE_SECS`], however many clients request it, and proxies may cache it for as long.

mod face;
mod svg;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use rocket::http::uri::Segments;
use rocket::http::uri::fmt::Path;
use rocket::http::{ContentType, Header, Status};
use rocket::request::FromSegments;
use rocket::response::{self, Responder, Response};
use rocket::{Request, Route, State, get, routes};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::face::Face;
use super::contract::{Document, Part, scopes};
use super::links::Signed;
use super::problem::{Kind, Problem};
use super::stream::ChannelPath;
use crate::app::Caller;
use crate::auth::{Access, AuthError, Link, View};
use crate::config::{BADGE_AGE_SECS, BADGES_MAX};
use crate::id::{Channel, SchoolId};
use crate::kind;
use crate::rejections::RequestSource;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![badge]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Badges";
    const IMAGE: &str = "image/svg+xml";
    document.tag(TAG, "The state of a scope as an image, by a signed link.");
    let rests: Vec<String> = scopes()
        .into_iter()
        .filter(|rest| !rest.is_empty())
        .map(|rest| format!("{rest}.svg"))
        .collect();
    document.rests(routes![badge], &badge, &rests, |rest, operation| {
        let (collection, is_one) = {
            let mut parts = rest.trim_start_matches('/').split('/');
            let first = parts.next().unwrap_or_default();
            (first.trim_end_matches(".svg"), parts.next().is_some())
        };
        let id = match (collection, is_one) {
            ("schools", _) => "badge.school".to_owned(),
            (collection, true) => format!("badge.{collection}.one"),
            (collection, false) => format!("badge.{collection}"),
        };
        let noun = kind::known_kind(collection).map(kind::description);
        let summary = match (noun, is_one) {
            (Some(description), true) => format!("{}: badge", description.noun),
            (Some(description), false) => format!("{}: badge of all", description.title),
            (None, _) => "Badge of a school".to_owned(),
        };
        let image = || json!({ "type": "string" });
        operation
            .named(id, TAG, summary)
            .about("Every answer with a body is an image.")
            .answers(200, "The state.", IMAGE, image())
            .with_header(200, "ETag", "Names the image.", json!({ "type": "string" }))
            .answers_empty(
                304,
                "The image is still the one that `If-None-Match` names.",
            )
            .answers(400, "The link is not complete.", IMAGE, image())
            .answers(
                403,
                "The link is not valid, or it has expired.",
                IMAGE,
                image(),
            )
            .answers(404, "There is no such subject.", IMAGE, image())
            .answers(
                429,
                "Too many reads of the school are waiting.",
                IMAGE,
                image(),
            )
            .answers(431, "The headers are too large.", IMAGE, image())
            .answers(503, "The server cannot read the state now.", IMAGE, image());
    });
}

/// A channel's text, and `.svg`.
struct ImagePath(Option<String>);

impl<'r> FromSegments<'r> for ImagePath {
    type Error = std::convert::Infallible;

    fn from_segments(segments: Segments<'r, Path>) -> Result<Self, Self::Error> {
        let mut segments: Vec<&str> = segments.collect();
        let last = segments.pop().and_then(|last| last.strip_suffix(".svg"));
        Ok(ImagePath(last.map(|last| {
            segments.push(last);
            ChannelPath::of(&segments).0
        })))
    }
}

impl Part for ImagePath {}

/// The badges that were read a moment ago. Managed by the application.
pub(super) struct Badges(Mutex<LruCache<(SchoolId, Channel), Arc<Kept>>>);

/// A badge, which is read once. Requests that arrive meanwhile wait for the result, and share it even if it is a failure.
struct Kept {
    since: Instant,
    face: OnceCell<Result<Face, Problem>>,
}

const AGE: Duration = Duration::from_secs(BADGE_AGE_SECS);
/// How long after its start a failed read is not repeated.
const RETRY: Duration = Duration::from_secs(1);

impl Kept {
    fn is_fresh(&self, now: Instant) -> bool {
        let age = match self.face.get() {
            Some(Err(_)) => RETRY,
            Some(Ok(_)) | None => AGE,
        };
        now.duration_since(self.since) < age
    }
}

impl Default for Badges {
    fn default() -> Badges {
        let capacity = NonZeroUsize::new(BADGES_MAX).expect("a cache has room");
        Badges(Mutex::new(LruCache::new(capacity)))
    }
}

impl Badges {
    /// Returns the state of what a link shows, and for how long it may be cached.
    async fn face(
        &self,
        tidings: &Tidings,
        access: Access,
        link: Link,
    ) -> Result<(Face, Duration), Problem> {
        let now = Instant::now();
        let name = (link.school, link.channel);
        let cached = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(&name);
            let fresh = known.filter(|cached| cached.is_fresh(now));
            match fresh.map(Arc::clone) {
                Some(cached) => cached,
                None => {
                    let cached = Arc::new(Kept {
                        since: now,
                        face: OnceCell::new(),
                    });
                    all.put(name.clone(), Arc::clone(&cached));
                    cached
                }
            }
        };
        let caller = Caller::new(access, Some(name.0))?;
        let read = || Face::read(tidings, &caller, &name.1);
        let face = cached.face.get_or_init(read).await.clone()?;
        Ok((face, AGE.saturating_sub(cached.since.elapsed())))
    }
}

#[get("/badge/<path..>")]
async fn badge(
    path: ImagePath,
    signed: Result<Signed, Problem>,
    source: RequestSource,
    badges: &State<Badges>,
    tidings: &State<Arc<Tidings>>,
) -> Image {
    match shown(path, signed, badges, tidings).await {
        Ok((face, age)) => Image::new(&face, (face.status == Status::Ok).then_some(age)),
        Err((text, problem)) => {
            problem.note(tidings, &source);
            let status = Status::new(problem.status());
            Image::new(&Face::of_rejection(status, text), None)
        }
    }
}

/// Returns the state of what the link shows, and for how long it may be cached. Fails with the text of the badge and the
/// problem.
async fn shown(
    path: ImagePath,
    signed: Result<Signed, Problem>,
    badges: &Badges,
    tidings: &Tidings,
) -> Result<(Face, Duration), (&'static str, Problem)> {
    let path = path.0.ok_or_else(|| {
        let detail = "the path of a badge ends with .svg: /badge/jobs/42.svg";
        ("not found", Problem::new(Kind::NotFound, detail))
    })?;
    let signed = signed.map_err(|problem| {
        let text = match problem.is(Kind::HeadersTooLarge) {
            true => "request is too large",
            false => "link is not complete",
        };
        (text, problem)
    })?;
    let (access, link) = match signed.access(tidings, View::Badge, &path) {
        Ok(opened) => opened,
        Err(error @ AuthError::ExpiredLink) => return Err(("link has expired", error.into())),
        Err(error) => return Err(("link is not valid", error.into())),
    };
    let face = badges.face(tidings, access, link).await;
    face.map_err(|problem| ("not available now", problem))
}

/// A badge as an answer.
struct Image {
    status: Status,
    /// How long it may be cached. `None` if it must not be cached.
    age: Option<Duration>,
    text: String,
}

impl Image {
    fn new(face: &Face, age: Option<Duration>) -> Image {
        Image {
            status: face.status,
            age,
            text: svg::draw(face),
        }
    }
}

impl<'r> Responder<'r, 'static> for Image {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let digest = Sha256::digest(self.text.as_bytes());
        let print: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let tag = format!("\"{print}\"");
        let control = match self.age {
            // At least one second: a page may show the same badge several times.
            Some(age) => format!("public, max-age={}", age.as_secs().max(1)),
            None => "no-store".to_owned(),
        };
        let mut response = Response::build();
        for (name, value) in [
            ("Cache-Control", control.as_str()),
            // It loads and runs nothing, even if it is opened as a document.
            ("Content-Security-Policy", "default-src 'none'"),
            // For pages that are isolated from other origins.
            ("Cross-Origin-Resource-Policy", "cross-origin"),
            ("X-Content-Type-Options", "nosniff"),
        ] {
            response.header(Header::new(name, value.to_owned()));
        }
        let is_kept = self.status == Status::Ok;
        if is_kept {
            response.header(Header::new("ETag", tag.clone()));
        }
        if is_kept && has(request, &tag) {
            return response.status(Status::NotModified).ok();
        }
        response
            .status(self.status)
            .header(ContentType::SVG)
            .sized_body(self.text.len(), std::io::Cursor::new(self.text))
            .ok()
    }
}

/// Whether the client has the image of this entity tag. Proxies make tags weak when they compress.
fn has(request: &Request<'_>, tag: &str) -> bool {
    let mut named = request
        .headers()
        .get("If-None-Match")
        .flat_map(|line| line.split(','))
        .map(str::trim);
    named.any(|etag| etag == "*" || etag.strip_prefix("W/").unwrap_or(etag) == tag)
}
