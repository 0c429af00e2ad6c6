//! Setting limits: given, or to be computed from a baseline. Pure.

use super::dispersion::Dispersion;
use super::limits::{ControlLimits, are_in_order};
use super::{
    BASELINE_DEFAULT, BASELINE_MAX, Baseline, Characteristic, Limits, Method, NAME_MAX_BYTES,
    SetLimits, VALUE_MAX, invalid,
};
use crate::kind::{Bound, RuleError, bounded};

/// Returns whether the request is already in effect. A publisher that registers its characteristic at each start does
/// not intend to discard the limits that were computed since.
pub(super) fn is_so_already(now: &Characteristic, asked: &SetLimits) -> bool {
    if let Some(given) = asked.lines() {
        let is_so = |limits: &Limits| {
            let count = asked.sample_count.unwrap_or(0);
            limits.chart == given
                && limits.dispersion == asked.dispersion
                && limits.method == asked.method.clone().unwrap_or(Method::Given)
                && limits.sample_count == count
        };
        return now.baseline.is_none() && now.limits.as_ref().is_some_and(is_so);
    }
    let samples = asked.samples.unwrap_or(BASELINE_DEFAULT);
    let to_learn =
        |method: &Method, count| asked.method.as_ref() == Some(method) && samples == count;
    match (&now.baseline, &now.limits) {
        (Some(baseline), _) => to_learn(&baseline.method, baseline.samples),
        (None, Some(limits)) => to_learn(&limits.method, limits.sample_count),
        (None, None) => false,
    }
}

/// Sets the given limits, or starts a baseline. Until the baseline is complete, the old limits stay in force.
pub(super) fn set_limits(next: &mut Characteristic, set: &SetLimits) -> Result<(), RuleError> {
    let has_lines = (set.center_line, set.ucl, set.lcl) != (None, None, None);
    match (set.lines(), &set.method) {
        (Some(chart), _) => give(next, set, chart),
        (None, Some(method)) if method.is_computed() && !has_lines => learn(next, set, method),
        _ => Err(invalid(
            "limits",
            "must have a `center_line` with `ucl`, `lcl` or both, or a `method` (moving_range, xbar_r, xbar_s), which may have `samples`",
        )),
    }
}

fn give(next: &mut Characteristic, set: &SetLimits, chart: ControlLimits) -> Result<(), RuleError> {
    if !are_in_order(&chart) {
        let expected = format!(
            "must be above `lcl`, with `center_line` between, all from -{VALUE_MAX:e} to {VALUE_MAX:e}"
        );
        return Err(invalid("ucl", expected));
    }
    if let Some(dispersion) = &set.dispersion {
        dispersion.check(next.subgroup_size)?;
    }
    if set.samples.is_some() {
        return Err(invalid(
            "samples",
            "requires a `method`, and cannot be combined with lines",
        ));
    }
    let method = set.method.clone().unwrap_or(Method::Given);
    if method.as_str().trim().is_empty() {
        return Err(invalid("method", "must not be blank; it can be absent"));
    }
    bounded("method", method.as_str(), Bound::constant(NAME_MAX_BYTES))?;
    next.baseline = None;
    let count = set.sample_count.unwrap_or(0);
    enforce(next, chart, set.dispersion, method, count);
    Ok(())
}

fn learn(next: &mut Characteristic, set: &SetLimits, method: &Method) -> Result<(), RuleError> {
    if set.sample_count.is_some() {
        return Err(invalid("sample_count", "requires lines"));
    }
    if set.dispersion.is_some() {
        return Err(invalid(
            "dispersion",
            "requires lines: a `method` computes its own",
        ));
    }
    let samples = set.samples.unwrap_or(BASELINE_DEFAULT);
    if !(2..=BASELINE_MAX).contains(&samples) {
        return Err(invalid(
            "samples",
            format!("must be from 2 to {BASELINE_MAX}"),
        ));
    }
    if (*method == Method::MovingRange) != (next.subgroup_size == 1) {
        return Err(invalid(
            "method",
            "must be moving_range for samples of one value, and xbar_r or xbar_s for subgroups",
        ));
    }
    next.baseline = Some(Baseline {
        method: method.clone(),
        samples,
        collected: Vec::new(),
    });
    Ok(())
}

impl SetLimits {
    /// Returns the lines, if enough of them are given.
    pub(super) fn lines(&self) -> Option<ControlLimits> {
        let center_line = self
            .center_line
            .filter(|_| self.ucl.or(self.lcl).is_some())?;
        Some(ControlLimits {
            center_line,
            ucl: self.ucl.unwrap_or(f64::INFINITY),
            lcl: self.lcl.unwrap_or(f64::NEG_INFINITY),
        })
    }
}

/// Puts limits in force. Evaluations by the old limits do not count for the new ones.
pub(super) fn enforce(
    next: &mut Characteristic,
    chart: ControlLimits,
    dispersion: Option<Dispersion>,
    method: Method,
    sample_count: u32,
) {
    next.limits_version += 1;
    next.limits = Some(Limits {
        chart,
        dispersion,
        method,
        sample_count,
        version: next.limits_version,
    });
    next.recent.clear();
    next.runs.clear();
    next.publisher_in_control = None;
}
