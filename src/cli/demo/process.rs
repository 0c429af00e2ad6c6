//! A characteristic of the swimming bath: limits are learnt, the process runs in control, leaves it, somebody
//! notices, says why and corrects it.

use std::time::Duration;

use serde_json::{Value, json};

use super::school::{Pace, Simulator};
use crate::cli::Failure;
use crate::cli::client::Client;

/// Nelson's rules that are switched on: beyond the limits, nine on one side, a trend, two of three beyond 2 sigma.
const RULES: [u8; 4] = [1, 2, 3, 5];
/// What a drift adds from one sample to the next, in sigma.
const DRIFT: f64 = 0.2;
/// How far a sudden shift goes, in sigma.
const SHIFT: f64 = 2.5;
/// Who looks after the bath.
const CARETAKER: &str = "caretaker";

/// What is measured, and what goes wrong there.
pub(super) struct Plan {
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    /// Values in a sample.
    subgroup_size: u32,
    method: &'static str,
    /// Samples that limits are learnt from.
    baseline: u32,
    /// Beats between two samples.
    every_beats: u32,
    target: f64,
    sigma: f64,
    /// What people find when it is too low, and too high.
    findings: [&'static str; 2],
}

/// What is measured in the bath.
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
            "Filled up with cold water; heater turned up",
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
            "The canister was empty; exchanged",
            "The pump dosed too much; adjusted",
        ],
    },
];

/// A process under control.
pub(super) struct Process {
    plan: &'static Plan,
    pace: Pace,
    chance: fastrand::Rng,
    state: State,
    /// How far the process is off its target, in sigma.
    offset: f64,
    /// Violations that nobody has acknowledged.
    open: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Not registered in this run.
    New,
    /// In control, for so many samples more.
    InControl { samples: u32 },
    /// Going off by so much from one sample to the next, in sigma, until a rule fires.
    Leaving { by: f64 },
    /// A rule has fired; somebody looks after it after so many samples.
    Noticed { samples: u32 },
}

impl Process {
    pub(super) fn new(plan: &'static Plan, pace: Pace) -> Process {
        Process {
            plan,
            pace,
            chance: fastrand::Rng::new(),
            state: State::New,
            offset: 0.0,
            open: Vec::new(),
        }
    }

    /// Makes it known. Limits that were learnt in an earlier run stay; what was left open then is looked after.
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

    /// In control, at least for as long as limits are learnt.
    fn run(&mut self) {
        self.offset = 0.0;
        self.state = State::InControl {
            samples: self.plan.baseline + self.chance.u32(10..25),
        };
    }

    /// What the state says becomes of the process before the next sample.
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

    /// Takes note of violations.
    fn take_in(&mut self, violations: &Value) {
        let ids = violations.as_array().into_iter().flatten();
        let ids = ids.filter_map(|violation| violation["violation_id"].as_str());
        self.open.extend(ids.map(str::to_owned));
    }

    /// Acknowledges what is open, and corrects the process.
    fn correct(&mut self, client: &Client) -> Result<(), Failure> {
        let reason = match self.offset {
            0.0 => "Looked after it; nothing found",
            ..0.0 => self.plan.findings[0],
            _ => self.plan.findings[1],
        };
        for id in std::mem::take(&mut self.open) {
            let body = json!({"reason": reason, "user": CARETAKER});
            match client.post(&format!("/api/violations/{id}/ack"), &body) {
                // Somebody else was faster.
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
        let mut process = Process::new(&PLANS[0], Pace { beat });
        process.chance = fastrand::Rng::with_seed(7);
        for offset in [0.0, -2.0] {
            process.offset = offset;
            let (mean, deviation) = spread(&mut process);
            assert!((mean - (28.0 + offset * 0.15)).abs() < 0.01, "{mean}");
            assert!((deviation - 0.15).abs() < 0.01, "{deviation}");
        }
    }
}
