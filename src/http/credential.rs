//! Finds the credential in a request, and decides whether a page of another origin may use it.
//!
//! The order is: `Authorization: Bearer`, `?token=` (except on the monitor's pages, whose URLs are saved and shared),
//! `?ticket=` (streams only), the WebSocket subprotocol `bearer.<token>`, the cookie. The first one found decides: an invalid
//! token never falls back to another credential.

use std::sync::Arc;

use rocket::http::Method;
use rocket::request::{FromRequest, Outcome, Request};

use super::forwarded::{client_address, is_own_page};
use super::problem::{Kind, Problem};
use super::stream::resumed_from;
use crate::app::Caller;
use crate::auth::{Access, AuthError, Role, Schools};
use crate::config::{HEADERS_MAX_BYTES, QUERY_FIELDS_MAX};
use crate::id::SchoolId;
use crate::rejections::RequestSource;
use crate::service::Tidings;

/// The prefix of a WebSocket subprotocol that carries a token.
const SUBPROTOCOL_PREFIX: &str = "bearer.";

/// The client that opens a stream. The guard does not reject it, because some endpoints accept the connection first and then
/// close it with the reason.
pub(super) struct Listener {
    pub(super) access: Result<Access, Problem>,
    pub(super) source: RequestSource,
}

/// Returns the running Tidings of this application.
pub(super) fn tidings<'r>(request: &'r Request<'_>) -> &'r Arc<Tidings> {
    request
        .rocket()
        .state::<Arc<Tidings>>()
        .expect("the routes are mounted together with their state")
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Caller {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Caller, Problem> {
        let caller = access(request, Purpose::Call)
            .and_then(|access| Ok(Caller::new(access, named_school(request)?)?));
        Problem::outcome(caller)
    }
}

/// The caller of a request that is not about a single school.
pub(super) struct AnySchool(pub(super) Access);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for AnySchool {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<AnySchool, Problem> {
        Problem::outcome(access(request, Purpose::Call).map(AnySchool))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Listener {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Listener, Self::Error> {
        Outcome::Success(Listener {
            access: access(request, Purpose::Stream),
            source: source(request),
        })
    }
}

/// Returns the origin of a request, for the log.
pub(super) fn source(request: &Request<'_>) -> RequestSource {
    RequestSource::new(request.uri().path().as_str(), client_address(request))
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for RequestSource {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<RequestSource, Self::Error> {
        Outcome::Success(source(request))
    }
}

/// The school in `?school_id=`, whether the credential covers it or not.
pub(super) struct NamedSchool(pub(super) Option<SchoolId>);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for NamedSchool {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<NamedSchool, Problem> {
        Problem::outcome(named_school(request).map(NamedSchool))
    }
}

/// Returns the school in `?school_id=`.
pub(super) fn named_school(request: &Request<'_>) -> Result<Option<SchoolId>, Problem> {
    match query(request, "school_id") {
        None => Ok(None),
        Some(text) => {
            let detail = "`school_id` must be a positive integer";
            let school = text.parse::<SchoolId>();
            school
                .map(Some)
                .map_err(|_| Problem::new(Kind::InvalidQuery, detail))
        }
    }
}

/// Rejects headers and queries that are too long to be searched.
pub(super) fn bounded(request: &Request<'_>) -> Result<(), Problem> {
    let headers = request.headers().iter();
    let bytes: usize = headers
        .map(|header| header.name().as_str().len() + header.value().len())
        .sum();
    if bytes > HEADERS_MAX_BYTES {
        let detail =
            format!("the headers have {bytes} bytes; at most {HEADERS_MAX_BYTES} are accepted");
        return Err(Problem::new(Kind::HeadersTooLarge, detail));
    }
    match request.query_fields().nth(QUERY_FIELDS_MAX) {
        None => Ok(()),
        Some(_) => {
            let detail = format!(
                "the query has too many parameters; at most {QUERY_FIELDS_MAX} are accepted"
            );
            Err(Problem::new(Kind::InvalidQuery, detail))
        }
    }
}

/// Returns the first value of a query parameter, decoded.
pub(super) fn query<'r>(request: &'r Request<'_>, name: &str) -> Option<&'r str> {
    request
        .query_fields()
        .find(|field| field.name == name)
        .map(|field| field.value)
}

/// Returns the subprotocols that the client offers.
pub(super) fn subprotocols<'r>(request: &'r Request<'_>) -> impl Iterator<Item = &'r str> {
    request
        .headers()
        .get("Sec-WebSocket-Protocol")
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty())
}

/// Returns the subprotocol for the answer: browsers require one of those that they offered.
pub(super) fn chosen_subprotocol<'r>(request: &'r Request<'_>) -> Option<&'r str> {
    let plain = subprotocols(request).find(|protocol| !protocol.starts_with(SUBPROTOCOL_PREFIX));
    plain.or_else(|| subprotocols(request).next())
}

/// The purpose of a request, which decides where its credential may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A call of the API.
    Call,
    /// A stream.
    Stream,
    /// A page of the monitor.
    Page,
}

/// Returns what the request's credential allows.
pub(super) fn access(request: &Request<'_>, purpose: Purpose) -> Result<Access, Problem> {
    bounded(request)?;
    let tidings = tidings(request);
    let keys = tidings.keys();
    // Ignore other schemes: they may belong to a proxy in front of this server.
    let bearer = request.headers().get("Authorization").find_map(|header| {
        let header = header.trim();
        let (scheme, token) = header.split_once([' ', '\t']).unwrap_or((header, ""));
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    if let Some(token) = bearer {
        return Ok(keys.verify(token.trim())?);
    }
    if let Some(token) = query(request, "token").filter(|_| purpose != Purpose::Page) {
        return Ok(keys.verify(token)?);
    }
    if purpose == Purpose::Stream {
        if let Some(ticket) = query(request, "ticket") {
            let cursor = resumed_from(request).ok().flatten();
            return Ok(keys.verify_ticket(ticket, cursor)?);
        }
        if let Some(token) =
            subprotocols(request).find_map(|protocol| protocol.strip_prefix(SUBPROTOCOL_PREFIX))
        {
            return Ok(keys.verify(token)?);
        }
    }
    // Browsers can attach the cookie to requests of any page. Only our own pages may write or open a WebSocket with it.
    let settings = tidings.settings();
    let acts = !matches!(
        request.method(),
        Method::Get | Method::Head | Method::Options
    );
    let reads_across_origins = request.headers().contains("Upgrade");
    let from_a_foreign_page = (acts || reads_across_origins) && !is_own_page(request);
    let check_origin = || match from_a_foreign_page {
        true => Err(Problem::new(
            Kind::CrossOrigin,
            "`Origin` must be this server's own origin or one of `allowed_origins`",
        )),
        false => Ok(()),
    };
    if let Some(cookie) = request.cookies().get(&settings.cookie_name) {
        check_origin()?;
        return Ok(keys.verify(cookie.value())?);
    }
    let Some(school) = settings.anonymous_school_id else {
        return Err(AuthError::Missing.into());
    };
    // Without a cookie, a page of another origin gains no permissions, so `*` may allow it.
    if !settings.allowed_origins.has_any() {
        check_origin()?;
    }
    Ok(Access {
        subject: "anonymous".into(),
        schools: Schools::One(school),
        role: Role::Viewer,
        channels: None,
        expires_at: None,
        reconnects_until: None,
    })
}
