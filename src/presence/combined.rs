//! Combines the urgent heartbeats of concurrent requests into one write.
//!
//! The answer to a device that is not online depends on what all nodes have heard, which takes a transaction. When many
//! devices return at once, after a power cut or the restart of a gateway, each would need its own transaction. So one
//! request writes at a time. Those that arrive meanwhile wait, and the first of them then writes the heartbeats of all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Address;
use crate::config::PRESENCE_BATCH;
use crate::log::StoreError;
use crate::log::heartbeats::{Heartbeat, Shared};

/// What the store knows about the devices of some heartbeats, in the order of the heartbeats.
type Known = Result<Vec<Option<Shared>>, StoreError>;

/// See the [module-level documentation](self).
#[derive(Default)]
pub(super) struct Combined {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by the request that writes.
    turn: tokio::sync::Mutex<()>,
}

/// The heartbeats of a request.
struct Waiting {
    heartbeats: Vec<Heartbeat>,
    answer: oneshot::Sender<Known>,
}

impl Combined {
    /// Writes heartbeats, together with those of other requests, and returns what is known of their devices.
    pub(super) async fn save<F: Future<Output = Known>>(
        &self,
        heartbeats: Vec<Heartbeat>,
        write: impl Fn(Vec<Heartbeat>) -> F,
    ) -> Known {
        loop {
            let (answer, mut answered) = oneshot::channel();
            let heartbeats = heartbeats.clone();
            self.lock().push(Waiting { heartbeats, answer });
            let known = loop {
                let _turn = tokio::select! {
                    biased;
                    known = &mut answered => break known,
                    turn = self.turn.lock() => turn,
                };
                let next = self.next();
                if !next.is_empty() {
                    write_together(next, &write).await;
                }
            };
            // Otherwise, the request that was writing them was cancelled, so try again.
            if let Ok(known) = known {
                return known;
            }
        }
    }

    /// Takes the requests that have waited longest, up to a bound.
    fn next(&self) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let mut heartbeats = 0;
        let fits = |request: &&Waiting| {
            let is_first = heartbeats == 0;
            heartbeats += request.heartbeats.len();
            is_first || heartbeats <= PRESENCE_BATCH
        };
        let count = waiting.iter().take_while(fits).count();
        waiting.drain(..count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_together<F: Future<Output = Known>>(
    requests: Vec<Waiting>,
    write: &impl Fn(Vec<Heartbeat>) -> F,
) {
    // A write must contain each device only once.
    let mut places: HashMap<Address, usize> = HashMap::new();
    let mut heartbeats: Vec<Heartbeat> = Vec::new();
    for heartbeat in requests.iter().flat_map(|request| &request.heartbeats) {
        match places.entry(address(heartbeat)) {
            Entry::Occupied(place) => {
                let heard = &mut heartbeats[*place.get()].heard;
                *heard = heard.merged(heartbeat.heard);
            }
            Entry::Vacant(place) => {
                place.insert(heartbeats.len());
                heartbeats.push(heartbeat.clone());
            }
        }
    }
    let known = write(heartbeats).await;
    for request in requests {
        let of_request = |known: &Vec<Option<Shared>>| {
            let of = |heartbeat: &Heartbeat| known[places[&address(heartbeat)]].clone();
            request.heartbeats.iter().map(of).collect()
        };
        // The request may have been cancelled.
        let _ = request
            .answer
            .send(known.as_ref().map(of_request).map_err(Clone::clone));
    }
}

fn address(heartbeat: &Heartbeat) -> Address {
    (heartbeat.school, heartbeat.device.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::kind::device::Heard;
    use crate::log::heartbeats::LastHeartbeats;
    use crate::uptime::Uptime;

    fn heartbeat(device: &str, millis: u64) -> Heartbeat {
        let at = DateTime::UNIX_EPOCH;
        let uptime = Uptime::from_millis(millis);
        Heartbeat {
            school: 1.try_into().unwrap(),
            device: device.parse().unwrap(),
            heard: LastHeartbeats {
                last: Heard { at, uptime },
                before: None,
            },
        }
    }

    /// A store whose writes wait for a permit. It records each write.
    #[derive(Clone)]
    struct Slow {
        may: Arc<Semaphore>,
        written: Arc<Mutex<Vec<Vec<Heartbeat>>>>,
    }

    impl Slow {
        fn new() -> Slow {
            Slow {
                may: Arc::new(Semaphore::new(0)),
                written: Arc::default(),
            }
        }

        async fn write(self, heartbeats: Vec<Heartbeat>) -> Known {
            self.may.acquire().await.unwrap().forget();
            let known = vec![None; heartbeats.len()];
            self.written.lock().unwrap().push(heartbeats);
            Ok(known)
        }

        fn sizes(&self) -> Vec<usize> {
            self.written.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    fn save(
        combined: &Combined,
        slow: &Slow,
        heartbeats: Vec<Heartbeat>,
    ) -> impl Future<Output = Known> {
        let slow = slow.clone();
        combined.save(heartbeats, move |heartbeats| slow.clone().write(heartbeats))
    }

    #[tokio::test]
    async fn heartbeats_that_come_during_a_write_share_the_next_one() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let requests =
            (0..100).map(|n| save(&combined, &slow, vec![heartbeat(&format!("d{n}"), n)]));
        let mut requests = Box::pin(join_all(requests));
        assert!(requests.as_mut().now_or_never().is_none());
        slow.may.add_permits(2);
        let known = requests.await;
        assert!(
            known
                .iter()
                .all(|answer| answer.as_ref().unwrap().len() == 1)
        );
        assert_eq!(slow.sizes(), [1, 99]);
    }

    #[tokio::test]
    async fn heartbeats_of_one_device_are_one_row_of_a_write() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let requests = [
            vec![heartbeat("x", 1)],
            vec![heartbeat("a", 10)],
            vec![heartbeat("a", 20), heartbeat("b", 5)],
        ];
        let requests = requests.map(|heartbeats| save(&combined, &slow, heartbeats));
        let mut requests = Box::pin(join_all(requests));
        assert!(requests.as_mut().now_or_never().is_none());
        slow.may.add_permits(2);
        requests
            .await
            .into_iter()
            .for_each(|known| drop(known.unwrap()));
        let written = slow.written.lock().unwrap();
        let a = written[1]
            .iter()
            .find(|heartbeat| heartbeat.device.as_str() == "a");
        let heard = a.unwrap().heard;
        assert_eq!(heard.last.uptime, Uptime::from_millis(20));
        assert_eq!(heard.before, Some(Uptime::from_millis(10)));
        assert_eq!(written[1].len(), 2);
    }

    #[tokio::test]
    async fn a_write_is_bounded_however_many_wait() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let half = |n: usize| {
            let heartbeats =
                (0..PRESENCE_BATCH / 2).map(|index| heartbeat(&format!("d{n}-{index}"), 1));
            save(&combined, &slow, heartbeats.collect())
        };
        slow.may.add_permits(10);
        for known in join_all((0..5).map(half)).await {
            assert_eq!(known.unwrap().len(), PRESENCE_BATCH / 2);
        }
        assert!(slow.sizes().into_iter().all(|size| size <= PRESENCE_BATCH));
    }

    #[tokio::test]
    async fn a_request_that_is_cancelled_takes_no_other_ones_heartbeats_along() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let mut first = Box::pin(save(&combined, &slow, vec![heartbeat("a", 1)]));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(save(&combined, &slow, vec![heartbeat("b", 1)]));
        let mut third = Box::pin(save(&combined, &slow, vec![heartbeat("c", 1)]));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        // Each is cancelled while it writes. The second write included the heartbeats of the third request.
        drop(first);
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        slow.may.add_permits(1);
        assert_eq!(third.await.unwrap().len(), 1);
        let written = slow.written.lock().unwrap();
        assert!(
            written[0]
                .iter()
                .any(|heartbeat| heartbeat.device.as_str() == "c")
        );
    }
}
