//! The values that templates show for each kind of subject.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::chart::short;
use super::form::{count, optional_time, span, time};
use crate::config::MONITOR_TITLE_CHARS;
use crate::id::{SubjectId, is_visible};
use crate::kind::characteristic::{Characteristic, LastSample, Violation};
use crate::kind::device::Device;
use crate::kind::enrollment::Session;
use crate::kind::job::{End, Job, Status};
use crate::kind::{Cell, Subject as _, description};
use crate::log::StoredSubject;
use crate::number::whole_unsigned;

fn job_row(id: &SubjectId, job: &Job, now: DateTime<Utc>) -> Value {
    let (code, error) = match &job.end {
        Some(End::Error(error)) => (Some(&*error.code), Some(&*error.message)),
        _ => (None, None),
    };
    let took = job
        .started_at
        .map(|start| span(job.finished_at.unwrap_or(now) - start));
    // An estimate in the past means that the job may end at any moment, so it is left out.
    let eta = job.eta.and_then(|eta| eta.as_of(now));
    json!({
        "id": id,
        "title": job_title(job),
        "label": job_title(job).as_deref().unwrap_or(id.as_str()),
        "type": job.job_type,
        "status": job.status.as_str(),
        "stalled": job.stalled,
        "cancel_requested": job.cancel_requested,
        "progress": reported_progress(job).map(whole_unsigned),
        "progress_word": progress_word(job),
        "is_running": job.status == Status::InProgress,
        "message": &*job.message,
        "attempt": job.attempt,
        "worker": job.reporters.worker(),
        "eta": eta.map(|eta| time(eta.at, now)),
        "eta_low": eta.map(|eta| time(eta.low_at, now)),
        "eta_high": eta.map(|eta| time(eta.high_at, now)),
        "created": time(job.created_at, now),
        "heard": time(job.heard_at, now),
        "finished": optional_time(job.finished_at, now),
        "took": took,
        "error": error,
        "code": code,
    })
}

/// Returns the progress of a job, if its worker has reported any.
fn reported_progress(job: &Job) -> Option<f64> {
    job.progress.filter(|_| job.has_reported_progress())
}

/// Returns the text in place of a missing percentage.
fn progress_word(job: &Job) -> &'static str {
    match job.status {
        Status::Pending | Status::Queued => "waiting",
        Status::InProgress if job.progress.is_none() => "unknown",
        Status::InProgress => "not reported yet",
        Status::Completed | Status::Failed | Status::Cancelled => "not reported",
    }
}

/// Returns the title of a job, shortened if necessary.
fn job_title(job: &Job) -> Option<String> {
    let title = job.title()?;
    Some(title.chars().take(MONITOR_TITLE_CHARS).collect())
}

fn session_row(id: &SubjectId, session: &Session, now: DateTime<Utc>) -> Value {
    json!({
        "id": id,
        "device": session.device_id,
        "student": session.student_id.as_deref(),
        "status": session.status.as_str(),
        "progress": session.progress,
        "message": &*session.message,
        "attempt": session.attempt,
        "total_attempts": session.total_attempts,
        "quality": session.quality_score.map(short),
        "code": session.error_code.as_deref(),
        "ended": session.status.is_terminal(),
        "created": time(session.created_at, now),
        "heard": time(session.heard_at, now),
        "finished": optional_time(session.finished_at, now),
    })
}

/// Returns the visible name of a subject, or its id.
fn label<'a>(name: Option<&'a str>, id: &'a SubjectId) -> &'a str {
    name.filter(|name| is_visible(name)).unwrap_or(id.as_str())
}

fn device_row(id: &SubjectId, device: &Device, now: DateTime<Utc>) -> Value {
    json!({
        "id": id,
        "name": device.name.as_deref(),
        "label": label(device.name.as_deref(), id),
        "status": device.status.as_str(),
        "flapping": device.flapping,
        "seen": optional_time(device.last_seen, now),
        "since": time(device.reported_status.1, now),
        "lease_secs": device.lease_secs,
    })
}

fn characteristic_row(
    id: &SubjectId,
    characteristic: &Characteristic,
    now: DateTime<Utc>,
) -> Value {
    let sample = characteristic
        .last_sample
        .as_ref()
        .and_then(LastSample::payload);
    let value = sample.and_then(|sample| sample.mean);
    json!({
        "id": id,
        "name": characteristic.name.as_deref(),
        "label": label(characteristic.name.as_deref(), id),
        "unit": characteristic.unit.as_deref(),
        "status": characteristic.status(),
        "value": value.map(short),
        "zone": sample.and_then(|sample| sample.zone.as_deref()),
        "sampled": optional_time(characteristic.last_sample.as_ref().map(|sample| sample.at), now),
        "samples": count(characteristic.sample_count),
        "limits": characteristic.limits.as_ref().map(|limits| json!({
            "center_line": short(limits.chart.center_line),
            "ucl": limits.chart.upper().map(short),
            "lcl": limits.chart.lower().map(short),
            "method": limits.method,
            "version": limits.version,
        })),
        "learning": characteristic.baseline.as_ref().map(|baseline| json!({
            "has": baseline.measured(),
            "wants": baseline.samples,
        })),
    })
}

pub(super) fn violation_row(violation: &Violation, now: DateTime<Utc>) -> Value {
    let acknowledgement = violation.acknowledgement.as_ref();
    json!({
        "id": violation.id(),
        "characteristic": violation.characteristic_id,
        "rule_id": violation.rule_id,
        "rule": &*violation.rule_name,
        "severity": violation.severity,
        "at": time(violation.at, now),
        "user": acknowledgement.map(|ack| &*ack.user),
        "reason": acknowledgement.map(|ack| &*ack.reason),
        "acknowledged": optional_time(acknowledgement.map(|ack| ack.at), now),
    })
}

/// Formats JSON for people.
pub(super) fn pretty(json: &str) -> Option<String> {
    let value: Value = serde_json::from_str(json).ok()?;
    serde_json::to_string_pretty(&value).ok()
}

pub(super) fn rows(subjects: &[StoredSubject]) -> Vec<Value> {
    let now = Utc::now();
    let row = |stored: &StoredSubject| {
        let (id, state) = (&stored.event.subject, &stored.state);
        if let Some(job) = state.job() {
            job_row(id, job, now)
        } else if let Some(session) = state.enrollment() {
            session_row(id, session, now)
        } else if let Some(device) = state.device() {
            device_row(id, device, now)
        } else if let Some(characteristic) = state.characteristic() {
            characteristic_row(id, characteristic, now)
        } else {
            table_row(stored, now)
        }
    };
    subjects.iter().map(row).collect()
}

/// Returns the rows of a kind that has no page of its own: a value for each of its columns.
pub(super) fn table_rows(subjects: &[StoredSubject]) -> Vec<Value> {
    let now = Utc::now();
    let row = |stored: &StoredSubject| table_row(stored, now);
    subjects.iter().map(row).collect()
}

fn table_row(stored: &StoredSubject, now: DateTime<Utc>) -> Value {
    let columns = description(stored.event.kind).columns;
    let cells = stored.state.cells();
    debug_assert_eq!(cells.len(), columns.len(), "a cell for each column");
    let filled = columns.iter().zip(cells);
    let cell = |(label, values): (&&str, Vec<Cell>)| {
        let class = match values.first() {
            Some(Cell::Text(_)) => "text",
            Some(Cell::Words(_) | Cell::Time(_)) => "nowrap",
            Some(Cell::Percent(_)) => "bar",
            Some(Cell::Measure(..)) => "number",
            Some(Cell::Name(_) | Cell::Status(_)) | None => "",
        };
        let values: Vec<Value> = values.iter().map(|value| cell_view(value, now)).collect();
        json!({ "label": label, "class": class, "values": values })
    };
    let cells: Vec<Value> = filled.map(cell).collect();
    json!({ "id": stored.event.subject, "cells": cells })
}

fn cell_view(value: &Cell, now: DateTime<Utc>) -> Value {
    match value {
        Cell::Name(text) | Cell::Text(text) => json!({ "text": text }),
        Cell::Words(words) => json!({ "words": words }),
        Cell::Status(status) => json!({ "status": status }),
        Cell::Percent(percent) => json!({ "percent": percent }),
        Cell::Measure(what, value) => json!({ "words": format!("{what} {}", short(*value)) }),
        Cell::Time(at) => json!({ "is_time": true, "at": optional_time(*at, now) }),
    }
}
