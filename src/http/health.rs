//! `GET /healthz`: the process answers. `GET /readyz`: the database and the dispatcher work.

use std::sync::Arc;

use rocket::{Route, State, get, routes};

use super::problem::Problem;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![healthz, readyz]
}

/// Returns the route that shows only that the process answers.
pub(super) fn alive() -> Vec<Route> {
    routes![healthz]
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
