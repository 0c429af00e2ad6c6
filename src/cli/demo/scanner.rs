//! A fingerprint scanner. It sends heartbeats, sometimes drops out, and returns.
//!
//! It drops out either by its last will or by falling silent, so that its lease expires. One of the scanners has a loose
//! contact and flaps. A scanner reports its info again whenever it returns.

use std::time::Duration;

use serde_json::{Value, json};

use super::school::{RateLimit, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;

/// The number of beats between two heartbeats.
const HEARTBEAT_BEATS: u32 = 2;
/// The silence after which a scanner is offline, in beats.
const LEASE_BEATS: u32 = 6;
/// The additional silence after which the server has certainly noticed.
const NOTICE: Duration = Duration::from_millis(500);

/// Where a scanner is installed.
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

/// A simulated scanner.
pub(super) struct Scanner {
    place: &'static Place,
    pace: RateLimit,
    chance: fastrand::Rng,
    state: State,
    battery_percent: u8,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Not registered in this run.
    New { heartbeats: u32 },
    /// Online, for this many more heartbeats.
    There { heartbeats: u32 },
    /// Flapping, for this many more changes.
    Flapping { changes: u32 },
    /// Silent.
    Gone,
}

impl Scanner {
    /// Creates a scanner that first drops out after about this many heartbeats.
    pub(super) fn new(place: &'static Place, heartbeats: u32, pace: RateLimit) -> Scanner {
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

    /// Drops out in one of the possible ways.
    fn drop_out(&mut self, client: &Client) -> Result<Duration, Failure> {
        if self.place.has_loose_contact {
            // The number of changes after which the server reports flapping.
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

    /// Reports the info, and sends heartbeats for long enough that a reliable scanner does not count as flapping.
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
