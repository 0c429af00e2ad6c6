//! Checks schedules against the jobs that have run. This module finds the newest run, watches the clock, and issues the
//! checks; the rules of the kind decide what a check changes ([`crate::kind::schedule`]).
//!
//! ```text
//! job starts or ends ─▶ observe ─┐ hints, conflated by schedule
//! start of the server ───────────┼─▶ look for the newest run ─▶ Check ─▶ append
//! clock set, suspension ─────────┤   (after the deadline)
//! the planned time (watchdog) ───┘
//! ```
//!
//! 1. A hint can be lost, because its node fails or there are too many hints. The next planned check finds the same
//!    run.
//! 2. Several nodes check the same schedule. A check is decided against the state, so the second one changes nothing.
//! 3. After the wall clock was set, every schedule is checked once. These checks report no run as missed or late
//!    because of the time that the clock has skipped. Until all of them are done, the same holds for every other check.
//! 4. After a start or a suspension, every schedule is checked at once: runs that were due in the meantime are missed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{
    SCHEDULE_DRIFT_SECS, SCHEDULE_HINTS_MAX, SCHEDULE_PERIOD, SCHEDULE_RUNS, SCHEDULES_AT_ONCE,
    WATCHDOG_BATCH,
};
use crate::event::{Class, Event};
use crate::failures::Failures;
use crate::id::{SchoolId, SubjectId};
use crate::kind::schedule::{Command as ScheduleCommand, KIND, Observed, Run};
use crate::kind::{Command, job};
use crate::log::{Envelope, ListQuery, Order, Store, StoreError};
use crate::wall_clock::{self, Change, Moment, WallClock};

/// Statuses of schedules that are watched.
const WATCHED: [&str; 3] = ["on_time", "late", "missed"];

/// A schedule: its school, and the type of its jobs.
type Address = (SchoolId, Arc<str>);

/// A schedule to check.
#[derive(Debug, Clone)]
pub struct Due {
    /// Its school.
    pub school: SchoolId,
    /// Its id.
    pub schedule: SubjectId,
    /// A job that may be the run that started last.
    pub hint: Option<SubjectId>,
}

/// Issues the checks of schedules. See the module documentation.
pub struct Schedules {
    store: Arc<dyn Store>,
    /// Schedules that have changed, or whose jobs have started or ended, with the last of these jobs.
    hints: Mutex<HashMap<Address, Option<SubjectId>>>,
    /// `None` until the state of the clock at the end of the last run was read.
    clock: Mutex<Option<Clock>>,
}

struct Clock {
    wall: WallClock,
    /// By how much the wall clock is ahead of the uptime.
    ahead: TimeDelta,
    /// Whether it was set, and some schedules have not been checked since.
    was_set: bool,
    /// How many times all schedules had to be checked: after the start, a change of the clock, or a suspension.
    gaps: u64,
    /// The value of `gaps` at the start of the last complete check of all schedules.
    passed: u64,
}

impl Clock {
    fn update(&mut self, now: Moment) {
        let changed = self.wall.look(now);
        let ahead = ahead(now);
        let was_suspended = (ahead - self.ahead) > TimeDelta::seconds(SCHEDULE_DRIFT_SECS);
        self.ahead = ahead;
        let was_set = matches!(changed, Some(Change::Set(_) | Change::Back(_)));
        self.was_set |= was_set;
        self.gaps += u64::from(was_set || was_suspended);
    }
}

fn ahead(now: Moment) -> TimeDelta {
    let uptime = i64::try_from(now.uptime.millis()).unwrap_or(i64::MAX);
    now.wall
        .signed_duration_since(DateTime::<Utc>::UNIX_EPOCH)
        .checked_sub(&TimeDelta::milliseconds(uptime))
        .unwrap_or_default()
}

impl Schedules {
    /// Creates the checks of the schedules in this store.
    pub fn new(store: Arc<dyn Store>) -> Schedules {
        Schedules {
            store,
            hints: Mutex::default(),
            clock: Mutex::new(None),
        }
    }

    /// Remembers the schedules that these committed events may affect. Never waits.
    pub fn observe(&self, events: &[Arc<Event>]) {
        let milestones = events
            .iter()
            .filter(|event| event.draft.class == Class::Milestone);
        for event in milestones {
            let (job_type, job) = match &event.draft.category {
                Some(job_type) if event.kind == job::KIND => {
                    (Arc::clone(job_type), Some(event.subject.clone()))
                }
                // A run of a new schedule may be in progress already.
                _ if event.kind == KIND => (event.subject.as_str().into(), None),
                _ => continue,
            };
            let address = (event.school, job_type);
            let mut hints = lock(&self.hints);
            if hints.len() < SCHEDULE_HINTS_MAX || hints.contains_key(&address) {
                let hint = hints.entry(address).or_default();
                *hint = job.or(hint.take());
            }
        }
    }

    /// Checks schedules after hints and changes of the clock. Runs until the future is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut rounds = interval(SCHEDULE_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = Failures::default();
        loop {
            rounds.tick().await;
            // Reports that wait in the sockets are read first.
            if self.store.uptime().is_catching_up() {
                continue;
            }
            match self.round().await {
                Ok(()) => {
                    failures.worked();
                }
                Err(StoreError::Stopped) => return,
                Err(StoreError::Displaced | StoreError::NotCommitted) => {}
                Err(error) => {
                    if let Some(failed) = failures.failed(Instant::now()) {
                        tracing::error!(%error, failed, "the schedules could not be checked");
                    }
                }
            }
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        self.resume_clock().await?;
        if let Some(gaps) = self
            .look_at_clock(|clock| (clock.gaps > clock.passed).then_some(clock.gaps))
            .flatten()
        {
            self.check_all().await?;
            self.look_at_clock(|clock| {
                clock.passed = gaps;
                // Unless it was set again meanwhile.
                clock.was_set &= clock.gaps != gaps;
            });
        }
        let hints = std::mem::take(&mut *lock(&self.hints));
        let due = hints.into_iter().filter_map(|((school, job_type), hint)| {
            Some(Due {
                school,
                schedule: job_type.parse().ok()?,
                hint,
            })
        });
        self.check_each(&due.collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Reads the saved state of the clock, so that a change of the clock while the server was down is noticed.
    async fn resume_clock(&self) -> Result<(), StoreError> {
        if lock(&self.clock).is_some() {
            return Ok(());
        }
        let saved = self.store.wall_clock().await?;
        let now = Moment::now(self.store.uptime().now());
        // After a reboot, the time that has passed on the clock counts as downtime, however long: runs that were due
        // then are missed.
        let wall = WallClock::resume(saved, wall_clock::boot(), now, Duration::MAX);
        *lock(&self.clock) = Some(Clock {
            wall,
            ahead: ahead(now),
            was_set: false,
            gaps: 1,
            passed: 0,
        });
        Ok(())
    }

    /// Updates the state of the clock, and calls `then` with it. Returns `None` if there is no state yet.
    fn look_at_clock<T>(&self, then: impl FnOnce(&mut Clock) -> T) -> Option<T> {
        let now = Moment::now(self.store.uptime().now());
        lock(&self.clock).as_mut().map(|clock| {
            clock.update(now);
            then(clock)
        })
    }

    /// Checks every schedule.
    async fn check_all(&self) -> Result<(), StoreError> {
        let mut due = Vec::new();
        let mut after = None;
        loop {
            let schools = self.store.schools(after, WATCHDOG_BATCH).await?;
            for school in &schools {
                self.find(*school, &mut due).await?;
            }
            after = schools.last().copied();
            if schools.len() < WATCHDOG_BATCH {
                self.check_each(&due).await?;
                return Ok(());
            }
        }
    }

    /// Adds the watched schedules of a school to `due`. Checks and removes them when there are [`WATCHDOG_BATCH`] or
    /// more.
    async fn find(&self, school: SchoolId, due: &mut Vec<Due>) -> Result<(), StoreError> {
        let mut query = ListQuery {
            statuses: WATCHED.to_vec(),
            order: Order::Oldest,
            limit: WATCHDOG_BATCH,
            ..ListQuery::default()
        };
        loop {
            let page = self.store.subjects(school, KIND, query.clone()).await?;
            due.extend(page.subjects.into_iter().map(|stored| Due {
                school,
                schedule: stored.event.subject.clone(),
                hint: None,
            }));
            if due.len() >= WATCHDOG_BATCH {
                self.check_each(&std::mem::take(due)).await?;
            }
            query.beyond = page.next;
            if page.next.is_none() {
                return Ok(());
            }
        }
    }

    /// Checks schedules, several at the same time, so that they share commits. Each check is appended right after the
    /// runs are read, because it does not include a run that starts later. If one check fails, the others that run at
    /// the same time are still appended. Returns whether there was anything to check.
    pub async fn check_each(&self, due: &[Due]) -> Result<bool, StoreError> {
        let mut any = false;
        for part in due.chunks(SCHEDULES_AT_ONCE) {
            let checked = join_all(part.iter().map(|due| self.check_one(due))).await;
            for is_checked in checked {
                any |= is_checked?;
            }
        }
        Ok(any)
    }

    async fn check_one(&self, due: &Due) -> Result<bool, StoreError> {
        let Due {
            school,
            schedule,
            hint,
        } = due.clone();
        let Some(check) = self.check(school, schedule, hint).await? else {
            return Ok(false);
        };
        let receipts = self.store.append(school, vec![check]).await?;
        for rejected in receipts.into_iter().filter_map(Result::err) {
            tracing::warn!(school.id = %school, reason = %rejected, "the check of a schedule was rejected");
        }
        Ok(true)
    }

    /// Returns the check of a schedule, with the run that started last. `None` if the schedule does not exist or is not
    /// watched any more, or there is no state of the clock yet. `hint` is a job that may be that run.
    async fn check(
        &self,
        school: SchoolId,
        schedule: SubjectId,
        hint: Option<SubjectId>,
    ) -> Result<Option<Envelope>, StoreError> {
        let stored = self.store.subject(school, KIND, schedule.clone()).await?;
        let Some(state) = stored.as_ref().and_then(|stored| stored.state.schedule()) else {
            return Ok(None);
        };
        if state.finished_at.is_some() {
            return Ok(None);
        }
        let newest = ListQuery {
            categories: vec![schedule.as_str().to_owned()],
            limit: SCHEDULE_RUNS,
            ..ListQuery::default()
        };
        let mut jobs = self
            .store
            .subjects(school, job::KIND, newest)
            .await?
            .subjects;
        let known = state.last_run.as_ref().map(|run| run.job_id.clone());
        for id in known.into_iter().chain(hint) {
            if !jobs.iter().any(|job| job.event.subject == id) {
                jobs.extend(self.store.subject(school, job::KIND, id).await?);
            }
        }
        let runs = jobs.iter().filter_map(|stored| {
            let job = stored.state.job()?;
            let is_own = job.job_type.as_str() == schedule.as_str();
            Run::of(&stored.event.subject, job).filter(|_| is_own)
        });
        let run = runs.max_by_key(|run| run.started_at);
        // Look at the clock after the reads: if it was set meanwhile, the check reports no run as missed or late.
        let Some(is_clock_steady) = self.look_at_clock(|clock| !clock.was_set) else {
            return Ok(None);
        };
        let observed = Observed {
            run,
            is_clock_steady,
        };
        let command = Command::Schedule(ScheduleCommand::Check(Some(observed)));
        Ok(Some(Envelope::new(schedule, command)))
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
