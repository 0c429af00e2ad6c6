//! `/monitor`: the built-in pages, rendered on the server. They work without JavaScript. They show what the visitor's
//! credential covers, which is checked as for every other client.

mod assets;
mod characteristic;
mod chart;
mod compression;
mod device;
pub(super) mod embed;
mod endings;
mod form;
mod job;
mod lists;
mod page;
mod rows;
mod school;
mod system;
mod totals;
mod uptime;
mod visitor;

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use rocket::form::Form;
use rocket::http::Status;
use rocket::response::Redirect;
use rocket::{Build, FromForm, Request, Rocket, Route, State, get, post, routes};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use self::assets::Assets;
use self::form::time;
use self::page::{Html, Pages};
use self::visitor::{Rejection, RejectionPage, Visitor, cleared_cookie, token_cookie};
use super::base_path;
use super::body::Base;
use super::contract::Document;
use super::methods;
use super::problem::Problem;
use crate::auth::{AuthError, Schools};
use crate::config::MONITOR_SCHOOLS;
use crate::id::SchoolId;
use crate::rejections::RequestSource;
use crate::service::Tidings;

/// How often the pages refresh data for which there are no events, in seconds.
const RENEW_SECS: u64 = 3;

pub(super) fn routes() -> Vec<Route> {
    let mut all = routes![index, sign_in, enter, leave, look, assets::asset];
    all.extend(school::routes());
    all.extend(lists::routes());
    all.extend(job::routes());
    all.extend(device::routes());
    all.extend(characteristic::routes());
    all.extend(system::routes());
    all
}

/// Describes the pages.
pub(super) fn describe(document: &mut Document) {
    let forms = [
        ("enter", fields::<SignIn<'_>>()),
        ("look", fields::<Look<'_>>()),
        ("cancel", fields::<job::Ending>()),
        ("acknowledge", fields::<characteristic::Reason<'_>>()),
    ];
    let public = ["sign_in", "enter", "leave", "look", "asset"];
    document.pages("Monitor", "Pages for people.", &routes(), &forms, &public);
}

/// Returns the schema of a form.
fn fields<T: JsonSchema>() -> Value {
    T::json_schema(&mut SchemaGenerator::default()).to_value()
}

/// Mounts the state and the error pages of the monitor. If `has_home`, also redirects `base` to the monitor.
pub(super) fn mount(rocket: Rocket<Build>, base: &str, has_home: bool) -> Rocket<Build> {
    let assets = Assets::new();
    let pages = Pages::new(&assets);
    let rocket = match has_home {
        true => rocket.mount(base, home()),
        false => rocket,
    };
    let root = format!("{}/monitor", base.trim_end_matches('/'));
    rocket
        .manage(pages)
        .manage(assets)
        .attach(embed::fairing(base))
        .register(root, rocket::catchers![catch])
}

/// Returns the route that redirects to the monitor.
fn home() -> Vec<Route> {
    routes![to_the_pages]
}

#[get("/")]
fn to_the_pages(base: Base) -> Redirect {
    Redirect::to(format!("{}/monitor", base.0))
}

/// A token, and the page to go to after signing in.
#[derive(FromForm, JsonSchema)]
#[schemars(example = serde_json::json!({ "token": "eyJ…", "next": "/monitor" }))]
struct SignIn<'r> {
    /// A token.
    token: &'r str,
    /// The page to go to.
    next: &'r str,
}

/// Redirects to the school of the token, or offers a choice of schools.
#[get("/monitor?<after>")]
async fn index(
    after: Option<i64>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Result<Html, Redirect>, Rejection> {
    let access = visitor.access()?;
    let address = |school: SchoolId| format!("{}/monitor/schools/{school}", base.0);
    let mut rows = Vec::new();
    let after = after.map(SchoolId::try_from).transpose();
    let after = after.map_err(|_| Problem::from(AuthError::NotFound))?;
    if let Schools::One(school) = &access.schools {
        return Ok(Err(Redirect::to(address(*school))));
    }
    let reads = tidings.reads();
    let schools = reads.schools(&access, after, MONITOR_SCHOOLS).await?;
    let last = schools.last().filter(|_| schools.len() == MONITOR_SCHOOLS);
    let next = last.map(|last| format!("{}/monitor?after={last}", base.0));
    let totals = totals::Totals::of_schools(tidings, &access, schools.clone()).await?;
    for (school, totals) in schools.into_iter().zip(totals) {
        rows.push(json!({
            "id": school,
            "href": address(school),
            "totals": totals.view(),
        }));
    }
    let now = Utc::now();
    let context = json!({
        "schools": rows,
        "next": next,
        "first": after.is_some().then(|| format!("{}/monitor", base.0)),
        "system": access.is_unrestricted_admin().then(|| format!("{}/monitor/system", base.0)),
        "renew_secs": RENEW_SECS,
        "rendered_at": crate::wire::timestamp(now),
        "as_of": time(now, now),
    });
    Ok(Ok(
        pages.render("schools.html", &visitor.view(&base, context))
    ))
}

#[get("/monitor/sign-in?<next>")]
fn sign_in(next: Option<&str>, visitor: Visitor, base: Base, pages: &State<Pages>) -> Html {
    let problem = visitor.expired_secs().map(expired);
    let context = json!({ "next": next.unwrap_or_default(), "problem": problem });
    let view = visitor.view(&base, context);
    pages.render("sign-in.html", &view)
}

/// Returns the message that a token has expired, and when.
fn expired(ago_secs: u32) -> String {
    let now = Utc::now();
    let at = now - TimeDelta::seconds(ago_secs.into());
    let (ago, written) = (form::relative(at - now), form::written(at, now));
    format!("Your token expired {ago} ({written}). Sign in with a new one.")
}

/// Stores a valid token in a cookie that scripts cannot read.
#[post("/monitor/sign-in", data = "<form>")]
fn enter(
    form: Form<SignIn<'_>>,
    visitor: Visitor,
    source: RequestSource,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<visitor::WithCookie, Html> {
    let SignIn { token, next } = form.into_inner();
    let rejected = |problem: &str| {
        let view = visitor.view(&base, json!({ "next": next, "problem": problem }));
        let page = pages.render("sign-in.html", &view);
        page.with_status(Status::Unauthorized)
    };
    if !visitor.is_own_page {
        return Err(rejected(
            "This form was sent from another site. Sign in here.",
        ));
    }
    let token = token.trim();
    match tidings.keys().verify(token) {
        Ok(_) => Ok(visitor::WithCookie {
            cookie: token_cookie(tidings, &visitor, token),
            to: visitor::own_address(&base, next),
        }),
        Err(error) => {
            let problem = Problem::from(error);
            problem.note(tidings, &source);
            let why = problem.expired_secs().map(expired);
            let why = why.unwrap_or_else(|| format!("Signing in failed: {}.", problem.detail()));
            Err(rejected(&why))
        }
    }
}

#[post("/monitor/sign-out")]
fn leave(visitor: Visitor, base: Base, tidings: &State<Arc<Tidings>>) -> visitor::WithCookie {
    let to = format!("{}/monitor/sign-in", base.0);
    // Another site must not be able to sign the visitor out.
    let cookie = match visitor.is_own_page {
        true => cleared_cookie(tidings, &visitor),
        false => String::new(),
    };
    visitor::WithCookie { cookie, to }
}

/// The theme: light, dark, or that of the system.
#[derive(FromForm, JsonSchema)]
#[schemars(example = serde_json::json!({ "theme": "dark", "next": "/monitor" }))]
struct Look<'r> {
    /// `light` or `dark`; anything else means the theme of the system.
    theme: &'r str,
    /// The page to go to.
    next: &'r str,
}

#[post("/monitor/look", data = "<form>")]
fn look(form: Form<Look<'_>>, visitor: Visitor, base: Base) -> visitor::WithCookie {
    visitor::WithCookie {
        cookie: match visitor.is_own_page {
            true => visitor::theme_cookie(&visitor, form.theme),
            false => String::new(),
        },
        to: visitor::own_address(&base, form.next),
    }
}

/// Renders errors below `/monitor`, from the framework or from a handler, as pages.
#[rocket::catch(default)]
async fn catch(status: Status, request: &Request<'_>) -> RejectionPage {
    // A catcher has no mount point: the base follows from the path.
    let path = request.uri().path().as_str();
    let mounted = path.split_once("/monitor").map_or("", |(base, _)| base);
    let prefix = base_path::prefix(request);
    let allow = methods::instead(request, status);
    let status = match &allow {
        Some(_) => Status::MethodNotAllowed,
        None if methods::is_unknown_method(request, status) => Status::NotFound,
        None => status,
    };
    let base = format!("{}{mounted}", prefix.as_str());
    RejectionPage::new(request, &base, status, allow).await
}
