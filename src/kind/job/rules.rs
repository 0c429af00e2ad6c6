//! What becomes of a job by a command, and what is told of it. Pure: nothing here knows a clock or a store.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value};

use super::command::{Command, Create, Note, Progress, Start};
use super::{End, Eta, EtaSource, Job, JobError, KIND, Rate, Status, draft};
use crate::event::Class;
use crate::id::SubjectId;
use crate::kind::{Context, Outcome, RuleError, bounded, code, merged, not_found, rate};

/// The rules: what becomes of a job by a command, and what is told of it. Pure.
pub fn apply(
    id: &SubjectId,
    job: Option<&Job>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Job>, RuleError> {
    let (job, told) = match (command, job) {
        (Command::Create(create), None) => {
            let job = created(create, context)?;
            (job.clone(), vec![(job, Class::Milestone)])
        }
        (Command::Create(_), Some(_)) => {
            return Err(RuleError::AlreadyExists {
                noun: "Job",
                id: id.to_string(),
            });
        }
        (command, None) => {
            let Some(job_type) = command.job_type() else {
                return Err(not_found(KIND, id.as_str()));
            };
            let new = created(&Create::of_type(job_type.clone()), context)?;
            let (job, _) = changed(&new, command, context)?;
            (job.clone(), vec![(job, Class::Milestone)])
        }
        (Command::Complete(_), Some(waiting))
            if matches!(waiting.status, Status::Pending | Status::Queued) =>
        {
            let (running, _) = changed(waiting, &Command::Start(Start::default()), context)?;
            let (job, _) = changed(&running, command, context)?;
            (
                job.clone(),
                vec![(running, Class::Milestone), (job, Class::Milestone)],
            )
        }
        (command, Some(job)) => {
            let (job, class) = changed(job, command, context)?;
            (
                job.clone(),
                class.map(|class| (job, class)).into_iter().collect(),
            )
        }
    };
    let drafts: Vec<_> = told
        .iter()
        .map(|(told, class)| draft(id, told, *class))
        .collect();
    Ok(Outcome {
        answer: drafts.len().saturating_sub(1),
        ..Outcome::new(job, drafts)
    })
}

fn created(create: &Create, context: &Context<'_>) -> Result<Job, RuleError> {
    let limits = context.limits;
    let status = create.status.unwrap_or(Status::Pending);
    if status.is_terminal() {
        return Err(RuleError::Invalid {
            field: "status",
            expected: "of a new job is pending, queued or in_progress".into(),
        });
    }
    let mut job = Job {
        job_type: create.job_type.clone(),
        status: Status::Pending,
        progress: Some(0.0),
        message: Status::Pending.default_message().into(),
        metadata: merged(
            "metadata",
            None,
            create.metadata.clone().unwrap_or_default(),
            limits.metadata(),
        )?,
        attempt: 1,
        eta: None,
        stalled: false,
        cancel_requested: false,
        end: None,
        created_at: context.now,
        heard_at: context.now,
        started_at: None,
        finished_at: None,
        stall_after_secs: create.stall_after_secs.unwrap_or(limits.stall_after_secs),
        timeout_secs: create.timeout_secs.unwrap_or(limits.timeout_secs),
        check_at: None,
        typical_secs: None,
        rate: None,
    };
    match status {
        Status::InProgress => job.start(context),
        other => job.enter(other),
    }
    job.say(create.message.as_deref(), context)?;
    Ok(job)
}

/// The job afterwards, and the class of what happened, if anything did.
fn changed(
    job: &Job,
    command: &Command,
    context: &Context<'_>,
) -> Result<(Job, Option<Class>), RuleError> {
    let illegal = || RuleError::IllegalTransition {
        action: command.action(),
        status: job.status.as_str(),
    };
    if command.job_type().is_some_and(|own| *own != job.job_type) {
        return Err(RuleError::Invalid {
            field: "job_type",
            expected: format!(
                "is {}, with which the job was created",
                job.job_type.as_str()
            ),
        });
    }
    if let Command::Check = command {
        return Ok(checked(job, context));
    }
    // Before anything else: whatever became of the job, a worker of another attempt is told that it is that.
    if let Some(told) = command.attempt().filter(|told| *told != job.attempt) {
        return Err(RuleError::StaleAttempt {
            current: job.attempt,
            told,
        });
    }
    if job.status.is_terminal()
        && !matches!(
            (command, job.status),
            (Command::Retry(_), Status::Failed | Status::Cancelled)
        )
    {
        return Err(RuleError::Finished {
            status: job.status.as_str(),
        });
    }
    let mut next = job.clone();
    next.heard_at = context.now;
    let mut class = Class::Milestone;
    match command {
        Command::Create(_) | Command::Check => return Err(illegal()),
        Command::Queue(note) => {
            if job.status != Status::Pending {
                return Err(illegal());
            }
            next.enter(Status::Queued);
            next.note(note, context)?;
        }
        Command::Start(start) => {
            if job.status == Status::InProgress {
                return Err(illegal());
            }
            next.start(context);
            next.say(start.message.as_deref(), context)?;
            next.merge(start.metadata.as_ref(), context)?;
        }
        Command::Progress(report) => {
            if job.status != Status::InProgress {
                next.start(context);
            } else if !job.stalled {
                class = Class::Tick;
            }
            next.stalled = false;
            next.advance(report, context)?;
        }
        Command::Complete(complete) => {
            if job.status != Status::InProgress {
                return Err(illegal());
            }
            let result = to_raw_value(&complete.result).expect("a JSON value is JSON");
            next.finish(Status::Completed, End::Result(result.into()), context.now);
            next.progress = Some(100.0);
            next.say(complete.message.as_deref(), context)?;
            next.merge(complete.metadata.as_ref(), context)?;
        }
        Command::Fail(fail) => {
            let code = code("error.code", &fail.error.code)?;
            let message = bounded(
                "error.message",
                &fail.error.message,
                context.limits.message(),
            )?;
            let word = fail.message.as_deref().unwrap_or(&message).to_owned();
            next.finish(
                Status::Failed,
                End::Error(JobError { code, message }),
                context.now,
            );
            next.say(Some(&word), context)?;
            next.merge(fail.metadata.as_ref(), context)?;
        }
        Command::Cancel(cancel) => {
            if job.status == Status::InProgress && !cancel.force {
                if job.cancel_requested {
                    return Ok((job.clone(), None));
                }
                next.cancel_requested = true;
                // Whoever asks is not the worker: silence goes on being counted.
                next.heard_at = job.heard_at;
            } else {
                let message = cancel
                    .message
                    .as_deref()
                    .unwrap_or(Status::Cancelled.default_message());
                let message = bounded("message", message, context.limits.message())?;
                next.finish(
                    Status::Cancelled,
                    End::Error(JobError {
                        code: "cancelled".into(),
                        message,
                    }),
                    context.now,
                );
            }
            next.say(cancel.message.as_deref(), context)?;
        }
        Command::Retry(note) => {
            if !job.status.is_terminal() {
                return Err(illegal());
            }
            next.attempt = job.attempt.saturating_add(1);
            next.progress = Some(0.0);
            next.cancel_requested = false;
            next.end = None;
            next.started_at = None;
            next.finished_at = None;
            next.typical_secs = None;
            next.enter(Status::Queued);
            next.note(note, context)?;
        }
    }
    next.estimate(context.now);
    next.schedule_check(next.heard_at);
    Ok((next, Some(class)))
}

/// What silence has done to a job.
fn checked(job: &Job, context: &Context<'_>) -> (Job, Option<Class>) {
    let mut next = job.clone();
    next.check_at = None;
    if job.status != Status::InProgress {
        return (next, None);
    }
    // A worker cannot be blamed for what it said while nobody was there to hear it.
    let heard_at = job.heard_at.max(context.since.min(context.now));
    let silence = context.now - heard_at;
    let silent_for = |secs: u32| secs > 0 && silence >= TimeDelta::seconds(secs.into());
    if silent_for(job.timeout_secs) {
        let message: Arc<str> =
            format!("No word from the worker for {} seconds", job.timeout_secs).into();
        next.message = Arc::clone(&message);
        next.finish(
            Status::Failed,
            End::Error(JobError {
                code: "timeout".into(),
                message,
            }),
            context.now,
        );
        return (next, Some(Class::Milestone));
    }
    let stalls = !job.stalled && silent_for(job.stall_after_secs);
    if stalls {
        next.stalled = true;
        next.estimate(context.now);
    }
    next.schedule_check(heard_at);
    (next, stalls.then_some(Class::Milestone))
}

/// What a division makes of the ends of the range is meant to be them.
fn without_float_noise(progress: f64) -> f64 {
    const NOISE: f64 = 1e-9;
    match progress {
        // Also `-0.0`, which would print as such.
        low if (-NOISE..=0.0).contains(&low) => 0.0,
        high if (100.0..=100.0 + NOISE).contains(&high) => 100.0,
        other => other,
    }
}

impl Job {
    fn enter(&mut self, status: Status) {
        self.status = status;
        self.message = status.default_message().into();
        self.stalled = false;
        self.rate = None;
        self.eta = None;
        self.check_at = None;
    }

    fn start(&mut self, context: &Context<'_>) {
        self.enter(Status::InProgress);
        self.started_at = Some(context.now);
        self.typical_secs = context.typical_secs;
        self.rate = self
            .progress
            .map(|progress| Rate::starting(progress, context.now));
        self.estimate(context.now);
        self.schedule_check(self.heard_at);
    }

    fn finish(&mut self, status: Status, end: End, now: DateTime<Utc>) {
        self.enter(status);
        self.end = Some(end);
        self.finished_at = Some(now);
    }

    fn note(&mut self, note: &Note, context: &Context<'_>) -> Result<(), RuleError> {
        self.say(note.message.as_deref(), context)?;
        self.merge(note.metadata.as_ref(), context)
    }

    fn say(&mut self, message: Option<&str>, context: &Context<'_>) -> Result<(), RuleError> {
        if let Some(message) = message {
            self.message = bounded("message", message, context.limits.message())?;
        }
        Ok(())
    }

    fn merge(
        &mut self,
        patch: Option<&Map<String, Value>>,
        context: &Context<'_>,
    ) -> Result<(), RuleError> {
        if let Some(patch) = patch {
            self.metadata = merged(
                "metadata",
                Some(&self.metadata),
                patch.clone(),
                context.limits.metadata(),
            )?;
        }
        Ok(())
    }

    fn advance(&mut self, report: &Progress, context: &Context<'_>) -> Result<(), RuleError> {
        match report.progress {
            // That it cannot be told takes nothing back of what was.
            Some(None) if self.progress.is_none_or(|progress| progress == 0.0) => {
                self.progress = None;
                self.rate = None;
            }
            None | Some(None) => {}
            Some(Some(asked)) => {
                let asked = without_float_noise(asked);
                if !(0.0..=100.0).contains(&asked) {
                    return Err(RuleError::Invalid {
                        field: "progress",
                        expected: "is a number from 0 to 100, or null".into(),
                    });
                }
                // A lower number is a sign of life all the same: the higher one stays, and what else is told counts.
                let reached = self.progress.map_or(asked, |current| current.max(asked));
                self.progress = Some(reached);
                self.rate
                    .get_or_insert(Rate::starting(reached, context.now))
                    .observe(reached, context.now);
            }
        }
        self.say(report.message.as_deref(), context)?;
        self.merge(report.metadata.as_ref(), context)
    }

    fn estimate(&mut self, now: DateTime<Utc>) {
        self.eta = None;
        if self.status != Status::InProgress {
            return;
        }
        let by_rate = || Some((self.rate?.finish(self.progress?, now)?, EtaSource::Rate));
        let by_history = || {
            let end = rate::after(self.started_at?, self.typical_secs?)?;
            (end > now).then_some((end, EtaSource::History))
        };
        self.eta = by_rate()
            .or_else(by_history)
            .map(|(at, source)| Eta { at, source });
    }

    fn schedule_check(&mut self, heard_at: DateTime<Utc>) {
        if self.status != Status::InProgress {
            self.check_at = None;
            return;
        }
        let in_secs = |secs: u32| (secs > 0).then(|| heard_at + TimeDelta::seconds(secs.into()));
        let stall = if self.stalled {
            None
        } else {
            in_secs(self.stall_after_secs)
        };
        let due = stall.into_iter().chain(in_secs(self.timeout_secs)).min();
        self.check_at = self.check_at.into_iter().chain(due).min();
    }
}
