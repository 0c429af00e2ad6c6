//! Sends reports from a task, so that they neither delay nor break the work.
//!
//! 1. No report waits for the network or fails.
//! 2. The queue is bounded (`outbox`). A server that is down, slow or rejects reports costs memory up to that bound, and nothing else.
//! 3. A report is repeated with its idempotency key until it is answered, so it takes effect once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::backoff::Backoff;
use super::outbox::{Decision, Known, Outbox, Report, Subject, Verb};
use super::worker::worker;
use super::{Client, ClientError};

/// Progress is sent at most this often.
const INTERVAL: Duration = Duration::from_millis(200);
/// The longest `Retry-After` that is respected. A reporter that is dropped during the wait ends only after it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// The maximum number of reports in a batch.
const BATCH_MAX: usize = 500;

/// Reports on jobs. Clones share the queue. When the last clone and the last [`Job`] are gone, the task sends what waits, and
/// ends with the first failure. Call [`Reporter::flush`] at the end of the process.
#[derive(Clone)]
pub struct Reporter(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    worker: String,
    outbox: Mutex<Outbox>,
    changed: Notify,
    /// Counts the requests that have been answered or have failed.
    rounds: watch::Sender<u64>,
    is_flushing: AtomicBool,
    is_abandoned: AtomicBool,
}

impl Reporter {
    /// Starts the task that sends the reports, on the current Tokio runtime.
    pub fn start(client: Client) -> Reporter {
        let shared = Arc::new(Shared {
            client,
            worker: worker(),
            outbox: Mutex::default(),
            changed: Notify::new(),
            rounds: watch::channel(0).0,
            is_flushing: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
        });
        tokio::spawn(Arc::clone(&shared).run());
        Reporter(Arc::new(Handle { shared }))
    }

    /// Returns a job of this type, which is a name of letters, digits and `._:~-`.
    pub fn job(&self, job_type: impl Into<String>) -> JobBuilder {
        JobBuilder {
            reporter: self.clone(),
            job_type: job_type.into(),
            id: None,
            fields: Map::new(),
            limits: Map::new(),
        }
    }

    /// Waits until all reports have been answered, at most this long. Returns whether they have.
    pub async fn flush(&self, longest: Duration) -> bool {
        let shared = &self.0.shared;
        let mut rounds = shared.rounds.subscribe();
        shared.is_flushing.store(true, Ordering::SeqCst);
        shared.changed.notify_one();
        let answered = rounds.wait_for(|_| shared.lock().is_empty());
        let is_done = timeout(longest, answered).await.is_ok();
        shared.is_flushing.store(false, Ordering::SeqCst);
        is_done
    }

    fn send(&self, report: Report) {
        let shared = &self.0.shared;
        let (id, verb) = (report.subject.id.clone(), report.verb);
        if !shared.lock().offer(report) {
            tracing::warn!(job.id = %id, ?verb, "a report was dropped, because too many others wait to be sent");
        }
        shared.changed.notify_one();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.is_abandoned.store(true, Ordering::SeqCst);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::SeqCst)
    }

    async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        let mut limit = BATCH_MAX;
        let mut sent_at = None;
        loop {
            self.something_is_due(sent_at).await;
            let given_up = self.lock().give_up_old(Instant::now());
            if given_up > 0 {
                tracing::warn!(
                    given_up,
                    "reports were given up, because they could not be delivered for hours"
                );
            }
            let (keys, batch) = self.lock().take(&self.worker, Instant::now(), limit);
            if keys.is_empty() {
                self.rounds.send_modify(|rounds| *rounds += 1);
                if self.is_abandoned() {
                    return;
                }
                continue;
            }
            sent_at = Some(Instant::now());
            let pause = match self.client.batch_of(batch).await {
                Ok(results) if results.len() <= keys.len() => {
                    limit = BATCH_MAX;
                    let is_cut_off = results.len() < keys.len();
                    let repeat = self.settle(&keys, &results).await;
                    repeat.or(is_cut_off.then_some(Duration::ZERO))
                }
                Ok(_) => Some(Duration::ZERO),
                // The server rejected the batch as a whole. Halve it until the report at fault is found.
                Err(ClientError::Rejected {
                    status: 400 | 413 | 422,
                    detail,
                    ..
                }) => {
                    if keys.len() == 1 {
                        self.lock().give_up(&keys[0]);
                        tracing::warn!(reason = %detail, "a report was rejected");
                    }
                    limit = keys.len().div_ceil(2);
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "reports could not be sent; retrying");
                    match error {
                        ClientError::Rejected { retry_after, .. } => {
                            Some(retry_after.min(RETRY_AFTER_MAX))
                        }
                        _ => Some(Duration::ZERO),
                    }
                }
            };
            self.rounds.send_modify(|rounds| *rounds += 1);
            match pause {
                None => backoff.reset(),
                Some(_) if self.is_abandoned() => return,
                Some(at_least) => sleep(backoff.pause(at_least)).await,
            }
        }
    }

    /// Waits until a report is due. Progress waits for newer progress to merge with; milestones are due at once.
    async fn something_is_due(&self, sent_at: Option<Instant>) {
        loop {
            let changed = self.changed.notified();
            let (is_empty, is_urgent) = {
                let outbox = self.lock();
                let is_urgent = outbox.has_milestones() || self.is_flushing.load(Ordering::SeqCst);
                (outbox.is_empty(), is_urgent || self.is_abandoned())
            };
            if is_urgent {
                // An empty outbox ends a flush, or the task.
                return;
            }
            let due = sent_at.map_or(Duration::ZERO, |at| INTERVAL.saturating_sub(at.elapsed()));
            if !is_empty && due.is_zero() {
                return;
            }
            if is_empty {
                changed.await;
            } else {
                let _ = timeout(due, changed).await;
            }
        }
    }

    /// Processes the results of a batch. Returns how long to wait if a report is to be repeated.
    async fn settle(&self, keys: &[String], results: &[Value]) -> Option<Duration> {
        let mut repeat: Option<Duration> = None;
        for (key, result) in keys.iter().zip(results) {
            let mut decision = self.lock().decide(key, result);
            if decision == Decision::Check {
                decision = match self.check(key).await {
                    Some(job) => self.lock().decide_with(key, &self.worker, &job, result),
                    None => Decision::Repeat(Duration::from_millis(1)),
                };
            }
            match decision {
                Decision::Done | Decision::Check => {}
                // A report that must precede it was inserted, or it was changed: send again at once.
                Decision::Repeat(Duration::ZERO) => {}
                Decision::Repeat(after) => repeat = repeat.max(Some(after)),
                Decision::Rejected(reason) => {
                    let line = &result["line"];
                    tracing::warn!(%line, %reason, "a report was rejected");
                }
            }
        }
        repeat
    }

    /// Reads the job of a report. Returns `None` if that has to be tried again.
    async fn check(&self, key: &str) -> Option<Value> {
        let subject = self.lock().subject_of(key)?;
        let id = utf8_percent_encode(&subject.id, NON_ALPHANUMERIC);
        match self.client.get(&format!("/api/jobs/{id}")).await {
            Ok(job) => Some(job),
            Err(ClientError::Rejected { status: 404, .. }) => Some(Value::Null),
            Err(_) => None,
        }
    }
}

/// A job that is about to start. Created by [`Reporter::job`].
pub struct JobBuilder {
    reporter: Reporter,
    job_type: String,
    id: Option<String>,
    fields: Map<String, Value>,
    limits: Map<String, Value>,
}

impl JobBuilder {
    /// Sets the id: 1 to 128 bytes. Without it, the job gets a random one.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> JobBuilder {
        self.id = Some(id.into());
        self
    }

    /// Sets the title, which is the metadata of that name.
    #[must_use]
    pub fn title(self, title: impl Into<String>) -> JobBuilder {
        self.metadata("title", json!(title.into()))
    }

    /// Sets a field of the metadata.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: Value) -> JobBuilder {
        let metadata = self.fields.entry("metadata").or_insert_with(|| json!({}));
        metadata[name.into()] = value;
        self
    }

    /// Sets the silence in seconds after which the job counts as stalled.
    #[must_use]
    pub fn stall_after_secs(mut self, secs: u32) -> JobBuilder {
        self.limits.insert("stall_after_secs".into(), json!(secs));
        self
    }

    /// Sets the silence in seconds after which the job fails.
    #[must_use]
    pub fn timeout_secs(mut self, secs: u32) -> JobBuilder {
        self.limits.insert("timeout_secs".into(), json!(secs));
        self
    }

    /// Starts the job. A failed job with the same id gets a new attempt.
    pub fn start(self) -> Job {
        let id = self.id.unwrap_or_else(|| Uuid::now_v7().to_string());
        let subject = Arc::new(Subject {
            id,
            job_type: self.job_type,
            start: self.fields.clone(),
            known: Mutex::default(),
        });
        if !self.limits.is_empty() {
            let mut body = self.limits;
            body.extend(self.fields.clone());
            let create = Report::new(&subject, Verb::Create, body);
            self.reporter.send(create);
        }
        let start = Report::new(&subject, Verb::Start, self.fields);
        self.reporter.send(start);
        Job {
            reporter: self.reporter,
            subject,
            is_ended: false,
        }
    }
}

/// A job that has started. No method waits for the server or fails because of it. A job that is dropped before its end, for
/// example because the work has panicked, is reported as failed with the code `dropped`.
pub struct Job {
    reporter: Reporter,
    subject: Arc<Subject>,
    is_ended: bool,
}

impl Job {
    /// Returns the job's id.
    pub fn id(&self) -> &str {
        &self.subject.id
    }

    /// Reports progress (0 to 100) and a message. Only the newest report is sent if several wait.
    pub fn progress(&self, percent: f64, message: impl Into<String>) {
        let percent = percent.clamp(0.0, 100.0);
        let mut body = Map::new();
        if percent.is_finite() {
            body.insert("progress".into(), json!(percent));
        }
        body.insert("message".into(), json!(message.into()));
        self.tick(body);
    }

    /// Reports a message.
    pub fn message(&self, message: impl Into<String>) {
        let body = [("message".to_owned(), json!(message.into()))];
        self.tick(body.into_iter().collect());
    }

    /// Adds a field to the metadata, or replaces it.
    pub fn metadata(&self, name: impl Into<String>, value: Value) {
        let metadata: Map<String, Value> = [(name.into(), value)].into_iter().collect();
        let body = [("metadata".to_owned(), Value::Object(metadata))];
        self.tick(body.into_iter().collect());
    }

    /// Reports that the work is done. A null result counts as none.
    pub fn complete(mut self, result: Value) {
        let body = match result {
            Value::Null => Map::new(),
            result => [("result".to_owned(), result)].into_iter().collect(),
        };
        self.end(Verb::Complete, body);
    }

    /// Reports that the work has failed.
    pub fn fail(mut self, code: impl Into<String>, message: impl Into<String>) {
        self.fail_with(code.into(), message.into());
    }

    /// Reports that the work has stopped early, on request or because its process ends.
    pub fn cancel(mut self, message: impl Into<String>) {
        let body = json!({"force": true, "message": message.into()});
        if let Value::Object(body) = body {
            self.end(Verb::Cancel, body);
        }
    }

    /// Whether the work should stop: a user has asked for it or has cancelled the job, or another worker has taken it over.
    pub fn is_cancel_requested(&self) -> bool {
        let known = self.subject.known();
        let Known {
            status,
            cancel_requested,
            is_superseded,
            ..
        } = &*known;
        *cancel_requested || *is_superseded || status.as_deref() == Some("cancelled")
    }

    fn tick(&self, body: Map<String, Value>) {
        let report = Report::new(&self.subject, Verb::Progress, body);
        self.reporter.send(report);
    }

    fn fail_with(&mut self, code: String, message: String) {
        let error = json!({"code": code, "message": message});
        let body = [("error".to_owned(), error)];
        self.end(Verb::Fail, body.into_iter().collect());
    }

    fn end(&mut self, verb: Verb, body: Map<String, Value>) {
        self.is_ended = true;
        self.reporter.send(Report::new(&self.subject, verb, body));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_ended {
            let message = "The worker dropped the job before its end";
            self.fail_with("dropped".into(), message.into());
        }
    }
}
