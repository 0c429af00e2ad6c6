//! What becomes of a characteristic by a command, and what is told of it. Pure.

use std::sync::Arc;

use chrono::Datelike;

use super::limits::{self, ControlLimits, SUBGROUP_MAX};
use super::message::{SamplePayload, ack_draft, draft, limits_draft, violation_draft};
use super::nelson::{Rule, WINDOW, is_broken};
use super::{
    Acknowledgement, BASELINE_DEFAULT, BASELINE_MAX, Baseline, Characteristic, Command,
    ID_MAX_BYTES, KIND, LastSample, Limits, Method, NAME_MAX_BYTES, NewSample, NewViolation,
    Register, RuleSetting, SAMPLE, SetLimits, Severity, VALUE_MAX, Violation, invalid,
};
use crate::event::{Class, Draft};
use crate::id::{SUBJECT_ID_MAX_BYTES, SubjectId};
use crate::kind::{Bound, Context, Outcome, RuleError, bounded, not_found};

/// The rules: what becomes of a characteristic by a command, and what is told of it.
pub fn apply(
    id: &SubjectId,
    characteristic: Option<&Characteristic>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Characteristic>, RuleError> {
    let mut change = Change {
        id,
        context,
        drafts: Vec::new(),
        violations: Vec::new(),
    };
    let mut next = match (characteristic, command) {
        (Some(characteristic), _) => characteristic.clone(),
        (None, Command::Register(_)) => new(id, context)?,
        // What is not there has no violations.
        (None, Command::Acknowledge { number, .. }) => return Err(no_violation(id, *number)),
        (None, _) => return Err(not_found(KIND, id.as_str())),
    };
    match command {
        Command::Register(register) => {
            let told = |own: &Characteristic| (own.limits, own.baseline.clone(), own.status());
            let before = told(&next);
            describe(&mut next, register)?;
            if characteristic.is_none() || before != told(&next) {
                change.tell_limits(&mut next);
            }
        }
        Command::Limits(limits) => {
            set_limits(&mut next, limits)?;
            change.tell_limits(&mut next);
        }
        Command::Sample(sample) => change.take(&mut next, sample)?,
        Command::Violation(violation) => change.report(&mut next, violation)?,
        Command::Acknowledge {
            number,
            user,
            reason,
        } => change.acknowledge(&next, *number, user, reason)?,
    }
    Ok(Outcome {
        state: next,
        drafts: change.drafts,
        violations: change.violations,
    })
}

/// What a command leads to beside the new state.
struct Change<'a> {
    id: &'a SubjectId,
    context: &'a Context<'a>,
    drafts: Vec<Draft>,
    violations: Vec<Violation>,
}

impl Change<'_> {
    /// The number that the next event will have.
    fn next_seq(&self) -> u64 {
        self.context.next_seq + self.drafts.len() as u64
    }

    fn tell_limits(&mut self, next: &mut Characteristic) {
        next.told_limits = (self.next_seq(), self.context.now);
        self.drafts.push(limits_draft(self.id, next));
    }

    /// Judges a sample by the limits in force, and adds it to the baseline.
    fn take(&mut self, next: &mut Characteristic, sample: &NewSample) -> Result<(), RuleError> {
        let values = values(sample, next.subgroup_size)?;
        if sample
            .timestamp
            .is_some_and(|at| !(1970..10_000).contains(&at.year()))
        {
            return Err(invalid("timestamp", "is between the years 1970 and 9999"));
        }
        let mean = limits::mean(values.iter().copied()).expect("a sample has a value");
        let highest = values.iter().copied().fold(f64::MIN, f64::max);
        let lowest = values.iter().copied().fold(f64::MAX, f64::min);
        let range = highest - lowest;
        next.sample_count += 1;
        let sample_id: Arc<str> = match &sample.sample_id {
            Some(own) => sample_id(own)?,
            None => format!("{}.{}", self.id, next.sample_count).into(),
        };
        let chart = next.limits.map(|limits| limits.chart);
        let limits_version = next.limits.map(|limits| limits.version);
        let seq = self.next_seq();
        let opened = match &chart {
            Some(chart) => self.judge(next, mean, chart, &sample_id),
            None => Vec::new(),
        };
        let payload = SamplePayload {
            sample_id: &sample_id,
            characteristic_id: self.id,
            timestamp: sample.timestamp.unwrap_or(self.context.now),
            value: mean,
            mean,
            range: (next.subgroup_size > 1).then_some(range),
            zone: chart.map(|chart| chart.zone(mean).as_str()),
            in_control: next.runs.is_empty(),
            rules: next
                .runs
                .iter()
                .map(|(rule, _)| rule.number().into())
                .collect(),
            limits_version,
            violations: opened.iter().map(Into::into).collect(),
        };
        // One that opens a violation is what the violation points to: it must not fold away.
        let class = if opened.is_empty() {
            Class::Tick
        } else {
            Class::Milestone
        };
        let told = draft(&SAMPLE, class, next.status(), payload);
        next.last_sample = Some(LastSample {
            fields: told.fields.as_str().into(),
            sample_id,
            seq,
            at: self.context.now,
            status: next.status(),
        });
        self.drafts.push(told);
        self.drafts.extend(opened.iter().map(violation_draft));
        self.violations.extend(opened);
        self.learn(next, mean, range);
        Ok(())
    }

    /// The violations that a point opens. Which rules it breaks is kept.
    fn judge(
        &self,
        next: &mut Characteristic,
        mean: f64,
        chart: &ControlLimits,
        sample_id: &Arc<str>,
    ) -> Vec<Violation> {
        if next.recent.len() == WINDOW {
            next.recent.remove(0);
        }
        next.recent.push(mean);
        let before = std::mem::take(&mut next.runs);
        let mut opened = Vec::new();
        for (rule, severity) in &next.rules {
            if !is_broken(*rule, &next.recent, chart) {
                continue;
            }
            // While the run lasts, its one violation stands.
            let standing = before.iter().find(|(running, _)| running == rule);
            let number = standing.map_or(next.violation_count + 1, |(_, number)| *number);
            next.runs.push((*rule, number));
            if standing.is_none() {
                next.violation_count = number;
                opened.push(Violation {
                    characteristic_id: self.id.clone(),
                    number,
                    sample_id: Some(Arc::clone(sample_id)),
                    rule_id: rule.number().into(),
                    rule_name: rule.name().into(),
                    severity: *severity,
                    at: self.context.now,
                    // After the sample's own event.
                    seq: self.next_seq() + 1 + opened.len() as u64,
                    acknowledgement: None,
                });
            }
        }
        opened
    }

    /// Adds a sample to the baseline, and computes limits once that is whole.
    fn learn(&mut self, next: &mut Characteristic, mean: f64, range: f64) {
        let Some(baseline) = &mut next.baseline else {
            return;
        };
        baseline.collected.push((mean, range));
        if baseline.collected.len() < baseline.samples as usize {
            return;
        }
        let (method, samples) = (baseline.method, baseline.samples);
        let chart = match method {
            Method::XbarR => limits::xbar_r(&baseline.collected, next.subgroup_size as usize),
            Method::MovingRange | Method::Given => {
                let means: Vec<f64> = baseline.collected.iter().map(|(mean, _)| *mean).collect();
                limits::moving_range(&means)
            }
        };
        next.baseline = None;
        if let Some(chart) = chart {
            enforce(next, chart, method, samples);
        }
        self.tell_limits(next);
    }

    /// Opens a violation that was found elsewhere.
    fn report(
        &mut self,
        next: &mut Characteristic,
        report: &NewViolation,
    ) -> Result<(), RuleError> {
        let known = u8::try_from(report.rule_id)
            .ok()
            .and_then(Rule::from_number);
        let rule_name = match (&report.rule_name, known) {
            (Some(name), _) if !name.trim().is_empty() => {
                bounded("rule_name", name, Bound::constant(NAME_MAX_BYTES))?
            }
            (None, Some(rule)) => rule.name().into(),
            _ => {
                return Err(invalid(
                    "rule_name",
                    "is needed for a rule that is none of Nelson's (1 to 8)",
                ));
            }
        };
        let last = next.last_sample.as_ref();
        let sample_id = match &report.sample_id {
            Some(own) => Some(sample_id(own)?),
            None => last.map(|sample| Arc::clone(&sample.sample_id)),
        };
        next.violation_count += 1;
        let violation = Violation {
            characteristic_id: self.id.clone(),
            number: next.violation_count,
            sample_id,
            rule_id: report.rule_id,
            rule_name,
            severity: report
                .severity
                .unwrap_or_else(|| known.map_or(Severity::Warning, Severity::usual)),
            at: self.context.now,
            seq: self.next_seq(),
            acknowledgement: None,
        };
        self.drafts.push(violation_draft(&violation));
        self.violations.push(violation);
        Ok(())
    }

    fn acknowledge(
        &mut self,
        next: &Characteristic,
        number: u64,
        user: &Arc<str>,
        reason: &str,
    ) -> Result<(), RuleError> {
        let Some(violation) = self.context.violation else {
            return Err(no_violation(self.id, number));
        };
        if violation.acknowledgement.is_some() {
            return Err(RuleError::Finished {
                status: "acknowledged",
            });
        }
        if reason.trim().is_empty() {
            return Err(invalid("reason", "says something"));
        }
        if user.trim().is_empty() {
            return Err(invalid("user", "says who: the token names nobody"));
        }
        let acknowledgement = Acknowledgement {
            user: bounded("user", user, Bound::constant(NAME_MAX_BYTES))?,
            reason: bounded("reason", reason, self.context.limits.message())?,
            at: self.context.now,
        };
        self.drafts
            .push(ack_draft(violation, &acknowledgement, next.status()));
        self.violations.push(Violation {
            acknowledgement: Some(acknowledgement),
            ..violation.clone()
        });
        Ok(())
    }
}

fn no_violation(id: &SubjectId, number: u64) -> RuleError {
    RuleError::NotFound {
        noun: "Violation",
        id: format!("{id}.{number}"),
    }
}

fn new(id: &SubjectId, context: &Context<'_>) -> Result<Characteristic, RuleError> {
    if id.as_str().len() > ID_MAX_BYTES {
        return Err(invalid(
            "characteristic_id",
            format!("has at most {ID_MAX_BYTES} characters"),
        ));
    }
    Ok(Characteristic {
        name: None,
        unit: None,
        subgroup_size: 1,
        rules: vec![(Rule::BeyondLimits, Severity::usual(Rule::BeyondLimits))],
        limits: None,
        limits_version: 0,
        baseline: None,
        recent: Vec::new(),
        runs: Vec::new(),
        sample_count: 0,
        violation_count: 0,
        last_sample: None,
        told_limits: (context.next_seq, context.now),
        created_at: context.now,
    })
}

fn describe(next: &mut Characteristic, register: &Register) -> Result<(), RuleError> {
    if let Some(name) = &register.name {
        next.name = Some(bounded("name", name, Bound::constant(NAME_MAX_BYTES))?);
    }
    if let Some(unit) = &register.unit {
        next.unit = Some(bounded("unit", unit, Bound::constant(NAME_MAX_BYTES))?);
    }
    if let Some(size) = register.subgroup_size {
        if !(1..=SUBGROUP_MAX as u32).contains(&size) {
            let expected = format!("is from 1 to {SUBGROUP_MAX}");
            return Err(invalid("subgroup_size", expected));
        }
        if size != next.subgroup_size && next.sample_count > 0 {
            return Err(invalid(
                "subgroup_size",
                "cannot change once there are samples",
            ));
        }
        if size != next.subgroup_size {
            // What was to be collected does not fit any more.
            next.baseline = None;
        }
        next.subgroup_size = size;
    }
    if let Some(rules) = &register.rules {
        next.rules = switched_on(rules)?;
        let on = |rule: Rule| next.rules.iter().any(|(own, _)| *own == rule);
        next.runs.retain(|(rule, _)| on(*rule));
    }
    if let Some(limits) = &register.limits
        && !is_so_already(next, limits)
    {
        set_limits(next, limits)?;
    }
    Ok(())
}

/// The rules by number, each once.
fn switched_on(settings: &[RuleSetting]) -> Result<Vec<(Rule, Severity)>, RuleError> {
    let mut rules = Vec::new();
    for setting in settings {
        let (number, severity) = match *setting {
            RuleSetting::Number(number) => (number, None),
            RuleSetting::WithSeverity { rule_id, severity } => (rule_id, Some(severity)),
        };
        let rule = Rule::from_number(number)
            .ok_or_else(|| invalid("rules", "are Nelson's, by their numbers 1 to 8"))?;
        if rules.iter().any(|(own, _)| *own == rule) {
            return Err(invalid("rules", "names each rule once"));
        }
        rules.push((rule, severity.unwrap_or(Severity::usual(rule))));
    }
    rules.sort_unstable_by_key(|(rule, _)| rule.number());
    Ok(rules)
}

/// Whether what is asked has been carried out: whoever describes a characteristic at each start does not mean to
/// throw away what was learnt since.
fn is_so_already(now: &Characteristic, asked: &SetLimits) -> bool {
    let samples = asked.samples.unwrap_or(BASELINE_DEFAULT);
    let lines = (asked.center_line, asked.ucl, asked.lcl);
    let to_learn = |method| asked.method == Some(method) && lines == (None, None, None);
    if let Some(baseline) = &now.baseline {
        return to_learn(baseline.method) && baseline.samples == samples;
    }
    let Some(limits) = now.limits else {
        return false;
    };
    match limits.method {
        Method::Given => {
            let ControlLimits {
                center_line,
                ucl,
                lcl,
            } = limits.chart;
            let only_given = matches!(asked.method, None | Some(Method::Given));
            lines == (Some(center_line), Some(ucl), Some(lcl))
                && only_given
                && asked.samples.is_none()
        }
        method => to_learn(method) && limits.sample_count == samples,
    }
}

/// Sets the limits that are given, or begins a baseline; until that is whole the old limits stay in force.
fn set_limits(next: &mut Characteristic, set: &SetLimits) -> Result<(), RuleError> {
    let lines = (set.center_line, set.ucl, set.lcl);
    match (lines, set.method) {
        ((Some(center_line), Some(ucl), Some(lcl)), None | Some(Method::Given)) => {
            let in_order = lcl <= center_line && center_line <= ucl && lcl < ucl;
            let fit = [center_line, ucl, lcl]
                .iter()
                .all(|line| line.abs() <= VALUE_MAX);
            if !in_order || !fit {
                return Err(invalid("ucl", "is above `lcl`, with `center_line` between"));
            }
            if set.samples.is_some() {
                return Err(invalid("samples", "goes with a `method`"));
            }
            let chart = ControlLimits {
                center_line,
                ucl,
                lcl,
            };
            next.baseline = None;
            enforce(next, chart, Method::Given, 0);
            Ok(())
        }
        ((None, None, None), Some(method @ (Method::MovingRange | Method::XbarR))) => {
            let samples = set.samples.unwrap_or(BASELINE_DEFAULT);
            if !(2..=BASELINE_MAX).contains(&samples) {
                return Err(invalid("samples", format!("is from 2 to {BASELINE_MAX}")));
            }
            if (method == Method::XbarR) != (next.subgroup_size > 1) {
                return Err(invalid(
                    "method",
                    "is moving_range for samples of one value and xbar_r for subgroups",
                ));
            }
            next.baseline = Some(Baseline {
                method,
                samples,
                collected: Vec::new(),
            });
            Ok(())
        }
        _ => Err(invalid(
            "limits",
            "are `center_line`, `ucl` and `lcl`, or a `method` (moving_range, xbar_r) and `samples`",
        )),
    }
}

/// Puts limits in force. What the old ones have judged says nothing about the new ones.
fn enforce(next: &mut Characteristic, chart: ControlLimits, method: Method, sample_count: u32) {
    next.limits_version += 1;
    next.limits = Some(Limits {
        chart,
        method,
        sample_count,
        version: next.limits_version,
    });
    next.recent.clear();
    next.runs.clear();
}

/// The values of a sample, as many as a subgroup has.
fn values(sample: &NewSample, size: u32) -> Result<&[f64], RuleError> {
    let values = match (&sample.value, &sample.values) {
        (Some(value), None) => std::slice::from_ref(value),
        (None, Some(values)) => values,
        _ => {
            return Err(invalid(
                "value",
                "or `values` is needed, and only one of them",
            ));
        }
    };
    if values.len() != size as usize {
        return Err(invalid("values", format!("has {size} of them here")));
    }
    if values.iter().any(|value| value.abs() > VALUE_MAX) {
        return Err(invalid(
            "value",
            format!("is from -{VALUE_MAX:e} to {VALUE_MAX:e}"),
        ));
    }
    Ok(values)
}

fn sample_id(text: &str) -> Result<Arc<str>, RuleError> {
    let fits = text.parse::<SubjectId>();
    fits.map(|id| id.as_str().into()).map_err(|_| {
        invalid(
            "sample_id",
            format!("has 1 to {SUBJECT_ID_MAX_BYTES} characters out of A-Z a-z 0-9 . _ : ~ -"),
        )
    })
}
