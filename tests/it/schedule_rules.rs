//! The rules of schedules as pure functions: what is missed, what is late, and what a clock that is set changes.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tidings::event::Class;
use tidings::id::SubjectId;
use tidings::kind::job::Status as JobStatus;
use tidings::kind::schedule::{
    Command, MISSED_AGAIN_SECS, Observed, Put, Run, Schedule, Status, apply,
};
use tidings::kind::{Context, RuleError};
use tidings::uptime::Uptime;

use crate::support::LIMITS;

const HOUR: i64 = 3_600;

/// 2026-06-01 00:00 UTC, a Monday, and so many seconds.
fn at(secs: i64) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-06-01T00:00:00Z")
        .unwrap()
        .to_utc()
        + TimeDelta::seconds(secs)
}

fn context(secs: i64) -> Context<'static> {
    Context {
        now: at(secs),
        limits: &LIMITS,
        history: None,
        uptime: Uptime::from_millis(secs.unsigned_abs() * 1_000),
        sub: None,
        next_seq: 1,
        holder: None,
        part: None,
        taken_part: None,
    }
}

/// What becomes of a schedule by a command, and the class of its event.
fn after(
    schedule: Option<&Schedule>,
    command: &Command,
    secs: i64,
) -> Result<(Schedule, Option<Class>), RuleError> {
    let id: SubjectId = "backup".parse().unwrap();
    let outcome = apply(&id, schedule, command, &context(secs))?;
    assert!(outcome.drafts.len() <= 1);
    let class = outcome.drafts.first().map(|draft| draft.class);
    Ok((outcome.state, class))
}

fn put(body: Value) -> Command {
    Command::Put(serde_json::from_value::<Put>(body).unwrap())
}

fn nightly() -> Schedule {
    let body = json!({"cron": "0 3 * * *", "grace_secs": 600, "max_run_secs": 7_200});
    after(None, &put(body), 0).unwrap().0
}

fn run(id: &str, started: i64, ended: Option<i64>) -> Run {
    Run {
        job_id: id.parse().unwrap(),
        status: ended.map_or(JobStatus::InProgress, |_| JobStatus::Completed),
        started_at: at(started),
        finished_at: ended.map(at),
    }
}

fn check(run: Option<Run>) -> Command {
    Command::Check(Some(Observed {
        run,
        is_clock_steady: true,
    }))
}

fn jumped(run: Option<Run>) -> Command {
    Command::Check(Some(Observed {
        run,
        is_clock_steady: false,
    }))
}

/// Applies checks one after the other: the time, the run that is seen. Tells the status and the class of the event of each.
fn lives(schedule: &Schedule, checks: &[(i64, Option<Run>)]) -> Vec<(Status, Option<Class>)> {
    let mut schedule = schedule.clone();
    let mut published = Vec::new();
    for (secs, run) in checks {
        let (next, class) = after(Some(&schedule), &check(run.clone()), *secs).unwrap();
        // The same check of another node changes nothing.
        let (again, twice) = after(Some(&next), &check(run.clone()), *secs).unwrap();
        assert_eq!(
            (again.status, again.due_at, twice),
            (next.status, next.due_at, None)
        );
        assert!(next.check_uptime.is_some());
        published.push((next.status, class));
        schedule = next;
    }
    published
}

#[test]
fn a_run_that_does_not_start_in_time_is_missed_until_one_starts() {
    use Class::*;
    use Status::*;
    let late_run = Some(run("b", 5 * HOUR, None));
    let ended = Some(run("b", 5 * HOUR, Some(6 * HOUR)));
    let published = lives(
        &nightly(),
        &[
            (3 * HOUR, None),
            (3 * HOUR + 599, None),
            (3 * HOUR + 600, None),
            (4 * HOUR, None),
            (5 * HOUR, late_run),
            (6 * HOUR, ended.clone()),
            (27 * HOUR + 599, ended.clone()),
            (27 * HOUR + 600, ended),
        ],
    );
    let expected = [
        (OnTime, None),
        (OnTime, None),
        (Missed, Some(Milestone)),
        (Missed, None),
        (OnTime, Some(Milestone)),
        (OnTime, Some(Tick)),
        (OnTime, None),
        (Missed, Some(Milestone)),
    ];
    assert_eq!(published, expected);
}

#[test]
fn a_run_that_does_not_end_in_time_is_late_until_it_ends() {
    use Class::*;
    use Status::*;
    let start = 3 * HOUR - 30;
    let going = Some(run("a", start, None));
    let published = lives(
        &nightly(),
        &[
            (3 * HOUR, going.clone()),
            (start + 7_199, going.clone()),
            (start + 7_200, going.clone()),
            (20 * HOUR, going),
            (21 * HOUR, Some(run("a", start, Some(21 * HOUR)))),
        ],
    );
    let expected = [
        (OnTime, Some(Tick)),
        (OnTime, None),
        (Late, Some(Milestone)),
        (Late, None),
        (OnTime, Some(Milestone)),
    ];
    assert_eq!(published, expected);
}

/// A server that was down for weeks says so once, and while runs are missed in a row the milestone comes back.
#[test]
fn runs_missed_during_a_downtime_are_published_once() {
    let (schedule, class) =
        after(Some(&nightly()), &check(None), 10 * 24 * HOUR + 4 * HOUR).unwrap();
    assert_eq!(
        (schedule.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!(schedule.missed_since, Some(at(3 * HOUR)));
    assert_eq!(schedule.missed_at, Some(at(10 * 24 * HOUR + 3 * HOUR)));
    assert_eq!(schedule.due_at, at(11 * 24 * HOUR + 3 * HOUR));
    let (schedule, class) =
        after(Some(&schedule), &check(None), 11 * 24 * HOUR + 4 * HOUR).unwrap();
    assert_eq!(
        (schedule.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!(schedule.missed_since, Some(at(3 * HOUR)));
    // A run each minute: not a milestone each minute.
    let body = json!({"cron": "* * * * *", "grace_secs": 1});
    let mut schedule = after(None, &put(body), 0).unwrap().0;
    let mut milestones = Vec::new();
    for secs in 1..3 * HOUR {
        let (next, class) = after(Some(&schedule), &check(None), secs).unwrap();
        milestones.extend((class == Some(Class::Milestone)).then_some(secs));
        schedule = next;
    }
    assert_eq!(milestones.len(), 3, "{milestones:?}");
    assert!(
        milestones
            .windows(2)
            .all(|pair| pair[1] - pair[0] >= MISSED_AGAIN_SECS)
    );
}

#[test]
fn a_clock_that_is_set_forward_or_back_does_not_count_as_silence() {
    let schedule = nightly();
    let year = 365 * 24 * HOUR;
    let going = || Some(run("a", 3 * HOUR, None));
    let begun = after(Some(&schedule), &check(going()), 3 * HOUR).unwrap().0;
    for schedule in [schedule, begun] {
        let (ahead, class) = after(Some(&schedule), &jumped(going()), year).unwrap();
        assert_eq!((ahead.status, class), (Status::OnTime, Some(Class::Tick)));
        assert_eq!(ahead.due_at, at(year + 3 * HOUR));
        // What was being waited for starts anew.
        let (still, class) = after(Some(&ahead), &check(going()), year + 7_199).unwrap();
        assert_eq!((still.status, class), (Status::OnTime, None));
        // Back, and nobody has noticed: the times of the last check tell.
        let (back, class) = after(Some(&ahead), &check(going()), 4 * HOUR).unwrap();
        assert_eq!((back.status, class), (Status::OnTime, Some(Class::Tick)));
        assert_eq!(back.due_at, at(27 * HOUR));
        let (missed, _) = after(Some(&back), &check(going()), 28 * HOUR).unwrap();
        assert_eq!(missed.status, Status::Missed);
    }
}

#[test]
fn a_period_is_counted_from_the_start_of_the_last_run() {
    let body = json!({"period_secs": 600, "grace_secs": 60});
    let schedule = after(None, &put(body), 0).unwrap().0;
    assert_eq!(schedule.due_at, at(600));
    let (schedule, _) =
        after(Some(&schedule), &check(Some(run("a", 100, Some(110)))), 120).unwrap();
    assert_eq!(schedule.due_at, at(700));
    let (schedule, class) =
        after(Some(&schedule), &check(Some(run("a", 100, Some(110)))), 760).unwrap();
    assert_eq!(
        (schedule.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!(
        (schedule.missed_at, schedule.due_at),
        (Some(at(700)), at(1_300))
    );
    let (schedule, _) = after(Some(&schedule), &check(Some(run("b", 800, None))), 800).unwrap();
    assert_eq!(
        (schedule.status, schedule.due_at),
        (Status::OnTime, at(1_400))
    );
}

#[test]
fn a_rule_is_checked_and_the_same_rule_changes_nothing() {
    for (body, field) in [
        (json!({}), "cron"),
        (json!({"cron": "0 3 * * *", "period_secs": 60}), "cron"),
        (json!({"cron": "every night"}), "cron"),
        (json!({"cron": "0 0 30 2 *"}), "cron"),
        (
            json!({"cron": "0 3 * * *", "time_zone": "Mars"}),
            "time_zone",
        ),
        (json!({"period_secs": 60, "time_zone": "UTC"}), "time_zone"),
        (json!({"period_secs": 59}), "period_secs"),
        (json!({"period_secs": 60, "grace_secs": 0}), "grace_secs"),
        (
            json!({"period_secs": 60, "max_run_secs": 2_592_001}),
            "max_run_secs",
        ),
    ] {
        match after(None, &put(body.clone()), 0) {
            Err(RuleError::Invalid {
                field: rejected_field,
                ..
            }) => assert_eq!(rejected_field, field, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    let long = put(json!({"cron": "0,".repeat(100)}));
    assert!(matches!(
        after(None, &long, 0),
        Err(RuleError::TooLarge { .. })
    ));
    let schedule = nightly();
    let (missed, _) = after(Some(&schedule), &check(None), 4 * HOUR).unwrap();
    let same = json!({"cron": " 0 3  * * * ", "time_zone": "UTC", "grace_secs": 600, "max_run_secs": 7_200});
    let (same, class) = after(Some(&missed), &put(same), 4 * HOUR).unwrap();
    assert_eq!((same.status, class), (Status::Missed, None));
    let other = put(json!({"cron": "0 3 * * *", "grace_secs": 601}));
    let (other, class) = after(Some(&missed), &other, 4 * HOUR).unwrap();
    assert_eq!(
        (other.status, class),
        (Status::OnTime, Some(Class::Milestone))
    );
    let (gone, class) = after(Some(&missed), &Command::Remove, 4 * HOUR).unwrap();
    assert_eq!(
        (gone.status, class),
        (Status::Removed, Some(Class::Milestone))
    );
    assert_eq!(gone.check_uptime, None);
    let (still, class) = after(Some(&gone), &check(None), 100 * HOUR).unwrap();
    assert_eq!((still.status, class), (Status::Removed, None));
    let (still, class) = after(Some(&gone), &Command::Remove, 5 * HOUR).unwrap();
    assert_eq!((still.finished_at, class), (gone.finished_at, None));
    let back = put(json!({"cron": "0 3 * * *", "grace_secs": 600, "max_run_secs": 7_200}));
    let (back, class) = after(Some(&gone), &back, 5 * HOUR).unwrap();
    assert_eq!(
        (back.status, class),
        (Status::OnTime, Some(Class::Milestone))
    );
    // Nobody has looked: nothing is judged.
    let (unseen, class) = after(Some(&schedule), &Command::Check(None), 100 * HOUR).unwrap();
    assert_eq!((unseen.status, class), (Status::OnTime, None));
}
