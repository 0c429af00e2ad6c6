//! An ordinary worker: it reads documents, one job each, and reports over HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::documents::{Document, Reading};
use super::stop::Stop;
use crate::cli::Failure;
use crate::cli::client::Client;

/// What the worker calls itself.
const NAME: &str = "demo";

/// Reads documents.
pub(super) struct Worker<'a> {
    pub(super) client: &'a Client,
    /// Bytes that are read at a time.
    pub(super) part_bytes: usize,
    /// The rest between two parts.
    pub(super) pause: Duration,
    pub(super) stop: &'a Stop,
}

impl Worker<'_> {
    /// Works through these files. Whether it got to the end before it was time to stop.
    pub(super) fn work_through(&self, files: &[PathBuf]) -> Result<bool, Failure> {
        let mut jobs = Vec::with_capacity(files.len());
        for path in files {
            let title = path.file_name().map(|name| name.to_string_lossy());
            let metadata = json!({"title": title, "path": path.display().to_string()});
            let job = self.client.post(
                "/api/jobs",
                &json!({"job_type": "document", "status": "queued", "metadata": metadata}),
            )?;
            jobs.push(job["job_id"].as_str().unwrap_or_default().to_owned());
        }
        for (path, id) in files.iter().zip(&jobs) {
            let Some(ended) = self.process(path, id)? else {
                return Ok(false);
            };
            println!(
                "{:<10} {}",
                ended["status"].as_str().unwrap_or("?"),
                path.display()
            );
        }
        Ok(true)
    }

    /// Works on one document from start to end, and returns the job as it ended, or `None` if it was time to stop.
    fn process(&self, path: &Path, id: &str) -> Result<Option<Value>, Failure> {
        let started = self.client.post(
            &format!("/api/jobs/{id}/start"),
            &json!({"message": format!("Reading {}", path.display()), "worker": NAME}),
        )?;
        // Every report says which attempt it is about: if the job is given up and tried again, this one changes nothing.
        let report = |verb: &str, mut body: Value| {
            body["attempt"] = started["attempt"].clone();
            body["worker"] = NAME.into();
            self.client.post(&format!("/api/jobs/{id}/{verb}"), &body)
        };
        let fail = |code: &str, message: String| {
            report("fail", json!({"error": {"code": code, "message": message}})).map(Some)
        };
        let mut document = match Document::open(path, self.part_bytes) {
            Ok(document) => document,
            Err(error) => {
                return fail(
                    "unreadable",
                    format!("cannot read {}: {error}", path.display()),
                );
            }
        };
        let (bytes, parts) = (document.bytes, document.parts());
        let mut reading = Reading::default();
        let mut done = 0;
        for number in 1.. {
            let part = match document.read_part() {
                Ok([]) => break,
                Ok(part) => part,
                Err(error) => {
                    return fail(
                        "unreadable",
                        format!("cannot read {}: {error}", path.display()),
                    );
                }
            };
            if let Err(error) = reading.take(part) {
                return fail("not_text", error.to_string());
            }
            done += part.len() as u64;
            // A file that grows while it is read is done when it is read, not before.
            let percent = (done as f64 / bytes.max(done) as f64 * 100.0).clamp(0.0, 100.0);
            let message = format!("Processing part {number} of {}", parts.max(number));
            let answer = report(
                "progress",
                json!({"progress": (percent * 100.0).round() / 100.0, "message": message}),
            )?;
            if answer["cancel_requested"] == true {
                let stopped = json!({"force": true, "message": "Stopped on request"});
                return report("cancel", stopped).map(Some);
            }
            if !self.stop.rest(self.pause) {
                return Ok(None);
            }
        }
        match reading.finish() {
            Ok(counts) => {
                report("complete", json!({"result": counts, "message": "Counted"})).map(Some)
            }
            Err(error) => fail("not_text", error.to_string()),
        }
    }
}
