//! A timer that costs next to nothing until it is due.
//!
//! A task that is woken for another reason would register itself with tokio's timer again and again. An [`Alarm`] does
//! that once for each deadline and task, and otherwise compares two times.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// See the module documentation.
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// The task that is registered, if the timer has not been set again since.
    registered: Option<Waker>,
}

impl Alarm {
    /// Creates a timer that is due at this time.
    pub(crate) fn at(due: Instant) -> Alarm {
        Alarm {
            sleep: Box::pin(sleep_until(due)),
            registered: None,
        }
    }

    /// Sets when it is due.
    pub(crate) fn set(&mut self, due: Instant) {
        if due != self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
            self.registered = None;
        }
    }

    /// Whether it is due at `now`. If not, the task is woken once it is.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let registered = self.registered.as_ref();
        if now < self.sleep.deadline()
            && registered.is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return false;
        }
        // A task whose budget is exhausted would not be registered.
        let is_due = pin!(unconstrained(self.sleep.as_mut())).poll(cx).is_ready();
        self.registered = (!is_due).then(|| cx.waker().clone());
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Poll, Wake};
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn due(alarm: &mut Alarm) -> impl Future<Output = ()> {
        poll_fn(|cx| match alarm.poll(cx, Instant::now()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_is_due_at_its_time_however_often_it_is_set() {
        let begin = Instant::now();
        let mut alarm = Alarm::at(begin + Duration::from_secs(5));
        for secs in [3, 4, 9] {
            alarm.set(begin + Duration::from_secs(secs));
            due(&mut alarm).await;
            assert_eq!(begin.elapsed().as_secs(), secs);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_that_looked_last_is_woken() {
        let begin = Instant::now();
        let mut alarm = Alarm::at(begin + Duration::from_secs(1));
        let (first, last) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        for task in [&first, &last, &last] {
            let waker = Waker::from(Arc::clone(task));
            assert!(!alarm.poll(&mut Context::from_waker(&waker), Instant::now()));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let woken = |task: &Woken| task.0.load(Ordering::SeqCst);
        assert_eq!((woken(&first), woken(&last)), (0, 1));
    }

    /// Otherwise it would be registered nowhere, and would sleep on.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_has_used_up_its_turn_is_registered_nevertheless() {
        let begin = Instant::now();
        let mut alarm = Alarm::at(begin + Duration::from_secs(1));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        poll_fn(|cx| {
            while tokio::task::coop::has_budget_remaining() {
                let _ = pin!(tokio::task::consume_budget()).poll(cx);
            }
            assert!(!alarm.poll(&mut Context::from_waker(&waker), Instant::now()));
            Poll::Ready(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }
}
