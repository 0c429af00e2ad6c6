//! The state of the server. An administrator of one school sees what concerns that school; an unrestricted admin sees
//! everything.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rocket::{Route, State, get, routes};
use serde_json::{Value, json};

use super::RENEW_SECS;
use super::chart::spark;
use super::form::{bytes, count, millis, span_secs, time};
use super::page::{Html, Pages};
use super::school;
use super::visitor::{Rejection, Visitor};
use crate::app::WholeServer;
use crate::auth::{AuthError, Role};
use crate::cluster::is_running;
use crate::config::{METRICS_MEAN_SECS, METRICS_SECS, MONITOR_CHANNELS, MONITOR_CONNECTIONS};
use crate::http::body::Base;
use crate::http::notifiers;
use crate::http::problem::Problem;
use crate::hub::Connection;
use crate::id::SchoolId;
use crate::log::StoreError;
use crate::log::consumers::Total;
use crate::log::nodes::Node;
use crate::metrics::Second;
use crate::service::Tidings;

/// How many seconds a row of the table next to the charts covers.
const TABLE_PART_SECS: usize = 30;

pub(super) fn routes() -> Vec<Route> {
    routes![of_school, of_server]
}

#[get("/monitor/schools/<school>/system")]
async fn of_school(
    school: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    let of = tidings.reads().notifiers_of(&guest.caller);
    let of = of.map_err(Problem::from)?;
    let mut context = listeners(tidings, Some(guest.caller.school()));
    context["notifiers"] = json!(notifiers::of_school(tidings, of).await?);
    context["head"] = count(tidings.reads().head(&guest.caller).await?.seq).into();
    context["renew_secs"] = RENEW_SECS.into();
    let view = school::view(&visitor, &guest, &base, tidings, "system", context).await?;
    Ok(pages.render("system.html", &view))
}

#[get("/monitor/system")]
async fn of_server(
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let access = visitor.access()?;
    access.require(Role::Admin).map_err(Problem::from)?;
    // For an administrator of one school, the page of the whole server does not exist.
    let of = tidings.reads().whole_server(&access);
    let of = of.map_err(|_| Problem::from(AuthError::NotFound))?;
    let mut context = listeners(tidings, None);
    context["server"] = server(tidings, of).await?;
    let totals = tidings.reads().store(of).notifier_totals().await?;
    context["notifier_totals"] = totals.iter().map(notifier).collect();
    context["nodes"] = nodes(tidings);
    context["renew_secs"] = RENEW_SECS.into();
    let now = Utc::now();
    context["rendered_at"] = crate::wire::timestamp(now).into();
    context["as_of"] = time(now, now);
    Ok(pages.render("system.html", &visitor.view(&base, context)))
}

fn listeners(tidings: &Tidings, school: Option<SchoolId>) -> Value {
    let now = Utc::now();
    let (by_transport, connections) =
        tidings
            .hub()
            .connections(school, MONITOR_CONNECTIONS, MONITOR_CHANNELS);
    let all: usize = by_transport.values().sum();
    json!({
        "transports": by_transport
            .iter()
            .map(|(name, number)| json!({"name": name, "count": count(*number as u64)}))
            .collect::<Vec<_>>(),
        "streams": count(all as u64),
        "more": count((all - connections.len()) as u64),
        "connections": connections.iter().map(|open| connection(open, now)).collect::<Vec<_>>(),
    })
}

fn connection(connection: &Connection, now: DateTime<Utc>) -> Value {
    let more = connection.channel_count - connection.channels.len();
    let behind = connection.depth.oldest.map(|oldest| now - oldest);
    json!({
        "school": connection.school,
        "user": &*connection.reader.user,
        "transport": connection.reader.transport,
        "since": time(connection.since, now),
        "channels": connection.channels.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "more": more,
        "depth": connection.depth.events,
        "lagging": connection.depth.lagging,
        "behind_ms": behind.map_or(0, |behind| behind.num_milliseconds().max(0)),
    })
}

fn nodes(tidings: &Tidings) -> Value {
    let now = Utc::now();
    let (id, all) = (tidings.cluster().id(), tidings.cluster().nodes());
    let node = |node: &Node| {
        let report = &node.report;
        json!({
            "name": report.name,
            "id": report.id.as_str(),
            "is_own": report.id == *id,
            "address": report.address,
            "version": report.version,
            "since": time(node.since, now),
            "streams": count(report.streams),
            "events": format!("{:.1}", report.events_per_sec),
            "lag": count(report.lag),
            "bus": report.bus,
            "is_running": is_running(node),
            "seen_at": time(node.seen_at, now),
        })
    };
    all.iter().map(node).collect()
}

fn notifier(total: &Total) -> Value {
    json!({
        "name": total.name,
        "lag": count(total.lag),
        "set_aside": count(total.set_aside),
        "delivered": count(total.delivered),
        "failed": count(total.failed),
        "dead": count(total.dead),
    })
}

/// Returns a row of the table: the values of consecutive seconds. `index` counts back from now.
fn part((index, seconds): (usize, &[Second])) -> Value {
    let events: u64 = seconds.iter().map(|second| second.events).sum();
    let slowest = seconds.iter().map(|second| second.slowest_micros).max();
    json!({
        "secs": index * TABLE_PART_SECS,
        "events": format!("{:.1}", events as f64 / seconds.len().max(1) as f64),
        "streams": seconds.last().map(|second| second.streams),
        "slowest": millis(slowest.unwrap_or(0)),
    })
}

async fn server(tidings: &Tidings, of: WholeServer) -> Result<Value, StoreError> {
    let settings = tidings.settings();
    let metrics = tidings.metrics();
    let seconds = metrics.seconds();
    let chart = |name: &str, title: &str, of: fn(&Second) -> f64| {
        let values: Vec<f64> = seconds.iter().map(of).collect();
        spark(name, title, &values, METRICS_SECS)
    };
    let lately = &seconds[seconds.len().saturating_sub(METRICS_MEAN_SECS)..];
    let events: u64 = lately.iter().map(|second| second.events).sum();
    let commits: u64 = lately.iter().map(|second| second.commits).sum();
    let micros: u64 = lately
        .iter()
        .map(|second| second.commit_micros * second.commits)
        .sum();
    let slowest = lately.iter().map(|second| second.slowest_micros).max();
    let per_second = metrics.events_per_sec();
    let group = events as f64 / commits.max(1) as f64;
    Ok(json!({
        "events": format!("{per_second:.1}"),
        "group": format!("{group:.1}"),
        "commit": micros.checked_div(commits).map(millis),
        "slowest": millis(slowest.unwrap_or(0)),
        "waiting": seconds.last().map_or(0, |second| second.waiting),
        "events_chart": chart("events", "Events committed per second", |second| second.events as f64),
        "streams_chart": chart("streams", "Open streams", |second| second.streams as f64),
        "commit_chart": chart("commit", "Slowest commit of each second, in milliseconds", |second| {
            second.slowest_micros as f64 / 1e3
        }),
        "rows": seconds.rchunks(TABLE_PART_SECS).enumerate().map(part).collect::<Vec<_>>(),
        "database": bytes(tidings.reads().store(of).size().await?),
        "schools": tidings.hub().schools(),
        "max_streams": count(settings.max_streams.get() as u64),
        "retention": span_secs(settings.retention_secs.get()),
        "retention_events": count(settings.retention_events.get()),
        "job_retention": span_secs(settings.job_retention_secs.get()),
        "since": time(metrics.since(), Utc::now()),
        "mean_secs": METRICS_MEAN_SECS,
    }))
}
