//! The rules of enrollment sessions, devices and characteristics as pure functions: properties of random lives.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};
use tidings::event::{Class, Draft};
use tidings::id::SubjectId;
use tidings::kind::characteristic::nelson::{Rule, is_broken};
use tidings::kind::characteristic::{self, Violation};
use tidings::kind::{Context, Part, device, enrollment};
use tidings::uptime::Uptime;

use crate::support::LIMITS;

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + secs, 0).unwrap()
}

fn up(secs: i64) -> Uptime {
    Uptime::from_millis(secs.unsigned_abs() * 1_000)
}

fn heard(secs: i64) -> device::Heard {
    device::Heard {
        at: at(secs),
        uptime: up(secs),
    }
}

fn id() -> SubjectId {
    "s".parse().unwrap()
}

fn context<'a>(secs: i64, next_seq: u64, part: Option<&'a Part>) -> Context<'a> {
    Context {
        now: at(secs),
        limits: &LIMITS,
        history: None,
        uptime: up(secs),
        sub: None,
        next_seq,
        holder: None,
        part,
        taken_part: None,
    }
}

fn from<T: serde::de::DeserializeOwned>(body: Value) -> T {
    serde_json::from_value(body).unwrap()
}

fn fields_of(draft: &Draft) -> Value {
    serde_json::from_str(&draft.fields).unwrap()
}

fn any_enrollment() -> impl Strategy<Value = enrollment::Command> {
    use enrollment::Command;
    let statuses = prop::sample::select(vec![
        "ready",
        "placing",
        "capturing",
        "processing",
        "complete",
    ]);
    let report = (
        prop::option::of(statuses),
        prop::option::of(0..6_u32),
        prop::option::of(-5.0..120.0),
    );
    prop_oneof![
        prop::option::of(0..5_u32).prop_map(|total| {
            Command::Start(from(json!({"device_id": "d", "total_attempts": total})))
        }),
        report.prop_map(|(status, attempt, progress)| {
            let body = json!({"status": status, "attempt": attempt, "progress": progress});
            Command::Progress(from(body))
        }),
        Just(Command::Complete(from(json!({"quality_score": 80})))),
        Just(Command::Error(from(json!({"code": "duplicate_finger"})))),
        Just(Command::Cancel(from(json!({})))),
        Just(Command::Check),
        Just(Command::Check),
    ]
}

fn any_device() -> impl Strategy<Value = device::Command> {
    use device::Command;
    prop_oneof![
        Just(Command::Register(from(json!({"name": "Door"})))),
        (0..3_u32).prop_map(|lease| Command::Register(from(json!({"lease_secs": lease})))),
        Just(Command::Report(from(json!({"status": "online"})))),
        Just(Command::Report(from(json!({"status": "offline"})))),
        (0..3_u32).prop_map(|a| Command::Info(from(json!({"info": {"a": a}})))),
        (0..5_000_i64, prop::option::of(0..5_000_i64)).prop_map(|(secs, before)| Command::Arrive {
            heard: heard(secs),
            before: before.map(up),
        }),
        (0..5_000_i64).prop_map(|secs| Command::Seen(heard(secs))),
        Just(Command::Expire(None)),
        (0..5_000_i64).prop_map(|secs| Command::MarkUnknown {
            since: up(secs),
            unwritten: Duration::from_secs(10),
        }),
        Just(Command::Check),
    ]
}

fn acknowledge(number: u64) -> characteristic::Acknowledge {
    characteristic::Acknowledge {
        number,
        user: "ann".into(),
        reason: "known".into(),
    }
}

fn any_characteristic() -> impl Strategy<Value = characteristic::Command> {
    use characteristic::Command;
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    prop_oneof![
        1 => Just(Command::Register(from(json!({"rules": [1, 2, 3, 4, 5, 6, 7, 8, 101], "limits": limits.clone()})))),
        1 => Just(Command::Register(from(json!({"rules": [1, 3, 101]})))),
        1 => Just(Command::Limits(from(json!({"method": "moving_range", "samples": 3})))),
        1 => Just(Command::Limits(from(limits))),
        20 => (-5.0..5.0).prop_map(|value| Command::Sample(from(json!({"value": value})))),
        5 => (-2..3_i32).prop_map(|value| Command::Sample(from(json!({"value": value})))),
        2 => Just(Command::Sample(from(json!({"value": null})))),
        1 => Just(Command::Violation(from(json!({"rule_id": 99, "rule_name": "Odd"})))),
        2 => (1..6_u64).prop_map(|number| Command::Acknowledge(acknowledge(number))),
        1 => (1..6_u64).prop_map(|number| Command::Unacknowledge(acknowledge(number))),
    ]
}

proptest! {
    /// Invariant 10: a terminal status is final, progress never falls.
    #[test]
    fn no_enrollment_breaks_the_rules(
        steps in prop::collection::vec((any_enrollment(), 0..50_i64), 1..40),
    ) {
        let mut session: Option<enrollment::Session> = None;
        let mut now = 0;
        for (command, pause) in steps {
            now += pause;
            let outcome = enrollment::apply(&id(), session.as_ref(), &command, &context(now, 1, None));
            let Ok(outcome) = outcome else { continue };
            let (before, after) = (session.take(), outcome.state);
            if let Some(before) = &before {
                prop_assert!(after.progress >= before.progress);
                prop_assert!(after.attempt >= before.attempt);
                if before.status.is_terminal() {
                    prop_assert!(before.status == after.status && outcome.drafts.is_empty());
                }
            }
            prop_assert_eq!(after.finished_at.is_some(), after.status.is_terminal());
            prop_assert_eq!(after.check_uptime.is_some(), !after.status.is_terminal());
            prop_assert_eq!(after.status == enrollment::Status::Error, after.error_code.is_some());
            prop_assert_eq!(after.progress == 100, after.status == enrollment::Status::Complete);
            let silent = up(now).since(after.heard_uptime).as_secs() >= u64::from(after.lease_secs);
            prop_assert!(!(silent && matches!(command, enrollment::Command::Check)) || after.status.is_terminal());
            for draft in &outcome.drafts {
                let fields = fields_of(draft);
                prop_assert_eq!(&fields["status"], draft.status);
                let changes = before.as_ref().map(|before| before.status) != Some(after.status);
                prop_assert!(draft.class == Class::Milestone || !changes, "a tick changes no status");
            }
            session = Some(after);
        }
    }

    /// What is published is what changed, and each event has the place that the state remembers.
    #[test]
    fn no_device_breaks_the_rules(steps in prop::collection::vec((any_device(), 0..200_i64), 1..40)) {
        let mut device: Option<device::Device> = None;
        let (mut now, mut seq) = (0, 0);
        for (command, pause) in steps {
            now += pause;
            let outcome = device::apply(&id(), device.as_ref(), &command, &context(now, seq + 1, None));
            let Ok(outcome) = outcome else { continue };
            let (before, after) = (device.take(), outcome.state);
            for draft in &outcome.drafts {
                seq += 1;
                let is_status = *draft.event_type == device::DEVICE_STATUS_UPDATE;
                let place = if is_status { Some(after.reported_status) } else { after.reported_info };
                prop_assert_eq!(place, Some((seq, at(now))));
            }
            if let Some(before) = &before {
                let changes = before.status != after.status || before.flapping != after.flapping;
                let publishes = outcome.drafts.iter().any(|draft| *draft.event_type == device::DEVICE_STATUS_UPDATE);
                prop_assert!(publishes || !changes, "every change is published");
                prop_assert!(after.last_seen >= before.last_seen, "it is not seen before it was");
                if let (true, Some(seen)) = (after.status == device::Status::Offline, before.last_seen) {
                    prop_assert!(after.last_seen >= Some(seen), "it stays when the device goes");
                }
            }
            prop_assert!(after.changes.len() <= device::FLAP_CHANGES);
            prop_assert_eq!(after.flapping, after.check_uptime.is_some());
            device = Some(after);
        }
    }

    /// With several nodes, heartbeats can become known after a report that came later.
    #[test]
    fn heartbeats_from_before_an_offline_report_do_not_bring_a_device_online(
        times in prop::collection::vec(1..20_i64, 4),
        is_online in prop::bool::ANY,
    ) {
        use device::{Command, Status};
        let apply = |state: Option<&device::Device>, command: &Command, now: i64| {
            device::apply(&id(), state, command, &context(now, 1, None)).unwrap().state
        };
        let arrive = |before: i64, last: i64| Command::Arrive { heard: heard(last), before: Some(up(before)) };
        let offline = Command::Report(from(json!({"status": "offline"})));
        let mut now = 0;
        let mut next = |pause: i64| { now += pause; now };
        let mut door = apply(None, &Command::Register(from(json!({"lease_secs": 600}))), 0);
        door = apply(Some(&door), &offline, next(1));
        let [first, second, reported, third] = [0, 1, 2, 3].map(|index| next(times[index]));
        if is_online {
            door = apply(Some(&door), &arrive(first, second), second);
            prop_assert_eq!(door.status, Status::Online);
        }
        door = apply(Some(&door), &offline, reported);
        door = apply(Some(&door), &arrive(first, second), reported);
        door = apply(Some(&door), &arrive(second, third), third);
        prop_assert_eq!(door.status, Status::Offline);
        door = apply(Some(&door), &arrive(third, third + 1), third + 1);
        prop_assert_eq!(door.status, Status::Online);
    }

    /// A lease is over when it is, in uptime, whatever the wall clock says and however often the server starts anew. What
    /// was not written down before an unexpected end is made up for once.
    #[test]
    fn no_restart_renews_a_lease(
        pauses in prop::collection::vec((0..20_i64, -100_000..100_000_i64), 1..20),
        heard_at in 0..50_i64,
    ) {
        use device::{Command, Status};
        let apply = |state: &device::Device, command: &Command, uptime: i64, wall: i64| {
            let context = Context { now: at(wall), ..context(uptime, 1, None) };
            device::apply(&id(), Some(state), command, &context).unwrap().state
        };
        let register = Command::Register(from(json!({"lease_secs": 30})));
        let new = device::apply(&id(), None, &register, &context(0, 1, None)).unwrap().state;
        let arrive = Command::Arrive { heard: heard(heard_at), before: Some(up(heard_at)) };
        let mut device = apply(&new, &arrive, heard_at, heard_at);
        let (mut now, mut due) = (heard_at, None);
        for (pause, wall) in pauses {
            now += pause;
            let mark = Command::MarkUnknown { since: up(now), unwritten: Duration::from_secs(10) };
            device = apply(&device, &mark, now, wall);
            let due = *due.get_or_insert(now.min(heard_at + 10) + 30);
            device = apply(&device, &Command::Expire(None), now, wall);
            let expected = if now >= due { Status::Offline } else { Status::Unknown };
            prop_assert_eq!(device.status, expected, "at {}, due at {}", now, due);
        }
    }

    /// One violation for each rule and run; what a sample says is what the rules say of the points since the limits.
    #[test]
    fn no_characteristic_breaks_the_rules(steps in prop::collection::vec(any_characteristic(), 1..80)) {
        let mut state: Option<characteristic::Characteristic> = None;
        let mut violations: Vec<Violation> = Vec::new();
        let mut seq = 0;
        for command in steps {
            let known = match &command {
                characteristic::Command::Acknowledge(asked) | characteristic::Command::Unacknowledge(asked) => {
                    violations.iter().find(|violation| violation.number == asked.number)
                }
                _ => None,
            };
            let open = known.is_some_and(|violation| violation.acknowledgement.is_none());
            let acknowledged = known.is_some_and(|violation| violation.acknowledgement.is_some());
            let part = known.cloned().map(Part::Characteristic);
            let outcome = characteristic::apply(&id(), state.as_ref(), &command, &context(0, seq + 1, part.as_ref()));
            if let characteristic::Command::Acknowledge { .. } = command {
                prop_assert_eq!(outcome.is_ok(), open, "each once");
            }
            if let characteristic::Command::Unacknowledge { .. } = command {
                prop_assert_eq!(outcome.is_ok(), acknowledged, "only what is acknowledged");
            }
            let Ok(outcome) = outcome else { continue };
            let (before, after) = (state.take(), outcome.state);
            let first = seq + 1;
            seq += outcome.drafts.len() as u64;
            for violation in outcome.parts.iter().filter_map(Part::characteristic) {
                match violations.iter_mut().find(|earlier| earlier.number == violation.number) {
                    Some(earlier) => *earlier = violation.clone(),
                    None => {
                        let index = (violation.seq - first) as usize;
                        let fields = fields_of(&outcome.drafts[index]);
                        prop_assert_eq!(&fields["payload"]["violation_id"], &json!(violation.id()));
                        violations.push(violation.clone());
                    }
                }
            }
            prop_assert_eq!(after.violation_count, violations.len() as u64);
            if let characteristic::Command::Sample(_) = command {
                let fields = fields_of(&outcome.drafts[0]);
                let payload = &fields["payload"];
                let judged = before.as_ref().and_then(|before| before.limits.clone());
                let is_gap = payload["value"].is_null();
                let version = judged.as_ref().map(|limits| limits.version).filter(|_| !is_gap);
                prop_assert_eq!(&payload["limits_version"], &json!(version));
                prop_assert!(!is_gap || after.recent.is_empty() && after.runs.is_empty());
                let relearnt = after.limits_version != before.as_ref().map_or(0, |before| before.limits_version);
                if let (Some(limits), false) = (judged, relearnt) {
                    let dispersion = payload["dispersion"]["zone"].as_str().unwrap_or_default();
                    let is_broken = |rule: &Rule| match rule {
                        Rule::Dispersion => dispersion.starts_with("beyond"),
                        _ => is_broken(*rule, &after.recent, &limits.chart.lines()),
                    };
                    let broken: HashSet<Rule> = after.rules.iter().map(|(rule, _)| *rule)
                        .filter(is_broken).collect();
                    let running: HashSet<Rule> = after.runs.iter().map(|(rule, _)| *rule).collect();
                    prop_assert_eq!(&broken, &running);
                    let ran: HashSet<Rule> = before.iter().flat_map(|before| before.runs.iter().map(|(rule, _)| *rule)).collect();
                    prop_assert_eq!(outcome.parts.len(), broken.difference(&ran).count(), "one for each run");
                }
                let opens = !outcome.parts.is_empty();
                prop_assert_eq!(outcome.drafts[0].class == Class::Milestone, opens);
            }
            prop_assert!(after.recent.len() <= characteristic::nelson::WINDOW);
            state = Some(after);
        }
    }
}

/// The clock of a node that was suspended is behind those of the others until they have exchanged reports.
#[test]
fn a_report_with_an_earlier_uptime_does_not_move_the_lease_of_a_session_back() {
    use enrollment::{Command, apply};
    let start = Command::Start(from(json!({"device_id": "d", "lease_secs": 60})));
    let started = apply(&id(), None, &start, &context(3_600, 1, None)).unwrap();
    let report = Command::Progress(from(json!({"status": "capturing"})));
    let reported = apply(&id(), Some(&started.state), &report, &context(10, 2, None)).unwrap();
    assert!(reported.state.heard_uptime >= up(3_600));
    let checked = apply(
        &id(),
        Some(&reported.state),
        &Command::Check,
        &context(3_601, 3, None),
    );
    assert!(checked.unwrap().drafts.is_empty(), "it is not silent");
}
