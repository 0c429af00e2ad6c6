//! How a command changes an enrollment session, and which events it produces. Pure.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::command::{Command, Report, Start};
use super::{
    ATTEMPTS_MAX, DESCRIPTION, ERROR_CODES, KIND, LEASE_MAX_SECS, STUDENT_ID_MAX_BYTES, Session,
    Status, draft,
};
use crate::event::Class;
use crate::id::SubjectId;
use crate::kind::{
    Bound, Context, Outcome, PLAIN_ERROR_CODE, RuleError, bounded, code, not_found, percent,
};
use crate::number::whole;

/// Applies a command to a session. Returns the new state and the events. Pure.
pub fn apply(
    id: &SubjectId,
    session: Option<&Session>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Session>, RuleError> {
    let (session, class) = match (command, session) {
        (Command::Start(start), None) => (started(start, context)?, Some(Class::Milestone)),
        (Command::Start(_), Some(_)) => {
            return Err(RuleError::AlreadyExists {
                noun: DESCRIPTION.noun,
                id: id.to_string(),
            });
        }
        (_, None) => return Err(not_found(KIND, id.as_str())),
        (Command::Check, Some(session)) => checked(session, context),
        (command, Some(session)) => changed(session, command, context)?,
    };
    let drafts = class.map(|class| draft(id, &session, class));
    Ok(Outcome::new(session, drafts.into_iter().collect()))
}

fn started(start: &Start, context: &Context<'_>) -> Result<Session, RuleError> {
    if let Some(device) = start
        .device_id
        .as_ref()
        .filter(|_| context.holder.is_some())
    {
        // The error does not name the other session: not every client that can name the device is allowed to know it.
        return Err(RuleError::Held {
            what: format!("device {device}"),
            holder: "another session",
        });
    }
    let lease_secs = start
        .lease_secs
        .unwrap_or(context.limits.enrollment_lease_secs);
    if !(1..=LEASE_MAX_SECS).contains(&lease_secs) {
        return Err(RuleError::Invalid {
            field: "lease_secs",
            expected: format!("must be from 1 to {LEASE_MAX_SECS}"),
        });
    }
    let student_id = start.student_id.as_deref();
    let mut session = Session {
        device_id: start.device_id.clone(),
        student_id: student_id
            .map(|student| bounded("student_id", student, Bound::constant(STUDENT_ID_MAX_BYTES)))
            .transpose()?,
        status: Status::Ready,
        progress: 0,
        message: Status::Ready.default_message().into(),
        attempt: None,
        total_attempts: None,
        quality_score: None,
        error_code: None,
        created_at: context.now,
        heard_at: context.now,
        heard_uptime: context.uptime,
        finished_at: None,
        lease_secs,
        check_uptime: None,
    };
    session.count(start.total_attempts.map(|_| 1), start.total_attempts)?;
    session.set_message(start.message.as_deref(), context)?;
    session.schedule_check();
    Ok(session)
}

/// Returns the new state of the session, and the class of the event.
fn changed(
    session: &Session,
    command: &Command,
    context: &Context<'_>,
) -> Result<(Session, Option<Class>), RuleError> {
    if session.status.is_terminal() {
        return Err(RuleError::Finished {
            status: session.status.as_str(),
        });
    }
    let mut next = session.clone();
    next.heard_at = context.now;
    // As for jobs: the clock of a node that was suspended is behind until it reads of the others'.
    next.heard_uptime = next.heard_uptime.max(context.uptime);
    let mut class = Class::Milestone;
    match command {
        Command::Start(_) | Command::Check => {
            return Err(RuleError::IllegalTransition {
                action: command.action(),
                status: session.status.as_str(),
            });
        }
        Command::Progress(report) => {
            next.advance(session, report, context)?;
            if (next.status, next.attempt) == (session.status, session.attempt) {
                class = Class::Tick;
            }
        }
        Command::Complete(complete) => {
            next.finish(Status::Complete, context.now);
            next.progress = Status::Complete.progress();
            next.quality_score = complete.quality_score;
            next.set_message(complete.message.as_deref(), context)?;
        }
        Command::Error(failure) => {
            next.finish(Status::Error, context.now);
            let code = code("code", failure.code.as_deref().unwrap_or(PLAIN_ERROR_CODE))?;
            let known = ERROR_CODES.iter().find(|(known, _)| **known == *code);
            if let Some((_, message)) = known {
                next.message = (*message).into();
            }
            next.error_code = Some(code);
            next.set_message(failure.error.as_deref(), context)?;
        }
        Command::Cancel(cancel) => {
            next.finish(Status::Cancelled, context.now);
            next.set_message(cancel.message.as_deref(), context)?;
        }
    }
    next.schedule_check();
    Ok((next, Some(class)))
}

/// Applies the effects of silence to a session.
fn checked(session: &Session, context: &Context<'_>) -> (Session, Option<Class>) {
    let mut next = session.clone();
    next.check_uptime = None;
    if session.status.is_terminal() {
        return (next, None);
    }
    let silence = context.uptime.since(session.heard_uptime);
    if silence < session.lease() {
        next.schedule_check();
        return (next, None);
    }
    next.finish(Status::Error, context.now);
    next.error_code = Some("timeout".into());
    next.message = format!("No word from the device for {} seconds", session.lease_secs).into();
    (next, Some(Class::Milestone))
}

impl Session {
    fn advance(
        &mut self,
        before: &Session,
        report: &Report,
        context: &Context<'_>,
    ) -> Result<(), RuleError> {
        let status = match &report.status {
            Some(text) => text.parse()?,
            None => before.status,
        };
        if status.is_terminal() {
            return Err(RuleError::Invalid {
                field: "status",
                expected:
                    "must be ready, placing, capturing or processing; completion and failure have their own endpoints"
                        .into(),
            });
        }
        let begins_again = status < before.status && report.attempt.is_none();
        let max_attempt = report
            .total_attempts
            .or(self.total_attempts)
            .unwrap_or(ATTEMPTS_MAX);
        let next = before
            .attempt
            .unwrap_or(1)
            .saturating_add(1)
            .min(max_attempt);
        let attempt = report.attempt.or(begins_again.then_some(next));
        self.count(attempt, report.total_attempts)?;
        if self.attempt < before.attempt {
            return Err(RuleError::Invalid {
                field: "attempt",
                expected: format!("must be at least {}", before.attempt.unwrap_or(1)),
            });
        }
        if status < before.status && self.attempt == before.attempt && !begins_again {
            return Err(RuleError::IllegalTransition {
                action: "go back without a new attempt",
                status: before.status.as_str(),
            });
        }
        let reported = match report.progress {
            Some(reported) => {
                let reported = percent(reported).ok_or_else(|| RuleError::Invalid {
                    field: "progress",
                    expected: "must be a number from 0 to 100".into(),
                })?;
                // The rest is reserved for completion.
                let reported = u8::try_from(whole(reported)).unwrap_or(u8::MAX);
                reported.min(Status::Processing.progress())
            }
            None => status.progress(),
        };
        let scans_done = self.attempt.map(|attempt| attempt.saturating_sub(1));
        let counted = scans_done.map(|done| match done {
            0 => 0,
            1 => 33,
            _ => 66,
        });
        let by_scans = counted.filter(|_| self.total_attempts.is_some());
        self.progress = before.progress.max(by_scans.unwrap_or(reported));
        if status != before.status {
            self.message = status.default_message().into();
        }
        self.status = status;
        self.set_message(report.message.as_deref(), context)
    }

    /// Sets the number of this scan and the number of scans required.
    fn count(&mut self, attempt: Option<u32>, total: Option<u32>) -> Result<(), RuleError> {
        self.attempt = attempt.or(self.attempt);
        self.total_attempts = total.or(self.total_attempts);
        let invalid = |field, max| RuleError::Invalid {
            field,
            expected: format!("must be from 1 to {max}"),
        };
        let max_attempt = self.total_attempts.unwrap_or(ATTEMPTS_MAX);
        if !(1..=ATTEMPTS_MAX).contains(&max_attempt) {
            return Err(invalid("total_attempts", ATTEMPTS_MAX));
        }
        match self.attempt {
            Some(before) if attempt.is_none() && before > max_attempt => Err(RuleError::Invalid {
                field: "total_attempts",
                expected: format!("must be from {before} to {ATTEMPTS_MAX}: this is scan {before}"),
            }),
            Some(attempt) if !(1..=max_attempt).contains(&attempt) => {
                Err(invalid("attempt", max_attempt))
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, status: Status, now: DateTime<Utc>) {
        self.status = status;
        self.message = status.default_message().into();
        self.finished_at = Some(now);
        self.check_uptime = None;
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

    fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_secs.into())
    }

    fn schedule_check(&mut self) {
        if !self.status.is_terminal() {
            let due = self.heard_uptime + self.lease();
            self.check_uptime = Some(self.check_uptime.map_or(due, |earlier| earlier.min(due)));
        }
    }
}
