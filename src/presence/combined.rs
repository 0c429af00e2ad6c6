//! Heartbeats that cannot wait, of all requests that have some at the same time, in one write.
//!
//! A device that is not online gets its answer from what the nodes have heard together, which is a transaction. When many
//! devices come back at once, after a power cut or the restart of a gateway, each would be one of its own. So one request
//! writes, and those that come meanwhile wait and are written together, by the first of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Address;
use crate::config::PRESENCE_BATCH;
use crate::log::StoreError;
use crate::log::beats::{Beat, Shared};

/// What is known of the devices of some heartbeats, in their order.
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
    beats: Vec<Beat>,
    answer: oneshot::Sender<Known>,
}

impl Combined {
    /// Writes heartbeats, together with those of other requests, and returns what is known of their devices.
    pub(super) async fn save<F: Future<Output = Known>>(
        &self,
        beats: Vec<Beat>,
        write: impl Fn(Vec<Beat>) -> F,
    ) -> Known {
        loop {
            let (answer, mut answered) = oneshot::channel();
            let beats = beats.clone();
            self.lock().push(Waiting { beats, answer });
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
            // Otherwise, the request that was writing them was cancelled.
            if let Ok(known) = known {
                return known;
            }
        }
    }

    /// Takes what has waited longest, up to a bound.
    fn next(&self) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let mut beats = 0;
        let fits = |own: &&Waiting| {
            let is_first = beats == 0;
            beats += own.beats.len();
            is_first || beats <= PRESENCE_BATCH
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
    write: &impl Fn(Vec<Beat>) -> F,
) {
    // A write has each device once.
    let mut places: HashMap<Address, usize> = HashMap::new();
    let mut beats: Vec<Beat> = Vec::new();
    for beat in requests.iter().flat_map(|own| &own.beats) {
        match places.entry(address(beat)) {
            Entry::Occupied(place) => {
                let heard = &mut beats[*place.get()].heard;
                *heard = heard.merged(beat.heard);
            }
            Entry::Vacant(place) => {
                place.insert(beats.len());
                beats.push(beat.clone());
            }
        }
    }
    let known = write(beats).await;
    for own in requests {
        let of_request = |known: &Vec<Option<Shared>>| {
            let of = |beat: &Beat| known[places[&address(beat)]].clone();
            own.beats.iter().map(of).collect()
        };
        // The request may have been cancelled.
        let _ = own
            .answer
            .send(known.as_ref().map(of_request).map_err(Clone::clone));
    }
}

fn address(beat: &Beat) -> Address {
    (beat.school, beat.device.clone())
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
    use crate::log::beats::Heartbeats;
    use crate::uptime::Uptime;

    fn beat(device: &str, millis: u64) -> Beat {
        let at = DateTime::UNIX_EPOCH;
        let uptime = Uptime::from_millis(millis);
        Beat {
            school: 1.try_into().unwrap(),
            device: device.parse().unwrap(),
            heard: Heartbeats {
                last: Heard { at, uptime },
                before: None,
            },
        }
    }

    /// A store that writes when it may, and keeps each write.
    #[derive(Clone)]
    struct Slow {
        may: Arc<Semaphore>,
        written: Arc<Mutex<Vec<Vec<Beat>>>>,
    }

    impl Slow {
        fn new() -> Slow {
            Slow {
                may: Arc::new(Semaphore::new(0)),
                written: Arc::default(),
            }
        }

        async fn write(self, beats: Vec<Beat>) -> Known {
            self.may.acquire().await.unwrap().forget();
            let known = vec![None; beats.len()];
            self.written.lock().unwrap().push(beats);
            Ok(known)
        }

        fn sizes(&self) -> Vec<usize> {
            self.written.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    fn save(combined: &Combined, slow: &Slow, beats: Vec<Beat>) -> impl Future<Output = Known> {
        let slow = slow.clone();
        combined.save(beats, move |beats| slow.clone().write(beats))
    }

    #[tokio::test]
    async fn heartbeats_that_come_during_a_write_share_the_next_one() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let requests = (0..100).map(|n| save(&combined, &slow, vec![beat(&format!("d{n}"), n)]));
        let mut requests = Box::pin(join_all(requests));
        assert!(requests.as_mut().now_or_never().is_none());
        slow.may.add_permits(2);
        let known = requests.await;
        assert!(known.iter().all(|own| own.as_ref().unwrap().len() == 1));
        assert_eq!(slow.sizes(), [1, 99]);
    }

    #[tokio::test]
    async fn heartbeats_of_one_device_are_one_row_of_a_write() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let requests = [
            vec![beat("x", 1)],
            vec![beat("a", 10)],
            vec![beat("a", 20), beat("b", 5)],
        ];
        let requests = requests.map(|beats| save(&combined, &slow, beats));
        let mut requests = Box::pin(join_all(requests));
        assert!(requests.as_mut().now_or_never().is_none());
        slow.may.add_permits(2);
        requests
            .await
            .into_iter()
            .for_each(|known| drop(known.unwrap()));
        let written = slow.written.lock().unwrap();
        let a = written[1].iter().find(|own| own.device.as_str() == "a");
        let heard = a.unwrap().heard;
        assert_eq!(heard.last.uptime, Uptime::from_millis(20));
        assert_eq!(heard.before, Some(Uptime::from_millis(10)));
        assert_eq!(written[1].len(), 2);
    }

    #[tokio::test]
    async fn a_write_is_bounded_however_many_wait() {
        let (combined, slow) = (Combined::default(), Slow::new());
        let half = |n: usize| {
            let beats = (0..PRESENCE_BATCH / 2).map(|own| beat(&format!("d{n}-{own}"), 1));
            save(&combined, &slow, beats.collect())
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
        let mut first = Box::pin(save(&combined, &slow, vec![beat("a", 1)]));
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(save(&combined, &slow, vec![beat("b", 1)]));
        let mut third = Box::pin(save(&combined, &slow, vec![beat("c", 1)]));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        // Each is cancelled while it writes, the second one also what the third one waits for.
        drop(first);
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        slow.may.add_permits(1);
        assert_eq!(third.await.unwrap().len(), 1);
        let written = slow.written.lock().unwrap();
        assert!(written[0].iter().any(|own| own.device.as_str() == "c"));
    }
}
