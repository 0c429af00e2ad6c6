//! `GET /metrics`: the server's metrics in the text format of Prometheus, for unrestricted admins.
//!
//! Counts that exist anyway are read for each request. Each histogram is kept by the code whose work it times.

use std::fmt::Debug;
use std::sync::Arc;

use chrono::Utc;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use rocket::http::ContentType;
use rocket::{Route, State, get, routes};
use tokio::time::timeout;

use super::contract::Document;
use super::credential::AnySchool;
use super::problem::Problem;
use super::subjects::READ_PROBLEMS;
use crate::cluster::is_running;
use crate::config::READY_WAIT;
use crate::log::Store;
use crate::log::consumers::Total;
use crate::log::nodes::Node;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![metrics]
}

pub(super) fn describe(document: &mut Document) {
    document.route(routes![metrics], &metrics, |operation| {
        let schema = serde_json::json!({ "type": "string" });
        operation
            .named(
                "metrics",
                "Operations",
                "Return metrics in the text format of Prometheus",
            )
            .about("Requires the role `admin`, for all schools.")
            .answers(200, "The metrics.", "text/plain", schema)
            .fails(READ_PROBLEMS);
    });
}

/// One metric for each set of labels, in the order in which they are given.
#[derive(Debug)]
struct Labelled<M>(Vec<(Vec<Label>, M)>);

type Label = (&'static str, String);

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Labelled<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        for (labels, metric) in &self.0 {
            metric.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// The metrics of one answer. The encoder appends `_total` to the name of a counter, and a full stop to a help text.
struct Metrics(Registry);

impl Metrics {
    fn add(
        &mut self,
        name: &str,
        help: &str,
        metric: impl EncodeMetric + Debug + Send + Sync + 'static,
    ) {
        self.0.register(name, help, metric);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.add(name, help, ConstGauge::new(value));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.add(name, help, ConstCounter::new(value));
    }

    /// What the log and its writer have done.
    fn of_writing(&mut self, store: &dyn Store, tidings: &Tidings) {
        let metrics = store.commit_metrics();
        let counts = metrics.peek();
        self.counter("events_committed", "Events committed", counts.events);
        self.counter("commits", "Commits of at least one event", counts.commits);
        let secs = std::time::Duration::from_micros(counts.commit_micros).as_secs_f64();
        self.add(
            "commit_seconds",
            "Total time from taking a group of commands to its commit",
            ConstCounter::new(secs),
        );
        self.add(
            "commit_duration_seconds",
            "Time from taking a group of commands to its commit",
            metrics.commit_duration().clone(),
        );
        let durations = tidings.publications().durations().by_outcome();
        let labelled = durations
            .map(|(outcome, duration)| (vec![("outcome", outcome.to_owned())], duration.clone()));
        self.add(
            "publish_duration_seconds",
            "Time from receiving the commands of a request to answering them, by outcome",
            Labelled(labelled.to_vec()),
        );
        self.gauge(
            "dispatch_backlog_batches",
            "Committed batches that have not been handed to the streams yet",
            tidings.undispatched(),
        );
    }

    /// Who listens, and what is read.
    fn of_reading(&mut self, store: &dyn Store, tidings: &Tidings) {
        let hub = tidings.hub();
        let (by_transport, _) = hub.connections(None, 0, 0);
        let streams = by_transport.iter().map(|(transport, count)| {
            let labels = vec![("transport", (*transport).to_owned())];
            (labels, ConstGauge::new(*count))
        });
        let streams = Labelled(streams.collect());
        self.add("streams", "Open streams, by transport", streams);
        let max_streams = tidings.settings().max_streams.get();
        self.add(
            "streams_max",
            "Streams that may be open",
            ConstGauge::new(max_streams),
        );
        let schools = ConstGauge::new(hub.schools());
        self.add(
            "schools_in_memory",
            "Schools that have state in memory",
            schools,
        );
        self.add(
            "reads_waiting",
            "Requests that wait for their turn to read",
            ConstGauge::new(store.waiting_reads()),
        );
        self.counter(
            "read_windows",
            "Windows of rows that were scanned for matching ones",
            store.windows(),
        );
        self.add(
            "replay_duration_seconds",
            "Time to read a page of the log for a stream that catches up",
            tidings.subscriptions().replay_duration().clone(),
        );
    }

    /// What this node sends to other nodes and receives from them.
    fn of_relay(&mut self, tidings: &Tidings) {
        let Some(relay) = tidings.relay() else {
            return;
        };
        let (bus, hints) = relay.read();
        let labels = vec![("bus", relay.bus().to_owned())];
        let connected = ConstGauge::new(u64::from(bus.connected));
        self.add(
            "bus_connected",
            "Whether the bus between the nodes works; without it, events of other nodes arrive later",
            Labelled(vec![(labels, connected)]),
        );
        for (name, help, value) in [
            (
                "bus_disconnections",
                "How often the connection to the bus was lost",
                bus.disconnections,
            ),
            (
                "bus_messages_sent",
                "Messages to other nodes that were sent",
                bus.sent,
            ),
            (
                "bus_messages_unsent",
                "Messages to other nodes that could not be sent",
                bus.unsent,
            ),
            (
                "bus_messages_received",
                "Messages that arrived on the bus, including this node's own",
                bus.received,
            ),
            (
                "bus_messages_dropped",
                "Messages that were dropped because they arrived faster than they could be taken in",
                bus.dropped,
            ),
            (
                "bus_messages_unreadable",
                "Messages on the bus that no node of this database can have sent",
                bus.unreadable,
            ),
            (
                "hints_taken",
                "Hints of other nodes' commits that were taken",
                hints.taken,
            ),
            (
                "hints_dropped",
                "Hints of other nodes' commits that were dropped because too many waited",
                hints.dropped,
            ),
            (
                "hints_late",
                "Hints of other nodes' commits that brought nothing new, or that no stream of this node needed",
                hints.late,
            ),
            (
                "hole_reads",
                "Reads of events from the log because no message brought them",
                hints.reads,
            ),
        ] {
            self.counter(name, help, value);
        }
    }

    /// The progress of the notifiers, over all schools.
    fn of_notifiers(&mut self, totals: &[Total]) {
        let labels = |total: &Total| vec![("notifier", total.name.clone())];
        let mut counter = |name: &str, help: &str, of: fn(&Total) -> u64| {
            let all = totals
                .iter()
                .map(|total| (labels(total), ConstCounter::new(of(total))));
            self.0.register(name, help, Labelled(all.collect()));
        };
        counter(
            "notifier_delivered",
            "Events that a notifier has delivered",
            |total| total.delivered,
        );
        counter(
            "notifier_failed_attempts",
            "Attempts of a notifier that failed",
            |total| total.failed,
        );
        counter(
            "notifier_dead_letters",
            "Events that a notifier has given up on",
            |total| total.dead,
        );
        let mut gauge = |name: &str, help: &str, of: fn(&Total) -> u64| {
            let all = totals
                .iter()
                .map(|total| (labels(total), ConstGauge::new(of(total))));
            self.0.register(name, help, Labelled(all.collect()));
        };
        gauge(
            "notifier_lag_events",
            "Events that a notifier has not processed yet",
            |total| total.lag,
        );
        gauge(
            "notifier_set_aside_subjects",
            "Subjects whose events wait because the receiver rejects the first of them",
            |total| total.set_aside,
        );
    }

    /// The nodes that share the store, as they report.
    fn of_nodes(&mut self, nodes: &[Node]) {
        let labels = |node: &Node| {
            let report = &node.report;
            vec![
                ("node", report.id.to_string()),
                ("name", report.name.clone()),
            ]
        };
        let info = |node: &Node| {
            let (version, bus) = (node.report.version.clone(), node.report.bus.clone());
            let more = [("version", version), ("bus", bus)];
            (
                labels(node).into_iter().chain(more).collect(),
                ConstGauge::new(1_u64),
            )
        };
        let infos = Labelled(nodes.iter().map(info).collect());
        self.add("node_info", "What a node runs", infos);
        let mut gauge = |name: &str, help: &str, of: fn(&Node) -> f64| {
            let all = nodes
                .iter()
                .map(|node| (labels(node), ConstGauge::new(of(node))));
            self.0.register(name, help, Labelled(all.collect()));
        };
        gauge("node_up", "Whether a node reports", |node| {
            f64::from(u8::from(is_running(node)))
        });
        gauge(
            "node_silent_seconds",
            "Time since a node's last report",
            |node| node.silent.as_secs_f64(),
        );
        gauge(
            "node_start_time_seconds",
            "When a node first reported, in seconds since 1970",
            |node| node.since.timestamp_millis() as f64 / 1e3,
        );
        gauge("node_streams", "Open streams of a node", |node| {
            node.report.streams as f64
        });
        gauge(
            "node_events_per_second",
            "Events that a node commits per second, on average over the last seconds",
            |node| node.report.events_per_sec,
        );
        gauge(
            "node_lag_events",
            "Events that a node had not handed to its streams when it last checked the logs that they follow",
            |node| node.report.lag as f64,
        );
    }

    /// What was rejected, and what went wrong.
    fn of_trouble(&mut self, store: &dyn Store, tidings: &Tidings) {
        let rejections = tidings.metrics().rejections();
        let rejections = rejections.into_iter().map(|((code, limit), count)| {
            let limit = limit.unwrap_or_default().to_owned();
            let labels = vec![("code", code.to_owned()), ("limit", limit)];
            (labels, ConstCounter::new(count))
        });
        self.add(
            "refusals",
            "Requests, lines of batches and client messages that were rejected, by the code of the problem and the setting that was reached",
            Labelled(rejections.collect()),
        );
        let threads = store.commit_metrics().panics();
        let panics = tidings.tasks().panics().into_iter().chain(threads);
        let panics = panics
            .map(|(task, panics)| (vec![("task", task.to_string())], ConstCounter::new(panics)));
        self.add(
            "task_panics",
            "Panics of the server's own tasks, after which they restarted or continued, and of the store's threads",
            Labelled(panics.collect()),
        );
    }
}

/// The metrics cover all schools, so only unrestricted admins may see them.
#[get("/metrics")]
async fn metrics(
    caller: Result<AnySchool, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<(ContentType, String), Problem> {
    let AnySchool(access) = caller?;
    let reads = tidings.reads();
    let store = reads.store(reads.whole_server(&access)?);
    let mut metrics = Metrics(Registry::with_prefix("tidings"));
    metrics.of_writing(store, tidings);
    metrics.of_reading(store, tidings);
    metrics.of_relay(tidings);
    // Do not fail if the database does: the other metrics matter even more then.
    if let Ok(Ok(bytes)) = timeout(READY_WAIT, store.size()).await {
        metrics.gauge("database_bytes", "Size of the database", bytes);
    }
    if let Ok(Ok(totals)) = timeout(READY_WAIT, store.notifier_totals()).await {
        metrics.of_notifiers(&totals);
    }
    metrics.of_nodes(&tidings.cluster().nodes());
    let uptime = (Utc::now() - tidings.metrics().since()).to_std();
    let uptime = ConstGauge::new(uptime.unwrap_or_default().as_secs_f64());
    metrics.add("uptime_seconds", "Time since the start", uptime);
    metrics.of_trouble(store, tidings);
    let mut text = String::new();
    prometheus_text::encode(&mut text, &metrics.0).expect("a string takes all");
    let format =
        ContentType::new("text", "plain").with_params([("version", "0.0.4"), ("charset", "utf-8")]);
    Ok((format, text))
}
