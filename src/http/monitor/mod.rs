//! `/monitor`: the built-in pages, rendered on the server. They are complete without JavaScript, and read what
//! everybody else reads: the store, through the same credentials.

mod assets;
mod chart;
mod form;
mod page;
mod school;
mod visitor;

use std::sync::Arc;

use rocket::form::Form;
use rocket::http::Status;
use rocket::response::Redirect;
use rocket::{FromForm, Route, State, get, post, routes};
use serde_json::json;

use self::assets::Assets;
use self::page::{Html, Pages};
use self::visitor::{Refusal, Visitor, cleared_cookie, token_cookie};
use super::body::Base;
use crate::config::MONITOR_SCHOOLS;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    let mut all = routes![index, sign_in, enter, leave, assets::asset];
    all.extend(school::routes());
    all
}

/// A token, and where its bearer wanted to go.
#[derive(FromForm)]
struct SignIn<'r> {
    token: &'r str,
    next: &'r str,
}

/// The school of the token, or the choice of one.
#[get("/monitor")]
async fn index(
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Result<Html, Redirect>, Refusal> {
    let access = visitor.access()?;
    let address = |school| format!("{}/monitor/schools/{school}", base.0);
    if let Some(school) = access.school {
        return Ok(Err(Redirect::to(address(school))));
    }
    let mut rows = Vec::new();
    for school in tidings.store().schools(None, MONITOR_SCHOOLS).await? {
        rows.push(json!({
            "id": school,
            "href": address(school),
            "totals": school::totals(tidings, &access, school).await?,
        }));
    }
    let view = visitor.view(&base, json!({ "schools": rows }));
    Ok(Ok(pages.render("schools.html", &view)))
}

#[get("/monitor/sign-in?<next>")]
fn sign_in(next: Option<&str>, visitor: Visitor, base: Base, pages: &State<Pages>) -> Html {
    let view = visitor.view(&base, json!({ "next": next.unwrap_or_default() }));
    pages.render("sign-in.html", &view)
}

/// Keeps a token that is good in a cookie that no script can read.
#[post("/monitor/sign-in", data = "<form>")]
fn enter(
    form: Form<SignIn<'_>>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<visitor::SignedIn, Html> {
    let SignIn { token, next } = form.into_inner();
    let refused = |problem: &str| {
        let view = visitor.view(&base, json!({ "next": next, "problem": problem }));
        let page = pages.render("sign-in.html", &view);
        page.with_status(Status::Unauthorized)
    };
    if !visitor.is_own_page {
        return Err(refused("This form was sent by another site."));
    }
    let token = token.trim();
    match tidings.keys().verify(token) {
        Ok(_) => Ok(visitor::SignedIn {
            cookie: token_cookie(tidings, token, visitor.is_encrypted),
            to: visitor::own_address(&base, next),
        }),
        Err(error) => Err(refused(&format!("That did not work: {error}."))),
    }
}

#[post("/monitor/sign-out")]
fn leave(visitor: Visitor, base: Base, tidings: &State<Arc<Tidings>>) -> visitor::SignedIn {
    let to = format!("{}/monitor/sign-in", base.0);
    // Another site must not sign anybody out.
    let cookie = match visitor.is_own_page {
        true => cleared_cookie(tidings),
        false => String::new(),
    };
    visitor::SignedIn { cookie, to }
}

/// What the pages need to be managed by the application.
pub(super) fn state() -> (Pages, Assets) {
    let assets = Assets::new();
    (Pages::new(&assets), assets)
}
