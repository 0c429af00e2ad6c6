//! Decisions without a database: what a group of commands leads to depends on facts, commands and time alone.

use std::sync::Arc;

use chrono::DateTime;
use serde_json::json;
use tidings::config::{Bounded, Settings};
use tidings::id::SchoolId;
use tidings::kind::{Command, RuleError, characteristic, device, enrollment};
use tidings::log::decide::{Decisions, Rules};
use tidings::log::facts::Moment;
use tidings::log::writer::{Pace, Writer};
use tidings::log::{
    Allowance, CommandError, CommitMetrics, Committed, Envelope, Idempotency, Receipt, Room,
    StoreError,
};
use tidings::uptime::Uptime;

use crate::support::commands::{command, job};
use crate::support::memory::Memory;

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn create(id: &str) -> Envelope {
    job(id, "create", json!({"job_type": "scan"}))
}

fn with_key(mut envelope: Envelope, key: &str, fingerprint: &str) -> Envelope {
    envelope.idempotency = Some(Idempotency {
        key: key.into(),
        fingerprint: fingerprint.into(),
    });
    envelope
}

fn rules(jobs_per_school: u64) -> Rules {
    let settings = Settings {
        jobs_per_school: Bounded::new(jobs_per_school).unwrap(),
        ..Settings::default()
    };
    Rules {
        epoch: "00000001".parse().unwrap(),
        limits: settings.limits(),
        max_subjects: settings.max_subjects(),
    }
}

const NOW: Moment = Moment {
    at: DateTime::UNIX_EPOCH,
    uptime: Uptime::from_millis(0),
};

/// Decides these one after the other, as one group.
fn decided(
    rules: &Rules,
    facts: &mut Memory,
    decisions: &mut Decisions,
    envelopes: &[Envelope],
) -> Vec<Result<Receipt, CommandError>> {
    let decide = |envelope| {
        let decision = rules.decide(facts, decisions, school(1), envelope, Room::UNLIMITED, NOW);
        decision.unwrap().receipt
    };
    envelopes.iter().map(decide).collect()
}

fn seqs(decisions: &Decisions) -> Vec<u64> {
    decisions.events.iter().map(|event| event.seq).collect()
}

#[test]
fn a_command_finds_what_the_commands_of_its_group_before_it_left() {
    let mut decisions = Decisions::default();
    let receipts = decided(
        &rules(10),
        &mut Memory::default(),
        &mut decisions,
        &[
            create("a"),
            create("a"),
            job("a", "start", json!({})),
            job("a", "progress", json!({"progress": 50})),
            job("b", "start", json!({})),
        ],
    );
    let rejected = |index: usize| receipts[index].as_ref().unwrap_err();
    assert!(matches!(
        rejected(1),
        CommandError::Rule(RuleError::AlreadyExists { .. })
    ));
    assert!(matches!(
        rejected(4),
        CommandError::Rule(RuleError::NotFound { .. })
    ));
    assert_eq!(
        seqs(&decisions),
        [1, 2, 3],
        "without a hole for the refused"
    );
    assert_eq!(decisions.states.len(), 1);
    let tail = decisions.tails[&school(1)];
    assert_eq!(tail.head.seq, 3);
    assert!(decisions.has_milestone);
    let bytes: usize = decisions.events.iter().map(|event| event.bytes()).sum();
    assert_eq!(tail.bytes, bytes as u64, "all of them are kept");
}

#[test]
fn ticks_alone_are_no_milestone() {
    let (rules, mut facts) = (rules(10), Memory::default());
    let mut decisions = Decisions::default();
    let begin = [create("a"), job("a", "start", json!({}))];
    decided(&rules, &mut facts, &mut decisions, &begin);
    facts.take_in(&mut decisions);
    let mut decisions = Decisions::default();
    let tick = job("a", "progress", json!({"message": "on"}));
    decided(&rules, &mut facts, &mut decisions, &[tick]);
    assert_eq!(
        (seqs(&decisions), decisions.has_milestone),
        (vec![3], false)
    );
}

#[test]
fn deciding_changes_no_fact_and_the_same_facts_lead_to_the_same() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let mut before = Decisions::default();
    decided(&rules, &mut facts, &mut before, &[create("a")]);
    facts.take_in(&mut before);
    let answers_of = |facts: &mut Memory| {
        let mut decisions = Decisions::default();
        let envelopes = [
            with_key(job("a", "start", json!({})), "k", "1"),
            job("a", "progress", json!({"progress": 10, "message": "on"})),
        ];
        decided(&rules, facts, &mut decisions, &envelopes);
        let fields = decisions
            .events
            .iter()
            .map(|event| (event.seq, event.draft.fields.clone()));
        fields.collect::<Vec<_>>()
    };
    let first = answers_of(&mut facts);
    assert_eq!(first.len(), 2);
    assert_eq!(answers_of(&mut facts), first);
    assert_eq!(facts.events.len(), 1);
}

#[test]
fn a_school_may_not_create_more_within_a_group_than_one_after_the_other() {
    let rules = rules(2);
    let mut facts = Memory::default();
    let mut decisions = Decisions::default();
    let three = [create("a"), create("b"), create("c")];
    let receipts = decided(&rules, &mut facts, &mut decisions, &three);
    let is_too_many = |receipt: &Result<Receipt, CommandError>| {
        matches!(receipt, Err(CommandError::Rule(RuleError::TooMany { .. })))
    };
    assert!(receipts[1].is_ok() && is_too_many(&receipts[2]));
    facts.take_in(&mut decisions);
    let mut next = Decisions::default();
    assert!(is_too_many(
        &decided(&rules, &mut facts, &mut next, &[create("d")])[0]
    ));
    assert!(next.events.is_empty() && next.states.is_empty());
}

#[test]
fn an_id_of_a_violation_is_used_once_within_a_group_and_afterwards() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let to = |id: &str, verb, body| command(characteristic::KIND, id, verb, body);
    let violation = |id: &str| to(id, "violations", json!({"rule_id": 1, "violation_id": "v"}));
    let mut decisions = Decisions::default();
    let put = ["a", "b"].map(|id| to(id, "put", json!({})));
    let receipts = decided(&rules, &mut facts, &mut decisions, &put);
    assert!(receipts.iter().all(Result::is_ok), "{receipts:?}");
    for expected in [[true, false], [false, false]] {
        let both = ["a", "b"].map(violation);
        let receipts = decided(&rules, &mut facts, &mut decisions, &both);
        let is_taken = |receipt: &Result<Receipt, CommandError>| {
            matches!(
                receipt,
                Err(CommandError::Rule(RuleError::AlreadyExists { .. }))
            )
        };
        let accepted: Vec<bool> = receipts.iter().map(|receipt| !is_taken(receipt)).collect();
        assert_eq!(accepted, expected, "{receipts:?}");
        facts.take_in(&mut decisions);
        decisions = Decisions::default();
    }
    let parts: Vec<_> = facts.parts.values().collect();
    let violation = parts[0].characteristic().unwrap();
    assert_eq!((parts.len(), violation.seq), (1, 3), "of its own event");
}

#[test]
fn a_device_is_held_by_one_session_within_a_group_and_afterwards() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let session = |id: &str, verb, body| command(enrollment::KIND, id, verb, body);
    let start = |id: &str| session(id, "create", json!({"device_id": "d"}));
    let mut decisions = Decisions::default();
    let is_held = |receipt: &Result<Receipt, CommandError>| {
        let error = receipt.as_ref().err();
        matches!(error, Some(CommandError::Rule(RuleError::Held { .. })))
    };
    let register = command(device::KIND, "d", "put", json!({}));
    let first = [register, start("a"), start("b")];
    let receipts = decided(&rules, &mut facts, &mut decisions, &first);
    assert!(receipts[..2].iter().all(Result::is_ok), "{receipts:?}");
    assert!(is_held(&receipts[2]), "{receipts:?}");
    facts.take_in(&mut decisions);
    let mut decisions = Decisions::default();
    let cancel = session("a", "cancel", json!({}));
    let second = [start("b"), cancel, start("b"), start("c")];
    let receipts = decided(&rules, &mut facts, &mut decisions, &second);
    assert!(
        is_held(&receipts[0]) && is_held(&receipts[3]),
        "{receipts:?}"
    );
    assert!(receipts[1..3].iter().all(Result::is_ok), "{receipts:?}");
}

#[test]
fn a_violation_can_be_acknowledged_within_its_group_and_only_once() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let mut decisions = Decisions::default();
    let to = |verb, body| command(characteristic::KIND, "c", verb, body);
    let acknowledge = || {
        let acknowledge = characteristic::Acknowledge {
            number: 1,
            user: "ann".into(),
            reason: "known".into(),
        };
        let command = characteristic::Command::Acknowledge(acknowledge);
        Envelope::new("c".parse().unwrap(), Command::Characteristic(command))
    };
    let first = [
        to("put", json!({})),
        to("violations", json!({"rule_id": 1})),
        acknowledge(),
        acknowledge(),
    ];
    let receipts = decided(&rules, &mut facts, &mut decisions, &first);
    assert!(receipts[..3].iter().all(Result::is_ok), "{receipts:?}");
    assert!(receipts[3].is_err(), "{receipts:?}");
}

/// Stores count subjects by what has changed.
#[test]
fn a_group_says_how_a_subject_was_counted_before_it() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let mut decisions = Decisions::default();
    decided(&rules, &mut facts, &mut decisions, &[create("a")]);
    assert!(decisions.before.is_empty(), "a new one was not counted");
    facts.take_in(&mut decisions);
    let mut decisions = Decisions::default();
    let start = job("a", "start", json!({}));
    let complete = job("a", "complete", json!({}));
    let second = [start, complete, create("b")];
    decided(&rules, &mut facts, &mut decisions, &second);
    let statuses = decisions.before.values().map(|subject| subject.status);
    assert_eq!(statuses.collect::<Vec<_>>(), ["pending"]);
}

#[test]
fn a_key_is_used_once_within_a_group_and_afterwards() {
    let rules = rules(10);
    let mut facts = Memory::default();
    let mut decisions = Decisions::default();
    let create_a = || with_key(create("a"), "k", "1");
    let create_b = || with_key(create("b"), "k", "2");
    for _ in 0..2 {
        let receipts = decided(
            &rules,
            &mut facts,
            &mut decisions,
            &[create_a(), create_a(), create_b()],
        );
        assert!(matches!(&receipts[1], Ok(Receipt::Repeated(event)) if event.seq == 1));
        assert_eq!(receipts[2].as_ref().unwrap_err(), &CommandError::KeyReused);
        facts.take_in(&mut decisions);
        decisions = Decisions::default();
    }
    assert_eq!(facts.events.len(), 1);
    assert_eq!(facts.states.len(), 1);
}

/// The rest of a group is not affected by a commit that failed, and the next one finds the facts as they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_has_no_effect_and_the_next_one_begins_where_it_did() {
    let memory = Memory {
        failures: 1,
        ..Memory::default()
    };
    let (committed, mut batches) = Committed::channel(8);
    let metrics = Arc::<CommitMetrics>::default();
    let (writer, handle) = Writer::new(
        memory,
        rules(10),
        committed,
        Arc::clone(&metrics),
        Arc::new(Pace::new(0)),
    );
    let thread = std::thread::spawn(|| writer.run());
    let append = |envelopes| handle.append(school(1), envelopes, Arc::<Allowance>::default());
    let failed = append(vec![create("a"), job("a", "start", json!({}))]).await;
    assert_eq!(failed.unwrap_err(), StoreError::NotCommitted);
    let receipts = append(vec![create("a")]).await.unwrap();
    assert!(matches!(&receipts[0], Ok(Receipt::Committed(event)) if event.seq == 1));
    let batch = batches.recv().await.unwrap();
    assert_eq!(batch.len(), 1, "what failed is delivered to nobody");
    assert_eq!(metrics.peek().commits, 1);
    let closing = tokio::spawn(async move { handle.close().await });
    let answer = thread.join().unwrap().expect("somebody waits");
    answer.send(Ok(())).unwrap();
    closing.await.unwrap().unwrap();
}
