//! The time left: what the rules foretell, when, and how that compares with what others have published.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tidings::event::Class;
use tidings::kind::job::{Command, Estimator, EtaSource, History, Job, Past, Status, apply};

use tidings::kind::{Context, Subject};

use crate::job_rules::{at, context, from, id, job_in, progress, run, run_with};

#[path = "../../benches/eta/comparison.rs"]
mod comparison;
#[path = "../../benches/eta/rules.rs"]
mod rules;
#[path = "../../benches/eta/workloads.rs"]
mod workloads;

fn message() -> Command {
    Command::Progress(from(json!({"message": "still at it"})))
}

/// A running job that has reported these percentages, each at its second.
fn reported(reports: &[(i64, f64)]) -> Job {
    let start = job_in(Status::InProgress);
    let report = |job: Job, (secs, percent): &(i64, f64)| {
        run(Some(&job), &progress(*percent), *secs).unwrap().state
    };
    reports.iter().fold(start, report)
}

fn steady(secs: i64) -> Job {
    let reports: Vec<_> = (0..=secs / 10)
        .map(|step| (step * 10, step as f64))
        .collect();
    reported(&reports)
}

fn secs_until(end: DateTime<Utc>, now: i64) -> f64 {
    (end - at(now)).num_milliseconds() as f64 / 1000.0
}

fn alike(secs: f64) -> Option<History> {
    let past = Past { secs, course: None };
    History::of(&[past; 6])
}

#[test]
fn an_attempts_first_value_is_its_base() {
    let resumed = reported(&[(1, 60.0)]);
    assert_eq!(resumed.eta, None, "60 % in no time is no pace");
    let going = reported(&[(1, 60.0), (11, 61.0), (21, 62.0)]);
    let left = secs_until(going.eta.unwrap().at, 21);
    assert!((370.0..390.0).contains(&left), "{left} of 380 s");
}

#[test]
fn before_there_is_evidence_nothing_is_foretold() {
    let started = job_in(Status::InProgress);
    assert_eq!(started.eta, None);
    let spoken = run(Some(&started), &message(), 50).unwrap().state;
    assert_eq!(spoken.eta, None);
    let unknown = Command::Progress(from(json!({"progress": null})));
    assert_eq!(run(Some(&spoken), &unknown, 60).unwrap().state.eta, None);
}

#[test]
fn messages_and_repeated_values_leave_the_end_where_it_is() {
    let job = steady(300);
    let eta_at = job.eta.unwrap().at;
    assert!((secs_until(eta_at, 300) - 700.0).abs() < 10.0, "{eta_at}");
    let mut spoken = job;
    for secs in 301..310 {
        let report = if secs % 2 == 0 {
            message()
        } else {
            progress(30.0)
        };
        spoken = run(Some(&spoken), &report, secs).unwrap().state;
        let moved = (spoken.eta.unwrap().at - eta_at).num_milliseconds().abs();
        assert!(moved < 1_000, "after {secs} s it has moved by {moved} ms");
    }
    // A request to cancel does not change the pace.
    let asked = run(Some(&spoken), &Command::Cancel(from(json!({}))), 309)
        .unwrap()
        .state;
    assert_eq!(asked.eta.map(|eta| eta.source), Some(EtaSource::Rate));
    assert!((asked.eta.unwrap().at - eta_at).num_milliseconds().abs() < 1_000);
}

#[test]
fn a_stalled_job_has_no_estimate_and_the_stall_does_not_count_as_work() {
    let job = steady(500);
    let stalled = run(Some(&job), &Command::Check, 500 + 60).unwrap().state;
    assert!(stalled.stalled && stalled.eta.is_none());
    let mut back = stalled;
    for step in 0..5 {
        back = run(
            Some(&back),
            &progress(51.0 + f64::from(step)),
            800 + 10 * i64::from(step),
        )
        .unwrap()
        .state;
    }
    let left = secs_until(back.eta.unwrap().at, 840);
    assert!((400.0..700.0).contains(&left), "{left} of 450 s");
}

#[test]
fn history_is_a_prior_that_fades_with_evidence_and_when_it_is_outrun() {
    let started = run_with(
        None,
        &Command::Create(from(json!({"job_type": "t", "status": "in_progress"}))),
        0,
        alike(120.0),
    );
    let started = started.unwrap().state;
    let eta = started.eta.unwrap();
    assert_eq!((eta.at, eta.source), (at(120), EtaSource::History));
    assert!(eta.low_at < eta.at && eta.at < eta.high_at);
    // It takes three times as long as those before.
    let mut job = started.clone();
    for step in 0..=25 {
        job = run(Some(&job), &progress(f64::from(step)), i64::from(step) * 4)
            .unwrap()
            .state;
    }
    let eta = job.eta.unwrap();
    assert_eq!(eta.source, EtaSource::Rate);
    let left = secs_until(eta.at, 100);
    assert!((250.0..330.0).contains(&left), "{left} of 300 s");
    // It reports no progress, and takes longer than those before.
    let late = run(Some(&started), &message(), 130).unwrap().state;
    assert_eq!(late.eta, None, "what should be over is no estimate");
}

#[test]
fn an_estimated_end_that_passes_in_silence_is_published_again_until_the_job_is_stalled() {
    let mut job = reported(&[(0, 0.0), (2, 30.0), (4, 60.0), (6, 90.0)]);
    let mut updates = 0;
    while !job.stalled {
        let check_at = job.check_uptime.unwrap();
        let secs = i64::try_from(check_at.millis()).unwrap() / 1000 + 1;
        let looked = run(Some(&job), &Command::Check, secs).unwrap();
        assert!(looked.state.check_uptime > Some(check_at), "time goes on");
        if let Some(eta) = looked.state.eta {
            assert!(eta.at > at(secs), "{eta:?} at {secs} s");
        }
        if !looked.state.stalled {
            assert!(looked.drafts.iter().all(|draft| draft.class == Class::Tick));
            updates += looked.drafts.len();
        }
        job = looked.state;
    }
    assert_eq!(job.eta, None);
    assert!((2..15).contains(&updates), "published {updates} times");
}

#[test]
fn downtime_and_a_step_of_the_clock_are_no_silence_of_the_worker() {
    let job = steady(300);
    let predicted = secs_until(job.eta.unwrap().at, 300);
    // An hour later by the wall clock, of which the server was up for five seconds.
    let context = Context {
        now: at(300 + 3_600),
        ..context(305, None)
    };
    let looked = apply(&id(), Some(&job), &Command::Check, &context).unwrap();
    let left = secs_until(looked.state.eta.unwrap().at, 300 + 3_600);
    assert!(
        (left - predicted).abs() < 20.0,
        "{left} s, {predicted} s before"
    );
}

#[test]
fn a_clock_that_is_set_back_spoils_nothing() {
    let mut job = steady(300);
    for step in 0..20 {
        let report = progress(31.0 + f64::from(step));
        job = run(Some(&job), &report, 10 * i64::from(step) - 100)
            .unwrap()
            .state;
        assert!(
            job.eta
                .is_none_or(|eta| eta.at > at(10 * i64::from(step) - 100))
        );
    }
    let left = secs_until(job.eta.unwrap().at, 90);
    assert!((350.0..750.0).contains(&left), "{left} of 500 s");
}

#[test]
#[ignore = "slow: very many reports"]
fn a_job_of_a_million_reports_is_followed_and_its_state_stays_small() {
    let start = at(0);
    let mut estimator = Estimator::starting(start, None);
    let reports = 1_000_000;
    for report in 0..reports / 2 {
        let now = start + TimeDelta::milliseconds(i64::from(report) * 10);
        estimator.observe(f64::from(report) * 100.0 / f64::from(reports), now);
    }
    let now = start + TimeDelta::milliseconds(i64::from(reports) * 5);
    let left = (estimator.estimate(now, Duration::ZERO).unwrap().at - now).num_seconds();
    assert!((4_900..5_100).contains(&left), "{left} of 5000 s");
    let stored = serde_json::to_string(&estimator).unwrap();
    assert!(stored.len() < 4_000, "{} bytes", stored.len());
}

#[test]
fn what_is_read_from_the_store_foretells_the_same() {
    let mut kept = Estimator::starting(at(0), alike(90.0));
    let mut read = kept.clone();
    for step in 0..60_u32 {
        let now = at(i64::from(step) * 2 + i64::from(step * step % 7));
        let percent = f64::from(step) * 1.5;
        kept.observe(percent, now);
        read = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
        read.observe(percent, now);
        assert_eq!(
            kept.estimate(now, Duration::ZERO),
            read.estimate(now, Duration::ZERO)
        );
    }
}

#[test]
#[ignore = "slow: very many reports"]
fn no_published_rule_estimates_the_time_left_better() {
    let mut ranges = (0.0, 0.0);
    for workload in workloads::all(30, 1) {
        let row = comparison::compare(&workload);
        let ours = row.our_score();
        assert!(
            row.reaches_the_goal(),
            "{}: off by {:.2}, another by {:.2}; far off for {:.1} %, another for {:.1} %",
            row.name,
            ours.factor,
            row.best_factor(),
            ours.off * 100.0,
            row.least_off() * 100.0
        );
        ranges.0 += row.coverage * row.ranges as f64;
        ranges.1 += row.ranges as f64;
    }
    let coverage = ranges.0 / ranges.1;
    assert!(
        (0.70..=0.90).contains(&coverage),
        "the range holds the end in {coverage:.2}"
    );
}

/// What has been heard since does not make silence of it.
#[test]
fn downtime_is_no_silence_either_once_the_worker_is_heard_again() {
    let job = steady(300);
    let predicted = secs_until(job.eta.unwrap().at, 300);
    // Six minutes later by the wall clock, of which the server was up for some seconds.
    let later = |job: &Job, command: &Command, secs: i64| {
        let context = Context {
            now: at(360 + secs),
            ..context(secs, None)
        };
        let state = apply(&id(), Some(job), command, &context).unwrap().state;
        let left = secs_until(state.eta.unwrap().at, 360 + secs);
        (state, left)
    };
    for word in [message(), progress(30.0), progress(10.0), cancel()] {
        let (spoken, left) = later(&job, &word, 305);
        assert!(
            (left - predicted).abs() < 20.0,
            "{word:?}: {left} s, {predicted} s before"
        );
        // A worker that stood still meanwhile, and one that went on.
        for (next, rest) in [(31.0, 690.0), (67.0, 330.0)] {
            let (_, left) = later(&spoken, &progress(next), 310);
            assert!((left - rest).abs() < 30.0, "{word:?}: {left} of {rest} s");
        }
    }
}

fn cancel() -> Command {
    Command::Cancel(from(json!({})))
}

#[test]
fn downtimes_are_no_pauses_that_recur() {
    let mut job = steady(300);
    for (night, step) in (1..=4).zip(31..) {
        let context = Context {
            now: at(300 + night * 3_600),
            ..context(300 + night * 10, None)
        };
        job = apply(&id(), Some(&job), &progress(f64::from(step)), &context)
            .unwrap()
            .state;
    }
    let left = secs_until(job.eta.unwrap().at, 300 + 4 * 3_600);
    assert!((600.0..720.0).contains(&left), "{left} of 660 s");
}

#[test]
fn of_a_job_at_100_percent_that_is_not_completed_yet_nothing_absurd_is_foretold() {
    for history in [None, alike(40.0), alike(4_000.0)] {
        let start = Command::Create(from(json!({"job_type": "t", "status": "in_progress"})));
        let mut job = run_with(None, &start, 0, history).unwrap().state;
        for step in 0..=10 {
            let report = progress(f64::from(step) * 10.0);
            job = run(Some(&job), &report, i64::from(step) * 10)
                .unwrap()
                .state;
        }
        for secs in 100..130 {
            let eta = job.eta.unwrap();
            let now = at(secs);
            assert!(eta.low_at > now && eta.low_at <= eta.at && eta.at <= eta.high_at);
            let max_secs = secs_until(eta.high_at, secs);
            assert!(max_secs < 1_500.0, "{max_secs} s at {secs} s, {eta:?}");
            job = run(Some(&job), &message(), secs + 1).unwrap().state;
        }
    }
}

#[test]
fn an_estimated_end_that_has_passed_is_not_returned() {
    let job = steady(300);
    let eta = job.eta.unwrap();
    let described_at = |now: DateTime<Utc>| -> serde_json::Value {
        serde_json::from_str(&job.describe(&id(), now).fields).unwrap()
    };
    let times = ["eta_at", "eta_low_at", "eta_high_at", "eta_source"];
    assert!(
        times
            .iter()
            .all(|name| described_at(at(300))[name].is_string())
    );
    let late = described_at(eta.low_at + TimeDelta::seconds(1));
    assert!(late["eta_low_at"].as_str() > described_at(at(300))["eta_low_at"].as_str());
    assert!(
        times
            .iter()
            .all(|name| described_at(eta.at)[name].is_null())
    );
}
