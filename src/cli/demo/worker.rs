//! An ordinary worker: it processes documents, one job each, and reports over HTTP. If the server rejects a request, the
//! worker logs it, gives up at most that document, and continues.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::documents::{Document, Reading};
use super::school::RateLimit;
use super::stop::Stop;
use crate::cli::client::Client;
use crate::cli::terminal::{plain, print_line};
use crate::cli::{Failure, terminal};

/// The worker's name.
const NAME: &str = "demo";
/// The type of its jobs, and the value in their metadata by which it recognizes them.
const JOB_TYPE: &str = "document";
const SOURCE: &str = "tidings demo";
/// The maximum number of tries of a request, and the first delay between two tries, which doubles each time.
const TRIES: u32 = 4;
const RETRY: Duration = Duration::from_millis(500);
/// How many jobs are listed or cancelled at a time.
const PAGE: usize = 500;
/// The maximum number of beats between two checks for work, once the documents are processed.
const IDLE_BEATS: u32 = 10;
/// One in this many checks processes a document again.
const LOOKS_PER_DOCUMENT: u32 = 3;

/// Processes documents.
pub(super) struct Worker<'a> {
    pub(super) client: &'a Client,
    /// The documents. No other file is read.
    pub(super) files: &'a [PathBuf],
    /// How many bytes to read at a time.
    pub(super) part_bytes: usize,
    /// The pause between two parts.
    pub(super) pause: Duration,
    pub(super) pace: RateLimit,
    pub(super) stop: &'a Stop,
}

/// A document that waits to be processed.
struct Waiting<'a> {
    path: &'a Path,
    job_id: String,
}

/// Why a document was not processed to its end.
enum Left {
    /// The demo ends.
    Stopped,
    /// A request was rejected or failed.
    Rejected(Failure),
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Left {
        Left::Rejected(failure)
    }
}

impl Worker<'_> {
    /// Processes the files. Returns false if the demo ended before that. Fails only if standard output is closed.
    pub(super) fn work_through(&self) -> Result<bool, Failure> {
        let queue: Vec<_> = self
            .files
            .iter()
            .filter_map(|path| self.queue(path))
            .collect();
        for waiting in &queue {
            if !self.work_on(waiting)? {
                return Ok(false);
            }
        }
        Ok(self.stop.rest(Duration::ZERO))
    }

    /// Until the demo ends, processes documents whose jobs were retried and, occasionally, a random one.
    pub(super) fn continue_working(&self) -> Result<(), Failure> {
        let mut chance = fastrand::Rng::new();
        while self
            .stop
            .rest(self.pace.beats(chance.u32(IDLE_BEATS / 2..=IDLE_BEATS)))
        {
            let mut queue = self.tried_again();
            if chance.u32(0..LOOKS_PER_DOCUMENT) == 0
                && let Some(path) = chance.choice(self.files)
            {
                queue.extend(self.queue(path));
            }
            for waiting in &queue {
                if !self.work_on(waiting)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Cancels the open jobs of this demo, or of an earlier one.
    pub(super) fn cancel_leftovers(&self) {
        let cancelled = self.open_jobs().and_then(|jobs| {
            let cancel = |job: &Value| {
                json!({"op": "jobs.cancel", "job_id": job["job_id"], "force": true, "worker": NAME, "message": "The demo has ended"})
            };
            let commands: Vec<Value> = jobs.iter().map(cancel).collect();
            commands.chunks(PAGE).try_for_each(|some| self.client.batch(some))
        });
        if let Err(failure) = cancelled {
            self.log("open jobs cannot be cancelled", &failure);
        }
    }

    /// Returns the open jobs of a demo.
    fn open_jobs(&self) -> Result<Vec<Value>, Failure> {
        let first = format!(
            "/api/jobs?job_type={JOB_TYPE}&status=pending&status=queued&status=in_progress&limit={PAGE}"
        );
        let mut open_jobs = Vec::new();
        let mut address = first.clone();
        loop {
            let mut page = self.client.get(&address)?;
            if let Some(jobs) = page["jobs"].as_array_mut() {
                let is_own = |job: &Value| job["metadata"]["source"] == SOURCE;
                open_jobs.extend(std::mem::take(jobs).into_iter().filter(is_own));
            }
            match page["next"].as_str() {
                Some(next) => address = format!("{first}&page={next}"),
                None => return Ok(open_jobs),
            }
        }
    }

    /// Returns the documents of waiting jobs. If a job is marked as running, no worker has it: a report was lost. All open jobs
    /// are then cancelled.
    fn tried_again(&self) -> Vec<Waiting<'_>> {
        let jobs = self.open_jobs().unwrap_or_default();
        if jobs.iter().any(|job| job["status"] == "in_progress") {
            self.cancel_leftovers();
            return Vec::new();
        }
        jobs.iter()
            .filter_map(|job| {
                // A job may be from anyone, so read only files that were given as documents.
                let named = job["metadata"]["path"].as_str()?;
                let is_named = |path: &&PathBuf| path.to_string_lossy() == named;
                Some(Waiting {
                    path: self.files.iter().find(is_named)?,
                    job_id: job["job_id"].as_str()?.to_owned(),
                })
            })
            .collect()
    }

    /// Creates a job for a document.
    fn queue<'p>(&self, path: &'p Path) -> Option<Waiting<'p>> {
        if !self.stop.rest(Duration::ZERO) {
            return None;
        }
        // Choose the id here, so that the request can be repeated without creating a second job if its answer is lost.
        let job_id = uuid::Uuid::now_v7().to_string();
        let metadata =
            json!({"title": title(path), "path": path.to_string_lossy(), "source": SOURCE});
        let body = json!({"job_id": job_id, "job_type": JOB_TYPE, "status": "queued", "metadata": metadata});
        let is_there = || self.client.get(&format!("/api/jobs/{job_id}")).is_ok();
        match self.send("/api/jobs", &body) {
            // A conflict may mean that an earlier request was successful but its answer was lost.
            Err(failure) if !(failure.is_conflict() && is_there()) => {
                self.log(&format!("{} is skipped", title(path)), &failure);
                None
            }
            _ => Some(Waiting { path, job_id }),
        }
    }

    /// Processes a document and prints how its job ended. Returns whether to continue.
    fn work_on(&self, waiting: &Waiting<'_>) -> Result<bool, Failure> {
        let Waiting { path, job_id } = waiting;
        let status = match self.process(path, job_id) {
            Ok(job) => job["status"].clone(),
            Err(Left::Stopped) => return Ok(false),
            // Another client ended the job, so this worker must not continue it.
            Err(Left::Rejected(failure)) if failure.is_conflict() => {
                let job = self.client.get(&format!("/api/jobs/{job_id}"));
                job.map_or(Value::Null, |job| job["status"].clone())
            }
            Err(Left::Rejected(failure)) => {
                self.log(&format!("{} is abandoned", title(path)), &failure);
                return Ok(self.stop.rest(Duration::ZERO));
            }
        };
        let status = status.as_str().unwrap_or("left");
        print_line(&format!(
            "{:<10} {}",
            plain(status),
            plain(&path.to_string_lossy())
        ))?;
        Ok(self.stop.rest(Duration::ZERO))
    }

    /// Processes a document from start to end, and returns its job at the end.
    fn process(&self, path: &Path, id: &str) -> Result<Value, Left> {
        let started = self.send(
            &format!("/api/jobs/{id}/start"),
            &json!({"message": format!("Reading {}", title(path)), "worker": NAME}),
        )?;
        // Every report names its attempt. If the job is given up and retried, reports of this attempt have no effect.
        let report = |verb: &str, mut body: Value| {
            body["attempt"] = started["attempt"].clone();
            body["worker"] = NAME.into();
            (format!("/api/jobs/{id}/{verb}"), body)
        };
        let end = |verb: &str, body: Value| {
            let (path, body) = report(verb, body);
            Ok(self.send(&path, &body)?)
        };
        let fail = |code: &str, message: String| {
            end("fail", json!({"error": {"code": code, "message": message}}))
        };
        let unreadable = |error| {
            fail(
                "unreadable",
                format!("cannot read {}: {error}", title(path)),
            )
        };
        let mut document = match Document::open(path, self.part_bytes) {
            Ok(document) => document,
            Err(error) => return unreadable(error),
        };
        let (bytes, parts) = (document.bytes, document.parts());
        let mut reading = Reading::default();
        let mut done = 0;
        for number in 1.. {
            let part = match document.read_part() {
                Ok([]) => break,
                Ok(part) => part,
                Err(error) => return unreadable(error),
            };
            if let Err(error) = reading.take(part) {
                return fail("not_text", error.to_string());
            }
            done += part.len() as u64;
            // If a file grows while it is read, the job is complete only at its end.
            let percent = (done as f64 / bytes.max(done) as f64 * 100.0).clamp(0.0, 100.0);
            let message = format!("Processing part {number} of {}", parts.max(number));
            let progress =
                json!({"progress": (percent * 100.0).round() / 100.0, "message": message});
            let (address, body) = report("progress", progress);
            match self.client.post(&address, &body) {
                Ok(answer) if answer["cancel_requested"] == true => {
                    let stopped = json!({"force": true, "message": "Stopped on request"});
                    return end("cancel", stopped);
                }
                Ok(_) => {}
                // The next report supersedes this one.
                Err(failure) if failure.is_transient() => self.log("a report was lost", &failure),
                Err(failure) => return Err(failure.into()),
            }
            if !self.stop.rest(self.pause) {
                return Err(Left::Stopped);
            }
        }
        match reading.finish() {
            Ok(counts) => end("complete", json!({"result": counts, "message": "Counted"})),
            Err(error) => fail("not_text", error.to_string()),
        }
    }

    /// Posts a request. Repeats it while the server is unreachable or busy.
    fn send(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut delay = RETRY;
        for _ in 1..TRIES {
            match self.client.post(path, body) {
                Err(failure) if failure.is_transient() && self.stop.rest(delay) => delay *= 2,
                answer => return answer,
            }
        }
        self.client.post(path, body)
    }

    fn log(&self, what: &str, failure: &Failure) {
        if self.stop.is_unexpected() {
            terminal::complain(&format!("{NAME}: {what}: {}", failure.message));
        }
    }
}

/// Returns a document's name for people.
fn title(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    plain(&name.to_string_lossy())
}
