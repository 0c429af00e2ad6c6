//! `GET /healthz`: the process answers. `GET /readyz`: the database and the dispatcher work.

use std::sync::Arc;

use rocket::{Route, State, get, routes};
use serde_json::json;

use super::contract::Document;
use super::problem::{Kind, Problem};
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![healthz, readyz]
}

/// Returns the route that shows only that the process answers.
pub(super) fn alive() -> Vec<Route> {
    routes![healthz]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Operations";
    document.tag(TAG, "For those who operate the server.");
    let text = || json!({ "type": "string" });
    document.route(routes![healthz], &healthz, |operation| {
        operation
            .named("healthz", TAG, "Say that the process runs")
            .answers(200, "It runs.", "text/plain", text());
    });
    document.route(routes![readyz], &readyz, |operation| {
        operation
            .named(
                "readyz",
                TAG,
                "Say whether the database and the dispatcher work",
            )
            .answers(200, "They work.", "text/plain", text())
            .fails(&[Kind::Unavailable]);
    });
}

#[get("/healthz")]
fn healthz() -> &'static str {
    "ok\n"
}

#[get("/readyz")]
async fn readyz(tidings: &State<Arc<Tidings>>) -> Result<&'static str, Problem> {
    tidings.ready().await?;
    Ok("ready\n")
}
