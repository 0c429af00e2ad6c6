//! The request of a report, as it is sent, or stored while the server is unreachable.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::client::Client;
use crate::cli::run::is_unchanged_since;
use crate::cli::{Exit, Failure};
use crate::id::SubjectId;

/// A report on a job, with an idempotency key: however often it is sent, it takes effect once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Delivery {
    pub(in crate::cli) job_id: String,
    job_type: Option<String>,
    attempt: Option<u32>,
    verb: String,
    body: Value,
    pub(in crate::cli) key: String,
}

impl Delivery {
    /// Creates a report. Without an `attempt`, it is about the job's current attempt.
    pub(in crate::cli) fn new(
        job_id: &SubjectId,
        job_type: Option<&str>,
        attempt: Option<u32>,
        verb: &str,
        mut body: Value,
    ) -> Delivery {
        body["attempt"] = attempt.into();
        if matches!(verb, "start" | "progress") {
            body["job_type"] = job_type.into();
        }
        Delivery {
            job_id: job_id.as_str().to_owned(),
            job_type: job_type.map(str::to_owned),
            attempt,
            verb: verb.to_owned(),
            body,
            // UUIDv7, so that keys sort by time.
            key: Uuid::now_v7().simple().to_string(),
        }
    }

    /// Whether it ends the job.
    pub(super) fn is_end(&self) -> bool {
        matches!(&*self.verb, "complete" | "fail" | "cancel")
    }

    /// Sends the report.
    pub(super) fn send(&self, client: &Client) -> Result<Value, Failure> {
        let answer = client.post_once(&self.path(&self.verb)?, &self.body, &self.key);
        match (&answer, &self.job_type) {
            // The server does not know the job, for example because its start could not be reported. So
            // start it first.
            (Err(failure), Some(job_type)) if failure.exit == Exit::NotFound => {
                let start = json!({"job_type": job_type});
                let key = |name| format!("{}-{name}", self.key);
                let started = client.post_once(&self.path("start")?, &start, &key("start"))?;
                // If the server has lost the job, this is a new one, and its attempt can have another
                // number.
                let mut body = self.body.clone();
                body["attempt"] = started["attempt"].clone();
                client.post_once(&self.path(&self.verb)?, &body, &key("again"))
            }
            _ => answer,
        }
    }

    /// Sends a report that was stored at `kept_at`, unless the job has changed since.
    pub(in crate::cli) fn send_later(
        &self,
        client: &Client,
        kept_at: DateTime<Utc>,
    ) -> Result<(), Failure> {
        // If the report names its attempt, the server rejects it once there is a newer one.
        if self.attempt.is_none() {
            match client.get_with_clock(&self.path("")?) {
                Ok((job, ahead)) if !is_unchanged_since(&job, kept_at, ahead) => {
                    return Err(Failure {
                        http_status: Some(409),
                        code: Some("newer".into()),
                        ..Failure::new(Exit::Failed, "something newer has happened to the job")
                    });
                }
                Err(failure) if failure.exit != Exit::NotFound => return Err(failure),
                _ => {}
            }
        }
        self.send(client).map(drop)
    }

    /// Whether both reports are about the same attempt. False if either does not name its attempt.
    pub(in crate::cli) fn is_of_same_attempt(&self, other: &Delivery) -> bool {
        let attempt = |delivery: &Delivery| {
            delivery
                .attempt
                .map(|attempt| (delivery.job_id.clone(), attempt))
        };
        attempt(self).is_some_and(|identity| Some(identity) == attempt(other))
    }

    /// Returns the report as text for people.
    pub(in crate::cli) fn text(&self) -> String {
        let suffix = |text: &Value| text.as_str().map(|text| format!(": {text}"));
        match &*self.verb {
            "complete" => "completed".into(),
            "fail" => {
                "failed".to_owned() + &suffix(&self.body["error"]["message"]).unwrap_or_default()
            }
            _ => "cancelled".to_owned() + &suffix(&self.body["message"]).unwrap_or_default(),
        }
    }

    fn path(&self, verb: &str) -> Result<String, Failure> {
        let id: SubjectId = self.job_id.parse()?;
        let separator = if verb.is_empty() { "" } else { "/" };
        Ok(format!("/api/jobs/{}{separator}{verb}", id.encoded()))
    }
}
