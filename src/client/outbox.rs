//! The queue of reports that wait to be sent. Does no I/O.
//!
//! 1. Reports of a job are sent in the order in which they were made. Those after a `start` or `retry` wait for its answer, which
//!    names the attempt that they belong to.
//! 2. A *tick* (progress, message or metadata) that has not been sent is merged with the next one of its job. Everything
//!    else is a *milestone* and is kept.
//! 3. The number and the size of waiting reports are bounded. If there is no room, the oldest tick is dropped first; without
//!    ticks, the new report is.
//! 4. A report is sent as the same bytes, with the same idempotency key, until it is answered.
//! 5. A job that the server has lost is started again before the report that was not accepted. If another worker has started it
//!    meanwhile, the attempt is that worker's: nothing more is sent about the job.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The maximum number of waiting reports.
const CAPACITY: usize = 10_000;
/// Their maximum total size.
const CAPACITY_BYTES: usize = 16 * 1024 * 1024;
/// The memory of a report in addition to its fields.
const OVERHEAD_BYTES: usize = 512;
/// The maximum size of a report. The server accepts 256 KiB by default, and can be configured for more. A larger report is
/// sent without its result and metadata.
const REPORT_MAX_BYTES: usize = 1024 * 1024;
/// The maximum number of reports in a batch.
const BATCH_LINES: usize = 500;
/// The maximum size of a batch, unless it has a single report.
const BATCH_BYTES: usize = 1024 * 1024;
/// For how long a report is repeated. The server forgets an idempotency key after a day, so a report that is repeated later could
/// take effect twice.
const KEEP: Duration = Duration::from_secs(20 * 3_600);
/// Statuses after which a report is repeated.
const RETRIED: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];

/// A command of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Start,
    Progress,
    Complete,
    Fail,
    Cancel,
    Retry,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Start => "start",
            Verb::Progress => "progress",
            Verb::Complete => "complete",
            Verb::Fail => "fail",
            Verb::Cancel => "cancel",
            Verb::Retry => "retry",
        }
    }

    /// Whether the answer names the attempt.
    fn is_barrier(self) -> bool {
        matches!(self, Verb::Start | Verb::Retry)
    }

    fn is_terminal(self) -> bool {
        matches!(self, Verb::Complete | Verb::Fail | Verb::Cancel)
    }

    fn has_attempt(self) -> bool {
        self.is_terminal() || self == Verb::Progress
    }
}

/// A job, and what the server has answered about it.
pub(super) struct Subject {
    pub(super) id: String,
    pub(super) job_type: String,
    /// The fields with which the job is started if the server does not know the job when it ends.
    pub(super) start: Map<String, Value>,
    pub(super) known: Mutex<Known>,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) attempt: Option<u64>,
    pub(super) status: Option<String>,
    pub(super) cancel_requested: bool,
    /// Whether another worker has taken over the job.
    pub(super) is_superseded: bool,
}

impl Subject {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt(&self, event: &Value) {
        let mut known = self.known();
        known.attempt = event["attempt"].as_u64().or(known.attempt);
        known.status = event["status"].as_str().map(str::to_lowercase);
        known.cancel_requested = event["cancel_requested"] == true;
    }
}

pub(super) struct Report {
    pub(super) subject: Arc<Subject>,
    pub(super) verb: Verb,
    pub(super) body: Map<String, Value>,
    key: String,
    line: Option<String>,
    sent: Option<Instant>,
    /// Whether the job was already started again for this report, because the server did not know it.
    has_started_again: bool,
    /// Whether it starts a job again that the server has lost.
    is_again: bool,
    is_reduced: bool,
    /// Whether a job that has failed is retried when it is started again.
    restarts: bool,
}

/// What to do after the answer to a report.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Done,
    /// The report was rejected for this reason, and is dropped.
    Rejected(String),
    /// Repeat the report, at the earliest after this time.
    Repeat(Duration),
    /// Read the job, and then call [`Outbox::decide_with`].
    Check,
}

impl Report {
    pub(super) fn new(subject: &Arc<Subject>, verb: Verb, body: Map<String, Value>) -> Report {
        Report {
            subject: Arc::clone(subject),
            verb,
            body,
            key: Uuid::now_v7().simple().to_string(),
            line: None,
            sent: None,
            has_started_again: false,
            is_again: false,
            is_reduced: false,
            restarts: verb == Verb::Start,
        }
    }

    /// Returns the report that starts the job again.
    fn again(subject: &Arc<Subject>) -> Report {
        Report {
            is_again: true,
            restarts: false,
            ..Report::new(subject, Verb::Start, subject.start.clone())
        }
    }

    fn is_tick(&self) -> bool {
        self.verb == Verb::Progress
    }

    fn size(&self) -> usize {
        let values = self.body.values().map(|value| value.to_string().len());
        OVERHEAD_BYTES + values.sum::<usize>()
    }

    /// Returns the line of the batch. It stays the same from then on.
    fn freeze(&mut self, worker: &str, now: Instant) -> &str {
        self.sent.get_or_insert(now);
        self.line.get_or_insert_with(|| {
            let mut line = json!({
                "op": format!("jobs.{}", self.verb.name()),
                "job_id": self.subject.id,
                "idempotency_key": self.key,
            });
            if let Value::Object(line) = &mut line {
                line.extend(self.body.clone());
                if matches!(self.verb, Verb::Create | Verb::Start | Verb::Progress) {
                    line.insert("job_type".into(), json!(self.subject.job_type));
                }
                if self.verb.has_attempt() || self.verb == Verb::Start {
                    line.insert("worker".into(), json!(worker));
                }
                let attempt = self.subject.known().attempt;
                if let Some(attempt) = attempt.filter(|_| self.verb.has_attempt()) {
                    line.insert("attempt".into(), json!(attempt));
                }
            }
            format!("{line}\n")
        })
    }

    /// Assigns a new key, so that the server treats the report as a new request.
    fn thaw(&mut self) {
        self.line = None;
        self.sent = None;
        self.key = Uuid::now_v7().simple().to_string();
    }

    /// Removes the fields that the server may have rejected, so that at least the end of the job arrives.
    fn reduce(&mut self) {
        self.body.remove("result");
        self.body.remove("metadata");
        self.is_reduced = true;
        self.thaw();
    }
}

/// Reports that wait, by job.
#[derive(Default)]
pub(super) struct Outbox {
    queues: IndexMap<String, VecDeque<Report>>,
    count: usize,
    bytes: usize,
    milestones: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a milestone is waiting.
    pub(super) fn has_milestones(&self) -> bool {
        self.milestones > 0
    }

    /// Adds a report, unless another worker has taken over its job. Returns whether there was room for it.
    pub(super) fn offer(&mut self, mut report: Report) -> bool {
        if report.subject.known().is_superseded {
            return true;
        }
        if report.size() > REPORT_MAX_BYTES {
            report.reduce();
            if report.size() > REPORT_MAX_BYTES {
                return false;
            }
        }
        let queue = self.queues.get_mut(&report.subject.id);
        if let Some(last) = queue.and_then(VecDeque::back_mut)
            && report.is_tick()
            && last.is_tick()
            && last.line.is_none()
        {
            let before = last.size();
            merge(&mut last.body, report.body);
            self.bytes = self.bytes - before + last.size();
            return true;
        }
        while self.count + 1 > CAPACITY || self.bytes + report.size() > CAPACITY_BYTES {
            if !self.drop_oldest_tick() {
                return false;
            }
        }
        self.counts(&report);
        let queue = self.queues.entry(report.subject.id.clone());
        queue.or_default().push_back(report);
        true
    }

    fn counts(&mut self, report: &Report) {
        self.count += 1;
        self.bytes += report.size();
        self.milestones += usize::from(!report.is_tick());
    }

    fn no_longer_counts(&mut self, report: &Report) {
        self.count -= 1;
        self.bytes -= report.size();
        self.milestones -= usize::from(!report.is_tick());
    }

    fn drop_oldest_tick(&mut self) -> bool {
        let unsent = |report: &Report| report.is_tick() && report.line.is_none();
        let found = self.queues.iter().find_map(|(id, queue)| {
            let index = queue.iter().position(unsent)?;
            Some((id.clone(), index))
        });
        found.is_some_and(|(id, index)| self.remove(&id, index).is_some())
    }

    fn remove(&mut self, id: &str, index: usize) -> Option<Report> {
        let queue = self.queues.get_mut(id)?;
        let report = queue.remove(index)?;
        if queue.is_empty() {
            self.queues.shift_remove(id);
        }
        self.no_longer_counts(&report);
        Some(report)
    }

    fn remove_all_of(&mut self, subject: &Arc<Subject>) {
        let is_of = |report: &Report| Arc::ptr_eq(&report.subject, subject);
        let position = |queue: &VecDeque<Report>| queue.iter().position(is_of);
        while let Some(index) = self.queues.get(&subject.id).and_then(position) {
            self.remove(&subject.id, index);
        }
    }

    /// Gives up reports whose keys the server may have forgotten. Returns how many there were.
    pub(super) fn give_up_old(&mut self, now: Instant) -> usize {
        let is_old = |report: &Report| report.sent.is_some_and(|sent| now - sent > KEEP);
        let before = self.count;
        let ids: Vec<String> = self.queues.keys().cloned().collect();
        for id in ids {
            let position = |queue: &VecDeque<Report>| queue.iter().position(is_old);
            while let Some(index) = self.queues.get(&id).and_then(position) {
                self.remove(&id, index);
            }
        }
        before - self.count
    }

    /// Returns what to send next: the keys of reports and the body of a batch. The reports stay here until they are answered.
    pub(super) fn take(
        &mut self,
        worker: &str,
        now: Instant,
        limit: usize,
    ) -> (Vec<String>, String) {
        let (mut keys, mut batch) = (Vec::new(), String::new());
        for queue in self.queues.values_mut() {
            for report in queue {
                let is_new = report.line.is_none();
                let line = report.freeze(worker, now);
                if !keys.is_empty() && batch.len() + line.len() > BATCH_BYTES {
                    if is_new {
                        // It is not sent yet, so it may still be merged.
                        (report.line, report.sent) = (None, None);
                    }
                    return (keys, batch);
                }
                batch.push_str(line);
                keys.push(report.key.clone());
                if keys.len() >= limit.min(BATCH_LINES) {
                    return (keys, batch);
                }
                if report.verb.is_barrier() {
                    break;
                }
            }
        }
        (keys, batch)
    }

    /// Returns where a report waits.
    fn find(&self, key: &str) -> Option<(String, usize)> {
        self.queues.iter().find_map(|(id, queue)| {
            let index = queue.iter().position(|report| report.key == key)?;
            Some((id.clone(), index))
        })
    }

    /// Decides what to do after this answer to a report.
    pub(super) fn decide(&mut self, key: &str, result: &Value) -> Decision {
        let Some((id, index)) = self.find(key) else {
            return Decision::Done;
        };
        let report = &mut self.queues[&id][index];
        let status = result["status"].as_u64().unwrap_or(500);
        let status = u16::try_from(status).unwrap_or(500);
        let problem = &result["problem"];
        let code = problem["code"].as_str().unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or(code).to_owned();
        if status < 300 {
            report.subject.adopt(&result["event"]);
            self.remove(&id, index);
            return Decision::Done;
        }
        if RETRIED.contains(&status) {
            let secs = problem["retry_after"].as_f64().unwrap_or_default();
            return Decision::Repeat(Duration::from_secs_f64(secs.clamp(0.0, 3_600.0)));
        }
        if status == 404 && report.verb.has_attempt() && !report.has_started_again {
            report.has_started_again = true;
            // The server has lost the job. The attempt of the new one is known once it has started.
            report.subject.known().attempt = None;
            report.thaw();
            let subject = Arc::clone(&report.subject);
            let before = self.queues[&id].iter().take(index);
            if !before.into_iter().any(|report| report.is_again) {
                self.put_before(&id, index, Report::again(&subject));
            }
            return Decision::Repeat(Duration::ZERO);
        }
        if matches!(code, "finished" | "illegal-transition") && report.verb != Verb::Create {
            return Decision::Check;
        }
        if code == "stale-attempt" {
            report.subject.known().is_superseded = true;
        }
        if matches!(status, 413 | 422) && report.verb.is_terminal() && !report.is_reduced {
            self.no_longer_counts_at(&id, index);
            let report = &mut self.queues[&id][index];
            report.reduce();
            self.counts_at(&id, index);
            return Decision::Repeat(Duration::ZERO);
        }
        self.remove(&id, index);
        match code == "already-exists" || status == 410 {
            true => Decision::Done,
            false => Decision::Rejected(detail),
        }
    }

    /// Decides what to do with a report of this worker that the job's status did not allow. `job` is the current state of the job on
    /// the server.
    pub(super) fn decide_with(
        &mut self,
        key: &str,
        worker: &str,
        job: &Value,
        result: &Value,
    ) -> Decision {
        let Some((id, index)) = self.find(key) else {
            return Decision::Done;
        };
        let status = job["status"].as_str().unwrap_or_default().to_lowercase();
        let report = &mut self.queues[&id][index];
        if report.is_again && !(status == "in_progress" && job["worker"] == worker) {
            let subject = Arc::clone(&report.subject);
            subject.known().is_superseded = true;
            self.remove_all_of(&subject);
            return Decision::Rejected("another worker has started the job again".into());
        }
        let is_start = report.verb == Verb::Start;
        if is_start && status == "failed" && std::mem::take(&mut report.restarts) {
            report.thaw();
            let retry = Report::new(&report.subject, Verb::Retry, Map::new());
            self.put_before(&id, index, retry);
            return Decision::Repeat(Duration::ZERO);
        }
        let attempt = report.subject.known().attempt;
        if attempt.is_none() || attempt == job["attempt"].as_u64() {
            report.subject.adopt(job);
        }
        let is_retry = report.verb == Verb::Retry;
        self.remove(&id, index);
        // Another process has started this attempt, or a user does not want the job any more.
        let is_expected = is_start && matches!(&*status, "in_progress" | "cancelled") || is_retry;
        match is_expected {
            true => Decision::Done,
            false => {
                let detail = result["problem"]["detail"].as_str();
                Decision::Rejected(detail.unwrap_or(&status).to_owned())
            }
        }
    }

    /// Returns the job of a report.
    pub(super) fn subject_of(&self, key: &str) -> Option<Arc<Subject>> {
        let (id, index) = self.find(key)?;
        Some(Arc::clone(&self.queues[&id][index].subject))
    }

    /// Gives up a report.
    pub(super) fn give_up(&mut self, key: &str) {
        if let Some((id, index)) = self.find(key) {
            self.remove(&id, index);
        }
    }

    /// Inserts a report before a waiting one that requires it, even if the outbox is full.
    fn put_before(&mut self, id: &str, index: usize, report: Report) {
        self.counts(&report);
        self.queues[id].insert(index, report);
    }

    fn no_longer_counts_at(&mut self, id: &str, index: usize) {
        self.bytes -= self.queues[id][index].size();
    }

    fn counts_at(&mut self, id: &str, index: usize) {
        self.bytes += self.queues[id][index].size();
    }
}

/// Adds newer fields to older ones. Metadata is merged key by key, as the server does.
fn merge(older: &mut Map<String, Value>, newer: Map<String, Value>) {
    for (name, value) in newer {
        match (older.get_mut(&name), value) {
            (Some(Value::Object(both)), Value::Object(more)) if name == "metadata" => {
                both.extend(more);
            }
            (_, value) => {
                older.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(id: &str) -> Arc<Subject> {
        Arc::new(Subject {
            id: id.into(),
            job_type: "import".into(),
            start: Map::new(),
            known: Mutex::default(),
        })
    }

    fn body(fields: Value) -> Map<String, Value> {
        serde_json::from_value(fields).unwrap()
    }

    fn tick(subject: &Arc<Subject>, fields: Value) -> Report {
        Report::new(subject, Verb::Progress, body(fields))
    }

    fn not_found() -> Value {
        json!({"status": 404, "problem": {"code": "not-found"}})
    }

    fn lines(batch: &str) -> Vec<Value> {
        let lines = batch.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn ticks_fold_until_they_are_sent_and_milestones_never() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        let now = Instant::now();
        assert!(outbox.offer(tick(&job, json!({"progress": 1, "metadata": {"a": 1}}))));
        assert!(outbox.offer(tick(&job, json!({"progress": 2, "metadata": {"b": 2}}))));
        let (keys, batch) = outbox.take("w", now, 10);
        let sent = lines(&batch);
        assert_eq!(sent[0]["progress"], 2);
        assert_eq!(sent[0]["metadata"], json!({"a": 1, "b": 2}));
        assert!(outbox.offer(tick(&job, json!({"progress": 3}))));
        assert!(outbox.offer(Report::new(&job, Verb::Complete, Map::new())));
        let (again, repeated) = outbox.take("w", now, 10);
        assert_eq!(again[0], keys[0], "it keeps its key");
        assert_eq!(lines(&repeated)[0], sent[0], "and its bytes");
        assert_eq!(again.len(), 3, "what was sent is not merged");
    }

    #[test]
    fn what_follows_a_start_waits_for_its_attempt() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        outbox.offer(Report::new(&job, Verb::Start, Map::new()));
        outbox.offer(tick(&job, json!({"progress": 1})));
        let (keys, _) = outbox.take("w", Instant::now(), 10);
        assert_eq!(keys.len(), 1);
        let answer = json!({"status": 200, "event": {"attempt": 3, "status": "in_progress"}});
        assert_eq!(outbox.decide(&keys[0], &answer), Decision::Done);
        let (_, batch) = outbox.take("w", Instant::now(), 10);
        assert_eq!(lines(&batch)[0]["attempt"], 3);
    }

    #[test]
    fn a_full_outbox_drops_ticks_first_and_rejects_then() {
        let mut outbox = Outbox::default();
        for number in 0..CAPACITY {
            let job = subject(&number.to_string());
            assert!(outbox.offer(tick(&job, json!({"progress": 1}))));
        }
        for number in 0..CAPACITY {
            let job = subject(&format!("m{number}"));
            assert!(outbox.offer(Report::new(&job, Verb::Complete, Map::new())));
        }
        assert_eq!((outbox.count, outbox.milestones), (CAPACITY, CAPACITY));
        assert!(!outbox.offer(tick(&subject("late"), json!({}))));
        let large = json!({"result": "x".repeat(REPORT_MAX_BYTES)});
        let mut outbox = Outbox::default();
        let report = Report::new(&subject("large"), Verb::Complete, body(large));
        assert!(outbox.offer(report), "at least the end arrives");
        assert!(outbox.bytes < 1_000);
    }

    #[test]
    fn the_end_of_an_unknown_job_starts_it_first() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        // The server has lost the second attempt of the job.
        job.known().attempt = Some(2);
        outbox.offer(Report::new(&job, Verb::Complete, Map::new()));
        let (keys, batch) = outbox.take("w", Instant::now(), 10);
        assert_eq!(lines(&batch)[0]["attempt"], 2);
        let answer = json!({"status": 404, "problem": {"code": "not-found"}});
        let decision = outbox.decide(&keys[0], &answer);
        assert!(matches!(decision, Decision::Repeat(_)));
        let (keys, batch) = outbox.take("w", Instant::now(), 10);
        assert_eq!(lines(&batch).len(), 1);
        assert_eq!(lines(&batch)[0]["op"], "jobs.start");
        let answer = json!({"status": 200, "event": {"attempt": 1, "status": "in_progress"}});
        assert_eq!(outbox.decide(&keys[0], &answer), Decision::Done);
        let (_, batch) = outbox.take("w", Instant::now(), 10);
        assert_eq!(lines(&batch)[0]["op"], "jobs.complete");
        assert_eq!(lines(&batch)[0]["attempt"], 1);
    }

    #[test]
    fn reports_of_a_lost_job_wait_for_one_start() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        job.known().attempt = Some(2);
        outbox.offer(tick(&job, json!({"progress": 1})));
        outbox.offer(Report::new(&job, Verb::Complete, Map::new()));
        let (keys, _) = outbox.take("w", Instant::now(), 10);
        for key in &keys {
            let decision = outbox.decide(key, &not_found());
            assert_eq!(decision, Decision::Repeat(Duration::ZERO));
        }
        let ops = |outbox: &mut Outbox| {
            let (keys, batch) = outbox.take("w", Instant::now(), 10);
            let op = |line: &Value| line["op"].as_str().unwrap().to_owned();
            (keys, lines(&batch).iter().map(op).collect::<Vec<_>>())
        };
        let (keys, sent) = ops(&mut outbox);
        assert_eq!(sent, ["jobs.start"]);
        let answer = json!({"status": 200, "event": {"attempt": 1, "status": "in_progress"}});
        outbox.decide(&keys[0], &answer);
        assert_eq!(ops(&mut outbox).1, ["jobs.progress", "jobs.complete"]);
    }

    #[test]
    fn a_lost_job_that_another_worker_has_started_is_left_to_it() {
        for verb in [Verb::Progress, Verb::Complete, Verb::Fail, Verb::Cancel] {
            let (mut outbox, job) = (Outbox::default(), subject("a"));
            job.known().attempt = Some(2);
            outbox.offer(Report::new(&job, verb, Map::new()));
            let (keys, _) = outbox.take("w", Instant::now(), 10);
            outbox.decide(&keys[0], &not_found());
            let (keys, batch) = outbox.take("w", Instant::now(), 10);
            assert_eq!(lines(&batch)[0]["op"], "jobs.start");
            let conflict = json!({"status": 409, "problem": {"code": "illegal-transition"}});
            assert_eq!(outbox.decide(&keys[0], &conflict), Decision::Check);
            let running = json!({"status": "in_progress", "attempt": 1, "worker": "other"});
            let decision = outbox.decide_with(&keys[0], "w", &running, &conflict);
            assert!(matches!(decision, Decision::Rejected(_)), "{verb:?}");
            assert!(outbox.is_empty() && job.known().is_superseded);
            assert!(outbox.offer(Report::new(&job, Verb::Complete, Map::new())));
            assert!(outbox.is_empty(), "nothing more is sent about the job");
        }
    }

    #[test]
    fn a_lost_job_that_this_worker_has_started_is_continued() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        job.known().attempt = Some(2);
        outbox.offer(Report::new(&job, Verb::Complete, Map::new()));
        let (keys, _) = outbox.take("w", Instant::now(), 10);
        outbox.decide(&keys[0], &not_found());
        let (keys, _) = outbox.take("w", Instant::now(), 10);
        let conflict = json!({"status": 409, "problem": {"code": "illegal-transition"}});
        let running = json!({"status": "in_progress", "attempt": 1, "worker": "w"});
        let decision = outbox.decide_with(&keys[0], "w", &running, &conflict);
        assert_eq!(decision, Decision::Done);
        let (_, batch) = outbox.take("w", Instant::now(), 10);
        assert_eq!(lines(&batch)[0]["op"], "jobs.complete");
        assert_eq!(lines(&batch)[0]["attempt"], 1);
    }

    #[test]
    fn reports_whose_keys_may_be_forgotten_are_given_up() {
        let (mut outbox, job) = (Outbox::default(), subject("a"));
        outbox.offer(Report::new(&job, Verb::Complete, Map::new()));
        let now = Instant::now();
        outbox.take("w", now, 10);
        assert_eq!(outbox.give_up_old(now + KEEP), 0);
        assert_eq!(outbox.give_up_old(now + KEEP + Duration::from_secs(1)), 1);
        assert!(outbox.is_empty());
    }
}
