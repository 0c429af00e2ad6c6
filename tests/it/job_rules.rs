//! The job's rules as pure functions: every transition, and properties of random lives.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::json;
use tidings::id::SubjectId;
use tidings::kind::job::{Command, End, History, Job, Status, apply};
use tidings::kind::{Body, CommandOf, Context, Outcome, RuleError};
use tidings::uptime::Uptime;

use crate::support::LIMITS;

pub(crate) fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + secs, 0).unwrap()
}

/// Uptime in the tests that know no downtime: it goes with the wall clock.
fn up(secs: i64) -> Uptime {
    Uptime::from_millis(secs.unsigned_abs() * 1_000)
}

pub(crate) fn id() -> SubjectId {
    "j".parse().unwrap()
}

pub(crate) fn context(secs: i64, history: Option<History>) -> Context<'static> {
    Context {
        now: at(secs),
        limits: &LIMITS,
        history,
        uptime: up(secs),
        sub: None,
        next_seq: 1,
        holder: None,
        part: None,
        taken_part: None,
    }
}

pub(crate) fn run_with(
    job: Option<&Job>,
    command: &Command,
    secs: i64,
    history: Option<History>,
) -> Result<Outcome<Job>, RuleError> {
    apply(&id(), job, command, &context(secs, history))
}

pub(crate) fn run(
    job: Option<&Job>,
    command: &Command,
    secs: i64,
) -> Result<Outcome<Job>, RuleError> {
    run_with(job, command, secs, None)
}

pub(crate) fn from<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> T {
    serde_json::from_value(body).unwrap()
}

fn create(status: &str) -> Command {
    Command::Create(from(json!({"job_type": "test", "status": status})))
}

pub(crate) fn progress(percent: f64) -> Command {
    Command::Progress(from(json!({"progress": percent})))
}

pub(crate) fn job_in(status: Status) -> Job {
    let begun = |status: &str| run(None, &create(status), 0).unwrap().state;
    let ended = |command: Command| run(Some(&begun("in_progress")), &command, 1).unwrap().state;
    match status {
        Status::Pending => begun("pending"),
        Status::Queued => begun("queued"),
        Status::InProgress => begun("in_progress"),
        Status::Completed => ended(Command::Complete(from(json!({})))),
        Status::Failed => ended(Command::Fail(from(
            json!({"error": {"code": "x", "message": "y"}}),
        ))),
        Status::Cancelled => ended(Command::Cancel(from(json!({"force": true})))),
    }
}

fn verbs() -> Vec<Command> {
    vec![
        Command::Queue(from(json!({}))),
        Command::Start(from(json!({}))),
        progress(10.0),
        Command::Complete(from(json!({}))),
        Command::Fail(from(json!({"error": {"code": "x", "message": "y"}}))),
        Command::Cancel(from(json!({"force": true}))),
        Command::Retry(from(json!({}))),
    ]
}

#[test]
fn the_state_machine_is_this_table_and_nothing_else() {
    use Status::*;
    let table = |from: Status| -> [Option<Status>; 7] {
        match from {
            //            queue         start             progress          complete         fail          cancel           retry
            Pending => [
                Some(Queued),
                Some(InProgress),
                Some(InProgress),
                Some(Completed),
                Some(Failed),
                Some(Cancelled),
                None,
            ],
            Queued => [
                None,
                Some(InProgress),
                Some(InProgress),
                Some(Completed),
                Some(Failed),
                Some(Cancelled),
                None,
            ],
            InProgress => [
                None,
                None,
                Some(InProgress),
                Some(Completed),
                Some(Failed),
                Some(Cancelled),
                None,
            ],
            Completed => [None; 7],
            Failed | Cancelled => [None, None, None, None, None, None, Some(Queued)],
        }
    };
    for status in Status::ALL {
        let job = job_in(status);
        assert_eq!(job.status, status);
        for (command, expected) in verbs().iter().zip(table(status)) {
            let reached = run(Some(&job), command, 2).map(|outcome| outcome.state.status);
            match (expected, reached) {
                (Some(expected), Ok(reached)) => {
                    assert_eq!(expected, reached, "{status:?} {}", command.action())
                }
                (None, Err(RuleError::Finished { .. })) => assert!(status.is_terminal()),
                (None, Err(RuleError::IllegalTransition { .. })) => assert!(!status.is_terminal()),
                other => panic!("{status:?} {}: {other:?}", command.action()),
            }
        }
    }
}

#[test]
fn a_new_job_cannot_be_over_already_and_its_id_is_taken_once() {
    assert!(matches!(
        run(None, &create("completed"), 0),
        Err(RuleError::Invalid {
            field: "status",
            ..
        })
    ));
    let job = job_in(Status::Pending);
    assert!(matches!(
        run(Some(&job), &create("pending"), 1),
        Err(RuleError::AlreadyExists { .. })
    ));
    for command in verbs() {
        assert!(matches!(
            run(None, &command, 0),
            Err(RuleError::NotFound { .. })
        ));
    }
}

#[test]
fn cancelling_a_running_job_asks_its_worker_once() {
    let job = job_in(Status::InProgress);
    let ask = Command::Cancel(from(json!({"message": "enough"})));
    let asked = run(Some(&job), &ask, 5).unwrap();
    assert!(asked.state.cancel_requested && asked.state.status == Status::InProgress);
    assert_eq!((asked.drafts.len(), &*asked.state.message), (1, "enough"));
    assert_eq!(
        asked.state.heard_at, job.heard_at,
        "the client that asks is not the worker"
    );
    assert!(
        run(Some(&asked.state), &ask, 6).unwrap().drafts.is_empty(),
        "asking again tells nobody anything"
    );
    let done = run(Some(&asked.state), &Command::Complete(from(json!({}))), 7)
        .unwrap()
        .state;
    assert_eq!(
        done.status,
        Status::Completed,
        "a worker may finish before it notices"
    );
    let stopped = run(
        Some(&asked.state),
        &Command::Cancel(from(json!({"force": true}))),
        7,
    )
    .unwrap()
    .state;
    let Some(End::Error(error)) = stopped.end else {
        panic!()
    };
    assert_eq!(&*error.code, "cancelled");
}

#[test]
fn a_retry_is_a_new_attempt_that_begins_at_zero() {
    let running = run(Some(&job_in(Status::InProgress)), &progress(80.0), 1)
        .unwrap()
        .state;
    let failed = run(
        Some(&running),
        &Command::Fail(from(json!({"error": {"code": "x", "message": "y"}}))),
        2,
    )
    .unwrap()
    .state;
    let again = run(Some(&failed), &Command::Retry(from(json!({}))), 3)
        .unwrap()
        .state;
    assert_eq!(
        (again.attempt, again.progress, again.status),
        (2, Some(0.0), Status::Queued)
    );
    assert!(again.end.is_none() && again.started_at.is_none() && again.finished_at.is_none());
    assert_eq!(
        run(Some(&again), &progress(1.0), 4).unwrap().state.progress,
        Some(1.0)
    );
}

#[test]
fn silence_is_flagged_and_then_ends_the_job() {
    let job = job_in(Status::InProgress);
    assert_eq!(job.check_uptime, Some(up(60)));
    assert!(
        run(Some(&job), &Command::Check, 59)
            .unwrap()
            .drafts
            .is_empty()
    );
    let stalled = run(Some(&job), &Command::Check, 60).unwrap();
    assert!(stalled.state.stalled && stalled.drafts.len() == 1);
    assert_eq!(stalled.state.check_uptime, Some(up(300)));
    assert!(
        run(Some(&stalled.state), &Command::Check, 61)
            .unwrap()
            .drafts
            .is_empty(),
        "published once"
    );
    let revived = run(Some(&stalled.state), &progress(5.0), 100)
        .unwrap()
        .state;
    assert!(
        !revived.stalled && revived.check_uptime == Some(up(160)),
        "looked at again in time"
    );
    let dead = run(Some(&stalled.state), &Command::Check, 300)
        .unwrap()
        .state;
    let Some(End::Error(error)) = &dead.end else {
        panic!()
    };
    assert_eq!(
        (dead.status, &*error.code, dead.check_uptime),
        (Status::Failed, "timeout", None)
    );
    for status in [Status::Pending, Status::Queued, Status::Completed] {
        assert!(
            run(Some(&job_in(status)), &Command::Check, 9_999)
                .unwrap()
                .drafts
                .is_empty(),
            "only a running job is silent"
        );
    }
}

#[test]
fn silence_is_uptime_whatever_the_wall_clock_says() {
    let job = job_in(Status::InProgress);
    let check = |job: &Job, wall: i64, uptime: i64| {
        let context = Context {
            now: at(wall),
            uptime: up(uptime),
            ..context(0, None)
        };
        apply(&id(), Some(job), &Command::Check, &context).unwrap()
    };
    // Years of downtime, or of a clock that was wrong, and one that was set back.
    for wall in [100_000_000, 59, -100_000_000] {
        let looked = check(&job, wall, 59);
        assert!(looked.drafts.is_empty() && looked.state.check_uptime == Some(up(60)));
        let stalled = check(&looked.state, wall, 60).state;
        assert!(stalled.stalled);
        assert_eq!(check(&stalled, wall, 299).state.status, Status::InProgress);
        assert_eq!(check(&stalled, wall, 300).state.status, Status::Failed);
    }
}

#[test]
fn a_busy_job_is_never_looked_at_and_rarely_moves_its_next_look() {
    let mut job = job_in(Status::InProgress);
    let mut check_times = std::collections::HashSet::new();
    for secs in 1..100 {
        job = run(Some(&job), &progress(secs as f64), secs).unwrap().state;
        let check_time = job.check_uptime.unwrap();
        assert!(
            check_time > up(secs) && check_time <= up(secs + 60),
            "{check_time:?}"
        );
        check_times.insert(check_time);
    }
    assert!(
        check_times.len() < 40,
        "{} different times in 99 reports",
        check_times.len()
    );
}

#[test]
fn metadata_merges_keeps_its_order_and_is_bounded() {
    let job = run(
        None,
        &Command::Create(from(
            json!({"job_type": "t", "metadata": {"b": 1, "a": {"x": 1}}}),
        )),
        0,
    )
    .unwrap()
    .state;
    let merged = run(
        Some(&job),
        &Command::Progress(from(json!({"metadata": {"c": [1], "b": null, "a": 2}}))),
        1,
    )
    .unwrap()
    .state;
    assert_eq!(merged.metadata.get(), r#"{"a":2,"c":[1]}"#);
    let big = Command::Progress(from(json!({"metadata": {"x": "y".repeat(130)}})));
    assert!(matches!(
        run(Some(&job), &big, 1),
        Err(RuleError::TooLarge {
            field: "metadata",
            ..
        })
    ));
    let long = Command::Progress(from(json!({"message": "y".repeat(65)})));
    assert!(matches!(
        run(Some(&job), &long, 1),
        Err(RuleError::TooLarge {
            field: "message",
            ..
        })
    ));
}

/// The worker of attempt 1 is believed dead, and the job is tried again.
#[test]
fn a_worker_of_an_earlier_attempt_changes_nothing_unless_it_joins_the_present_one() {
    let as_worker = |body: serde_json::Value, name: &str| {
        let mut body = body;
        body["worker"] = json!(name);
        body
    };
    let begun = job_in(Status::Queued);
    let start = |name: &str| Command::Start(from(as_worker(json!({}), name)));
    let fail = Command::Fail(from(json!({"error": "lost", "attempt": 1})));
    let running = run(Some(&begun), &start("a"), 1).unwrap().state;
    let failed = run(Some(&running), &fail, 2).unwrap().state;
    let again = run(Some(&failed), &Command::Retry(from(json!({}))), 3)
        .unwrap()
        .state;
    let restarted = run(Some(&again), &start("b"), 4).unwrap().state;
    let reports = |name: &str| {
        [
            Command::Progress(from(as_worker(json!({"progress": 90}), name))),
            Command::Complete(from(as_worker(json!({}), name))),
            Command::Fail(from(as_worker(json!({"error": "x"}), name))),
            Command::Cancel(from(as_worker(json!({"force": true}), name))),
        ]
    };
    let over = run(Some(&restarted), &reports("b")[1], 5).unwrap().state;
    for job in [&again, &restarted, &over] {
        for report in reports("a") {
            let rejected = run(Some(job), &report, 5).map(|outcome| outcome.state.status);
            assert_eq!(rejected, Err(RuleError::StaleWorker { current: 2 }));
        }
    }
    for name in ["b", "never heard of"] {
        for report in reports(name) {
            assert!(run(Some(&restarted), &report, 5).is_ok(), "{name}");
        }
    }
    // It joins by starting the job, or by the number of the present attempt.
    let by_start = run(Some(&again), &start("a"), 4).unwrap().state;
    let by_number = Command::Progress(from(json!({"worker": "a", "attempt": 2})));
    let by_number = run(Some(&restarted), &by_number, 5).unwrap().state;
    for joined in [by_start, by_number] {
        for report in reports("a") {
            assert!(run(Some(&joined), &report, 6).is_ok());
        }
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(create("pending")),
        Just(Command::Queue(from(json!({"message": "m"})))),
        Just(Command::Start(from(json!({"metadata": {"k": 1}})))),
        (-10.0..110.0_f64)
            .prop_map(|percent| Command::Progress(from(json!({"progress": percent})))),
        Just(Command::Progress(from(json!({"progress": null})))),
        Just(Command::Progress(from(json!({"message": "word"})))),
        Just(Command::Complete(from(json!({"result": [1, 2]})))),
        Just(Command::Fail(from(
            json!({"error": {"code": "x", "message": "y"}})
        ))),
        any::<bool>().prop_map(|force| Command::Cancel(from(json!({"force": force})))),
        Just(Command::Retry(from(json!({})))),
        Just(Command::Check),
    ]
}

/// A command's fields, as they are.
struct Direct(serde_json::Value);

impl Body for Direct {
    type Error = serde_json::Error;

    fn read<T: serde::de::DeserializeOwned + schemars::JsonSchema>(
        self,
    ) -> Result<T, serde_json::Error> {
        serde_json::from_value(self.0)
    }
}

fn any_report() -> impl Strategy<Value = (&'static str, serde_json::Value)> {
    prop::sample::select(vec![
        ("start", json!({})),
        ("start", json!({})),
        ("progress", json!({"message": "word"})),
        ("complete", json!({})),
        ("fail", json!({"error": "x"})),
        ("fail", json!({"error": "x"})),
        ("cancel", json!({"force": false})),
        ("cancel", json!({"force": true})),
        ("retry", json!({})),
        ("retry", json!({})),
        ("retry", json!({})),
        ("queue", json!({})),
    ])
}

proptest! {
    /// Invariant 10, over random lives: any commands, in any order and at any pace.
    #[test]
    fn no_life_breaks_the_rules(steps in prop::collection::vec((any_command(), 0..200_i64), 1..60)) {
        let mut job: Option<Job> = None;
        let mut now = 0;
        for (command, pause) in steps {
            now += pause;
            let before = job.clone();
            let outcome = run(job.as_ref(), &command, now);
            let again = run(before.as_ref(), &command, now);
            prop_assert_eq!(outcome.is_ok(), again.is_ok(), "the rules depend on nothing but their arguments");
            let Ok(Outcome { state: after, drafts, .. }) = outcome else { continue };
            if let Some(before) = &before {
                let same_attempt = before.attempt == after.attempt;
                prop_assert!(after.attempt == before.attempt || (matches!(command, Command::Retry(_)) && after.attempt == before.attempt + 1));
                if before.status.is_terminal() && same_attempt {
                    prop_assert!(before.status == after.status && drafts.is_empty(), "a terminal status is final");
                }
                if let (true, Some(was), Some(is)) = (same_attempt, before.progress, after.progress) {
                    prop_assert!(is >= was, "progress fell from {} to {}", was, is);
                }
            }
            prop_assert!(after.progress.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
            prop_assert_eq!(after.end.is_some(), after.status.is_terminal());
            prop_assert_eq!(after.finished_at.is_some(), after.status.is_terminal());
            prop_assert_eq!(after.status == Status::Completed, matches!(after.end, Some(End::Result(_))));
            prop_assert!(!after.stalled || after.status == Status::InProgress);
            prop_assert!(drafts.is_empty() || after.eta.is_none_or(|eta| eta.at >= at(now) - TimeDelta::milliseconds(1)), "no end is foretold that has passed");
            prop_assert_eq!(after.check_uptime.is_some(), after.status == Status::InProgress);
            for draft in &drafts {
                let fields: serde_json::Value = serde_json::from_str(&draft.fields).unwrap();
                let status: Status = fields["status"].as_str().unwrap().parse().unwrap();
                prop_assert_eq!(fields.get("result").is_some() as u8 + fields.get("error").is_some() as u8, status.is_terminal() as u8);
                prop_assert!(draft.class == tidings::event::Class::Milestone || before.as_ref().map(|b| b.status) == Some(after.status),
                    "a tick changes no status");
            }
            job = Some(after);
        }
    }

    /// Fencing, against a model that remembers of each reporter the last attempt that it joined.
    #[test]
    fn a_stale_reporter_never_changes_a_later_attempt(
        steps in prop::collection::vec((any_report(), 0..3_usize, any::<bool>(), prop::option::of(1..4_u32)), 1..80),
    ) {
        let names = ["a", "b", "c"];
        let mut job = job_in(Status::Queued);
        let mut joined: HashMap<(bool, usize), u32> = HashMap::new();
        for (now, ((verb, mut body), who, by_token, attempt)) in (1..).zip(steps) {
            let mut context = context(now, None);
            let is_report = !matches!(verb, "retry" | "queue");
            if by_token {
                context.sub = Some(names[who]);
            } else if is_report {
                body["worker"] = json!(names[who]);
            }
            let attempt = attempt.filter(|_| is_report);
            if let Some(attempt) = attempt {
                body["attempt"] = json!(attempt);
            }
            let is_fenced = match verb {
                "progress" | "complete" | "fail" => true,
                "cancel" => body["force"] == true,
                _ => false,
            };
            let command = Command::read(verb, Direct(body)).unwrap().unwrap();
            let outcome = apply(&id(), Some(&job), &command, &context);
            let last = joined.get(&(by_token, who)).copied();
            let expected = match attempt {
                Some(given) if given != job.attempt => Some(RuleError::StaleAttempt { current: job.attempt, given }),
                None if is_fenced && last.is_some_and(|last| last < job.attempt) => {
                    Some(RuleError::StaleWorker { current: job.attempt })
                }
                _ => None,
            };
            match (outcome, expected) {
                (outcome, Some(expected)) => prop_assert_eq!(outcome.map(|_| ()), Err(expected)),
                (Err(error), None) => prop_assert!(
                    !matches!(error, RuleError::StaleAttempt { .. } | RuleError::StaleWorker { .. }), "{}", error
                ),
                (Ok(outcome), None) => {
                    job = outcome.state;
                    if matches!(verb, "start" | "progress" | "complete" | "fail") {
                        joined.insert((by_token, who), job.attempt);
                    }
                }
            }
        }
    }
}
