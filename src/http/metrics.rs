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
use crate::log::consumers::Total;
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

/// How the notifiers stand, all schools together.
fn notifiers(text: &mut String, totals: &[Total]) {
    let mut figure = |name: &str, kind: &str, help: &str, of: fn(&Total) -> u64| {
        head(text, name, kind, help);
        for own in totals {
            let series = format!("tidings_{name}{{notifier=\"{}\"}}", own.name);
            sample(text, &series, of(own) as f64);
        }
    };
    figure(
        "notifier_delivered_total",
        "counter",
        "Events that a notifier has delivered.",
        |own| own.delivered,
    );
    figure(
        "notifier_failed_attempts_total",
        "counter",
        "Attempts of a notifier that failed.",
        |own| own.failed,
    );
    figure(
        "notifier_dead_letters_total",
        "counter",
        "Events that a notifier has given up.",
        |own| own.dead,
    );
    figure(
        "notifier_lag_events",
        "gauge",
        "Events that a notifier has not looked at yet.",
        |own| own.lag,
    );
    figure(
        "notifier_set_aside_subjects",
        "gauge",
        "Subjects whose events wait because the receiver refuses the first of them.",
        |own| own.set_aside,
    );
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
    figure(
        out,
        "reads_waiting",
        "gauge",
        "Requests that wait for their turn to read.",
        store.waiting_reads() as f64,
    );
    figure(
        out,
        "read_windows_total",
        "counter",
        "Windows of rows that were scanned for those that fit.",
        store.windows() as f64,
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
    if let Ok(Ok(totals)) = timeout(READY_WAIT, store.notifier_totals()).await {
        notifiers(out, &totals);
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
    head(
        out,
        "task_panics_total",
        "counter",
        "Panics of the server's own tasks, after which they started again or went on.",
    );
    for (task, panics) in tidings.tasks().panics() {
        let name = format!("tidings_task_panics_total{{task=\"{task}\"}}");
        sample(out, &name, panics as f64);
    }
    let format =
        ContentType::new("text", "plain").with_params([("version", "0.0.4"), ("charset", "utf-8")]);
    Ok((format, text))
}
