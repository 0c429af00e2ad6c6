//! How a sample changes a characteristic: it is evaluated, published, and added to the baseline. Pure.
//!
//! A sample without a value is a gap: nothing was measured. It is published, but not evaluated. A gap ends everything
//! that spans samples: the points that the rules consider, their runs, and moving ranges.

use std::borrow::Cow;
use std::sync::Arc;

use super::dispersion::{Chart, Dispersion, Point};
use super::limits;
use super::message::{Sample, draft, violation_draft};
use super::nelson::{Rule, WINDOW, is_broken};
use super::rules::{Change, short_id};
use super::setting::enforce;
use super::{
    Characteristic, Collected, IN_CONTROL, LastSample, Limits, Method, NAME_MAX_BYTES, NewSample,
    SAMPLE_VIOLATIONS_MAX, VALUE_MAX, Violation, invalid,
};
use crate::event::Class;
use crate::kind::{Bound, RuleError, bounded};

/// A measurement: the values of a sample, one for each member of a subgroup.
struct Measured {
    values: Vec<f64>,
    mean: f64,
    range: f64,
}

/// The evaluation of a sample; empty for a gap, and while there are no limits.
#[derive(Default)]
struct Evaluation {
    zone: Option<Arc<str>>,
    /// Its point on the dispersion chart.
    dispersion: Option<Point>,
    /// `server` or `publisher`.
    judged_by: Option<&'static str>,
    /// The rules that the sample breaks, by number.
    rules: Vec<u32>,
    limits_version: Option<u32>,
    /// The violations that it opens.
    opened: Vec<Violation>,
}

impl Change<'_> {
    /// Evaluates a sample by the limits in force, publishes it, and adds it to the baseline.
    pub(super) fn take(
        &mut self,
        next: &mut Characteristic,
        sample: &NewSample,
    ) -> Result<(), RuleError> {
        let measured = measured(sample, next.subgroup_size)?;
        next.sample_count += 1;
        let sample_id: Arc<str> = match &sample.sample_id {
            Some(id) => short_id("sample_id", id)?,
            None => format!("{}.{}", self.id, next.sample_count).into(),
        };
        let evaluation = match (&measured, next.limits.clone()) {
            (None, _) => pass_over(next, sample)?,
            (Some(_), _) if sample.is_judged() => self.relay(next, sample, &sample_id)?,
            (Some(measured), Some(limits)) => self.judge(next, measured, &limits, &sample_id),
            (Some(_), None) => {
                next.publisher_in_control = None;
                Evaluation::default()
            }
        };
        self.publish_sample(next, sample, sample_id, measured.as_ref(), evaluation);
        self.learn(next, measured.as_ref());
        Ok(())
    }

    /// Publishes a sample and the violations that it opens.
    fn publish_sample(
        &mut self,
        next: &mut Characteristic,
        sample: &NewSample,
        sample_id: Arc<str>,
        measured: Option<&Measured>,
        evaluation: Evaluation,
    ) {
        let mean = measured.map(|measured| measured.mean);
        let range = measured.map(|measured| measured.range);
        let payload = Sample {
            sample_id: Arc::clone(&sample_id),
            characteristic_id: self.id.clone(),
            timestamp: sample.timestamp.unwrap_or(self.context.now),
            value: mean,
            mean,
            range: range.filter(|_| next.subgroup_size > 1),
            dispersion: evaluation.dispersion,
            zone: evaluation.zone,
            in_control: next.status() == IN_CONTROL,
            judged_by: evaluation.judged_by.map(Cow::Borrowed),
            rules: evaluation.rules,
            limits_version: evaluation.limits_version,
            violations: evaluation.opened.iter().map(Into::into).collect(),
        };
        // Violations refer to the sample that opens them, so that sample must not be conflated.
        let class = if evaluation.opened.is_empty() {
            Class::Tick
        } else {
            Class::Milestone
        };
        let seq = self.next_seq();
        let sample = draft(class, next.status(), payload);
        next.last_sample = Some(LastSample {
            fields: sample.fields.clone(),
            sample_id,
            seq,
            at: self.context.now,
            status: next.status(),
        });
        self.drafts.push(sample);
        self.drafts
            .extend(evaluation.opened.iter().map(violation_draft));
        self.violations.extend(evaluation.opened);
    }

    /// Evaluates a sample by the limits in force, and records which rules it breaks.
    fn judge(
        &self,
        next: &mut Characteristic,
        measured: &Measured,
        limits: &Limits,
        sample_id: &Arc<str>,
    ) -> Evaluation {
        let (mean, lines) = (measured.mean, limits.chart.lines());
        let previous = next
            .last_sample
            .as_ref()
            .and_then(|last| last.payload()?.mean);
        let dispersion = limits
            .dispersion
            .and_then(|dispersion| dispersion.judge(&measured.values, previous));
        next.publisher_in_control = None;
        if next.recent.len() == WINDOW {
            next.recent.remove(0);
        }
        next.recent.push(mean);
        let before = std::mem::take(&mut next.runs);
        let mut opened = Vec::new();
        for (rule, severity) in &next.rules {
            let is_broken = match rule {
                Rule::Dispersion => dispersion.is_some_and(|point| point.zone.is_beyond()),
                _ => is_broken(*rule, &next.recent, &lines),
            };
            if !is_broken {
                continue;
            }
            // A run opens only one violation.
            let standing = before.iter().find(|(running, _)| running == rule);
            let number = standing.map_or(next.violation_count + 1, |(_, number)| *number);
            next.runs.push((*rule, number));
            if standing.is_none() {
                next.violation_count = number;
                opened.push(Violation {
                    characteristic_id: self.id.clone(),
                    number,
                    own_id: None,
                    sample_id: Some(Arc::clone(sample_id)),
                    chart: match rule {
                        Rule::Dispersion => dispersion.map(|point| point.chart),
                        _ => None,
                    },
                    rule_id: rule.number().into(),
                    rule_name: rule.name().into(),
                    severity: *severity,
                    at: self.context.now,
                    // After the sample's event.
                    seq: self.next_seq() + 1 + opened.len() as u64,
                    acknowledgement: None,
                });
            }
        }
        Evaluation {
            zone: Some(lines.zone(mean).as_str().into()),
            dispersion,
            judged_by: Some("server"),
            rules: next
                .runs
                .iter()
                .map(|(rule, _)| rule.number().into())
                .collect(),
            limits_version: Some(limits.version),
            opened,
        }
    }

    /// Adopts the publisher's verdict on a sample. The server's own rules start again after it.
    fn relay(
        &self,
        next: &mut Characteristic,
        sample: &NewSample,
        sample_id: &Arc<str>,
    ) -> Result<Evaluation, RuleError> {
        if let Some(zone) = &sample.zone {
            bounded("zone", zone, Bound::constant(NAME_MAX_BYTES))?;
        }
        let reports = sample.violations.as_deref().unwrap_or_default();
        if reports.len() > SAMPLE_VIOLATIONS_MAX {
            let expected = format!("must have at most {SAMPLE_VIOLATIONS_MAX} entries");
            return Err(invalid("violations", expected));
        }
        next.recent.clear();
        next.runs.clear();
        next.publisher_in_control = Some(sample.in_control.unwrap_or(reports.is_empty()));
        let mut opened: Vec<Violation> = Vec::with_capacity(reports.len());
        for report in reports {
            // After the sample's event, and the previous violations.
            let seq = self.next_seq() + 1 + opened.len() as u64;
            let violation = self.found_elsewhere(next, report, Some(sample_id), seq)?;
            let is_named = |earlier: &Violation| {
                earlier.own_id.is_some() && earlier.own_id == violation.own_id
            };
            if opened.iter().any(is_named) {
                return Err(invalid("violation_id", "must not name a violation twice"));
            }
            opened.push(violation);
        }
        Ok(Evaluation {
            zone: sample.zone.as_deref().map(Into::into),
            dispersion: None,
            judged_by: Some("publisher"),
            rules: opened.iter().map(|violation| violation.rule_id).collect(),
            limits_version: next.limits.as_ref().map(|limits| limits.version),
            opened,
        })
    }

    /// Adds a sample to the baseline, and computes limits once it is complete.
    fn learn(&mut self, next: &mut Characteristic, measured: Option<&Measured>) {
        let Some(baseline) = &mut next.baseline else {
            return;
        };
        let collected = &mut baseline.collected;
        let Some(measured) = measured else {
            // Ignore a second consecutive gap, and a gap before the first value: there is nothing to interrupt.
            if !matches!(collected.last(), None | Some(Collected::Gap)) {
                collected.push(Collected::Gap);
            }
            return;
        };
        collected.push(Collected::Measured {
            sum: limits::total(&measured.values),
            spread: match baseline.method {
                Method::XbarS => limits::deviation(&measured.values),
                _ => measured.range,
            },
        });
        if baseline.measured() < baseline.samples as usize {
            return;
        }
        let (method, samples) = (baseline.method.clone(), baseline.samples);
        let (collected, size) = (&baseline.collected, next.subgroup_size as usize);
        let (charts, dispersion) = match method {
            Method::XbarR => (limits::xbar_r(collected, size), Chart::Ranges),
            Method::XbarS => (limits::xbar_s(collected, size), Chart::Deviations),
            Method::MovingRange | Method::Given | Method::Named(_) => {
                (limits::moving_range(collected), Chart::MovingRanges)
            }
        };
        let Some(charts) = charts.filter(|charts| !charts.location.are_without_width()) else {
            // Samples without variation would result in limits without width: the baseline continues with the next
            // sample.
            baseline.forget_first();
            return;
        };
        next.baseline = None;
        let dispersion = Dispersion::new(dispersion, &charts.dispersion);
        enforce(next, charts.location, Some(dispersion), method, samples);
        self.publish_limits(next);
    }
}

/// Handles a gap. Resets the state of the rules: measurements after a gap have no predecessors.
fn pass_over(next: &mut Characteristic, sample: &NewSample) -> Result<Evaluation, RuleError> {
    let evaluation = [
        ("zone", sample.zone.is_some()),
        ("in_control", sample.in_control.is_some()),
        ("violations", sample.violations.is_some()),
    ];
    if let Some((field, _)) = evaluation.into_iter().find(|(_, is_there)| *is_there) {
        let expected = "must be absent if the value is null: a gap has no verdict";
        return Err(invalid(field, expected));
    }
    next.recent.clear();
    next.runs.clear();
    next.publisher_in_control = None;
    Ok(Evaluation::default())
}

/// Returns the measurement of a sample; `None` if it is a gap.
fn measured(sample: &NewSample, size: u32) -> Result<Option<Measured>, RuleError> {
    let values: &[Option<f64>] = match (&sample.value, &sample.values) {
        (Some(value @ Some(_)), None | Some(None)) => std::slice::from_ref(value),
        (None | Some(None), Some(Some(values))) => values,
        (Some(None), None | Some(None)) | (None, Some(None)) => return Ok(None),
        (Some(Some(_)), Some(Some(_))) | (None, None) => {
            let expected = "or `values` is required, and only one of them; null means that nothing was measured";
            return Err(invalid("value", expected));
        }
    };
    if values.len() != size as usize {
        return Err(invalid("values", format!("must have {size} elements")));
    }
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    if known.is_empty() {
        return Ok(None);
    }
    if known.len() < values.len() {
        let expected = format!(
            "must have {size} numbers, or be null: the limits do not apply to an incomplete subgroup"
        );
        return Err(invalid("values", expected));
    }
    if known.iter().any(|value| value.abs() > VALUE_MAX) {
        let expected = format!("must be from -{VALUE_MAX:e} to {VALUE_MAX:e}");
        return Err(invalid("value", expected));
    }
    Ok(Some(Measured {
        mean: limits::mean(&known),
        range: limits::range(&known),
        values: known,
    }))
}
