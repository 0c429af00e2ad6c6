//! What happens without anybody asking: silent subjects are flagged and ended, the uptime is counted and saved, old events
//! are removed, idle schools leave memory. Judgement is the kinds' own (a command like any other); here is only the clock.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::Utc;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{
    SWEEP_PERIOD, UPTIME_PERIOD, UPTIME_TICK, WATCHDOG_BATCH, WATCHDOG_PERIOD, WINDOW_IDLE,
};
use crate::hub::Hub;
use crate::id::SchoolId;
use crate::store::{Envelope, Store, StoreError};
use crate::uptime::UptimeClock;

/// Looks at the uptime, by which it goes on, until it is aborted.
pub async fn count_uptime(clock: UptimeClock) {
    let mut rounds = interval(UPTIME_TICK);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        clock.now();
    }
}

/// Looks for silent subjects until it is aborted.
pub async fn watch_silence(store: Arc<dyn Store>) {
    let mut rounds = interval(WATCHDOG_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        if store.uptime().is_catching_up() {
            continue;
        }
        match check_overdue(&*store).await {
            Ok(()) => {}
            Err(StoreError::Stopped) => return,
            Err(StoreError::Displaced) => {}
            Err(error) => {
                tracing::error!(%error, "the watchdog could not look for silent subjects")
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

/// Saves the uptime until it is aborted.
pub async fn keep_uptime(store: Arc<dyn Store>) {
    let mut rounds = interval(UPTIME_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        match store.save_uptime().await {
            Ok(()) => {}
            Err(StoreError::Stopped) => return,
            Err(error) => tracing::error!(%error, "the uptime could not be saved"),
        }
    }
}

/// Removes what is past retention until it is aborted.
pub async fn sweep(store: Arc<dyn Store>, hub: Arc<Hub>) {
    let mut rounds = interval(SWEEP_PERIOD);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        hub.forget_idle(WINDOW_IDLE);
        loop {
            match store.sweep(Utc::now()).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(StoreError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, "the retention sweep failed");
                    break;
                }
            }
        }
    }
}
