//! A desk that enrolls people, one after the other, at any scanner that is online.
//!
//! The outcome of a session is drawn from a shuffled deck, not independently at random, so that every outcome occurs
//! soon. If a session was ended by another client, or its lease has expired (409), the desk simply begins the next one.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use super::scanner::PLACES;
use super::school::{RateLimit, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;
use crate::kind::enrollment::ERROR_CODES;

/// The silence after which a session expires, in beats.
const LEASE_BEATS: u32 = 12;
/// The additional silence after which the server has certainly noticed.
const NOTICE: Duration = Duration::from_secs(2);
/// The number of successful sessions in a deck.
const COMPLETE_IN_DECK: usize = 8;
/// The steps of a scan.
const SCAN: [&str; 3] = ["placing", "capturing", "processing"];

/// The outcome of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Complete,
    /// With one of [`ERROR_CODES`].
    Fail(&'static str),
    Cancel,
}

/// A session in progress.
struct Session {
    id: String,
    device: &'static str,
    fate: Fate,
    /// The statuses that are still to be reported, each with the number of its scan if scans are counted.
    steps: VecDeque<(Option<u32>, &'static str)>,
}

/// An enrollment desk.
pub(super) struct Desk {
    number: u32,
    pace: RateLimit,
    chance: fastrand::Rng,
    deck: Vec<Fate>,
    session: Option<Session>,
}

impl Desk {
    pub(super) fn new(number: u32, pace: RateLimit) -> Desk {
        Desk {
            number,
            pace,
            chance: fastrand::Rng::new(),
            deck: Vec::new(),
            session: None,
        }
    }

    fn draw(&mut self) -> Fate {
        if self.deck.is_empty() {
            self.deck = vec![Fate::Complete; COMPLETE_IN_DECK];
            let codes = ERROR_CODES.iter().map(|(code, _)| Fate::Fail(code));
            self.deck.extend(codes.chain([Fate::Cancel]));
            self.chance.shuffle(&mut self.deck);
        }
        self.deck.pop().expect("a deck has cards")
    }

    /// Returns the statuses to report in a session with this number of scans, up to the point where `fate` takes effect.
    fn steps(&mut self, fate: Fate, scans: Option<u32>) -> VecDeque<(Option<u32>, &'static str)> {
        let numbers = 1..=scans.unwrap_or(1);
        let mut steps: VecDeque<_> = numbers
            .flat_map(|number| SCAN.map(|status| (scans.and(Some(number)), status)))
            .collect();
        let reached = match fate {
            Fate::Fail("student_not_on_device") => 0,
            Fate::Cancel | Fate::Fail("timeout" | "device_offline") => {
                self.chance.usize(1..steps.len())
            }
            // These become apparent only during the last scan.
            Fate::Complete | Fate::Fail(_) => steps.len(),
        };
        steps.truncate(reached);
        steps
    }

    /// Begins a session if a scanner is online.
    fn begin(&mut self, client: &Client) -> Result<(), Failure> {
        let online = client.get("/api/devices?status=online&limit=500")?;
        let is_online = |id: &str| {
            let devices = online["devices"].as_array();
            devices.is_some_and(|devices| devices.iter().any(|device| device["device_id"] == id))
        };
        let ids = PLACES.iter().map(|place| place.id);
        let usable: Vec<_> = ids.filter(|id| is_online(id)).collect();
        let Some(device) = self.chance.choice(usable) else {
            return Ok(());
        };
        let scans = self.chance.bool().then_some(3);
        let begun = client.post(
            "/api/enrollments",
            &json!({
                "device_id": device,
                "student_id": format!("student-{}", self.chance.u32(1_000..10_000)),
                "total_attempts": scans,
                "lease_secs": self.lease_secs(),
            }),
        )?;
        let fate = self.draw();
        self.session = Some(Session {
            id: begun["session_id"].as_str().unwrap_or_default().to_owned(),
            device,
            fate,
            steps: self.steps(fate, scans),
        });
        Ok(())
    }

    /// Does the next step of a session. Keeps the session unless it has ended.
    fn continue_session(
        &mut self,
        mut session: Session,
        client: &Client,
    ) -> Result<Duration, Failure> {
        let report = |verb: &str, body: Value| {
            client.post(&format!("/api/enrollments/{}/{verb}", session.id), &body)
        };
        let device = client.get(&format!("/api/devices/{}", session.device))?;
        if device["status"] == "offline" {
            report("error", json!({"code": "device_offline"}))?;
            return Ok(self.until_the_next());
        }
        if let Some((attempt, status)) = session.steps.pop_front() {
            let body = match attempt {
                Some(attempt) => json!({"status": status, "attempt": attempt}),
                None => json!({"status": status}),
            };
            report("progress", body)?;
            self.session = Some(session);
            return Ok(self.pace.beats(self.chance.u32(1..=2)));
        }
        match session.fate {
            Fate::Complete => {
                let quality_score = f64::from(self.chance.u32(600..=1_000)) / 10.0;
                report("complete", json!({"quality_score": quality_score}))?;
            }
            Fate::Cancel => {
                report("cancel", json!({"message": "The student was called away"}))?;
            }
            // Report nothing: the server detects the silence.
            Fate::Fail("timeout") => {
                let lease = Duration::from_secs(self.lease_secs().into());
                return Ok(lease + NOTICE);
            }
            // Unplug the scanner. The next step detects it.
            Fate::Fail("device_offline") => {
                let status = format!("/api/devices/{}/status", session.device);
                client.post(&status, &json!({"status": "offline"}))?;
                self.session = Some(session);
                return Ok(Duration::ZERO);
            }
            Fate::Fail(code) => {
                report("error", json!({"code": code}))?;
            }
        }
        Ok(self.until_the_next())
    }

    fn lease_secs(&self) -> u32 {
        self.pace.lease_secs(LEASE_BEATS, 2)
    }

    fn until_the_next(&mut self) -> Duration {
        self.pace.beats(self.chance.u32(2..=6))
    }
}

impl Simulator for Desk {
    fn name(&self) -> String {
        format!("enrollment-desk-{}", self.number)
    }

    fn step(&mut self, client: &Client) -> Result<Duration, Failure> {
        let done = match self.session.take() {
            Some(session) => self.continue_session(session, client),
            None => self
                .begin(client)
                .map(|()| self.pace.beats(self.chance.u32(1..=2))),
        };
        match done {
            Err(failure) if failure.is_conflict() => Ok(self.until_the_next()),
            done => done,
        }
    }

    fn leave(&mut self, client: &Client) {
        if let Some(session) = self.session.take() {
            let body = json!({"message": "The demo has ended"});
            // If this fails, the session ends with its lease.
            let _ = client.post(&format!("/api/enrollments/{}/cancel", session.id), &body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        let beat = Duration::from_millis(10);
        Desk::new(1, RateLimit { beat })
    }

    #[test]
    fn every_ending_comes_up_in_one_deck() {
        let mut desk = desk();
        let mut drawn = vec![desk.draw()];
        while !desk.deck.is_empty() {
            drawn.push(desk.draw());
        }
        for (code, _) in ERROR_CODES {
            assert!(drawn.contains(&Fate::Fail(code)), "{code}");
        }
        assert!(drawn.contains(&Fate::Cancel) && drawn.contains(&Fate::Complete));
    }

    #[test]
    fn scans_are_reported_one_by_one_until_fate_takes_hold() {
        let mut desk = desk();
        let steps = desk.steps(Fate::Complete, Some(3));
        assert_eq!(steps.len(), 9);
        assert_eq!(
            (steps[3], steps[8]),
            ((Some(2), "placing"), (Some(3), "processing"))
        );
        assert_eq!(desk.steps(Fate::Complete, None)[0], (None, "placing"));
        assert!((1..3).contains(&desk.steps(Fate::Cancel, None).len()));
        assert!(
            desk.steps(Fate::Fail("student_not_on_device"), None)
                .is_empty()
        );
    }
}
