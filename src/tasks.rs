//! The server's background tasks. Each has a name and an owner that ends it.
//!
//! ```text
//! supervise ─▶ run ─▶ returned or cancelled: over
//!               ▲ └─▶ panicked: logged, counted ─▶ pause, which doubles ─┐
//!               └────────────────────────────────────────────────────────┘
//! ```
//!
//! 1. A panic affects only its task. A supervised task is restarted.
//! 2. A task *keeps failing* from its [`TASK_FAILURES`]th consecutive panic until it has run for [`TASK_STEADY`].
//!    Panics are consecutive if the task has never run for that long in between. A vital task that keeps failing makes
//!    the server not ready.
//! 3. [`Tasks::end`] cancels every task of its group and returns whether all of them ended in time. [`Tasks::running`]
//!    names the others.
//!
//! Not tasks of a group, because each has another owner that ends it:
//!
//! - threads: the store owns its writers and its checkpoints, and ends them when it is closed. It catches their panics
//!   ([`CommitMetrics`](crate::log::CommitMetrics)), which make the server not ready if a writer has ended.
//! - tasks that live no longer than the request, the stream, the attempt or the turn that they serve, and are owned by it.
//! - the connection of an MQTT notifier: its medium owns it, ends it in [`Medium::stop`](crate::notify::notification::Medium),
//!   and replaces it at the next delivery if it has panicked.
//! - the two tasks of a connection to Postgres: one drives the connection, and ends with it; the other bounds the time of a
//!   transaction, and ends with that.
//!
//! `tests/it/exemptions.rs` lists the places.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{TASK_FAILURES, TASK_PAUSE_MAX, TASK_PAUSE_MIN, TASK_STEADY};

/// A group of tasks that end together. Clones are the same group.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    records: Arc<TaskRecords>,
}

/// A supervised task before it starts.
pub struct Task {
    name: Arc<str>,
    is_vital: bool,
    ends_itself: bool,
}

impl Task {
    /// Creates a vital task, which is dropped at its next await when its group ends.
    pub fn new(name: impl Into<Arc<str>>) -> Task {
        Task {
            name: name.into(),
            is_vital: true,
            ends_itself: false,
        }
    }

    /// Makes the task optional: the server is ready without it.
    pub fn optional(mut self) -> Task {
        self.is_vital = false;
        self
    }

    /// Makes the task end itself instead of being dropped: it must observe [`Tasks::token`] and return.
    pub fn ends_itself(mut self) -> Task {
        self.ends_itself = true;
        self
    }
}

/// The state of all tasks, by name.
#[derive(Default)]
struct TaskRecords(Mutex<BTreeMap<Arc<str>, TaskRecord>>);

#[derive(Default)]
struct TaskRecord {
    is_vital: bool,
    running: usize,
    panics: u64,
    /// Consecutive panics.
    failures: u32,
    /// When the current run counts as steady. `None` while the task waits for its restart.
    steady_from: Option<Instant>,
}

impl TaskRecord {
    fn fails(&mut self, now: Instant) {
        if self.steady_from.is_some_and(|steady| steady <= now) {
            self.failures = 0;
        }
        self.panics += 1;
        self.failures = self.failures.saturating_add(1);
        self.steady_from = None;
    }

    fn keeps_failing(&self, now: Instant) -> bool {
        let is_steady = self.steady_from.is_some_and(|steady| steady <= now);
        self.failures >= TASK_FAILURES && !is_steady
    }
}

impl TaskRecords {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, TaskRecord>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, name: &Arc<str>, change: impl FnOnce(&mut TaskRecord) -> T) -> T {
        change(self.lock().entry(Arc::clone(name)).or_default())
    }

    /// Counts the task as running until the returned guard is dropped.
    fn running(self: &Arc<Self>, name: Arc<str>) -> Running {
        self.change(&name, |record| record.running += 1);
        Running(Arc::clone(self), name)
    }

    fn starts(&self, name: &Arc<str>) {
        let steady = Instant::now() + TASK_STEADY;
        self.change(name, |record| record.steady_from = Some(steady));
    }

    /// Records a panic. Returns the number of consecutive panics.
    fn fails(&self, name: &Arc<str>) -> u32 {
        self.change(name, |record| {
            record.fails(Instant::now());
            record.failures
        })
    }
}

struct Running(Arc<TaskRecords>, Arc<str>);

impl Running {
    /// Logs and counts a panic that ended the task.
    fn panicked(&self) {
        self.0.change(&self.1, |record| record.panics += 1);
        tracing::error!(task = &*self.1, "a task panicked");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.change(&self.1, |record| record.running -= 1);
    }
}

impl Tasks {
    /// Returns a group that ends separately, but whose tasks are counted with these.
    pub fn group(&self) -> Tasks {
        Tasks {
            records: Arc::clone(&self.records),
            ..Tasks::default()
        }
    }

    /// Returns the token that is cancelled when the group ends.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs the future that `start` creates until it returns or the group ends. After a panic, starts it again.
    pub fn supervise<F>(&self, task: Task, mut start: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Task {
            name,
            is_vital,
            ends_itself,
        } = task;
        let (records, token) = (Arc::clone(&self.records), self.token.clone());
        records.change(&name, |record| record.is_vital = is_vital);
        let running = records.running(Arc::clone(&name));
        self.tracker.spawn(async move {
            let _running = running;
            loop {
                records.starts(&name);
                let run = caught(async { start().await });
                let ended = match ends_itself {
                    true => Some(run.await),
                    false => token.run_until_cancelled(run).await,
                };
                if !matches!(ended, Some(Err(Panicked))) {
                    return;
                }
                let failures = records.fails(&name);
                let pause = pause(failures);
                let pause_ms = pause.as_millis();
                tracing::error!(
                    task = &*name,
                    failures,
                    pause_ms,
                    "a task panicked; restarting it"
                );
                if token.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
            }
        });
    }

    /// Runs a task once, until it returns or the group ends. A panic is logged and counted.
    pub fn spawn(
        &self,
        name: impl Into<Arc<str>>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let token = self.token.clone();
        let running = self.records.running(name.into());
        self.tracker.spawn(async move {
            let ended = token.run_until_cancelled(caught(task)).await;
            if let Some(Err(Panicked)) = ended {
                running.panicked();
            }
        });
    }

    /// Like [`Tasks::spawn`], for a task that is woken often. The task must observe [`Tasks::token`] itself, and return
    /// when the group ends: checking the token at each wake would take two locks that all tasks share.
    pub fn spawn_observer(
        &self,
        name: impl Into<Arc<str>>,
        task: impl Future<Output = ()> + Send + Unpin + 'static,
    ) {
        let running = self.records.running(name.into());
        self.tracker.spawn(Observer { task, running });
    }

    /// Runs a part of a supervised task whose panic must not end the task. Such a panic counts as a panic of the task,
    /// which continues.
    pub(crate) fn guard<T>(&self, name: &Arc<str>, work: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(work)).ok();
        if done.is_none() {
            let failures = self.records.fails(name);
            self.records.starts(name);
            tracing::error!(
                task = &**name,
                failures,
                "a part of a task panicked; the task continues"
            );
        }
        done
    }

    /// Returns the number of panics of each task, by name. Tasks without panics are included.
    pub fn panics(&self) -> Vec<(Arc<str>, u64)> {
        let records = self.records.lock();
        let all = records.iter();
        all.map(|(name, record)| (Arc::clone(name), record.panics))
            .collect()
    }

    /// Returns a vital task that keeps failing, if there is one.
    pub fn failing(&self) -> Option<Arc<str>> {
        let now = Instant::now();
        let records = self.records.lock();
        let mut vital = records.iter().filter(|(_, record)| record.is_vital);
        let failing = vital.find(|(_, record)| record.keeps_failing(now));
        failing.map(|(name, _)| Arc::clone(name))
    }

    /// Returns the tasks that have not ended, of this group and the groups that are counted with it.
    pub fn running(&self) -> Vec<Arc<str>> {
        let records = self.records.lock();
        let running = records.iter().filter(|(_, record)| record.running > 0);
        running.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Asks the group's tasks to end, without waiting.
    pub fn cancel(&self) {
        self.token.cancel();
        self.tracker.close();
    }

    /// Ends the group's tasks. Returns false if any of them is still running after `within`.
    pub async fn end(&self, within: Duration) -> bool {
        self.cancel();
        timeout(within, self.tracker.wait()).await.is_ok()
    }
}

/// Returns the pause before a restart after this many consecutive panics.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1);
    TASK_PAUSE_MIN
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(TASK_PAUSE_MAX)
}

/// A task of which there can be very many. Not an `async` block, which would reserve memory for the task several times: where it
/// is captured, and where it is pinned.
struct Observer<F> {
    task: F,
    running: Running,
}

impl<F: Future<Output = ()> + Unpin> Future for Observer<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Observer { task, running } = &mut *self;
        catch_unwind(AssertUnwindSafe(|| Pin::new(task).poll(cx))).unwrap_or_else(|_| {
            running.panicked();
            Poll::Ready(())
        })
    }
}

struct Panicked;

/// Returns the future's output, unless it panics.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(1);

    /// Panics in its first `panics` runs, then runs.
    fn fails_at_first(tasks: &Tasks, task: Task, panics: u32) -> Arc<AtomicU32> {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        tasks.supervise(task, move || {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run >= panics, "intended");
                pending().await
            }
        });
        runs
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_starts_again_after_a_pause_that_doubles() {
        let tasks = Tasks::default();
        let runs = fails_at_first(&tasks, Task::new("a"), u32::MAX);
        let mut pause = TASK_PAUSE_MIN;
        for run in 1..12 {
            until(|| runs.load(Ordering::SeqCst) == run).await;
            sleep(pause - Duration::from_millis(10)).await;
            assert_eq!(runs.load(Ordering::SeqCst), run, "not before {pause:?}");
            assert_eq!(tasks.panics()[0].1, u64::from(run));
            sleep(Duration::from_millis(10)).await;
            assert_eq!(runs.load(Ordering::SeqCst), run + 1, "after {pause:?}");
            pause = (pause * 2).min(TASK_PAUSE_MAX);
        }
        assert_eq!(pause, TASK_PAUSE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_vital_task_keeps_failing_until_it_has_run_for_a_while() {
        let tasks = Tasks::default();
        fails_at_first(&tasks, Task::new("optional").optional(), u32::MAX);
        fails_at_first(&tasks, Task::new("once"), TASK_FAILURES - 1);
        sleep(TASK_PAUSE_MAX).await;
        assert_eq!(
            tasks.failing(),
            None,
            "one that recovers, and one that is optional"
        );
        let runs = fails_at_first(&tasks, Task::new("vital"), TASK_FAILURES);
        sleep(TASK_PAUSE_MIN).await;
        assert_eq!(tasks.failing(), None, "not at the first panics");
        until(|| {
            let failing = tasks.failing();
            failing.as_deref() == Some("vital")
        })
        .await;
        until(|| runs.load(Ordering::SeqCst) > TASK_FAILURES).await;
        assert!(tasks.failing().is_some(), "it has only just restarted");
        sleep(TASK_STEADY).await;
        assert_eq!(tasks.failing(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn panics_that_are_far_apart_are_not_in_a_row() {
        let mut record = TaskRecord::default();
        for _ in 0..2 * TASK_FAILURES {
            record.steady_from = Some(Instant::now());
            record.fails(Instant::now());
            assert!(!record.keeps_failing(Instant::now()));
        }
        assert_eq!(record.panics, u64::from(2 * TASK_FAILURES));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_group_ends_its_tasks_and_names_those_that_go_on() {
        let tasks = Tasks::default();
        let later = tasks.group();
        let finish = Arc::new(Notify::new());
        fails_at_first(&tasks, Task::new("drops"), 0);
        fails_at_first(&tasks, Task::new("panics"), u32::MAX);
        tasks.spawn("once", pending());
        tasks.spawn("panics once", async { panic!("intended") });
        let asked = Arc::clone(&finish);
        tasks.supervise(Task::new("stays").ends_itself(), move || {
            let asked = Arc::clone(&asked);
            async move { asked.notified().await }
        });
        fails_at_first(&later, Task::new("later"), 0);
        until(|| !tasks.running().contains(&"panics once".into())).await;
        assert!(!tasks.end(WITHIN).await);
        let name = Arc::<str>::from;
        assert_eq!(tasks.running(), [name("later"), name("stays")]);
        finish.notify_one();
        assert!(tasks.end(WITHIN).await);
        assert_eq!(tasks.running(), [name("later")]);
        assert!(later.end(WITHIN).await);
        assert!(tasks.running().is_empty());
        let panics: BTreeMap<_, _> = tasks.panics().into_iter().collect();
        assert_eq!((panics["once"], panics["panics once"]), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_counts_and_the_task_goes_on() {
        let (tasks, name) = (Tasks::default(), "a".into());
        assert_eq!(tasks.guard(&name, || 1), Some(1));
        assert_eq!(tasks.guard(&name, || panic!("intended")), None::<()>);
        assert_eq!(tasks.panics(), [(name, 1)]);
    }
}
