//! How a command changes a schedule, and which events it produces. Pure: there is no clock and no store here.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::timing::{Timing, tidy};
use super::{
    Command, GRACE_DEFAULT_SECS, GRACE_MAX_SECS, KIND, Observed, Put, Rule, Run, Schedule, Status,
    draft,
};
use crate::event::Class;
use crate::id::SubjectId;
use crate::kind::job::{JobType, Status as JobStatus};
use crate::kind::{Context, Outcome, RuleError, not_found};

/// While runs are missed in a row, the milestone is repeated for each of them, but not within this many seconds.
pub const MISSED_AGAIN_SECS: i64 = 3_600;
/// A clock that is this many seconds behind the last check was set back. The clocks of several nodes differ by less.
pub const CLOCK_BACK_SECS: i64 = 60;
/// The longest time between two checks, in seconds: of a schedule that is on time, and of any other.
const LOOK_SECS: (u64, u64) = (3_600, 60);
/// A start that is more than this many seconds in the future was reported before the clock was set back.
const AHEAD_SECS: i64 = 60;

/// Applies a command to a schedule. Returns the new state and the events. Pure.
pub fn apply(
    id: &SubjectId,
    schedule: Option<&Schedule>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Schedule>, RuleError> {
    let (next, class) = match (command, schedule) {
        (Command::Put(put), schedule) => replaced(id, schedule, put, context)?,
        (_, None) => return Err(not_found(KIND, id.as_str())),
        (Command::Remove, Some(schedule)) => removed(schedule, context),
        (Command::Check(_), Some(schedule)) if schedule.status == Status::Removed => {
            (schedule.clone(), None)
        }
        (Command::Check(None), Some(schedule)) => (schedule.clone(), None),
        (Command::Check(Some(observed)), Some(schedule)) => checked(schedule, observed, context),
    };
    let drafts = class.map(|class| draft(id, &next, class));
    Ok(Outcome::new(next, drafts.into_iter().collect()))
}

fn rule(put: &Put) -> Result<(Rule, Timing), RuleError> {
    let invalid = |field, expected: &str| RuleError::Invalid {
        field,
        expected: expected.into(),
    };
    let (cron, time_zone, timing) = match (&put.cron, put.period_secs) {
        (Some(cron), None) => {
            let (cron, zone) = (tidy(cron)?, put.time_zone.as_deref().unwrap_or("UTC"));
            let timing = Timing::cron(&cron, zone)?;
            (Some(cron), Some(zone.into()), timing)
        }
        (None, Some(_)) if put.time_zone.is_some() => {
            return Err(invalid("time_zone", "requires `cron`, which is absent"));
        }
        (None, Some(secs)) => (None, None, Timing::period(secs)?),
        (None, None) => return Err(invalid("cron", "or `period_secs` is required")),
        (Some(_), Some(_)) => return Err(invalid("cron", "cannot be combined with `period_secs`")),
    };
    let secs = |field, given: u32| match (1..=GRACE_MAX_SECS).contains(&given) {
        true => Ok(given),
        false => Err(RuleError::Invalid {
            field,
            expected: format!("must be from 1 to {GRACE_MAX_SECS}"),
        }),
    };
    let grace_secs = secs("grace_secs", put.grace_secs.unwrap_or(GRACE_DEFAULT_SECS))?;
    let rule = Rule {
        cron,
        time_zone,
        period_secs: put.period_secs,
        grace_secs,
        max_run_secs: secs("max_run_secs", put.max_run_secs.unwrap_or(grace_secs))?,
    };
    Ok((rule, timing))
}

/// Creates a schedule, or replaces its rule. What was overdue by the old rule no longer counts.
fn replaced(
    id: &SubjectId,
    schedule: Option<&Schedule>,
    put: &Put,
    context: &Context<'_>,
) -> Result<(Schedule, Option<Class>), RuleError> {
    let job_type: JobType = id.as_str().parse().map_err(|error| match error {
        RuleError::Invalid { expected, .. } => RuleError::Invalid {
            field: "schedule_id",
            expected,
        },
        other => other,
    })?;
    let (rule, timing) = rule(put)?;
    if let Some(current) = schedule
        && current.rule == rule
        && current.status != Status::Removed
    {
        return Ok((current.clone(), None));
    }
    let due_at = timing
        .after(context.now)
        .ok_or_else(|| RuleError::Invalid {
            field: "cron",
            expected: "must match at least one date in the future".into(),
        })?;
    let last_run = schedule.and_then(|schedule| schedule.last_run.clone());
    let late_at = last_run
        .as_ref()
        .filter(|run| run.status == JobStatus::InProgress)
        .map(|_| context.now + rule.max_run());
    let mut next = Schedule {
        job_type,
        rule,
        status: Status::OnTime,
        due_at,
        missed_since: None,
        missed_at: None,
        missed_published_at: None,
        last_run,
        late_at,
        created_at: schedule.map_or(context.now, |schedule| schedule.created_at),
        finished_at: None,
        checked_at: context.now,
        check_uptime: None,
    };
    next.plan_check(context);
    Ok((next, Some(Class::Milestone)))
}

fn removed(schedule: &Schedule, context: &Context<'_>) -> (Schedule, Option<Class>) {
    if schedule.status == Status::Removed {
        return (schedule.clone(), None);
    }
    let next = Schedule {
        status: Status::Removed,
        missed_since: None,
        missed_at: None,
        missed_published_at: None,
        late_at: None,
        finished_at: Some(context.now),
        check_uptime: None,
        ..schedule.clone()
    };
    (next, Some(Class::Milestone))
}

/// Compares what has run with what should have.
fn checked(
    schedule: &Schedule,
    observed: &Observed,
    context: &Context<'_>,
) -> (Schedule, Option<Class>) {
    let now = context.now;
    let mut next = schedule.clone();
    next.checked_at = now;
    let Some(timing) = schedule.rule.timing() else {
        next.check_uptime = None;
        return (next, None);
    };
    let was_set_back = now + TimeDelta::seconds(CLOCK_BACK_SECS) < schedule.checked_at;
    let run = observed.run.as_ref();
    let is_past =
        |run: &&Run| !was_set_back && run.started_at <= now + TimeDelta::seconds(AHEAD_SECS);
    if let Some(run) = run.filter(is_past) {
        next.observe(run, &timing);
    }
    if was_set_back || !observed.is_clock_steady {
        // The clock was set forward past expected times, or back before them. Do not report runs as missed or late
        // because of that.
        if was_set_back || next.due_at + next.rule.grace() <= now {
            next.due_at = timing.after(now).unwrap_or(next.due_at);
        }
        next.late_at = next.late_at.map(|_| now + next.rule.max_run());
    }
    next.judge(&timing, now);
    let class = next.published_as(schedule, now);
    if next.status == Status::Missed && class == Some(Class::Milestone) {
        next.missed_published_at = Some(now);
    }
    next.plan_check(context);
    (next, class)
}

impl Schedule {
    /// Records the run that started last.
    fn observe(&mut self, run: &Run, timing: &Timing) {
        let last = self.last_run.as_ref();
        let is_newer = last.is_none_or(|last| run.started_at > last.started_at);
        if !is_newer && last.is_none_or(|last| last.job_id != run.job_id) {
            return;
        }
        if is_newer {
            self.late_at = Some(run.started_at + self.rule.max_run());
            if timing.counts_for(run.started_at, self.due_at)
                || (self.missed_at).is_some_and(|missed| run.started_at >= missed)
            {
                (self.missed_since, self.missed_at, self.missed_published_at) = (None, None, None);
                // Never move `due_at` back: the schedule may have been created after this run started.
                self.due_at = self
                    .due_at
                    .max(timing.after_run(run.started_at).unwrap_or(self.due_at));
            }
        }
        if run.status != JobStatus::InProgress {
            self.late_at = None;
        }
        self.last_run = Some(run.clone());
    }

    /// Decides what is overdue.
    fn judge(&mut self, timing: &Timing, now: DateTime<Utc>) {
        let started_by = now - self.rule.grace();
        if self.due_at <= started_by {
            // Several runs may have been missed while the server was down. They are reported as one.
            let last = timing.last_until(self.due_at, started_by);
            self.missed_since = self.missed_since.or(Some(self.due_at));
            self.missed_at = Some(last);
            self.due_at = timing.after(last).unwrap_or(self.due_at);
        }
        self.status = if self.missed_at.is_some() {
            Status::Missed
        } else if self.late_at.is_some_and(|late| late <= now) {
            Status::Late
        } else {
            Status::OnTime
        };
    }

    /// Returns the class of the event with which this state follows another one, if there is anything to publish.
    fn published_as(&self, before: &Schedule, now: DateTime<Utc>) -> Option<Class> {
        if self.status != before.status {
            return Some(Class::Milestone);
        }
        if self.missed_at > before.missed_at {
            let again = TimeDelta::seconds(MISSED_AGAIN_SECS);
            let is_due = self
                .missed_published_at
                .is_none_or(|published| now - published >= again);
            return Some(if is_due {
                Class::Milestone
            } else {
                Class::Tick
            });
        }
        let published = |schedule: &Schedule| (schedule.due_at, schedule.last_run.clone());
        (published(self) != published(before)).then_some(Class::Tick)
    }

    fn plan_check(&mut self, context: &Context<'_>) {
        let (quiet, other) = LOOK_SECS;
        let longest = Duration::from_secs(match self.status {
            Status::OnTime => quiet,
            _ => other,
        });
        let deadlines = [
            Some(self.due_at + self.rule.grace()),
            self.late_at.filter(|late| *late > context.now),
        ];
        let wait = |at: DateTime<Utc>| (at - context.now).to_std().unwrap_or_default();
        let waits = deadlines.into_iter().flatten().map(wait);
        let wait = waits.fold(longest, Duration::min);
        self.check_uptime = Some(context.uptime + wait);
    }
}
