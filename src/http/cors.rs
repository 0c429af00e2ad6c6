//! Answers for pages of other origins, if the settings allow them.

use rocket::fairing::{AdHoc, Fairing};
use rocket::http::{Header, Status};
use rocket::{Request, Response, Route};

use super::credential::tidings;

pub(super) fn routes() -> Vec<Route> {
    rocket::routes![preflight]
}

/// The question that browsers ask before a request with a header of its own; the fairing answers it.
#[rocket::options("/<_..>")]
fn preflight() -> Status {
    Status::NoContent
}

/// Only below `base`: an application that we are mounted in has its own mind about its own routes.
pub(super) fn fairing(base: &'static str) -> impl Fairing {
    AdHoc::on_response("Tidings: CORS", move |request, response| {
        Box::pin(async move {
            if request.uri().path().starts_with(base) {
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
    let origin = request.headers().get_one("Origin");
    let Some(origin) = origin.filter(|origin| allowed.iter().any(|allowed| allowed == origin))
    else {
        return;
    };
    response.set_header(Header::new(
        "Access-Control-Allow-Origin",
        origin.to_owned(),
    ));
    response.set_header(Header::new("Access-Control-Allow-Credentials", "true"));
    if request.method() == rocket::http::Method::Options {
        let headers = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID";
        response.set_header(Header::new(
            "Access-Control-Allow-Methods",
            "GET, POST, PUT",
        ));
        response.set_header(Header::new("Access-Control-Allow-Headers", headers));
        response.set_header(Header::new("Access-Control-Max-Age", "600"));
    }
}
