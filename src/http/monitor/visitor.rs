//! The visitor of a page, authenticated by the cookie from signing in or by any other credential.

use rocket::Request;
use rocket::http::{Header, Method, RawStr, Status};
use rocket::request::{FromRequest, Outcome};
use rocket::response::{self, Redirect, Responder, Response};
use serde_json::{Value, json};

use super::page::{Html, Pages};
use super::totals::Totals;
use crate::app::{self, Caller};
use crate::auth::{Access, AuthError, Role, Schools};
use crate::config::RETURN_MAX_BYTES;
use crate::http::base_path;
use crate::http::body::Base;
use crate::http::credential::{self, Purpose};
use crate::http::forwarded::{self, Page};
use crate::http::problem::{Kind as ProblemKind, Problem};
use crate::id::{Channel, Kind, Place, SchoolId};
use crate::log::StoreError;
use crate::service::Tidings;

/// The visitor of a page.
pub(super) struct Visitor {
    credential: Result<Access, Problem>,
    /// Whether the request comes from a page of this server or of an allowed origin: see [`forwarded::is_own_page`].
    pub(super) is_own_page: bool,
    /// Whether the browser used TLS with this server or with the proxy in front of it.
    is_encrypted: bool,
    /// The page to go to after signing in.
    here: String,
    /// The path of our cookies: browsers send them with every request to this server, and not to other services on its host.
    cookie_path: String,
    theme: Option<&'static str>,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Visitor {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Visitor, Self::Error> {
        Outcome::Success(Visitor::of(request))
    }
}

/// A visitor with access to a school.
pub(super) struct Guest {
    pub(super) caller: Caller,
    /// The end of the school's log before anything else was read. The stream delivers what happens after it.
    pub(super) head: Place,
    /// The subject of the page, if it is about one.
    pub(super) at: Option<Channel>,
}

impl Guest {
    /// Whether the visitor may see every subject of a kind.
    pub(super) fn may_see(&self, kind: Kind) -> bool {
        self.caller.authorize(&Channel::Collection(kind)).is_ok()
    }

    /// Whether the visitor may see everything in the school.
    pub(super) fn may_see_all(&self) -> bool {
        let everything = Channel::School(self.caller.school());
        self.caller.authorize(&everything).is_ok()
    }

    /// Returns the school and what the visitor may see of it, for templates.
    pub(super) fn place(&self, base: &str) -> Value {
        place(self.caller.access(), self.caller.school(), base)
    }

    /// Whether the visitor may publish.
    pub(super) fn may_act(&self) -> bool {
        self.caller.require(Role::Worker).is_ok()
    }
}

/// Returns a school for the navigation of its pages.
fn place(access: &Access, school: SchoolId, base: &str) -> Value {
    let kinds = crate::kind::KINDS.iter().copied();
    let seen = kinds.filter(|kind| {
        access
            .authorize(school, &Channel::Collection(*kind))
            .is_ok()
    });
    let sees_all = access.authorize(school, &Channel::School(school)).is_ok();
    let tab = |kind: Kind| {
        json!({
            "collection": kind.collection(),
            "title": crate::kind::description(kind).title,
        })
    };
    json!({
        "id": school,
        "href": format!("{base}/monitor/schools/{school}"),
        "sees": seen.map(tab).collect::<Vec<_>>(),
        // The system page: open streams, and the state of the notifiers.
        "may_look_after": sees_all && access.require(Role::Admin).is_ok(),
    })
}

impl Visitor {
    fn of(request: &Request<'_>) -> Visitor {
        Visitor {
            credential: credential::access(request, Purpose::Page),
            is_own_page: forwarded::is_own_page(request),
            is_encrypted: is_encrypted(request),
            here: here(request),
            cookie_path: match base_path::prefix(request).as_str() {
                "" => "/".into(),
                prefix => prefix.into(),
            },
            theme: theme(request),
        }
    }

    /// Returns how many seconds ago the visitor's token expired, if that is why it is not accepted.
    pub(super) fn expired_secs(&self) -> Option<u32> {
        self.credential.as_ref().err()?.expired_secs()
    }

    /// Returns what the visitor may do. A visitor without a valid token is asked to sign in.
    pub(super) fn access(&self) -> Result<Access, Rejection> {
        match &self.credential {
            Ok(access) => Ok(access.clone()),
            Err(problem) if problem.status() == 401 => Err(Rejection::SignIn {
                next: self.here.clone(),
                why: (!problem.lacks_credential()).then(|| Box::new(problem.clone())),
            }),
            Err(problem) => Err(Rejection::Problem(problem.clone())),
        }
    }

    /// Checks that a form was sent by a page of this server.
    pub(super) fn sent_own_form(&self) -> Result<(), Problem> {
        match self.is_own_page {
            true => Ok(()),
            false => {
                let detail = "this form was sent from another site; open the page on this server and send it from there";
                Err(Problem::new(ProblemKind::CrossOrigin, detail))
            }
        }
    }

    /// Returns the visitor in a school. A school that the credential does not reach is not found.
    pub(super) async fn enter(&self, school: &str, tidings: &Tidings) -> Result<Guest, Rejection> {
        let access = self.access()?;
        let named = school
            .parse()
            .map_err(|_| Problem::from(AuthError::NotFound))?;
        let caller = Caller::new(access, Some(named)).map_err(Problem::from)?;
        let head = tidings.reads().head(&caller).await?;
        Ok(Guest {
            caller,
            head,
            at: None,
        })
    }

    /// Returns the school for the navigation of an error page: the school in the URL if the credential covers it, or else the
    /// only school of the credential.
    fn school_near(&self, request: &Request<'_>) -> Option<(&Access, SchoolId)> {
        let access = self.credential.as_ref().ok()?;
        let mut segments = request.uri().path().raw_segments();
        segments.find(|segment| *segment == "schools");
        let named = segments
            .next()
            .and_then(|segment| segment.as_str().parse().ok());
        let near = named.and_then(|named| access.school(Some(named)).ok());
        let school = near.or_else(|| access.school(None).ok())?;
        Some((access, school))
    }

    /// Returns the values that every template has, and those of `context`.
    pub(super) fn view(&self, base: &Base, context: Value) -> Value {
        let access = self.credential.as_ref().ok();
        let mut view = json!({
            "base": base.0,
            "here": self.here,
            "theme": self.theme,
            "visitor": access.map(|access| json!({
                "name": access.subject,
                "role": access.role,
                "all_schools": access.schools == Schools::All,
            })),
        });
        if let (Some(view), Value::Object(context)) = (view.as_object_mut(), context) {
            view.extend(context);
        }
        view
    }
}

/// Whether the browser used TLS, with this server or with the proxy in front of it. The `Origin` of a form shows this even if
/// the proxy does not.
fn is_encrypted(request: &Request<'_>) -> bool {
    let is_of_https = |page| matches!(page, Page::At(origin) if origin.scheme() == "https");
    forwarded::is_encrypted(request) || is_of_https(forwarded::page(request))
}

/// Returns the page to go to after signing in: the requested page, or the page whose form was sent. Empty if its URL is too
/// long to be passed on.
fn here(request: &Request<'_>) -> String {
    let here = asked_for(request);
    match here.len() {
        0..=RETURN_MAX_BYTES => here,
        _ => String::new(),
    }
}

fn asked_for(request: &Request<'_>) -> String {
    if request.method() == Method::Get {
        let prefix = base_path::prefix(request);
        return format!(
            "{}{}",
            prefix.as_str(),
            without_credentials(&request.uri().to_string())
        );
    }
    let referer = request.headers().get_one("Referer").unwrap_or_default();
    let after_host = referer
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('/'));
    after_host.map_or(String::new(), |(_, path)| {
        without_credentials(&format!("/{path}"))
    })
}

/// Returns a URL that is safe to pass on: without the credentials in its query.
fn without_credentials(address: &str) -> String {
    let Some((path, query)) = address.split_once('?') else {
        return address.to_owned();
    };
    let is_open = |part: &&str| {
        let name = part.split('=').next().unwrap_or_default();
        let name = RawStr::new(name).percent_decode_lossy();
        !matches!(&*name, "token" | "ticket")
    };
    let open_parts: Vec<&str> = query.split('&').filter(is_open).collect();
    match open_parts.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", open_parts.join("&")),
    }
}

/// Why a page cannot be shown.
pub(super) enum Rejection {
    /// The visitor is not signed in.
    SignIn {
        /// The page to go to after signing in.
        next: String,
        /// Why the credential in the request was rejected, if there was one.
        why: Option<Box<Problem>>,
    },
    /// Any other problem. The catcher renders it as a page.
    Problem(Problem),
}

impl From<Problem> for Rejection {
    fn from(problem: Problem) -> Rejection {
        Rejection::Problem(problem)
    }
}

impl From<app::Rejected> for Rejection {
    fn from(error: app::Rejected) -> Rejection {
        Rejection::from(Problem::from(error))
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Rejection {
        Rejection::Problem(error.into())
    }
}

impl<'r> Responder<'r, 'static> for Rejection {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let Base(base) = &Base::of(request);
        match self {
            Rejection::SignIn { next, why } => {
                if let Some(problem) = why {
                    problem.note(credential::tidings(request), &credential::source(request));
                }
                let next = RawStr::new(&next).percent_encode();
                Redirect::to(format!("{base}/monitor/sign-in?next={next}")).respond_to(request)
            }
            Rejection::Problem(problem) => {
                problem.note(credential::tidings(request), &credential::source(request));
                let status = Status::new(problem.status());
                request.local_cache(|| Rejected(Some(problem)));
                Err(status)
            }
        }
    }
}

/// The problem with which a handler rejected the request, for the catcher.
struct Rejected(Option<Problem>);

/// Returns the detail of a problem as a sentence. The name of a field at its beginning, in backquotes, stays as it is.
fn sentence(detail: &str) -> String {
    let mut rest = detail.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string());
    let end = if detail.ends_with('.') { "" } else { "." };
    format!("{}{}{end}", first.unwrap_or_default(), rest.as_str())
}

/// The page for a request that was rejected, by a handler or by the framework.
pub(super) struct RejectionPage {
    page: Html,
    /// The methods that the URL supports, if the method is the fault.
    allow: Option<String>,
    retry_after_secs: Option<u32>,
}

impl RejectionPage {
    pub(super) async fn new(
        request: &Request<'_>,
        base: &str,
        status: Status,
        allow: Option<String>,
    ) -> RejectionPage {
        let Rejected(problem) = request.local_cache(|| Rejected(None));
        let visitor = Visitor::of(request);
        let near = visitor.school_near(request);
        let detail = problem
            .as_ref()
            .map_or(status.reason_lossy(), Problem::detail);
        // After a rejected form, link back to its page.
        let is_form = request.method() == Method::Post;
        let back = is_form.then(|| own_address(&Base(base.to_owned()), &visitor.here));
        let mut context = json!({
            "status": status.code,
            "detail": sentence(detail),
            "back": back,
            // Leave the URL out: the pages of all missing URLs must be the same.
            "here": null,
            "tab": "",
            "wrong": match near {
                // Do not read the counts after a server error: the database may be the cause.
                Some((access, school)) if status.code < 500 => {
                    let totals = Totals::read(credential::tidings(request), access, school).await;
                    totals.ok().and_then(|totals| totals.wrong_view())
                }
                _ => None,
            },
        });
        if let Some((access, school)) = near {
            context["school"] = place(access, school, base);
        }
        let view = visitor.view(&Base(base.to_owned()), context);
        let pages = request.rocket().state::<Pages>();
        let pages = pages.expect("the pages are mounted together with their state");
        RejectionPage {
            page: pages.render("problem.html", &view).with_status(status),
            allow,
            retry_after_secs: problem.as_ref().and_then(Problem::retry_after_secs),
        }
    }
}

impl<'r> Responder<'r, 'static> for RejectionPage {
    fn respond_to(self, request: &'r Request<'_>) -> response::Result<'static> {
        let mut response = self.page.respond_to(request)?;
        if let Some(methods) = self.allow {
            response.set_raw_header("Allow", methods);
        }
        if let Some(secs) = self.retry_after_secs {
            response.set_raw_header("Retry-After", secs.to_string());
        }
        Ok(response)
    }
}

/// A redirect that sets or clears the cookie.
pub(super) struct WithCookie {
    /// A `Set-Cookie` header; none if empty.
    pub(super) cookie: String,
    pub(super) to: String,
}

impl<'r> Responder<'r, 'static> for WithCookie {
    fn respond_to(self, _: &'r Request<'_>) -> response::Result<'static> {
        let mut response = Response::build();
        response
            .status(Status::SeeOther)
            .header(Header::new("Location", self.to))
            .header(Header::new("Cache-Control", "no-store"));
        if !self.cookie.is_empty() {
            response.header(Header::new("Set-Cookie", self.cookie));
        }
        response.ok()
    }
}

/// Returns the cookie with the token. The token was verified, so all its characters are valid in a cookie (RFC 6265).
pub(super) fn token_cookie(tidings: &Tidings, visitor: &Visitor, token: &str) -> String {
    let name = &tidings.settings().cookie_name;
    let secure = if visitor.is_encrypted { "; Secure" } else { "" };
    let path = &visitor.cookie_path;
    format!("{name}={token}; Path={path}; HttpOnly; SameSite=Lax{secure}")
}

pub(super) fn cleared_cookie(tidings: &Tidings, visitor: &Visitor) -> String {
    let name = &tidings.settings().cookie_name;
    let path = &visitor.cookie_path;
    format!("{name}=; Path={path}; HttpOnly; SameSite=Lax; Max-Age=0")
}

/// The cookie with the visitor's theme.
const THEME_COOKIE: &str = "tidings_theme";
const THEMES: [&str; 2] = ["light", "dark"];
/// How long browsers keep the theme: a year.
const THEME_SECS: u32 = 365 * 86_400;

fn known_theme(name: &str) -> Option<&'static str> {
    THEMES.into_iter().find(|theme| *theme == name)
}

fn theme(request: &Request<'_>) -> Option<&'static str> {
    known_theme(request.cookies().get(THEME_COOKIE)?.value())
}

/// Returns the cookie for a theme. An unknown name clears it, which selects the system's theme.
pub(super) fn theme_cookie(visitor: &Visitor, name: &str) -> String {
    let path = &visitor.cookie_path;
    let (theme, age_secs) = known_theme(name).map_or(("", 0), |theme| (theme, THEME_SECS));
    format!("{THEME_COOKIE}={theme}; Path={path}; HttpOnly; SameSite=Lax; Max-Age={age_secs}")
}

/// Returns a URL if it is one of our pages, or else that of the monitor: an open redirect would be abused.
pub(super) fn own_address(base: &Base, next: &str) -> String {
    let pages = format!("{}/monitor", base.0);
    let plain = next
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_own = next == pages || next.starts_with(&format!("{pages}/"));
    if plain && is_own {
        next.to_owned()
    } else {
        pages
    }
}
