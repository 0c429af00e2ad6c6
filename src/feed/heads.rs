//! Compares the heads of the logs with what the hub was offered.
//!
//! Hints of other nodes' commits may be lost, all of them if the bus is down. So the heads of the schools in the hub's
//! memory are compared every [`HEADS_PERIOD`], and at once if a hint may have been missed. One query covers many
//! schools. For each school that is behind, this gives a hint like any other.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{HEADS_BATCH, HEADS_PAUSE, HEADS_PERIOD, HOLE_WAIT};
use crate::hub::Hub;
use crate::id::{Place, SchoolId};
use crate::log::{Hint, Hints, Log, LogCheck, StoreError};

/// Compares heads until it is dropped.
pub async fn watch_heads(log: Arc<dyn Log>, hub: Arc<Hub>, hints: Hints) {
    let mut due = Instant::now() + HEADS_PERIOD;
    let mut is_failing = false;
    loop {
        let check = tokio::select! {
            // Biased, so that repeated requests for single schools do not delay the comparison of all schools, and so
            // that simulations are deterministic.
            biased;
            () = sleep_until(due) => LogCheck { all: true, ..LogCheck::default() },
            check = hints.requested_check() => check,
        };
        if check.all {
            due = Instant::now() + HEADS_PERIOD;
        }
        match compare(&*log, &hub, &hints, &check).await {
            Ok(()) => is_failing = false,
            Err(StoreError::Stopped) => return,
            Err(error) if is_failing => tracing::debug!(%error, "heads could not be compared"),
            Err(error) => {
                tracing::warn!(%error, "the heads of the logs could not be compared; retrying");
                is_failing = true;
            }
        }
        sleep(HEADS_PAUSE).await;
    }
}

/// Compares the heads of these schools, and gives a hint about each that is behind.
async fn compare(
    log: &dyn Log,
    hub: &Hub,
    hints: &Hints,
    check: &LogCheck,
) -> Result<(), StoreError> {
    // Take the positions before reading the heads: the log must have every event that the hub was offered or that a
    // listener has read until now. Otherwise, it has lost events.
    let mut positions = hub.positions();
    positions.retain(|(school, _)| check.all || check.schools.contains(school));
    let mut behind = Vec::new();
    let mut events_behind = 0;
    for part in positions.chunks(HEADS_BATCH) {
        let schools: Vec<SchoolId> = part.iter().map(|(school, _)| *school).collect();
        let heads: HashMap<_, _> = log.heads(&schools).await?.into_iter().collect();
        for (school, position) in part {
            let head = heads.get(school).copied().unwrap_or_default();
            events_behind += events_between(hub, *school, head);
            if position.known().any(|known| is_lost(known, head)) {
                hints.give(Hint::HistoryChanged(*school));
                continue;
            }
            match position.head {
                Some(known) if known.seq == head.seq => {}
                _ if head.seq == 0 => {}
                _ => behind.push((*school, head.seq)),
            }
        }
    }
    if check.all {
        hints.is_behind(events_behind);
    }
    if !check.all || behind.is_empty() {
        give(hints, behind);
        return Ok(());
    }
    // Events of busy schools may still be on their way. Give hints only for the schools that are behind after a pause.
    sleep(HOLE_WAIT).await;
    behind.retain(|(school, head)| {
        let next = hub.position(*school).and_then(|position| position.next());
        next.is_none_or(|next| *head >= next)
    });
    give(hints, behind);
    Ok(())
}

/// Returns how many events up to `head` the hub has still not been offered.
fn events_between(hub: &Hub, school: SchoolId, head: Place) -> u64 {
    let offered = hub.position(school).and_then(|position| position.head);
    offered.map_or(0, |offered| head.seq.saturating_sub(offered.seq))
}

fn give(hints: &Hints, behind: Vec<(SchoolId, u64)>) {
    for (school, head) in behind {
        hints.give(Hint::UpTo(school, head));
    }
}

/// Whether the log no longer has an event.
fn is_lost(known: Place, head: Place) -> bool {
    let is_other = known.tag.is_some() && head.tag.is_some() && known.tag != head.tag;
    head.seq < known.seq || head.seq == known.seq && is_other
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_util::FutureExt;

    use super::*;
    use crate::feed::tests::{Kept, events, hub, listen, school};
    use crate::hub::mailbox::tests::event;
    use crate::log::{Batches, Committed, Incoming};

    fn all() -> LogCheck {
        LogCheck {
            all: true,
            ..LogCheck::default()
        }
    }

    fn one() -> LogCheck {
        LogCheck {
            schools: [school()].into(),
            ..LogCheck::default()
        }
    }

    /// Returns the next hint if there is one.
    fn hint(batches: &mut Batches) -> Option<Hint> {
        match batches.next().now_or_never()?? {
            Incoming::Hint(hint) => Some(hint),
            Incoming::Committed(_) => panic!("nothing is committed here"),
        }
    }

    #[tokio::test]
    async fn a_log_has_lost_an_event_if_it_ends_before_it_or_with_another_one_at_its_place() {
        let (hub, log) = (hub(), Kept::default());
        let (committed, mut batches) = Committed::channel(8);
        let listener = listen(&hub);
        compare(&log, &hub, committed.hints(), &one())
            .await
            .unwrap();
        assert!(hint(&mut batches).is_none(), "there is no event");
        let read = events(1..=3);
        assert!(listener.try_go_live(Place::untagged(3)));
        log.ends_with(&read);
        compare(&log, &hub, committed.hints(), &one())
            .await
            .unwrap();
        assert!(hint(&mut batches).is_none(), "it may be the same event");
        hub.start_over(school()).wake();
        assert!(listener.try_go_live(read[2].place()));
        compare(&log, &hub, committed.hints(), &one())
            .await
            .unwrap();
        assert!(hint(&mut batches).is_none(), "it is what was read");
        // Later events have other tags.
        log.ends_with(&[event(4, "b", true), event(5, "b", true)]);
        compare(&log, &hub, committed.hints(), &one())
            .await
            .unwrap();
        assert!(matches!(hint(&mut batches), Some(Hint::UpTo(_, 5))));
        for end in [event(3, "b", true), event(2, "a", true)] {
            log.ends_with(&[end]);
            compare(&log, &hub, committed.hints(), &one())
                .await
                .unwrap();
            let found = hint(&mut batches);
            assert!(matches!(found, Some(Hint::HistoryChanged(_))), "{found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_on_their_way_are_awaited_unless_their_hint_was_missed() {
        let (hub, log) = (hub(), Kept::default());
        let (committed, mut batches) = Committed::channel(8);
        let listener = listen(&hub);
        let of_log = events(1..=3);
        assert!(listener.try_go_live(of_log[1].place()));
        log.ends_with(&of_log);
        let (hints, check) = (committed.hints(), one());
        let compared = compare(&log, &hub, hints, &check).now_or_never();
        compared.expect("it does not wait").unwrap();
        assert!(matches!(hint(&mut batches), Some(Hint::UpTo(_, 3))));
        let check = all();
        let (compared, ()) = tokio::join!(compare(&log, &hub, hints, &check), async {
            hub.offer(&of_log[2..]).wake();
        });
        compared.unwrap();
        assert!(hint(&mut batches).is_none(), "it has arrived");
        log.ends_with(&events(4..=4));
        compare(&log, &hub, hints, &check).await.unwrap();
        assert!(matches!(hint(&mut batches), Some(Hint::UpTo(_, 4))));
        log.ends_with(&events(5..=7));
        compare(&log, &hub, hints, &check).await.unwrap();
        assert_eq!(hints.counts().behind, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn every_log_is_compared_once_in_a_period() {
        let (hub, log) = (hub(), Arc::new(Kept::default()));
        let (committed, _batches) = Committed::channel(8);
        let _listener = listen(&hub);
        let watched = Arc::clone(&log) as Arc<dyn Log>;
        let watching = tokio::spawn(watch_heads(watched, hub, committed.hints().clone()));
        // A comparison takes a pause at most, so there is one in each period.
        sleep(HEADS_PERIOD * 9 + HEADS_PERIOD / 2).await;
        assert_eq!(log.bounds_reads.load(Ordering::SeqCst), 9);
        watching.abort();
    }
}
