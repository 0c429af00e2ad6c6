//! `GET /metrics`: the server's own figures in the text format of Prometheus, for administrators of all schools.

use std::fmt::Write;
use std::sync::Arc;

use chrono::Utc;
use rocket::http::ContentType;
use rocket::{Route, State, get, routes};
use tokio::time::timeout;

use super::credential::Anybody;
use super::problem::Problem;
use crate::auth::AuthError;
use crate::config::READY_WAIT;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![metrics]
}

/// A figure that goes up and down, or only up.
fn figure(text: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    head(text, name, kind, help);
    sample(text, &format!("tidings_{name}"), value);
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(
        text,
        "# HELP tidings_{name} {help}\n# TYPE tidings_{name} {kind}"
    )
    .expect("a string takes all");
}

fn sample(text: &mut String, name: &str, value: f64) {
    writeln!(text, "{name} {value}").expect("a string takes all");
}

/// They concern all schools: only administrators of all schools may see them.
#[get("/metrics")]
async fn metrics(
    caller: Result<Anybody, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<(ContentType, String), Problem> {
    let Anybody(access) = caller?;
    if !access.looks_after_all() {
        return Err(AuthError::NotForAll.into());
    }
    let (hub, vitals, store) = (tidings.hub(), tidings.vitals(), tidings.store());
    let meter = store.meter().peek();
    let (by_transport, _) = hub.connections(None, 0, 0);
    let mut text = String::with_capacity(4_096);
    let out = &mut text;
    figure(
        out,
        "events_committed_total",
        "counter",
        "Events committed.",
        meter.events as f64,
    );
    figure(
        out,
        "commits_total",
        "counter",
        "Commits of at least one event.",
        meter.commits as f64,
    );
    figure(
        out,
        "commit_seconds_total",
        "counter",
        "Time from taking a group up to its commit, in all.",
        meter.commit_micros as f64 / 1e6,
    );
    figure(
        out,
        "dispatch_backlog_batches",
        "gauge",
        "Committed batches that were not handed to the streams yet.",
        tidings.undispatched() as f64,
    );
    head(out, "streams", "gauge", "Open streams, by transport.");
    for (transport, count) in &by_transport {
        sample(
            out,
            &format!("tidings_streams{{transport=\"{transport}\"}}"),
            *count as f64,
        );
    }
    let most = tidings.settings().max_streams;
    figure(
        out,
        "streams_max",
        "gauge",
        "Streams that may be open.",
        most as f64,
    );
    figure(
        out,
        "schools_in_memory",
        "gauge",
        "Schools that are in use.",
        hub.schools() as f64,
    );
    // The other figures are told all the more when the database has trouble.
    if let Ok(Ok(bytes)) = timeout(READY_WAIT, store.size()).await {
        figure(
            out,
            "database_bytes",
            "gauge",
            "Size of the database.",
            bytes as f64,
        );
    }
    let uptime = (Utc::now() - vitals.since()).num_milliseconds() as f64 / 1e3;
    figure(
        out,
        "uptime_seconds",
        "gauge",
        "Time since the start.",
        uptime,
    );
    head(
        out,
        "refusals_total",
        "counter",
        "Requests, lines of batches and client messages that were refused, by the code of the problem and the setting that was reached.",
    );
    for ((code, limit), count) in vitals.refusals() {
        let limit = limit.unwrap_or_default();
        let name = format!("tidings_refusals_total{{code=\"{code}\",limit=\"{limit}\"}}");
        sample(out, &name, count as f64);
    }
    let format =
        ContentType::new("text", "plain").with_params([("version", "0.0.4"), ("charset", "utf-8")]);
    Ok((format, text))
}
