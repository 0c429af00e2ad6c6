//! Cross-origin requests, if `allowed_origins` is set.
//!
//! A page of an origin that is listed by name may also use the cookie. A page that only `*` allows may not: browsers then
//! neither send the cookie nor show an answer that requires it (`Access-Control-Allow-Credentials` is absent).

use rocket::fairing::{AdHoc, Fairing};
use rocket::http::{Header, Method, Status};
use rocket::{Request, Response, Route};

use super::credential::tidings;
use super::forwarded::{self, Page};

/// The methods of our routes.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
/// The headers that our clients and common libraries send. Others are allowed if a page requests them.
const REQUEST_HEADERS: &str = "Accept, Authorization, Cache-Control, Content-Type, Idempotency-Key, Last-Event-ID, Pragma, \
     X-Requested-With";
/// The headers that a page may read in addition to the safelisted ones.
const EXPOSED_HEADERS: &str = "Location, Retry-After, WWW-Authenticate";
/// How many seconds a browser caches the answer to a preflight request.
const PREFLIGHT_AGE_SECS: &str = "600";
/// The longest list of headers that a page may request, in bytes. Beyond it, only [`REQUEST_HEADERS`] are allowed.
const ASKED_HEADERS_MAX_BYTES: usize = 1_024;

pub(super) fn routes() -> Vec<Route> {
    rocket::routes![preflight]
}

/// Answers preflight requests. The fairing adds the headers.
#[rocket::options("/<_..>")]
fn preflight() -> Status {
    Status::NoContent
}

/// Applies only below `base`: an application that mounts us decides about its own routes.
pub(super) fn fairing(base: &'static str) -> impl Fairing {
    let base = base.trim_end_matches('/');
    AdHoc::on_response("Tidings: CORS", move |request, response| {
        Box::pin(async move {
            let below = request.uri().path().as_str().strip_prefix(base);
            if below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                allow(request, response);
            }
        })
    })
}

fn allow(request: &Request<'_>, response: &mut Response<'_>) {
    let allowed = &tidings(request).settings().allowed_origins;
    if allowed.is_empty() {
        return;
    }
    response.adjoin_header(Header::new("Vary", "Origin"));
    let is_named = match forwarded::page(request) {
        Page::At(origin) => allowed.names(&origin),
        Page::None => return,
        Page::Unknown => false,
    };
    if !is_named && !allowed.has_any() {
        return;
    }
    let mut set = |name, value: String| response.set_header(Header::new(name, value));
    // Repeat it exactly: browsers compare it character by character.
    let origin = request.headers().get_one("Origin").filter(|_| is_named);
    set("Access-Control-Allow-Origin", origin.unwrap_or("*").into());
    if is_named {
        set("Access-Control-Allow-Credentials", "true".into());
    }
    if request.method() != Method::Options {
        set("Access-Control-Expose-Headers", EXPOSED_HEADERS.into());
        return;
    }
    set("Access-Control-Allow-Methods", METHODS.into());
    set("Access-Control-Allow-Headers", request_headers(request));
    set("Access-Control-Max-Age", PREFLIGHT_AGE_SECS.into());
    let asked = "Access-Control-Request-Private-Network";
    if is_named && request.headers().get_one(asked) == Some("true") {
        set("Access-Control-Allow-Private-Network", "true".into());
    }
    response.adjoin_header(Header::new("Vary", "Access-Control-Request-Headers"));
}

/// Returns the common headers and those that the page requests. Libraries add their own (`X-XSRF-TOKEN`, `traceparent`),
/// which have no effect here.
fn request_headers(request: &Request<'_>) -> String {
    let mut allowed = REQUEST_HEADERS.to_owned();
    let asked: Vec<&str> = request
        .headers()
        .get("Access-Control-Request-Headers")
        .collect();
    let asked = asked.join(",");
    if asked.len() > ASKED_HEADERS_MAX_BYTES {
        return allowed;
    }
    let names = asked.split(',').map(str::trim);
    for name in names.filter(|name| is_token(name) && !is_of_proxies(name)) {
        let mut known = allowed.split(", ");
        if !known.any(|known| known.eq_ignore_ascii_case(name)) {
            allowed.push_str(", ");
            allowed.push_str(name);
        }
    }
    allowed
}

/// Whether a text is a valid name of a header (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(of_token)
}

/// Whether only proxies may set a header.
fn is_of_proxies(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("x-forwarded-") || matches!(&*name, "forwarded" | "x-real-ip")
}
