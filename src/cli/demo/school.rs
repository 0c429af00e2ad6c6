//! The simulated school of the demo: scanners at the doors, desks that enroll people at them, and a swimming pool under
//! process control. Each is an ordinary client of the public HTTP API, on a separate thread.

use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::desk::Desk;
use super::process::{self, Process};
use super::scanner::{self, Scanner};
use super::stop::Stop;
use crate::cli::client::Client;
use crate::cli::{Failure, terminal};

/// The number of enrollment desks.
const DESKS: u32 = 2;

/// The longest delay before a failed step is retried, in beats.
const AGAIN_MAX_BEATS: u32 = 64;

/// The speed of the school.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateLimit {
    /// The school's unit of time.
    pub(super) beat: Duration,
}

impl RateLimit {
    /// Returns the duration of this many beats.
    pub(super) fn beats(self, count: u32) -> Duration {
        self.beat * count
    }

    /// Returns a lease of this many beats in whole seconds, as leases require, and at least `least`.
    pub(super) fn lease_secs(self, count: u32, least: u32) -> u32 {
        let beats = self.beats(count).as_millis().div_ceil(1_000);
        u32::try_from(beats).unwrap_or(u32::MAX).max(least)
    }
}

/// A part of the school: a state machine that does one step at a time.
pub(super) trait Simulator: Send {
    /// Returns the name of the part.
    fn name(&self) -> String;

    /// Does the next step, and returns how long to wait after it. After an error, the step is tried again later.
    fn step(&mut self, client: &Client) -> Result<Duration, Failure>;

    /// Called when the demo ends: ends unfinished work as far as possible.
    fn leave(&mut self, _client: &Client) {}
}

/// The threads of a school.
pub(super) struct School {
    threads: Vec<JoinHandle<()>>,
}

impl School {
    /// Starts the parts of the school. They run until the demo ends.
    pub(super) fn open(client: &Client, pace: RateLimit, stop: &Stop) -> Result<School, Failure> {
        let mut simulators: Vec<Box<dyn Simulator>> = Vec::new();
        for (place, steps) in scanner::PLACES.iter().zip((4..).step_by(4)) {
            simulators.push(Box::new(Scanner::new(place, steps, pace)));
        }
        for number in 1..=DESKS {
            simulators.push(Box::new(Desk::new(number, pace)));
        }
        for plan in &process::PLANS {
            simulators.push(Box::new(Process::new(plan, pace)));
        }
        let threads = simulators
            .into_iter()
            .map(|simulator| {
                let (client, stop) = (client.clone(), stop.clone());
                Builder::new()
                    .name(simulator.name())
                    .spawn(move || live(simulator, &client, pace, &stop))
            })
            .collect::<Result<_, _>>()?;
        Ok(School { threads })
    }

    /// Waits until all parts have ended, which they do once `stop` is set.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a simulator panicked");
            }
        }
    }
}

fn live(mut simulator: Box<dyn Simulator>, client: &Client, pace: RateLimit, stop: &Stop) {
    let mut rest = Duration::ZERO;
    let mut again_beats = 1;
    let mut reported = String::new();
    while stop.rest(rest) {
        match simulator.step(client) {
            Ok(next) => {
                rest = next;
                again_beats = 1;
            }
            Err(failure) => {
                // Report an error once, however often it occurs.
                if reported != failure.message && stop.is_unexpected() {
                    let name = simulator.name();
                    terminal::complain(&format!(
                        "{name} will try again later: {}",
                        failure.message
                    ));
                    reported = failure.message;
                }
                rest = pace.beats(again_beats);
                again_beats = (again_beats * 2).min(AGAIN_MAX_BEATS);
            }
        }
    }
    simulator.leave(client);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_whole_seconds_that_hold_its_beats() {
        let pace = |millis| RateLimit {
            beat: Duration::from_millis(millis),
        };
        assert_eq!(pace(1_000).lease_secs(6, 1), 6);
        assert_eq!(pace(350).lease_secs(6, 1), 3, "2.1 s");
        assert_eq!(pace(10).lease_secs(6, 2), 2);
    }
}
