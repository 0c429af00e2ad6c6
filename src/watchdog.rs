//! What happens without anybody asking: silent subjects are flagged and ended, the uptime is counted and saved, old events
//! are removed, idle schools leave memory. Judgement is the kinds' own (a command like any other); here is only the clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{
    SWEEP_PERIOD, UPTIME_PERIOD, UPTIME_TICK, WATCHDOG_BATCH, WATCHDOG_PERIOD, WINDOW_IDLE,
};
use crate::failures::Failures;
use crate::hub::Hub;
use crate::id::SchoolId;
use crate::log::{Envelope, Store, StoreError};
use crate::uptime::UptimeClock;
use crate::wall_clock::{self, Change, Moment, WallClock};

/// Nothing that is stored is older than anything may be at this time.
const NOTHING_IS_OLD: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// Looks at the uptime, by which it goes on, until it is dropped.
pub async fn count_uptime(clock: UptimeClock) {
    let mut rounds = interval(UPTIME_TICK);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        clock.now();
    }
}

/// Looks for silent subjects until it is dropped.
pub async fn watch_silence(store: Arc<dyn Store>) {
    let mut rounds = interval(WATCHDOG_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        rounds.tick().await;
        if store.uptime().is_catching_up() {
            continue;
        }
        match check_overdue(&*store).await {
            Ok(()) => {
                failures.worked();
            }
            Err(StoreError::Stopped) => return,
            Err(StoreError::Displaced | StoreError::NotCommitted) => {}
            Err(error) => {
                if let Some(failed) = failures.failed(Instant::now()) {
                    tracing::error!(%error, failed, "the watchdog could not look for silent subjects");
                }
            }
        }
    }
}

async fn check_overdue(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let now = store.uptime().now();
        let overdue = store.overdue(now, WATCHDOG_BATCH).await?;
        let full = overdue.len() >= WATCHDOG_BATCH;
        let mut by_school: HashMap<SchoolId, Vec<Envelope>> = HashMap::new();
        for item in overdue {
            let envelope = Envelope::new(item.subject, item.command);
            by_school.entry(item.school).or_default().push(envelope);
        }
        for (school, envelopes) in by_school {
            for refused in store
                .append(school, envelopes)
                .await?
                .into_iter()
                .filter_map(Result::err)
            {
                tracing::warn!(school.id = %school, reason = %refused, "a look at a silent subject was refused");
            }
        }
        if !full {
            return Ok(());
        }
    }
}

/// Saves the uptime until it is dropped.
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

/// Removes what is past retention until it is dropped. What is too old is removed only while the wall clock can be relied on:
/// if it is set, it has to stand for `settle` first.
pub async fn sweep(store: Arc<dyn Store>, hub: Arc<Hub>, settle: Duration) {
    let mut rounds = interval(SWEEP_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clock = None;
    loop {
        rounds.tick().await;
        hub.forget_idle(WINDOW_IDLE);
        match sweep_once(&*store, &mut clock, settle).await {
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
        tell(change, settle);
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

fn tell(change: Change, settle: Duration) {
    match change {
        Change::Set(by) => tracing::warn!(
            by_secs = by.num_seconds(),
            settle_secs = settle.as_secs(),
            "the wall clock was set; nothing is removed for its age before it has stood (`clock_settle_secs`)"
        ),
        Change::Back(by) => tracing::warn!(
            by_secs = by.num_seconds(),
            "the wall clock was set to where it had been"
        ),
        Change::Settled => {
            tracing::info!("the wall clock has stood since it was set, and is relied on again")
        }
    }
}
