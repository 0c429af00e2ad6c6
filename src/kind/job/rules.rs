//! How a command changes a job, and which events it produces. Pure: uses neither a clock nor a store.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::to_raw_value;
use serde_json::{Map, Value};

use super::command::{Command, Create, Note, Progress, Start};
use super::reporters::Reporter;
use super::{End, Estimator, Job, JobError, KIND, Status, draft};
use crate::event::Class;
use crate::id::SubjectId;
use crate::kind::{
    Context, Outcome, RuleError, bounded, code, compact, merged, not_found, percent,
};
use crate::uptime::Uptime;

/// Applies a command to a job. Returns the new state and the events. Pure.
pub fn apply(
    id: &SubjectId,
    job: Option<&Job>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Job>, RuleError> {
    let names = Reporter::of(command.worker(), context.sub)?;
    if let Some(job) = job {
        fence(job, command, names.last())?;
    }
    // What the command did first, the new state, and whether and how that is an event.
    let (earlier, mut job, class) = match (command, job) {
        (Command::Create(create), None) => {
            (None, created(create, context)?, Some(Class::Milestone))
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
            // The report belongs to a job that is lost. Its reporter must learn that, and not that another attempt has begun.
            if command.attempt().is_some_and(|given| given != new.attempt) {
                return Err(not_found(KIND, id.as_str()));
            }
            let (job, _) = changed(&new, command, context)?;
            (None, job, Some(Class::Milestone))
        }
        (Command::Complete(_), Some(waiting))
            if matches!(waiting.status, Status::Pending | Status::Queued) =>
        {
            let (running, _) = changed(waiting, &Command::Start(Start::default()), context)?;
            let (job, _) = changed(&running, command, context)?;
            (Some(running), job, Some(Class::Milestone))
        }
        (command, Some(job)) => {
            let (job, class) = changed(job, command, context)?;
            (None, job, class)
        }
    };
    let earlier = earlier.map(|state| draft(id, &state, Class::Milestone));
    let last = class.map(|class| draft(id, &job, class));
    let drafts: Vec<_> = earlier.into_iter().chain(last).collect();
    if command.is_of_worker() && !job.reporters.are_last(&names) {
        Arc::make_mut(&mut job.reporters).join(&names);
    }
    Ok(Outcome {
        answer: drafts.len().saturating_sub(1),
        ..Outcome::new(job, drafts)
    })
}

/// Rejects a report on an attempt other than the current one, whatever the job's status.
fn fence(job: &Job, command: &Command, reporter: Option<&Reporter>) -> Result<(), RuleError> {
    let current = job.attempt;
    match (command.attempt(), reporter) {
        (Some(given), _) if given != current => Err(RuleError::StaleAttempt { current, given }),
        (None, Some(reporter)) if command.is_fenced() && job.reporters.is_stale(reporter) => {
            Err(RuleError::StaleWorker { current })
        }
        _ => Ok(()),
    }
}

fn created(create: &Create, context: &Context<'_>) -> Result<Job, RuleError> {
    let limits = context.limits;
    let status = create.status.unwrap_or(Status::Pending);
    if status.is_terminal() {
        return Err(RuleError::Invalid {
            field: "status",
            expected: "of a new job must be pending, queued or in_progress".into(),
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
        reporters: Arc::default(),
        eta: None,
        stalled: false,
        cancel_requested: false,
        end: None,
        created_at: context.now,
        heard_at: context.now,
        heard_uptime: context.uptime,
        started_at: None,
        finished_at: None,
        stall_after_secs: create.stall_after_secs.unwrap_or(limits.stall_after_secs),
        timeout_secs: create.timeout_secs.unwrap_or(limits.timeout_secs),
        check_uptime: None,
        estimator: None,
        past: None,
    };
    match status {
        Status::InProgress => job.start(context),
        other => job.enter(other),
    }
    job.set_message(create.message.as_deref(), context)?;
    Ok(job)
}

/// Returns the new state of the job, and the class of the event, if there is one.
fn changed(
    job: &Job,
    command: &Command,
    context: &Context<'_>,
) -> Result<(Job, Option<Class>), RuleError> {
    let illegal = || RuleError::IllegalTransition {
        action: command.action(),
        status: job.status.as_str(),
    };
    if command
        .job_type()
        .is_some_and(|job_type| *job_type != job.job_type)
    {
        return Err(RuleError::Invalid {
            field: "job_type",
            expected: format!(
                "must be {}, as when the job was created",
                job.job_type.as_str()
            ),
        });
    }
    if let Command::Check = command {
        return Ok(checked(job, context));
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
    next.hear(context);
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
            next.set_message(start.message.as_deref(), context)?;
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
            next.set_message(complete.message.as_deref(), context)?;
            next.merge(complete.metadata.as_ref(), context)?;
        }
        Command::Fail(fail) => {
            let code = code("error.code", &fail.error.code)?;
            let message = bounded(
                "error.message",
                &fail.error.message,
                context.limits.message(),
            )?;
            let details = fail.error.details.as_deref();
            let details = details.map(|details| compact("error.details", details));
            let word = fail.message.as_deref().unwrap_or(&message).to_owned();
            next.finish(
                Status::Failed,
                End::Error(JobError {
                    code,
                    message,
                    details: details.transpose()?,
                }),
                context.now,
            );
            next.set_message(Some(&word), context)?;
            next.merge(fail.metadata.as_ref(), context)?;
        }
        Command::Cancel(cancel) => {
            if job.status == Status::InProgress && !cancel.force {
                if job.cancel_requested {
                    return Ok((job.clone(), None));
                }
                next.cancel_requested = true;
                // The request does not come from the worker, so the worker's silence continues.
                (next.heard_at, next.heard_uptime) = (job.heard_at, job.heard_uptime);
                next.estimator.clone_from(&job.estimator);
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
                        details: None,
                    }),
                    context.now,
                );
            }
            next.set_message(cancel.message.as_deref(), context)?;
        }
        Command::Retry(note) => {
            if !job.status.is_terminal() {
                return Err(illegal());
            }
            next.attempt = job.attempt.saturating_add(1);
            Arc::make_mut(&mut next.reporters).begin_attempt();
            next.progress = Some(0.0);
            next.cancel_requested = false;
            next.end = None;
            next.started_at = None;
            next.finished_at = None;
            next.past = None;
            next.enter(Status::Queued);
            next.note(note, context)?;
        }
    }
    next.estimate(context);
    next.schedule_check(context);
    Ok((next, Some(class)))
}

/// Applies the effects of silence to a job.
fn checked(job: &Job, context: &Context<'_>) -> (Job, Option<Class>) {
    let mut next = job.clone();
    next.check_uptime = None;
    if job.status != Status::InProgress {
        return (next, None);
    }
    let silence = context.uptime.since(job.heard_uptime);
    let silent_for = |secs: u32| secs > 0 && silence >= Duration::from_secs(secs.into());
    if silent_for(job.timeout_secs) {
        let message: Arc<str> =
            format!("No report from the worker for {} seconds", job.timeout_secs).into();
        next.message = Arc::clone(&message);
        next.finish(
            Status::Failed,
            End::Error(JobError {
                code: "timeout".into(),
                message,
                details: None,
            }),
            context.now,
        );
        return (next, Some(Class::Milestone));
    }
    let stalls = !job.stalled && silent_for(job.stall_after_secs);
    let class = if stalls {
        next.stalled = true;
        next.estimate(context);
        Some(Class::Milestone)
    } else {
        // The silence may have outdated the estimate.
        next.estimate(context);
        let outdated = match (&job.eta, &next.eta) {
            (Some(published), Some(later)) => published.is_outdated_by(later, context.now),
            (published, later) => published.is_some() || later.is_some(),
        };
        if !outdated {
            next.eta = job.eta;
        }
        outdated.then_some(Class::Tick)
    };
    next.schedule_check(context);
    (next, class)
}

impl Job {
    /// Returns whether the worker of the current attempt has reported progress. If not, a `progress` of 0 is only the
    /// initial value. False for an attempt that ended at 0, even if the worker had reported it: that is not stored.
    pub fn has_reported_progress(&self) -> bool {
        let is_begun = |progress| progress > 0.0;
        let observed = self.estimator.as_ref();
        self.progress.is_some_and(is_begun)
            || observed.is_some_and(|estimator| estimator.has_observed())
    }

    fn enter(&mut self, status: Status) {
        self.status = status;
        self.message = status.default_message().into();
        self.stalled = false;
        self.estimator = None;
        self.eta = None;
        self.check_uptime = None;
    }

    fn hear(&mut self, context: &Context<'_>) {
        let away = self.away(context);
        if let Some(estimator) = &mut self.estimator {
            estimator.hear(away);
        }
        self.heard_at = context.now;
        // The clock of a node that was suspended is behind until it reads of the others'. A report that it takes must not make the
        // job silent for them since before the last one.
        self.heard_uptime = self.heard_uptime.max(context.uptime);
    }

    fn start(&mut self, context: &Context<'_>) {
        self.enter(Status::InProgress);
        self.started_at = Some(context.now);
        let estimator = Estimator::starting(context.now, context.history);
        self.estimator = Some(Box::new(estimator));
        self.estimate(context);
        self.schedule_check(context);
    }

    fn finish(&mut self, status: Status, end: End, now: DateTime<Utc>) {
        let past = self
            .estimator
            .as_ref()
            .and_then(|estimator| estimator.past(now));
        self.past = past.filter(|_| status == Status::Completed);
        self.enter(status);
        self.end = Some(end);
        self.finished_at = Some(now);
    }

    fn note(&mut self, note: &Note, context: &Context<'_>) -> Result<(), RuleError> {
        self.set_message(note.message.as_deref(), context)?;
        self.merge(note.metadata.as_ref(), context)
    }

    fn set_message(
        &mut self,
        message: Option<&str>,
        context: &Context<'_>,
    ) -> Result<(), RuleError> {
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
            // `null` does not revoke progress that was reported.
            Some(None) if self.progress.is_none_or(|progress| progress == 0.0) => {
                self.progress = None;
            }
            None | Some(None) => {}
            Some(Some(asked)) => {
                let asked = percent(asked).ok_or_else(|| RuleError::Invalid {
                    field: "progress",
                    expected: "must be a number from 0 to 100, or null".into(),
                })?;
                // If the number is lower, the current one is kept. The rest of the report is applied.
                let reached = self.progress.map_or(asked, |current| current.max(asked));
                self.progress = Some(reached);
                self.estimator
                    .get_or_insert_with(|| Box::new(Estimator::starting(context.now, None)))
                    .observe(reached, context.now);
            }
        }
        self.set_message(report.message.as_deref(), context)?;
        self.merge(report.metadata.as_ref(), context)
    }

    /// Estimates the end. There is no estimate for a job that is not running or has stalled.
    fn estimate(&mut self, context: &Context<'_>) {
        let runs = self.status == Status::InProgress && !self.stalled;
        let estimator = self.estimator.as_ref().filter(|_| runs);
        self.eta =
            estimator.and_then(|estimator| estimator.estimate(context.now, self.away(context)));
    }

    /// Returns how much of the wall-clock time since the last report is downtime or a step of the clock. The estimate is
    /// based on the wall clock, and must ignore this part.
    fn away(&self, context: &Context<'_>) -> Duration {
        let silence = context.now - self.heard_at;
        let heard = context.uptime.since(self.heard_uptime);
        silence.to_std().unwrap_or_default().saturating_sub(heard)
    }

    fn schedule_check(&mut self, context: &Context<'_>) {
        let planned = self.check_uptime.take();
        if self.status != Status::InProgress {
            return;
        }
        let heard = self.heard_uptime;
        let in_secs = |secs: u32| (secs > 0).then(|| heard + Duration::from_secs(secs.into()));
        let stall = in_secs(self.stall_after_secs).filter(|_| !self.stalled);
        let revise = self.revise_in(context).map(|wait| context.uptime + wait);
        let dues = [stall, in_secs(self.timeout_secs), revise];
        let Some(due) = dues.into_iter().flatten().min() else {
            return;
        };
        // Keep the planned time until half of it has elapsed. So a busy job is never checked, and its index entry rarely
        // changes.
        let half = due.since(context.uptime) / 2;
        let is_good = |planned: &Uptime| *planned <= due && planned.since(context.uptime) >= half;
        self.check_uptime = planned.filter(is_good).or(Some(due));
    }

    /// Returns after how long to check the estimate if no report arrives: a published end must not be in the past.
    fn revise_in(&self, context: &Context<'_>) -> Option<Duration> {
        /// The minimum time until the next check, even if the estimated end is closer.
        const GRACE: Duration = Duration::from_secs(2);
        let left = self.eta?.at - context.now;
        let lapse = left.to_std().unwrap_or_default().max(GRACE);
        let check_in = self
            .estimator
            .as_ref()?
            .look_in(context.now, self.away(context));
        Some(check_in.map_or(lapse, |check_in| check_in.min(lapse)))
    }
}
