//! A fingerprint scanner: it beats, now and then it is gone, and it comes back.
//!
//! It goes by its last will or by falling silent, so that its lease ends; one of them has a loose contact and
//! flaps. What it says of itself is told anew whenever it is back.

use std::time::Duration;

use serde_json::{Value, json};

use super::school::{Pace, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;

/// Beats between two heartbeats.
const HEARTBEAT_BEATS: u32 = 2;
/// Beats without a heartbeat after which a scanner is offline.
const LEASE_BEATS: u32 = 6;
/// Silence beyond the lease, after which the server has surely noticed.
const NOTICE: Duration = Duration::from_millis(500);

/// Where a scanner stands.
pub(super) struct Place {
    pub(super) id: &'static str,
    name: &'static str,
    has_loose_contact: bool,
}

/// The school's scanners.
pub(super) static PLACES: [Place; 6] = [
    Place::new("scanner-gate", "Main gate"),
    Place::new("scanner-library", "Library"),
    Place {
        has_loose_contact: true,
        ..Place::new("scanner-gym", "Gymnasium")
    },
    Place::new("scanner-canteen", "Canteen"),
    Place::new("scanner-office", "Office"),
    Place::new("scanner-bath", "Swimming bath"),
];

impl Place {
    const fn new(id: &'static str, name: &'static str) -> Place {
        Place {
            id,
            name,
            has_loose_contact: false,
        }
    }
}

/// A scanner at its place.
pub(super) struct Scanner {
    place: &'static Place,
    pace: Pace,
    chance: fastrand::Rng,
    state: State,
    battery_percent: u8,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Not registered in this run.
    New { heartbeats: u32 },
    /// It beats, so many times more.
    There { heartbeats: u32 },
    /// It goes and comes, so many times more.
    Flapping { changes: u32 },
    /// It says nothing.
    Gone,
}

impl Scanner {
    /// One that drops out for the first time after about so many heartbeats.
    pub(super) fn new(place: &'static Place, heartbeats: u32, pace: Pace) -> Scanner {
        let mut chance = fastrand::Rng::new();
        Scanner {
            place,
            pace,
            state: State::New {
                heartbeats: heartbeats + chance.u32(0..4),
            },
            battery_percent: chance.u8(60..=100),
            chance,
        }
    }

    fn post(&self, client: &Client, verb: &str, body: &Value) -> Result<Value, Failure> {
        client.post(&format!("/api/devices/{}/{verb}", self.place.id), body)
    }

    fn lease_secs(&self) -> u32 {
        self.pace.lease_secs(LEASE_BEATS, 1)
    }

    /// Goes away, in one of its ways.
    fn drop_out(&mut self, client: &Client) -> Result<Duration, Failure> {
        if self.place.has_loose_contact {
            // As many as make the server say so.
            self.state = State::Flapping { changes: 4 };
            return Ok(Duration::ZERO);
        }
        self.state = State::Gone;
        let away = self.pace.beats(self.chance.u32(6..=15));
        if self.chance.bool() {
            self.post(client, "status", &json!({"status": "offline"}))?;
            return Ok(away);
        }
        let lease = Duration::from_secs(self.lease_secs().into());
        Ok(lease + NOTICE + away)
    }

    /// Says what it is, and beats for a while: long enough that an honest scanner does not count as flapping.
    fn come_back(&mut self, client: &Client) -> Result<(), Failure> {
        self.battery_percent = match self.battery_percent {
            0..20 => 100,
            charge => charge - self.chance.u8(1..=5),
        };
        let info = json!({"battery_percent": self.battery_percent});
        self.post(client, "info", &json!({"info": info}))?;
        self.stay();
        Ok(())
    }

    fn stay(&mut self) {
        let heartbeats = self.chance.u32(80..150);
        self.state = State::There { heartbeats };
    }
}

impl Simulator for Scanner {
    fn name(&self) -> String {
        self.place.id.to_owned()
    }

    fn step(&mut self, client: &Client) -> Result<Duration, Failure> {
        match self.state {
            State::New { heartbeats } => {
                let description = json!({
                    "name": self.place.name,
                    "lease_secs": self.lease_secs(),
                    "info": {"model": "FP-200", "battery_percent": self.battery_percent},
                });
                client.put(&format!("/api/devices/{}", self.place.id), &description)?;
                self.state = State::There { heartbeats };
                return Ok(Duration::ZERO);
            }
            State::There { heartbeats: 0 } => return self.drop_out(client),
            State::There { heartbeats } => {
                self.post(client, "heartbeat", &json!({}))?;
                self.state = State::There {
                    heartbeats: heartbeats - 1,
                };
            }
            State::Flapping { changes: 0 } => self.stay(),
            State::Flapping { changes } => {
                let status = if changes % 2 == 0 {
                    "offline"
                } else {
                    "online"
                };
                self.post(client, "status", &json!({"status": status}))?;
                self.state = State::Flapping {
                    changes: changes - 1,
                };
            }
            State::Gone => {
                self.come_back(client)?;
                return Ok(Duration::ZERO);
            }
        }
        Ok(self.pace.beats(HEARTBEAT_BEATS))
    }
}
