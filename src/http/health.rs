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
    let text = |example| json!({ "type": "string", "examples": [example] });
    document.route(routes![healthz], &healthz, |operation| {
        operation
            .named("healthz", TAG, "Say that the process runs")
            .answers(200, "It runs.", "text/plain", text(ALIVE));
    });
    document.route(routes![readyz], &readyz, |operation| {
        operation
            .named(
                "readyz",
                TAG,
                "Say whether the database and the dispatcher work",
            )
            .answers(200, "They work.", "text/plain", text(READY))
            .fails(&[Kind::Unavailable]);
    });
}

/// The answer of a process that runs.
const ALIVE: &str = "ok\n";
/// The answer of a server that works.
const READY: &str = "ready\n";

#[get("/healthz")]
fn healthz() -> &'static str {
    ALIVE
}

#[get("/readyz")]
async fn readyz(tidings: &State<Arc<Tidings>>) -> Result<&'static str, Problem> {
    tidings.ready().await?;
    Ok(READY)
}
