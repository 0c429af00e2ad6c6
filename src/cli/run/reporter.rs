//! Reports to the server on a separate thread, so that the server can never block the command.
//!
//! What is waiting is bounded: the start, the newest progress, and the outcome. Progress that has not been sent is merged into newer
//! progress. Each report has an idempotency key, and is repeated with growing delays until the server takes it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::delivery::{Delivery, Level};
use super::outcome::Outcome;
use super::progress::{News, Source};
use super::spool::is_worth_another_try;
use crate::cli::Failure;

/// The minimum time between two reports of progress.
const PERIOD: Duration = Duration::from_millis(500);
/// A heartbeat is sent after this time without new progress. A request to cancel is noticed within this time.
const BEAT: Duration = Duration::from_secs(5);
/// The first delay after a failed request, which doubles each time.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// The longest delay once the command has ended. It is short, because `--wait` limits the time for further tries.
const RETRY_AT_END_MAX: Duration = Duration::from_secs(2);

/// What is to be reported. The threads that follow the command write it, and the reporter reads it.
#[derive(Default)]
pub(super) struct Board {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    percent: Option<(f64, Source)>,
    message: Option<String>,
    has_news: bool,
    /// Whether new progress is being sent, so that it is not known whether it has arrived.
    is_sending_news: bool,
    outcome: Option<Arc<Outcome>>,
    /// Why the command was told to stop, if the server has asked for it.
    cancelled: Option<String>,
    /// Whether the reporter has nothing more to send, or has given up.
    is_over: bool,
    /// Whether the start has reached the server.
    is_started: bool,
    /// The attempt that has been started.
    attempt: Option<u64>,
    /// Whether the server has rejected a report, so that another try would be of no use.
    is_rejected: bool,
    /// The newest reason why something could not be sent.
    problem: Option<String>,
}

/// The newest progress.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Latest {
    pub(super) percent: Option<(f64, Source)>,
    pub(super) message: Option<String>,
}

/// What could not be sent when the command had ended.
pub(super) struct Unsent {
    /// For people.
    pub(super) text: String,
    pub(super) can_be_sent_later: bool,
    /// The attempt that has been started.
    pub(super) attempt: Option<u64>,
    pub(super) latest: Latest,
    /// Whether the newest progress was not sent.
    pub(super) is_unsent: bool,
}

enum Next {
    /// Send this progress. If nothing in it is new, it is a heartbeat.
    Progress(Latest),
    /// Send the outcome.
    End {
        outcome: Arc<Outcome>,
        latest: Latest,
        /// Whether the newest progress was not sent.
        is_unsent: bool,
    },
}

impl State {
    /// Returns the newest progress.
    fn latest(&self) -> Latest {
        Latest {
            percent: self.percent,
            message: self.message.clone(),
        }
    }

    /// Whether the newest progress is not known to have arrived.
    fn is_unsent(&self) -> bool {
        (self.has_news || self.is_sending_news)
            && (self.percent.is_some() || self.message.is_some())
    }
}

impl Board {
    /// Records new progress.
    pub(super) fn post(&self, news: News) {
        let mut state = self.lock();
        if news.percent.is_some() {
            state.percent = news.percent;
        }
        if news.message.is_some() {
            state.message = news.message;
        }
        state.has_news = true;
        drop(state);
        self.change.notify_all();
    }

    /// Returns the newest progress.
    pub(super) fn latest(&self) -> Latest {
        self.lock().latest()
    }

    /// Records that the command is told to stop.
    pub(super) fn cancel(&self, reason: &str) {
        self.lock().cancelled = Some(reason.to_owned());
    }

    /// Returns why the command was told to stop.
    pub(super) fn cancelled(&self) -> Option<String> {
        self.lock().cancelled.clone()
    }

    /// Hands over the outcome, and waits at most this long until it is sent. Returns what could not be sent.
    pub(super) fn finish(&self, outcome: Arc<Outcome>, wait: Duration) -> Option<Unsent> {
        let mut state = self.lock();
        state.outcome = Some(outcome);
        self.change.notify_all();
        let is_waiting = |state: &mut State| !state.is_over;
        let waited = self.change.wait_timeout_while(state, wait, is_waiting);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if state.is_over && state.problem.is_none() {
            return None;
        }
        let what = match state.is_started {
            true => "how the command ended",
            false => "the command",
        };
        let problem = state.problem.as_deref();
        let problem = problem.unwrap_or("the server does not answer");
        Some(Unsent {
            text: format!("{what} could not be reported: {problem}"),
            can_be_sent_later: !state.is_rejected,
            attempt: state.attempt,
            is_unsent: state.is_unsent(),
            latest: state.latest(),
        })
    }

    /// Records that nothing can be sent.
    pub(super) fn give_up(&self, failure: &Failure) {
        self.has_problem(failure);
        self.lock().is_over = true;
        self.change.notify_all();
    }

    fn has_problem(&self, failure: &Failure) {
        let mut state = self.lock();
        state.problem = Some(failure.message.clone());
        state.is_rejected = !is_worth_another_try(failure);
    }

    /// Waits until something is due to be sent.
    fn next(&self, last: Instant) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(outcome) = &state.outcome {
                return Next::End {
                    outcome: Arc::clone(outcome),
                    latest: state.latest(),
                    is_unsent: state.is_unsent(),
                };
            }
            let due = last + if state.has_news { PERIOD } else { BEAT };
            let rest = due.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let has_news = std::mem::take(&mut state.has_news);
                state.is_sending_news = has_news;
                return Next::Progress(Latest {
                    percent: state.percent,
                    message: state.message.clone().filter(|_| has_news),
                });
            }
            let waited = self.change.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Records whether the progress that was sent has arrived.
    fn is_answered(&self, has_arrived: bool) {
        let mut state = self.lock();
        state.has_news |= !has_arrived;
        state.is_sending_news = false;
    }

    /// Waits for this delay, or until the command ends. Returns the next delay.
    fn rest(&self, delay: Duration, is_ending: bool) -> Duration {
        let is_waiting = |state: &mut State| is_ending || state.outcome.is_none();
        let state = self.lock();
        drop(self.change.wait_timeout_while(state, delay, is_waiting));
        match (is_ending, self.is_ending()) {
            (true, _) => (delay * 2).min(RETRY_AT_END_MAX),
            (false, true) => RETRY,
            (false, false) => (delay * 2).min(RETRY_MAX),
        }
    }

    fn is_ending(&self) -> bool {
        self.lock().outcome.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is on the board until the command's outcome is sent.
pub(super) struct Reporter<C> {
    pub(super) board: Arc<Board>,
    pub(super) delivery: Delivery,
    /// Called when the server asks to cancel the job.
    pub(super) on_cancel: C,
}

impl<C: FnMut()> Reporter<C> {
    /// Reports until the end.
    pub(super) fn run(mut self) {
        if self.start() {
            self.follow();
        }
        self.board.lock().is_over = true;
        self.board.change.notify_all();
    }

    /// Creates or starts the job. Returns false if the server rejects it.
    fn start(&mut self) -> bool {
        let mut delay = RETRY;
        loop {
            let is_ending = self.board.is_ending();
            match self.delivery.start() {
                Ok(()) => {
                    let mut state = self.board.lock();
                    (state.is_started, state.problem) = (true, None);
                    state.attempt = self.delivery.attempt();
                    // Report at once that the progress is unknown: the server starts a job at 0 %.
                    state.has_news = true;
                    return true;
                }
                Err(failure) => {
                    self.board.has_problem(&failure);
                    delay = delay.max(failure.retry_after);
                    // While the command runs, even a permanent error is retried: an operator may fix the token or the server.
                    if failure.is_conflict() || is_ending && !failure.is_transient() {
                        return false;
                    }
                }
            }
            delay = self.board.rest(delay, is_ending);
        }
    }

    /// Sends progress, and finally the outcome. Ends early if somebody else has ended the job, or has begun a new attempt.
    fn follow(&mut self) {
        let mut delay = RETRY;
        let mut last = Instant::now() - PERIOD;
        let mut level = Level::Full;
        loop {
            let next = self.board.next(last);
            let is_ending = matches!(next, Next::End { .. });
            let sent = match &next {
                Next::Progress(latest) => self.delivery.progress(latest),
                Next::End {
                    outcome,
                    latest,
                    is_unsent,
                } => self.delivery.end(outcome, level, latest, *is_unsent),
            };
            last = Instant::now();
            // Another one if the server had lost the job.
            self.board.lock().attempt = self.delivery.attempt();
            match sent {
                Ok(_) if is_ending => {
                    self.board.lock().problem = None;
                    return;
                }
                Ok(is_cancelled) => {
                    self.board.lock().problem = None;
                    self.board.is_answered(true);
                    delay = RETRY;
                    if is_cancelled {
                        (self.on_cancel)();
                    }
                }
                Err(failure) => {
                    self.board.has_problem(&failure);
                    if failure.is_conflict() {
                        return;
                    }
                    if is_ending && failure.is_too_long() && level != Level::Bare {
                        level = level.shorter();
                        continue;
                    }
                    if is_ending && !failure.is_transient() {
                        return;
                    }
                    if !is_ending {
                        self.board.is_answered(false);
                    }
                    delay = delay.max(failure.retry_after);
                    delay = self.board.rest(delay, is_ending);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_is_being_sent_when_the_wait_ends_is_not_taken_for_sent() {
        for answer in [None, Some(false), Some(true)] {
            let board = Board::default();
            board.post(News {
                percent: Some((40.0, Source::Bar)),
                message: None,
            });
            let next = board.next(Instant::now() - PERIOD);
            assert!(matches!(next, Next::Progress(_)));
            if let Some(has_arrived) = answer {
                board.is_answered(has_arrived);
            }
            let outcome = Outcome::not_started(String::new(), Duration::ZERO);
            let unsent = board.finish(Arc::new(outcome), Duration::ZERO).unwrap();
            assert_eq!(unsent.is_unsent, answer != Some(true));
        }
    }
}
