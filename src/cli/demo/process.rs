//! A characteristic of the swimming pool. Its limits are learnt from a baseline. The process is in control for a while,
//! then goes out of control, until a caretaker notices, acknowledges with a reason, and corrects it.

use std::time::Duration;

use serde_json::{Value, json};

use super::school::{RateLimit, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;

/// The enabled Nelson rules: beyond the limits, nine on one side, a trend, two of three beyond 2 sigma.
const RULES: [u8; 4] = [1, 2, 3, 5];
/// The change per sample during a drift, in sigma.
const DRIFT: f64 = 0.2;
/// The size of a sudden shift, in sigma.
const SHIFT: f64 = 2.5;
/// The user who acknowledges violations.
const CARETAKER: &str = "caretaker";

/// What is measured, and what can go wrong.
pub(super) struct Plan {
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    /// The number of values in a sample.
    subgroup_size: u32,
    method: &'static str,
    /// The number of samples from which limits are learnt.
    baseline: u32,
    /// The number of beats between two samples.
    every_beats: u32,
    target: f64,
    sigma: f64,
    /// What the caretaker finds if the value is too low, and if it is too high.
    findings: [&'static str; 2],
}

/// The characteristics of the pool.
pub(super) static PLANS: [Plan; 2] = [
    Plan {
        id: "bath-temperature",
        name: "Water of the swimming bath",
        unit: "°C",
        subgroup_size: 1,
        method: "moving_range",
        baseline: 20,
        every_beats: 1,
        target: 28.0,
        sigma: 0.15,
        findings: [
            "Refilled with cold water; heater turned up",
            "The heater's valve stuck; freed",
        ],
    },
    Plan {
        id: "bath-chlorine",
        name: "Free chlorine, at five places",
        unit: "mg/l",
        subgroup_size: 5,
        method: "xbar_r",
        baseline: 10,
        every_beats: 2,
        target: 0.6,
        sigma: 0.04,
        findings: [
            "The canister was empty; replaced",
            "The pump dosed too much; adjusted",
        ],
    },
];

/// A simulated process.
pub(super) struct Process {
    plan: &'static Plan,
    pace: RateLimit,
    chance: fastrand::Rng,
    state: State,
    /// The distance of the process from its target, in sigma.
    offset: f64,
    /// The violations that are not acknowledged.
    open: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Not registered in this run.
    New,
    /// In control, for this many more samples.
    InControl { samples: u32 },
    /// Drifting by this amount per sample, in sigma, until a rule is violated.
    Leaving { by: f64 },
    /// A rule is violated. The caretaker reacts after this many more samples.
    Noticed { samples: u32 },
}

impl Process {
    pub(super) fn new(plan: &'static Plan, pace: RateLimit) -> Process {
        Process {
            plan,
            pace,
            chance: fastrand::Rng::new(),
            state: State::New,
            offset: 0.0,
            open: Vec::new(),
        }
    }

    /// Registers the characteristic. Keeps limits from an earlier run, and takes over its open violations.
    fn register(&mut self, client: &Client) -> Result<(), Failure> {
        let plan = self.plan;
        client.put(
            &format!("/api/characteristics/{}", plan.id),
            &json!({
                "name": plan.name,
                "unit": plan.unit,
                "subgroup_size": plan.subgroup_size,
                "rules": RULES,
                "limits": {"method": plan.method, "samples": plan.baseline},
            }),
        )?;
        let query = format!("characteristic_id={}&acknowledged=false&limit=500", plan.id);
        let list = client.get(&format!("/api/violations?{query}"))?;
        self.take_in(&list["violations"]);
        self.run();
        Ok(())
    }

    /// Brings the process into control, at least until its limits are learnt.
    fn run(&mut self) {
        self.offset = 0.0;
        self.state = State::InControl {
            samples: self.plan.baseline + self.chance.u32(10..25),
        };
    }

    /// Changes the process before the next sample, according to its state.
    fn advance(&mut self) {
        match &mut self.state {
            State::InControl { samples: 0 } => {
                let sign = if self.chance.bool() { 1.0 } else { -1.0 };
                let by = if self.chance.bool() {
                    sign * DRIFT
                } else {
                    self.offset = sign * SHIFT;
                    0.0
                };
                self.state = State::Leaving { by };
            }
            State::InControl { samples } | State::Noticed { samples } => {
                *samples = samples.saturating_sub(1);
            }
            State::Leaving { by } => self.offset += *by,
            State::New => {}
        }
    }

    fn sample(&mut self) -> Value {
        let mut value = || {
            let noise: f64 = (0..12).map(|_| self.chance.f64()).sum::<f64>() - 6.0;
            let exact = self.plan.target + (self.offset + noise) * self.plan.sigma;
            (exact * 1_000.0).round() / 1_000.0
        };
        match self.plan.subgroup_size {
            1 => json!({"value": value()}),
            size => json!({"values": (0..size).map(|_| value()).collect::<Vec<_>>()}),
        }
    }

    /// Records violations.
    fn take_in(&mut self, violations: &Value) {
        let ids = violations.as_array().into_iter().flatten();
        let ids = ids.filter_map(|violation| violation["violation_id"].as_str());
        self.open.extend(ids.map(str::to_owned));
    }

    /// Acknowledges the open violations and corrects the process.
    fn correct(&mut self, client: &Client) -> Result<(), Failure> {
        let reason = match self.offset {
            0.0 => "Checked; nothing found",
            ..0.0 => self.plan.findings[0],
            _ => self.plan.findings[1],
        };
        for id in std::mem::take(&mut self.open) {
            let body = json!({"reason": reason, "user": CARETAKER});
            match client.post(&format!("/api/violations/{id}/ack"), &body) {
                // Another user acknowledged it first.
                Err(failure) if failure.is_conflict() => {}
                done => drop(done?),
            }
        }
        self.run();
        Ok(())
    }
}

impl Simulator for Process {
    fn name(&self) -> String {
        self.plan.id.to_owned()
    }

    fn step(&mut self, client: &Client) -> Result<Duration, Failure> {
        match self.state {
            State::New => self.register(client)?,
            State::Noticed { samples: 0 } => self.correct(client)?,
            _ => self.advance(),
        }
        let path = format!("/api/characteristics/{}/samples", self.plan.id);
        let judged = client.post(&path, &self.sample())?;
        self.take_in(&judged["payload"]["violations"]);
        if !self.open.is_empty() && !matches!(self.state, State::Noticed { .. }) {
            let samples = self.chance.u32(3..=6);
            self.state = State::Noticed { samples };
        }
        Ok(self.pace.beats(self.plan.every_beats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and standard deviation over many samples of one value.
    fn spread(process: &mut Process) -> (f64, f64) {
        let mut value = || process.sample()["value"].as_f64().unwrap();
        let values: Vec<f64> = (0..10_000).map(|_| value()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares = values.iter().map(|value| (value - mean).powi(2));
        (mean, (squares.sum::<f64>() / values.len() as f64).sqrt())
    }

    #[test]
    fn samples_scatter_as_planned_around_where_the_process_is() {
        let beat = Duration::from_millis(10);
        let mut process = Process::new(&PLANS[0], RateLimit { beat });
        process.chance = fastrand::Rng::with_seed(7);
        for offset in [0.0, -2.0] {
            process.offset = offset;
            let (mean, deviation) = spread(&mut process);
            assert!((mean - (28.0 + offset * 0.15)).abs() < 0.01, "{mean}");
            assert!((deviation - 0.15).abs() < 0.01, "{deviation}");
        }
    }
}
