//! A school that lives as long as the demo: scanners at the doors, people who are enrolled at them, and a bath
//! under process control. Each is an ordinary client of the public HTTP API, on a thread of its own.

use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::desk::Desk;
use super::process::{self, Process};
use super::scanner::{self, Scanner};
use super::stop::Stop;
use crate::cli::client::Client;
use crate::cli::{Failure, terminal};

/// People are enrolled at so many scanners at a time.
const DESKS: u32 = 2;

/// Longest time, in beats, until what is refused tries again.
const AGAIN_MAX_BEATS: u32 = 64;

/// How fast the school lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// What everything is counted in.
    pub(super) beat: Duration,
}

impl Pace {
    /// So many beats.
    pub(super) fn beats(self, count: u32) -> Duration {
        self.beat * count
    }

    /// A lease of so many beats, in the whole seconds that leases have, but not below `least`.
    pub(super) fn lease_secs(self, count: u32, least: u32) -> u32 {
        let beats = self.beats(count).as_millis().div_ceil(1_000);
        u32::try_from(beats).unwrap_or(u32::MAX).max(least)
    }
}

/// A part of the school: a state machine that does one thing at a time.
pub(super) trait Simulator: Send {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Does the next thing, and returns how long it rests then. After an error it tries again later.
    fn step(&mut self, client: &Client) -> Result<Duration, Failure>;

    /// Ends what it has begun, as well as it can: it is time to stop.
    fn leave(&mut self, _client: &Client) {}
}

/// The threads of a school.
pub(super) struct School {
    threads: Vec<JoinHandle<()>>,
}

impl School {
    /// Brings a school to life until it is time to end.
    pub(super) fn open(client: &Client, pace: Pace, stop: &Stop) -> Result<School, Failure> {
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

    /// Waits until everything has ended. It does so when the stop is set.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a simulator panicked");
            }
        }
    }
}

fn live(mut simulator: Box<dyn Simulator>, client: &Client, pace: Pace, stop: &Stop) {
    let mut rest = Duration::ZERO;
    let mut again_beats = 1;
    let mut told = String::new();
    while stop.rest(rest) {
        match simulator.step(client) {
            Ok(next) => {
                rest = next;
                again_beats = 1;
            }
            Err(failure) => {
                // Once, however often it is refused.
                if told != failure.message && stop.is_a_surprise() {
                    let name = simulator.name();
                    terminal::complain(&format!("{name} tries again later: {}", failure.message));
                    told = failure.message;
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
        let pace = |millis| Pace {
            beat: Duration::from_millis(millis),
        };
        assert_eq!(pace(1_000).lease_secs(6, 1), 6);
        assert_eq!(pace(350).lease_secs(6, 1), 3, "2.1 s");
        assert_eq!(pace(10).lease_secs(6, 2), 2);
    }
}
