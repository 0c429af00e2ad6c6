//! A desk where people are enrolled, one after the other, at whichever scanner is online.
//!
//! How a session ends is drawn from a deck of cards and not by dice: every ending comes up, and soon. That
//! somebody else has ended a session meanwhile, or its lease is over, is an ordinary thing (409): the next one
//! begins.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use super::scanner::PLACES;
use super::school::{Pace, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;
use crate::kind::enrollment::ERROR_CODES;

/// Beats without a word after which a session is over.
const LEASE_BEATS: u32 = 12;
/// Silence beyond the lease, after which the server has surely noticed.
const NOTICE: Duration = Duration::from_secs(2);
/// Sessions in a deck that go well.
const COMPLETE_IN_DECK: usize = 8;
/// Steps of a scan.
const SCAN: [&str; 3] = ["placing", "capturing", "processing"];

/// How a session will end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Complete,
    /// With one of [`ERROR_CODES`].
    Fail(&'static str),
    Cancel,
}

/// A session that is going on.
struct Session {
    id: String,
    device: &'static str,
    fate: Fate,
    /// What is still to be reported before the end: number of the scan, if they are counted, and status.
    steps: VecDeque<(Option<u32>, &'static str)>,
}

/// A desk.
pub(super) struct Desk {
    number: u32,
    pace: Pace,
    chance: fastrand::Rng,
    deck: Vec<Fate>,
    session: Option<Session>,
}

impl Desk {
    pub(super) fn new(number: u32, pace: Pace) -> Desk {
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

    /// What is reported in a session of so many scans, up to where its fate takes hold.
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
            // These show only when the last scan is worked on.
            Fate::Complete | Fate::Fail(_) => steps.len(),
        };
        steps.truncate(reached);
        steps
    }

    /// Begins a session, if there is a scanner for it.
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

    /// Does the next thing in a session, and puts it back unless that was its end.
    fn go_on(&mut self, mut session: Session, client: &Client) -> Result<Duration, Failure> {
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
            // Nobody says anything: the server finds that out.
            Fate::Fail("timeout") => {
                let lease = Duration::from_secs(self.lease_secs().into());
                return Ok(lease + NOTICE);
            }
            // Somebody pulls the plug; it shows at the next look.
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
            Some(session) => self.go_on(session, client),
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
            // If this fails, the session ends when its lease does.
            let _ = client.post(&format!("/api/enrollments/{}/cancel", session.id), &body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        let beat = Duration::from_millis(10);
        Desk::new(1, Pace { beat })
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
