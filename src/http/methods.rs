//! The methods that a URL supports, for the status 405 and the header `Allow`.
//!
//! Rocket distinguishes URLs by their form only, but the methods of a collection also depend on its kind. Jobs are created
//! with `POST` and devices with `PUT`, and each kind has its own verbs. [`Collection`] forwards a request to other routes if
//! its kind does not support the method. `Allow` follows from the same rule, so the two always agree.

use std::convert::Infallible;

use rocket::Route;
use rocket::http::{Method, RawStr, Status};
use rocket::request::{FromRequest, Outcome, Request};

use super::commands;
use super::credential::tidings;
use super::problem::{Kind as ProblemKind, Problem};
use crate::id::Kind;
use crate::kind;

/// The placeholder for a collection in the path of a route. All other dynamic segments have a name.
const COLLECTION: &str = "<_>";

/// The kind that `<_>` in a route's path stands for. Forwards if there is no such kind, or if it does not support the call.
pub(super) struct Collection(pub(super) Kind);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Collection {
    type Error = Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Collection, Infallible> {
        let route = request.route().expect("Rocket runs guards for a route");
        match kind_at(route, &segments(request)) {
            Some(kind) => Outcome::Success(Collection(kind)),
            None => Outcome::Forward(Status::NotFound),
        }
    }
}

/// Returns the kind that a URL names where the route has `<_>`, if the kind supports such a call.
fn kind_at(route: &Route, address: &[&str]) -> Option<Kind> {
    let parts = || route.uri.path().split('/').filter(|part| !part.is_empty());
    let place = parts().position(|part| part == COLLECTION)?;
    let kind = named_kind(address.get(place)?)?;
    let description = kind::description(kind);
    // Decide by the form of this route: the URL may match several routes.
    let takes = match (route.method, parts().count() - place) {
        (Method::Post, 1) => description.made_by == "create",
        (Method::Put, _) => description.made_by == "put",
        (Method::Delete, _) => description.verbs.contains(&"remove"),
        (Method::Post, _) => {
            let verb = address.get(place + 2).map(|verb| decoded(verb));
            verb.is_some_and(|verb| description.verbs.contains(&&*verb))
        }
        _ => true,
    };
    takes.then_some(kind)
}

fn named_kind(segment: &str) -> Option<Kind> {
    kind::known_kind(&decoded(segment))
}

fn decoded(segment: &str) -> String {
    let decoded = RawStr::new(segment).percent_decode_lossy();
    decoded.into_owned()
}

/// Returns the segments of a URL. Ignores empty ones, as Rocket does: `/api//jobs/` is `/api/jobs`.
fn segments<'r>(request: &'r Request<'_>) -> Vec<&'r str> {
    let path = request.uri().path();
    let segments = path.raw_segments().map(RawStr::as_str);
    segments.filter(|segment| !segment.is_empty()).collect()
}

/// Whether a URL matches a route, in which `<x>` stands for a segment and `<x..>` for all that follow.
fn fits(route: &Route, address: &[&str]) -> bool {
    let mut address = address.iter();
    for part in route.uri.path().split('/').filter(|part| !part.is_empty()) {
        match (part.ends_with("..>"), address.next()) {
            (true, _) => return true,
            (false, Some(segment)) if part.starts_with('<') || part == *segment => {}
            (false, _) => return false,
        }
    }
    address.next().is_none()
}

/// Returns the routes that match a URL, except that of CORS preflights, which matches every URL.
fn fitting<'r>(request: &'r Request<'_>, address: &[&str]) -> impl Iterator<Item = &'r Route> {
    let routes = request.rocket().routes();
    routes.filter(|route| route.method != Method::Options && fits(route, address))
}

/// Whether Rocket has rejected a request for its method alone.
///
/// Rocket rejects a method that it does not know, such as `PROPFIND`, with 400. Catchers see such a request as a `GET` for
/// which no route was tried. A URL that cannot be parsed is rejected with 400, too, but catchers see it as `/`.
pub(super) fn is_unknown_method(request: &Request<'_>, status: Status) -> bool {
    status == Status::BadRequest && request.route().is_none() && request.uri().path() != "/"
}

/// Returns the methods that the URL supports, as the value of `Allow`, if the request's method is not among them.
pub(super) fn instead(request: &Request<'_>, status: Status) -> Option<String> {
    let is_unknown = is_unknown_method(request, status);
    if status != Status::NotFound && !is_unknown {
        return None;
    }
    let whole = segments(request);
    // A request with an unknown method skips the fairings, one of which removes `base_path`. So remove it here.
    let base_path = tidings(request).settings().base_path.clone();
    let base_path = base_path.unwrap_or_default();
    let prefix: Vec<&str> = base_path.as_str().split('/').skip(1).collect();
    let rest = whole.strip_prefix(prefix.as_slice());
    let rest = rest.filter(|_| is_unknown && fitting(request, &whole).next().is_none());
    let address = rest.unwrap_or(&whole);
    let takes = |route: &&Route| {
        !route.uri.path().contains(COLLECTION) || kind_at(route, address).is_some()
    };
    let mut methods = Vec::new();
    for route in fitting(request, address).filter(takes) {
        methods.push(route.method);
        methods.extend((route.method == Method::Get).then_some(Method::Head));
    }
    methods.sort_unstable_by_key(|method| method.as_str());
    methods.dedup();
    if methods.is_empty() || !is_unknown && methods.contains(&request.method()) {
        return None;
    }
    let names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
    Some(names.join(", "))
}

/// Returns the problem that the URL does not exist, with a hint about the URLs that do.
pub(super) fn nothing_here(request: &Request<'_>) -> Problem {
    let address = segments(request);
    let named = |route: &Route| {
        let mut parts = route.uri.path().split('/').filter(|part| !part.is_empty());
        let place = parts.position(|part| part == COLLECTION)?;
        named_kind(address.get(place)?)
    };
    if let Some(kind) = fitting(request, &address).find_map(named) {
        return commands::no_such_verb(kind);
    }
    let collections: Vec<_> = kind::KINDS.iter().map(|kind| kind.collection()).collect();
    let detail = format!(
        "this URL does not exist; the collections below /api are {}, violations, notifiers and pings",
        collections.join(", ")
    );
    Problem::new(ProblemKind::NotFound, detail)
}
