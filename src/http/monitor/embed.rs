//! `/embed/<scope>`: jobs in a frame of another page, live, by a signed link.
//!
//! The page consists of an element of the JavaScript client. For each connection, the element requests a ticket from the
//! page's own URL (`POST`), which opens streams of the link's channel only. So the stream's URL does not contain the
//! signature, and an open page stops when its link expires. No cookie is read, because the frame is on another site.

use std::sync::Arc;

use rocket::fairing::{AdHoc, Fairing};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, post, routes};
use serde_json::json;

use super::assets::{Assets, Loaded};
use super::page::{Html, Pages};
use crate::app::Caller;
use crate::auth::{AuthError, View};
use crate::http::body::{Base, Json, Unread};
use crate::http::contract::{Document, Operation, Part};
use crate::http::credential::query;
use crate::http::links::Signed;
use crate::http::parameters::EMBEDDED;
use crate::http::problem::{Kind, Problem};
use crate::http::stream::ChannelPath;
use crate::http::tickets;
use crate::id::Channel;
use crate::rejections::RequestSource;
use crate::service::Tidings;

pub(in crate::http) fn routes() -> Vec<Route> {
    routes![page, ticket, file]
}

pub(in crate::http) fn describe(document: &mut Document) {
    const TAG: &str = "Embedded pages";
    const PAGE: &str = "text/html";
    document.tag(TAG, "Jobs in a frame of another page, by a signed link.");
    let scopes = ["/jobs", "/jobs/{job_id}"].map(str::to_owned);
    let name = |rest: &str| match rest {
        "/jobs" => "jobs",
        _ => "job",
    };
    let text = || json!({ "type": "string" });
    document.rests(routes![page], &page, &scopes, |rest, operation| {
        if rest == "/jobs" {
            operation.queries(EMBEDDED);
        }
        operation
            .named(format!("embed.{}", name(rest)), TAG, "Page for a frame")
            .about("The setting `frame_ancestors` names the origins whose pages can show it.")
            .answers(200, "The page.", PAGE, text())
            .answers(
                400,
                "A page that says that the link is not complete.",
                PAGE,
                text(),
            )
            .answers(
                403,
                "A page that says that the link is not valid, or has expired.",
                PAGE,
                text(),
            )
            .answers(
                431,
                "A page that says that the headers are too large.",
                PAGE,
                text(),
            );
    });
    document.rests(routes![ticket], &ticket, &scopes, |rest, operation| {
        tickets::describe_ticket(operation);
        operation
            .named(
                format!("embed.{}.ticket", name(rest)),
                TAG,
                "Ticket for the page",
            )
            .fails(&[
                Kind::InvalidQuery,
                Kind::HeadersTooLarge,
                Kind::Forbidden,
                Kind::NotFound,
                Kind::Internal,
            ]);
    });
    document.route(routes![file], &file, |operation| {
        operation
            .named("embed.file", TAG, "A file that the page loads")
            .answers(200, "The file.", "*/*", text())
            .fails(&[Kind::NotFound]);
    });
}

/// Removes the `X-Frame-Options` that Rocket adds, which allows frames only on the server's own pages. The Content Security
/// Policy of an embedded page names the pages that may show it. Current browsers then ignore the header; older ones, and
/// proxies, may not.
pub(super) fn fairing(base: &str) -> impl Fairing {
    let below = format!("{}/embed/", base.trim_end_matches('/'));
    AdHoc::on_response("Tidings: frames", move |request, response| {
        let is_ours = request.uri().path().as_str().starts_with(&below);
        if is_ours && response.headers().get_one("X-Frame-Options") == Some("SAMEORIGIN") {
            response.remove_header("X-Frame-Options");
        }
        Box::pin(async {})
    })
}

/// What a list of jobs is limited to.
struct Limits {
    job_type: Option<String>,
    status: Option<String>,
    limit: Option<String>,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Limits {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Limits, Self::Error> {
        let text = |name: &str| query(request, name).map(str::to_owned);
        Outcome::Success(Limits {
            job_type: text("job_type"),
            status: text("status"),
            limit: text("limit"),
        })
    }
}

impl Part for Limits {
    // Only the page of a list reads them: see `describe` above.
    fn describe(_: &mut Operation<'_>) {}
}

#[get("/embed/<path..>")]
fn page(
    path: ChannelPath,
    signed: Result<Signed, Problem>,
    limits: Limits,
    source: RequestSource,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Html {
    let opened = signed.and_then(|signed| {
        let (_, link) = signed.access(tidings, View::Embed, &path.0)?;
        Ok((signed, link))
    });
    let page = match opened {
        Ok((signed, link)) => {
            let job = match &link.channel {
                Channel::Subject(_, id) => Some(id.as_str()),
                Channel::Collection(_) | Channel::School(_) => None,
            };
            let view = json!({
                "base": base.0,
                "title": job.unwrap_or("Jobs"),
                "job": job,
                "tickets": signed.query(),
                "job_type": limits.job_type,
                "status": limits.status,
                "limit": limits.limit,
            });
            pages.render("embed.html", &view)
        }
        Err(problem) => {
            problem.note(tidings, &source);
            let detail = problem.detail();
            let view = json!({ "base": base.0, "title": problem.title(), "problem": detail });
            let page = pages.render("embed.html", &view);
            page.with_status(Status::new(problem.status()))
        }
    };
    page.framed_by(&tidings.settings().frame_ancestors)
}

/// Issues a ticket for a connection of the page.
#[post("/embed/<path..>", data = "<body>")]
async fn ticket(
    path: ChannelPath,
    signed: Result<Signed, Problem>,
    body: Result<Unread<'_>, Problem>,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let (access, _) = signed?.access(tidings, View::Embed, &path.0)?;
    let caller = Caller::new(access, None)?;
    let body = body?.read(tidings.settings().body_limit()).await?;
    tickets::issue(&caller, &body, &base, tidings)
}

#[get("/embed-files/<file>")]
fn file(file: &str, assets: &State<Assets>) -> Result<Loaded, Problem> {
    assets.file(file).ok_or_else(|| AuthError::NotFound.into())
}
