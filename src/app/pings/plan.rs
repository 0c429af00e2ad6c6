//! What a ping does, as a pure function: (report, last run, now) → commands.
//!
//! A ping with a `rid` belongs to the run with this id, which exists once, so it has the same effect however often it
//! is sent. A ping without a `rid` belongs to the last run of its key, or begins the next one. A repetition is then
//! recognised by its time: what a client or a proxy repeats within [`PING_REPEAT`] has no further effect.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::report::{Ending, Report};
use crate::config::PING_REPEAT;
use crate::id::SubjectId;
use crate::kind::job::{
    Command, Complete, Create, End, Fail, Job, JobError, JobType, Progress, Start, Status,
};

/// The code of the error of a run that was not ended before the next one began.
pub const SUPERSEDED_CODE: &str = "superseded";
/// The code of the error of a run whose command ended with an exit code.
pub const EXIT_CODE: &str = "exit_code";

/// A ping, reduced to what decides its effect.
#[derive(Debug, Clone)]
pub struct Ping {
    /// What it reports.
    pub report: Report,
    /// Its body.
    pub message: Option<String>,
    /// The id of its run, if the sender names runs.
    pub rid: Option<String>,
}

/// What to do.
#[derive(Debug)]
pub enum Plan {
    /// Carry out these commands on the current run.
    Same(Vec<Command>),
    /// Begin the next run with these commands, after ending the current one.
    Next {
        /// Ends the current run, if it has not ended.
        before: Option<Command>,
        /// Creates the next run, and what follows.
        commands: Vec<Command>,
    },
    /// The ping is a repetition, and has no further effect.
    Repeated,
}

impl Ping {
    /// Decides what to do, given the run that the ping is about, if there is one.
    pub fn plan(
        &self,
        id: &SubjectId,
        job_type: &JobType,
        run: Option<&Job>,
        now: DateTime<Utc>,
    ) -> Plan {
        let Some(run) = run else {
            return Plan::Same(self.first(id, job_type));
        };
        let is_named = self.rid.is_some();
        let next = |before| Plan::Next {
            before,
            commands: self.first(id, job_type),
        };
        match (self.report, run.status) {
            (_, Status::Completed | Status::Failed | Status::Cancelled) => {
                match self.repeats(run, now) {
                    true => Plan::Repeated,
                    // The rules reject the command, because the run is over.
                    false if is_named => Plan::Same(vec![self.command()]),
                    false => next(None),
                }
            }
            (Report::Start, Status::InProgress) => {
                let is_recent = |at: DateTime<Utc>| is_recent(at, now);
                let is_fresh =
                    !run.has_reported_progress() && run.started_at.is_some_and(is_recent);
                match is_named || is_fresh {
                    true => Plan::Repeated,
                    false => next(Some(superseded())),
                }
            }
            _ => Plan::Same(vec![self.command()]),
        }
    }

    /// Returns whether this ping repeats the one that ended the run.
    fn repeats(&self, run: &Job, now: DateTime<Utc>) -> bool {
        let Report::End(ending) = self.report else {
            return false;
        };
        let in_time = self.rid.is_some() || run.finished_at.is_some_and(|at| is_recent(at, now));
        let is_same_end = match (ending, &run.end) {
            (Ending::Ok, Some(End::Result(_))) => run.status == Status::Completed,
            (_, Some(End::Error(error))) => {
                run.status == Status::Failed
                    && self
                        .error(ending)
                        .is_some_and(|reported| reported.code == error.code)
            }
            _ => false,
        };
        let message = self.message.as_deref();
        in_time && is_same_end && message.is_none_or(|message| message == &*run.message)
    }

    /// Returns the commands of the first ping of a run.
    fn first(&self, id: &SubjectId, job_type: &JobType) -> Vec<Command> {
        let mut metadata = Map::new();
        if let Some(rid) = &self.rid {
            metadata.insert("rid".into(), rid.as_str().into());
        }
        let create = Create {
            job_id: Some(id.clone()),
            job_type: job_type.clone(),
            status: Some(Status::InProgress),
            message: match self.report {
                Report::Start => self.message.clone(),
                _ => None,
            },
            metadata: Some(metadata),
            // Most scripts are silent between their start and their end.
            stall_after_secs: Some(0),
            timeout_secs: None,
        };
        let mut commands = vec![Command::Create(create)];
        if self.report != Report::Start {
            commands.push(self.command());
        }
        commands
    }

    /// Returns the command of a ping about an existing run.
    fn command(&self) -> Command {
        let message = self.message.clone();
        match self.report {
            Report::Start => Command::Start(Start {
                message,
                ..Start::default()
            }),
            Report::Progress(percent) => Command::Progress(Progress {
                progress: Some(Some(percent)),
                message,
                ..Progress::default()
            }),
            Report::End(ending) => match self.error(ending) {
                None => Command::Complete(Complete {
                    message,
                    ..Complete::default()
                }),
                Some(error) => Command::Fail(Fail {
                    attempt: None,
                    worker: None,
                    error,
                    message: None,
                    metadata: exit_code(ending),
                }),
            },
        }
    }

    fn error(&self, ending: Ending) -> Option<JobError> {
        let (code, otherwise) = match ending {
            Ending::Ok => return None,
            Ending::Failed => (crate::kind::PLAIN_ERROR_CODE, "Failed".to_owned()),
            Ending::Exit(code) => (EXIT_CODE, format!("Exit code {code}")),
        };
        let message = self.message.as_deref().unwrap_or(&otherwise);
        Some(JobError {
            code: code.into(),
            message: message.into(),
            details: None,
        })
    }
}

fn exit_code(ending: Ending) -> Option<Map<String, Value>> {
    let Ending::Exit(code) = ending else {
        return None;
    };
    Some(Map::from_iter([("exit_code".to_owned(), code.into())]))
}

fn superseded() -> Command {
    Command::Fail(Fail {
        attempt: None,
        worker: None,
        error: JobError {
            code: SUPERSEDED_CODE.into(),
            message: "The next run began, and no end of this one was reported".into(),
            details: None,
        },
        message: None,
        metadata: None,
    })
}

/// Whether a ping at `now` can be a repetition of one at `at`. It cannot if the clock was adjusted by [`PING_REPEAT`] or
/// more in between.
fn is_recent(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    let passed = now - at;
    let repeat = TimeDelta::from_std(PING_REPEAT).unwrap_or(TimeDelta::MAX);
    (-repeat..repeat).contains(&passed)
}
