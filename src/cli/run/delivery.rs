//! The requests by which a command's job is reported, each with its idempotency key.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::outcome::{Ending, Outcome};
use super::reporter::Latest;
use crate::cli::client::Client;
use crate::cli::{Exit, Failure};
use crate::client::worker::worker;
use crate::id::SubjectId;

/// How much a report of the outcome contains. The server may reject a long one: its limits can be lower than those of this command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Full,
    /// Without the output.
    Short,
    /// Only how the command ended.
    Bare,
}

impl Level {
    pub(super) fn shorter(self) -> Level {
        match self {
            Level::Full => Level::Short,
            Level::Short | Level::Bare => Level::Bare,
        }
    }
}

/// The job of a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Job {
    pub(in crate::cli) id: String,
    job_type: String,
    metadata: Value,
    worker: String,
    /// Distinguishes the keys of this run from those of others with the same job.
    pub(super) run: String,
}

impl Job {
    pub(super) fn new(id: &SubjectId, job_type: String, metadata: Value) -> Job {
        Job {
            id: id.as_str().to_owned(),
            job_type,
            metadata,
            worker: worker(),
            run: Uuid::now_v7().simple().to_string(),
        }
    }
}

/// Reports on a job.
pub(super) struct Delivery {
    client: Client,
    job: Job,
    reports: u64,
    attempt: Option<u64>,
}

impl Delivery {
    pub(super) fn new(client: Client, job: Job) -> Delivery {
        Delivery::again(client, job, None)
    }

    /// Continues the delivery of an earlier process.
    pub(super) fn again(client: Client, job: Job, attempt: Option<u64>) -> Delivery {
        Delivery {
            client,
            job,
            reports: 0,
            attempt,
        }
    }

    /// Returns the attempt that has been started.
    pub(super) fn attempt(&self) -> Option<u64> {
        self.attempt
    }

    /// Starts the job, and creates it if it does not exist. If its last attempt has ended, or is still open because its machine was
    /// lost, starts a new attempt. Reports of the earlier attempt then have no effect.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        self.start_if(|_| true)
    }

    /// Starts the job of a run that has ended, unless the job has changed since: the newer state wins.
    pub(super) fn start_unless_changed_since(
        &mut self,
        since: DateTime<Utc>,
    ) -> Result<(), Failure> {
        let state = self.client.get_with_clock(&self.path("")?);
        let ahead = state
            .as_ref()
            .map_or(TimeDelta::zero(), |(_, ahead)| *ahead);
        let is_old = |job: &Value| is_unchanged_since(job, since, ahead);
        match state {
            // `start` alone would take a job that somebody has queued for another worker.
            Ok((job, _)) if is_waiting(&job) && !is_old(&job) => {
                // A waiting job cannot be retried. So this succeeds only as a repetition, if an earlier try of this run has queued
                // the job under the same key.
                self.post("retry", &json!({}), "retry")?;
                let started = self.post("start", &self.starting(), "restart")?;
                self.attempt = started["attempt"].as_u64();
                Ok(())
            }
            Err(failure) if failure.exit != Exit::NotFound => Err(failure),
            _ => self.start_if(is_old),
        }
    }

    /// Starts the job. If that is a conflict, starts a new attempt, provided that `allows` accepts the current state of the job.
    fn start_if(&mut self, allows: impl FnOnce(&Value) -> bool) -> Result<(), Failure> {
        let start = self.starting();
        let started = match self.post("start", &start, "start") {
            Err(failure) if failure.is_conflict() => {
                let job = self.client.get(&self.path("")?)?;
                if !allows(&job) {
                    return Err(failure);
                }
                self.begin_again(&job, &start)?
            }
            started => started?,
        };
        self.attempt = started["attempt"].as_u64();
        Ok(())
    }

    fn starting(&self) -> Value {
        let mut metadata = self.job.metadata.clone();
        merge(&mut metadata, Outcome::no_metadata());
        json!({
            "job_type": self.job.job_type, "worker": self.job.worker, "metadata": metadata, "message": "Started",
        })
    }

    fn begin_again(&self, job: &Value, start: &Value) -> Result<Value, Failure> {
        if status(job) == "in_progress" {
            let superseded = json!({
                "attempt": job["attempt"], "force": true, "message": "A newer run has taken its place",
            });
            self.post("cancel", &superseded, "supersede")?;
        }
        if status(job) != "queued" {
            self.post("retry", &json!({}), "retry")?;
        }
        self.post("start", start, "restart")
    }

    /// Reports progress, or sends a heartbeat. Returns whether the server asks to cancel the job.
    pub(super) fn progress(&mut self, latest: &Latest) -> Result<bool, Failure> {
        self.reports += 1;
        let key = format!("progress-{}", self.reports);
        let answer = self.even_if_lost(|delivery| {
            delivery.post("progress", &delivery.progress_report(latest), &key)
        })?;
        Ok(answer["cancel_requested"] == true)
    }

    /// Sends a report, and once more if the server has lost the job, which is then started again. A job that another run has started
    /// meanwhile is left to it, because it is the newer one.
    fn even_if_lost<T>(
        &mut self,
        send: impl Fn(&Delivery) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match send(self) {
            Err(failure) if failure.exit == Exit::NotFound && self.attempt.is_some() => {
                self.start_if(|_| false)?;
                send(self)
            }
            sent => sent,
        }
    }

    fn progress_report(&self, latest: &Latest) -> Value {
        let mut report = self.report();
        report["progress"] = latest.percent.map(|(percent, _)| rounded(percent)).into();
        if let Some(message) = &latest.message {
            report["message"] = message.as_str().into();
        }
        if let Some((_, source)) = latest.percent {
            report["metadata"] = json!({"progress_source": source.as_str()});
        }
        report
    }

    /// Reports how the command ended. If its newest progress is unsent, reports that as well.
    pub(super) fn end(
        &mut self,
        outcome: &Outcome,
        level: Level,
        latest: &Latest,
        is_unsent: bool,
    ) -> Result<bool, Failure> {
        self.even_if_lost(|delivery| delivery.send_end(outcome, level, latest, is_unsent))
    }

    fn send_end(
        &self,
        outcome: &Outcome,
        level: Level,
        latest: &Latest,
        is_unsent: bool,
    ) -> Result<bool, Failure> {
        let mut report = self.report();
        let unsent = Some(latest).filter(|_| is_unsent);
        let metadata = match level {
            Level::Bare => None,
            Level::Full | Level::Short => Some(self.metadata_of(outcome, latest)),
        };
        let key = |verb: &str| format!("{verb}-{level:?}");
        let verb = match &outcome.ending {
            Ending::Cancelled(reason) => {
                // `cancel` accepts no metadata.
                if let Some(metadata) = metadata {
                    let mut used = self.progress_report(&unsent.cloned().unwrap_or_default());
                    merge(&mut used["metadata"], metadata);
                    self.post("progress", &used, &key("used"))?;
                }
                report["force"] = true.into();
                report["message"] = reason.as_str().into();
                "cancel"
            }
            Ending::Completed => {
                report["result"] = json!({"exit_code": 0});
                if let Some(message) = &latest.message {
                    report["message"] = message.as_str().into();
                }
                report["metadata"] = metadata.unwrap_or(json!({}));
                "complete"
            }
            Ending::Failed { code, message } => {
                report["error"] = json!({"code": code, "message": message});
                if level == Level::Full {
                    report["error"]["details"] = outcome.details();
                }
                report["metadata"] = metadata.unwrap_or(json!({}));
                if let Some(latest) = unsent {
                    // Send both in one request, so that the outcome does not have to wait for the answer to the progress.
                    let progress = self.progress_report(latest);
                    self.client.batch_for_last(vec![
                        self.line("progress", progress, &key("last-progress")),
                        self.line("fail", report, &key("fail")),
                    ])?;
                    return Ok(false);
                }
                "fail"
            }
        };
        self.post(verb, &report, &key(verb))?;
        Ok(false)
    }

    fn metadata_of(&self, outcome: &Outcome, latest: &Latest) -> Value {
        let mut metadata = outcome.metadata();
        metadata["ended_attempt"] = self.attempt.into();
        // The progress may not have been reported before the command ended.
        if let Some((_, source)) = latest.percent {
            metadata["progress_source"] = source.as_str().into();
        }
        metadata
    }

    /// Reports how the command ended, with as much as the server accepts.
    pub(super) fn end_within_limits(
        &mut self,
        outcome: &Outcome,
        latest: &Latest,
        is_unsent: bool,
    ) -> Result<(), Failure> {
        let mut level = Level::Full;
        loop {
            match self.end(outcome, level, latest, is_unsent) {
                Err(failure) if failure.is_too_long() && level != Level::Bare => {
                    level = level.shorter();
                }
                ended => return ended.map(drop),
            }
        }
    }

    /// Returns a line of a batch.
    fn line(&self, verb: &str, mut body: Value, key: &str) -> Value {
        body["op"] = format!("jobs.{verb}").into();
        body["job_id"] = self.job.id.as_str().into();
        body["idempotency_key"] = self.key(key).into();
        body
    }

    fn key(&self, key: &str) -> String {
        format!("{}-{key}", self.job.run)
    }

    fn report(&self) -> Value {
        json!({"attempt": self.attempt, "worker": self.job.worker})
    }

    fn post(&self, verb: &str, body: &Value, key: &str) -> Result<Value, Failure> {
        let path = self.path(&format!("/{verb}"))?;
        self.client.post_once(&path, body, &self.key(key))
    }

    fn path(&self, verb: &str) -> Result<String, Failure> {
        let id: SubjectId = self.job.id.parse()?;
        Ok(format!("/api/jobs/{}{verb}", id.encoded()))
    }
}

fn is_waiting(job: &Value) -> bool {
    ["pending", "queued"].contains(&&*status(job))
}

/// Whether a job has not changed since this time. `since` is by the local clock, and `ahead` says how far the server's clock is
/// ahead of it.
pub(in crate::cli) fn is_unchanged_since(
    job: &Value,
    since: DateTime<Utc>,
    ahead: TimeDelta,
) -> bool {
    let time = |field: &Value| DateTime::parse_from_rfc3339(field.as_str()?).ok();
    let is_final = ["completed", "failed", "cancelled"].contains(&&*status(job));
    let metadata = &job["metadata"];
    // Metadata remains when another client starts a new attempt.
    let is_of_attempt = metadata["ended_attempt"] == job["attempt"];
    // An earlier run may have been reported late, so compare when it ended. That time is by the clock of the machine that ran it,
    // not by the server's.
    match time(&metadata["ended_at"]).filter(|_| is_final && is_of_attempt) {
        Some(ended) => ended <= since,
        None => time(&job["timestamp"]).is_some_and(|changed| changed <= since + ahead),
    }
}

/// Returns the status of a job in lower case. A server setting determines in which case it is sent.
fn status(job: &Value) -> String {
    job["status"].as_str().unwrap_or_default().to_lowercase()
}

/// Adds the fields of `more` to an object, or to nothing.
fn merge(object: &mut Value, more: Value) {
    match (object.as_object_mut(), more) {
        (Some(object), Value::Object(more)) => object.extend(more),
        (_, more) => *object = more,
    }
}

/// Rounds a percentage to two decimal places.
fn rounded(percent: f64) -> f64 {
    (percent * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::spawn;

    use super::*;

    /// Answers requests with these statuses and bodies. Returns its URL, and the first lines of the requests at the end.
    fn answering(answers: Vec<(u16, Value)>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = spawn(move || {
            let mut seen = Vec::new();
            for (status, body) in answers {
                let mut socket = BufReader::new(listener.accept().unwrap().0);
                let (mut line, mut length) = (String::new(), 0);
                socket.read_line(&mut line).unwrap();
                seen.push(line.trim_end().to_owned());
                while line != "\r\n" {
                    line.clear();
                    socket.read_line(&mut line).unwrap();
                    let field = line.to_lowercase();
                    if let Some(value) = field.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                socket.read_exact(&mut vec![0; length]).unwrap();
                let body = body.to_string();
                let length = body.len();
                let head = "Content-Type: application/json\r\nConnection: close";
                let answer = format!(
                    "HTTP/1.1 {status} X\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                socket.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            seen
        });
        (url, server)
    }

    #[test]
    fn a_lost_job_that_another_run_has_started_is_left_to_it() {
        let running = json!({"status": "in_progress", "attempt": 1, "worker": "other"});
        let (url, server) = answering(vec![
            (404, json!({"code": "not-found"})),
            (409, json!({"code": "illegal-transition"})),
            (200, running),
        ]);
        let client = Client::new(&url, None).unwrap();
        let job = Job::new(&"nightly".parse().unwrap(), "backup".into(), json!({}));
        let mut delivery = Delivery::again(client, job, Some(2));
        let failure = delivery.progress(&Latest::default()).unwrap_err();
        assert!(failure.is_conflict());
        let seen = server.join().unwrap();
        let expected = [
            "POST /api/jobs/nightly/progress HTTP/1.1",
            "POST /api/jobs/nightly/start HTTP/1.1",
            "GET /api/jobs/nightly HTTP/1.1",
        ];
        assert_eq!(seen, expected);
    }
}
