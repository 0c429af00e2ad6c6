//! Memory for writes: a limit on the bodies, commands, events and answers of concurrent requests.
//!
//! Before its body is read, a request reserves the maximum that it may need. It releases what it turns out not to need,
//! and the rest when its answer has been sent. A school can hold as much as remains free (dynamic thresholds, Choudhury
//! and Hahne, 1998): one school alone half of the memory, two schools a third each, `n` schools together `n / (n + 1)`.
//! So there is always room for another school.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::id::SchoolId;

/// The holder of reserved memory: a school, or requests that write to several schools.
pub type Holder = Option<SchoolId>;

/// The memory that writes can reserve.
pub struct Reserve {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    free: u64,
    held: HashMap<Holder, u64>,
}

/// Reserved memory, which is released when this is dropped.
pub struct Reserved {
    reserve: Arc<Reserve>,
    holder: Holder,
    bytes: AtomicU64,
}

/// There was not enough memory within the waiting time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveFull {
    /// The holder's own concurrent writes hold too much.
    #[error("the concurrent writes of this school have reached their memory limit")]
    Holder,
    /// The concurrent writes of others hold too much.
    #[error("the concurrent writes of all schools have reached the memory limit")]
    Server,
}

impl Reserve {
    /// Creates a reserve of this many bytes.
    pub fn new(bytes: u64) -> Reserve {
        Reserve {
            state: Mutex::new(State {
                free: bytes,
                held: HashMap::new(),
            }),
            freed: Notify::new(),
        }
    }

    /// Reserves memory. Waits up to `wait` until there is enough.
    pub async fn take(
        self: &Arc<Self>,
        holder: Holder,
        bytes: u64,
        wait: Duration,
    ) -> Result<Reserved, ReserveFull> {
        let taken = async {
            loop {
                // Register before checking: a release in between would otherwise wake nobody.
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if self.try_take(holder, bytes) {
                    return;
                }
                freed.await;
            }
        };
        match timeout(wait, taken).await {
            Ok(()) => Ok(Reserved {
                reserve: Arc::clone(self),
                holder,
                bytes: AtomicU64::new(bytes),
            }),
            Err(_) if self.state().held.contains_key(&holder) => Err(ReserveFull::Holder),
            Err(_) => Err(ReserveFull::Server),
        }
    }

    fn try_take(&self, holder: Holder, bytes: u64) -> bool {
        let mut state = self.state();
        let held = state.held.get(&holder).copied().unwrap_or(0) + bytes;
        let has_room = state
            .free
            .checked_sub(bytes)
            .is_some_and(|left| held <= left);
        if has_room {
            state.free -= bytes;
            state.held.insert(holder, held);
        }
        has_room
    }

    fn release(&self, holder: Holder, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state();
        state.free += bytes;
        if let Some(held) = state.held.get_mut(&holder) {
            *held -= bytes;
            if *held == 0 {
                state.held.remove(&holder);
            }
        }
        drop(state);
        self.freed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    /// Releases everything beyond this many bytes.
    pub fn keep(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.reserve
            .release(self.holder, before.saturating_sub(bytes));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn school(number: i64) -> Holder {
        Some(number.try_into().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_school_holds_as_much_as_it_leaves_free_and_another_always_finds_room() {
        const WAIT: Duration = Duration::from_secs(1);
        let reserve = Arc::new(Reserve::new(1_200));
        let first = reserve.take(school(1), 600, WAIT).await.unwrap();
        let more = reserve.take(school(1), 1, WAIT).await;
        assert_eq!(more.err(), Some(ReserveFull::Holder));
        let second = reserve.take(school(2), 300, WAIT).await.unwrap();
        let third = reserve.take(None, 150, WAIT).await.unwrap();
        let fourth = reserve.take(school(4), 100, WAIT).await;
        assert_eq!(fourth.err(), Some(ReserveFull::Server));
        assert!(reserve.take(school(4), 75, WAIT).await.is_ok());
        drop((second, third));
        first.keep(500);
        first.keep(900);
        assert!(
            reserve.take(school(1), 100, WAIT).await.is_ok(),
            "it gave some back"
        );
        drop(first);
        assert!(reserve.take(school(3), 600, WAIT).await.is_ok());
        assert!(reserve.state().held.is_empty(), "and is forgotten");
        assert_eq!(reserve.state().free, 1_200);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_lets_go_of_another_gets_that_waits() {
        let reserve = Arc::new(Reserve::new(100));
        let first = reserve.take(school(1), 50, Duration::ZERO).await.unwrap();
        let waits = tokio::spawn({
            let reserve = Arc::clone(&reserve);
            async move {
                reserve
                    .take(school(1), 50, Duration::from_secs(60))
                    .await
                    .is_ok()
            }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(first);
        assert!(waits.await.unwrap());
    }
}
