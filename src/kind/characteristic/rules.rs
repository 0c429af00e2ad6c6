//! How a command changes a characteristic, and which events it produces. Pure.

use std::sync::Arc;

use super::limits::SUBGROUP_MAX;
use super::message::{ack_draft, limits_draft, violation_draft};
use super::nelson::Rule;
use super::setting::{is_so_already, set_limits};
use super::{
    Acknowledge, Acknowledgement, Characteristic, Command, KIND, NAME_MAX_BYTES, NewViolation,
    PART_ID_MAX_BYTES, Register, RuleSetting, Severity, Violation, ViolationId, invalid,
};
use crate::event::Draft;
use crate::id::SubjectId;
use crate::kind::{Bound, Context, Outcome, Part, RuleError, bounded, not_found};

/// Applies a command to a characteristic. Returns the new state and the events.
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
        (None, Command::Register(_)) => new(context),
        // A characteristic that does not exist has no violations.
        (None, Command::Acknowledge(acknowledge) | Command::Unacknowledge(acknowledge)) => {
            return Err(no_violation(id, acknowledge.number));
        }
        (None, _) => return Err(not_found(KIND, id.as_str())),
    };
    match command {
        Command::Register(register) => {
            let published = |state: &Characteristic| {
                (state.limits.clone(), state.baseline.clone(), state.status())
            };
            let before = published(&next);
            describe(&mut next, register)?;
            if characteristic.is_none() || before != published(&next) {
                change.publish_limits(&mut next);
            }
        }
        Command::Limits(limits) => {
            let mut changed = next.clone();
            set_limits(&mut changed, limits)?;
            // To repeat a method means to learn again. To repeat lines means nothing, and must not restart the runs.
            let is_repetition = limits.lines().is_some() && is_so_already(&next, limits);
            if !is_repetition {
                next = changed;
                change.publish_limits(&mut next);
            }
        }
        Command::Sample(sample) => change.take(&mut next, sample)?,
        Command::Violation(violation) => change.report(&mut next, violation)?,
        Command::Acknowledge(acknowledge) => change.acknowledge(&next, acknowledge, true)?,
        Command::Unacknowledge(acknowledge) => change.acknowledge(&next, acknowledge, false)?,
    }
    let parts = change.violations.into_iter().map(Part::Characteristic);
    Ok(Outcome {
        parts: parts.collect(),
        ..Outcome::new(next, change.drafts)
    })
}

/// The results of a command, in addition to the new state.
pub(super) struct Change<'a> {
    pub(super) id: &'a SubjectId,
    pub(super) context: &'a Context<'a>,
    pub(super) drafts: Vec<Draft>,
    pub(super) violations: Vec<Violation>,
}

impl Change<'_> {
    /// Returns the `seq` that the next event will have.
    pub(super) fn next_seq(&self) -> u64 {
        self.context.next_seq + self.drafts.len() as u64
    }

    pub(super) fn publish_limits(&mut self, next: &mut Characteristic) {
        next.published_limits = (self.next_seq(), self.context.now);
        self.drafts.push(limits_draft(self.id, next));
    }

    /// Opens a violation that was detected elsewhere.
    fn report(
        &mut self,
        next: &mut Characteristic,
        report: &NewViolation,
    ) -> Result<(), RuleError> {
        let last = next.last_sample.as_ref();
        let last = last.map(|sample| Arc::clone(&sample.sample_id));
        let violation = self.found_elsewhere(next, report, last.as_ref(), self.next_seq())?;
        self.drafts.push(violation_draft(&violation));
        self.violations.push(violation);
        Ok(())
    }

    /// Returns the violation that a publisher reports, for this sample if the report names none.
    pub(super) fn found_elsewhere(
        &self,
        next: &mut Characteristic,
        report: &NewViolation,
        sample: Option<&Arc<str>>,
        seq: u64,
    ) -> Result<Violation, RuleError> {
        let known = u8::try_from(report.rule_id)
            .ok()
            .and_then(Rule::from_number);
        let given_name = report
            .rule_name
            .as_deref()
            .filter(|name| !name.trim().is_empty());
        let rule_name = match (given_name, known) {
            (Some(name), _) => bounded("rule_name", name, Bound::constant(NAME_MAX_BYTES))?,
            (None, Some(rule)) => rule.name().into(),
            (None, None) => {
                return Err(invalid(
                    "rule_name",
                    "is required for a rule other than 1 to 8 and 101",
                ));
            }
        };
        let sample_id = match &report.sample_id {
            Some(sample_id) => Some(short_id("sample_id", sample_id)?),
            None => sample.map(Arc::clone),
        };
        let own_id = match &report.violation_id {
            Some(violation_id) => Some(self.own_violation_id(violation_id)?),
            None => None,
        };
        next.violation_count += 1;
        Ok(Violation {
            characteristic_id: self.id.clone(),
            number: next.violation_count,
            own_id,
            sample_id,
            chart: report.chart,
            rule_id: report.rule_id,
            rule_name,
            severity: report
                .severity
                .unwrap_or_else(|| known.map_or(Severity::Warning, Severity::usual)),
            at: report.timestamp.unwrap_or(self.context.now),
            seq,
            acknowledgement: None,
        })
    }

    fn own_violation_id(&self, text: &str) -> Result<Arc<str>, RuleError> {
        if ViolationId::parse(text).is_some() {
            return Err(invalid(
                "violation_id",
                "must not end in a full stop and a number: the server assigns such ids",
            ));
        }
        if self.context.taken_part == Some(text) {
            return Err(RuleError::AlreadyExists {
                noun: "Violation",
                id: text.to_owned(),
            });
        }
        short_id("violation_id", text)
    }

    /// Acknowledges a violation, or withdraws its acknowledgement.
    fn acknowledge(
        &mut self,
        next: &Characteristic,
        asked: &Acknowledge,
        acknowledged: bool,
    ) -> Result<(), RuleError> {
        let Some(violation) = self.context.part.and_then(Part::characteristic) else {
            return Err(no_violation(self.id, asked.number));
        };
        match (acknowledged, violation.acknowledgement.is_some()) {
            (true, true) => {
                return Err(RuleError::Finished {
                    status: "acknowledged",
                });
            }
            (false, false) => {
                return Err(RuleError::IllegalTransition {
                    action: "take back the acknowledgement",
                    status: "open",
                });
            }
            (true, false) | (false, true) => {}
        }
        if asked.reason.trim().is_empty() {
            return Err(invalid("reason", "must not be blank"));
        }
        if asked.user.trim().is_empty() {
            return Err(invalid(
                "user",
                "must name the user, because the token does not",
            ));
        }
        let act = Acknowledgement {
            user: bounded("user", &asked.user, Bound::constant(NAME_MAX_BYTES))?,
            reason: bounded("reason", &asked.reason, self.context.limits.message())?,
            at: self.context.now,
        };
        let violation = Violation {
            acknowledgement: acknowledged.then(|| act.clone()),
            ..violation.clone()
        };
        self.drafts.push(ack_draft(&violation, &act, next.status()));
        self.violations.push(violation);
        Ok(())
    }
}

fn no_violation(id: &SubjectId, number: u64) -> RuleError {
    RuleError::NotFound {
        noun: "Violation",
        id: format!("{id}.{number}"),
    }
}

fn new(context: &Context<'_>) -> Characteristic {
    Characteristic {
        name: None,
        unit: None,
        subgroup_size: 1,
        rules: vec![(Rule::BeyondLimits, Severity::usual(Rule::BeyondLimits))],
        limits: None,
        limits_version: 0,
        baseline: None,
        recent: Vec::new(),
        runs: Vec::new(),
        publisher_in_control: None,
        sample_count: 0,
        violation_count: 0,
        last_sample: None,
        published_limits: (context.next_seq, context.now),
        created_at: context.now,
    }
}

fn describe(next: &mut Characteristic, register: &Register) -> Result<(), RuleError> {
    if let Some(name) = &register.name {
        next.name = Some(bounded("name", name, Bound::constant(NAME_MAX_BYTES))?);
    }
    if let Some(unit) = &register.unit {
        next.unit = Some(bounded("unit", unit, Bound::constant(NAME_MAX_BYTES))?);
    }
    if let Some(size) = register.subgroup_size {
        if size == 0 || size as usize > SUBGROUP_MAX {
            let expected = format!("must be from 1 to {SUBGROUP_MAX}");
            return Err(invalid("subgroup_size", expected));
        }
        if size != next.subgroup_size && next.sample_count > 0 {
            return Err(invalid(
                "subgroup_size",
                "cannot change once there are samples",
            ));
        }
        if size != next.subgroup_size {
            // The baseline and the dispersion chart no longer fit.
            next.baseline = None;
            if let Some(limits) = &mut next.limits {
                limits.dispersion = None;
            }
        }
        next.subgroup_size = size;
    }
    if let Some(rules) = &register.rules {
        next.rules = switched_on(rules)?;
        let on = |rule: Rule| next.rules.iter().any(|(enabled, _)| *enabled == rule);
        next.runs.retain(|(rule, _)| on(*rule));
    }
    if let Some(limits) = &register.limits
        && !is_so_already(next, limits)
    {
        set_limits(next, limits)?;
    }
    Ok(())
}

/// Returns the enabled rules by number, each once.
fn switched_on(settings: &[RuleSetting]) -> Result<Vec<(Rule, Severity)>, RuleError> {
    let mut rules = Vec::new();
    for setting in settings {
        let (number, severity) = match *setting {
            RuleSetting::Number(number) => (number, None),
            RuleSetting::WithSeverity { rule_id, severity } => (rule_id, Some(severity)),
        };
        let rule = Rule::from_number(number).ok_or_else(|| {
            invalid(
                "rules",
                "must be numbers from 1 to 8 (Nelson's) or 101 (of the dispersion chart)",
            )
        })?;
        if rules.iter().any(|(listed, _)| *listed == rule) {
            return Err(invalid("rules", "must not name a rule twice"));
        }
        rules.push((rule, severity.unwrap_or(Severity::usual(rule))));
    }
    rules.sort_unstable_by_key(|(rule, _)| rule.number());
    Ok(rules)
}

/// Returns an id that the publisher assigned to a sample or a violation.
pub(super) fn short_id(field: &'static str, text: &str) -> Result<Arc<str>, RuleError> {
    let fits = (1..=PART_ID_MAX_BYTES).contains(&text.len());
    match fits && !text.chars().any(char::is_control) {
        true => Ok(text.into()),
        false => Err(invalid(
            field,
            format!("must have 1 to {PART_ID_MAX_BYTES} bytes and no control characters"),
        )),
    }
}
