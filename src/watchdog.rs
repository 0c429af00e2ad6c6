//! Periodic work: the tasks here end silent subjects or flag them, count and save the uptime, delete old events, and
//! remove idle schools from memory. The kinds decide what happens to silent subjects (by a command like any other);
//! this module only provides the clock.
//!
//! On several nodes:
//!
//! - Every node looks for silent subjects. That is harmless: a check is decided against the subject's state when it is
//!   committed, so the second of two checks changes nothing, and neither does one from a node that was suspended. A lease
//!   would only add the time until another node takes over.
//! - One node deletes old events, the holder of the lease [`SWEEP_LEASE`]. Several nodes would do no harm, because data
//!   that is past retention stays past retention. But they would wait for one another's locks, and the state of the
//!   wall clock that is saved in the database is that of one machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{
    SWEEP_PERIOD, UPTIME_PERIOD, UPTIME_TICK, WATCHDOG_BATCH, WATCHDOG_PERIOD, WINDOW_IDLE,
};
use crate::failures::Failures;
use crate::hub::Hub;
use crate::id::SchoolId;
use crate::kind::Command;
use crate::lease::Lease;
use crate::log::{Envelope, Store, StoreError};
use crate::schedules::{Due, Schedules};
use crate::uptime::UptimeClock;
use crate::wall_clock::{self, Change, Moment, WallClock};

/// The name of the lease under which one node deletes what is past retention.
pub const SWEEP_LEASE: &str = "sweep";

/// If this is the current time, no data is past retention.
const NOTHING_IS_OLD: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// Reads the uptime clock periodically, because each reading advances the uptime. Runs until the future is dropped.
pub async fn count_uptime(clock: UptimeClock) {
    let mut rounds = interval(UPTIME_TICK);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        clock.now();
    }
}

/// Checks for silent subjects. Runs until the future is dropped.
pub async fn watch_silence(store: Arc<dyn Store>, schedules: Arc<Schedules>) {
    let mut rounds = interval(WATCHDOG_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        rounds.tick().await;
        if store.uptime().is_catching_up() {
            continue;
        }
        match check_overdue(&*store, &schedules).await {
            Ok(()) => {
                failures.worked();
            }
            Err(StoreError::Stopped) => return,
            Err(StoreError::Displaced | StoreError::NotCommitted) => {}
            Err(error) => {
                if let Some(failed) = failures.failed(Instant::now()) {
                    tracing::error!(%error, failed, "the watchdog could not check for silent subjects");
                }
            }
        }
    }
}

async fn check_overdue(store: &dyn Store, schedules: &Schedules) -> Result<(), StoreError> {
    loop {
        let now = store.uptime().now();
        let overdue = store.overdue(now, WATCHDOG_BATCH).await?;
        let is_full = overdue.len() >= WATCHDOG_BATCH;
        let mut by_school: HashMap<SchoolId, Vec<Envelope>> = HashMap::new();
        let mut due = Vec::new();
        for item in overdue {
            match item.command {
                // The runs decide about a schedule. They are read when it is checked.
                Command::Schedule(_) => due.push(Due {
                    school: item.school,
                    schedule: item.subject,
                    hint: None,
                }),
                command => {
                    let envelopes = by_school.entry(item.school).or_default();
                    envelopes.push(Envelope::new(item.subject, command));
                }
            }
        }
        let mut any = !by_school.is_empty();
        append_all(store, by_school).await?;
        any |= schedules.check_each(&due).await?;
        if !(is_full && any) {
            return Ok(());
        }
    }
}

/// Appends the checks of several schools at the same time, so that they share commits: if the devices or the workers of a
/// thousand schools fall silent together, no school waits for the commits of the others. If the checks of one school
/// cannot be appended, those of the other schools still are.
async fn append_all(
    store: &dyn Store,
    by_school: HashMap<SchoolId, Vec<Envelope>>,
) -> Result<(), StoreError> {
    let appended = by_school.into_iter().map(async |(school, checks)| {
        let receipts = store.append(school, checks).await?;
        for rejected in receipts.into_iter().filter_map(Result::err) {
            tracing::warn!(school.id = %school, reason = %rejected, "the check of a silent subject was rejected");
        }
        Ok(())
    });
    join_all(appended).await.into_iter().collect()
}

/// Saves the uptime periodically. Runs until the future is dropped.
pub async fn keep_uptime(store: Arc<dyn Store>) {
    let mut rounds = interval(UPTIME_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        rounds.tick().await;
        match store.save_uptime().await {
            Ok(()) => {
                failures.worked();
            }
            Err(StoreError::Stopped) => return,
            Err(error) => {
                if let Some(failed) = failures.failed(Instant::now()) {
                    tracing::error!(%error, failed, "the uptime could not be saved");
                }
            }
        }
    }
}

/// Removes idle schools from memory. Runs until the future is dropped.
pub async fn forget_idle(hub: Arc<Hub>) {
    let mut rounds = interval(SWEEP_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        hub.forget_idle(WINDOW_IDLE);
    }
}

/// Deletes data that is past retention while this node holds the lease. Runs until the future is dropped. Data is
/// deleted because of its age only while the wall clock is reliable: after the clock is set, it must be stable for
/// `settle` first.
pub async fn sweep(store: Arc<dyn Store>, lease: Arc<Lease>, settle: Duration) {
    while lease.acquire().await.is_ok() {
        if lease.during(sweep_rounds(&*store, settle)).await.is_some() {
            return;
        }
    }
}

/// Returns when the store has stopped.
async fn sweep_rounds(store: &dyn Store, settle: Duration) {
    let mut rounds = interval(SWEEP_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clock = None;
    loop {
        rounds.tick().await;
        match sweep_once(store, &mut clock, settle).await {
            Ok(()) => {}
            Err(StoreError::Stopped) => return,
            Err(error) => tracing::error!(%error, "the retention sweep failed"),
        }
    }
}

async fn sweep_once(
    store: &dyn Store,
    clock: &mut Option<WallClock>,
    settle: Duration,
) -> Result<(), StoreError> {
    let saved = match clock {
        Some(_) => None,
        None => store.wall_clock().await?,
    };
    let now = Moment::now(store.uptime().now());
    let clock =
        clock.get_or_insert_with(|| WallClock::resume(saved, wall_clock::boot(), now, settle));
    if let Some(change) = clock.look(now) {
        log_change(change, settle);
    }
    let now = match clock.is_relied_on() {
        true => now.wall,
        false => NOTHING_IS_OLD,
    };
    let swept = sweep_as_of(store, now).await;
    store.save_wall_clock(clock.record().clone()).await?;
    swept
}

async fn sweep_as_of(store: &dyn Store, now: DateTime<Utc>) -> Result<(), StoreError> {
    while store.sweep(now).await? {}
    Ok(())
}

fn log_change(change: Change, settle: Duration) {
    match change {
        Change::Set(by) => tracing::warn!(
            by_secs = by.num_seconds(),
            settle_secs = settle.as_secs(),
            "the wall clock was set; age-based deletion is paused until the clock has been stable for `clock_settle_secs`"
        ),
        Change::Back(by) => tracing::warn!(
            by_secs = by.num_seconds(),
            "the wall clock was set back to its earlier setting, and is used again"
        ),
        Change::Settled => {
            tracing::info!("the wall clock has been stable since it was set, and is used again")
        }
    }
}
