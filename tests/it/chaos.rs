//! The chaos run itself, which is a program of its own (`tests/chaos`): what it says when the server is not there any more.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::process::binary;
use crate::support::python_with_websockets;

/// Longer than a run takes to see that its server is gone, shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server that starts once, and not again.
fn starts_once(folder: &Path) -> std::path::PathBuf {
    let program = folder.join("starts-once");
    let script = format!(
        "#!/bin/sh\nif mkdir '{}' 2>/dev/null; then exec '{}' \"$@\"; fi\necho 'no further start' >&2\nexit 7\n",
        folder.join("started").display(),
        binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a chaos run"]
async fn a_chaos_run_whose_server_does_not_start_again_ends_and_says_why() {
    let Some(python) = python_with_websockets() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut run = tokio::process::Command::new(&python);
    run.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/run.py"))
        .args([
            "--faults",
            "kill",
            "--seconds",
            "600",
            "--seed",
            "1",
            "--binary",
        ])
        .arg(starts_once(folder.path()))
        // Where it leaves what it found.
        .env("TMPDIR", folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, run.output()).await;
    let output = output.expect("the run ends").unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    let broken = stdout.split_once("BROKEN (seed 1): ").expect(&stdout).1;
    assert!(
        broken.contains("start 2 ended with exit code 7"),
        "{stdout}"
    );
    assert!(broken.contains("no further start"), "{stdout}");
}

/// What every story knows: events of one school, and whether the model says that a promise is broken.
const STORY: &str = r#"
from ledger import Broken, Histories, Reading, School
from types import SimpleNamespace

ALL = SimpleNamespace(is_all_jobs=True, hears=lambda event: True)

def event(seq, tag, job="a", **more):
    said = {"job_id": job, "status": "in_progress", "progress": int(tag)}
    return {"type": "job_progress", "cursor": f"e-{seq}-{tag}", "seq": seq, "school_id": 1} | said | more

def ready(seq, tag):
    return {"type": "ready", "cursor": f"e-{seq}-{tag}"}

def broken(act, *arguments):
    try:
        act(*arguments)
    except Broken as broken:
        return str(broken)
    return ""

school = School(1)
reading = Reading(school, ALL, True, "reader")
"#;

/// Tells the model this story, which asserts what the model makes of it.
fn run_story(story: &str) {
    let Some(python) = python_with_websockets() else {
        return;
    };
    let mut command = Command::new(python);
    command
        .args(["-c", &format!("{STORY}{story}")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env(
            "PYTHONPATH",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos"),
        );
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A power loss takes events that some have received. What is heard of the life before, later, says nothing of the present one.
#[test]
fn an_event_of_a_lost_life_that_is_heard_late_is_not_asked_for_in_the_next_one() {
    run_story(
        r#"
school.saw(event(2, "01", "lost"), 0)
for seq, job in [(1, "a"), (2, "b")]:
    school.saw(event(seq, "02", job), 1)
school.saw(event(2, "01", "lost"), 0)
reading.connected("sse", None, 1)
for seq, job in [(1, "a"), (2, "b")]:
    reading.take(event(seq, "02", job) | {"snapshot": True})
reading.take(ready(2, "02"))
"#,
    );
}

#[test]
fn the_chaos_model_allows_that_a_power_loss_takes_ticks_and_nothing_else() {
    run_story(
        r#"
school.acknowledge(event(1, "01", status="queued"), 0)
school.acknowledge(event(2, "02"), 0)
school.acknowledge(event(3, "03"), 0)
school.acknowledge(event(3, "13"), 1)
school.saw(event(2, "02"), 1)
whole = {1: "01", 2: "02", 3: "13"}
assert Histories(school, 2).check_log(whole) == 1
school.acknowledge(event(4, "04", status="completed"), 0)
assert "4-04 was acknowledged in life 0" in broken(Histories(school, 2).check_log, whole)
school.acknowledged.pop()
school.acknowledge(event(4, "14"), 1)
assert "4-14 was acknowledged in life 1" in broken(Histories(school, 2).check_log, whole)
"#,
    );
}

#[test]
fn the_chaos_model_finds_a_reset_of_a_cursor_whose_event_is_there_and_a_lost_one_that_is_honoured()
{
    run_story(
        r#"
def comes_back(cursor, *messages):
    school = School(1)
    for seq, tag, life in [(1, "01", 0), (2, "02", 0), (1, "01", 1), (2, "12", 1)]:
        school.saw(event(seq, tag), life)
    reading = Reading(school, ALL, True, "reader")
    reading.cursors = [cursor]
    reading.connected("sse", cursor, 1)
    for message in messages:
        reading.take(message)
    return broken(Histories(school, 2).check_cursors)

reset = {"type": "reset", "reason": "history_changed"}
assert not comes_back("e-2-02", reset)
assert not comes_back("e-1-01", event(2, "12"), ready(2, "12"))
assert "e-1-01 was answered with a reset" in comes_back("e-1-01", reset)
assert "e-2-02 was honoured in life 1, and the log has 2-12" in comes_back("e-2-02", ready(2, "12"))
"#,
    );
}

#[test]
fn the_chaos_model_finds_a_history_that_changes_in_its_middle_or_without_a_power_loss() {
    run_story(
        r#"
for seq, tag, life in [(1, "01", 0), (2, "02", 0), (1, "11", 1), (2, "02", 1)]:
    school.saw(event(seq, tag), life)
assert "1 is another event in life 1, and later ones are the same" in broken(Histories, school, 2)
assert "two events at 2 in life 1" in broken(school.saw, event(2, "12"), 1)
assert "another epoch" in broken(school.saw, event(3, "03") | {"cursor": "f-3-03"}, 1)
"#,
    );
}

#[test]
fn the_chaos_model_asks_for_what_follows_a_cursor_in_the_life_in_which_it_is_honoured() {
    run_story(
        r#"
def across(*messages):
    school, life = School(1), 0
    reading = Reading(school, ALL, True, "reader")
    reading.connected("sse", None, 0)
    reading.take(ready(1, "01"))
    for message in [event(2, "02"), event(3, "03")]:
        reading.take(message)
    reading.connected("sse", "e-2-02", 1)
    for message in messages:
        reading.take(message)
    for seq, tag in [(1, "01"), (2, "02"), (3, "13"), (4, "14")]:
        school.saw(event(seq, tag), 1)
    return broken(reading.check, Histories(school, 2))

new = [event(3, "13"), event(4, "14")]
assert not across(*new)
assert "3 (every tick) is missing in (1, 4] of life 1" in across(new[1])
"#,
    );
}

/// What every story of several nodes knows: the log of a life, and the next one's, which lacks its third event.
const CLUSTER: &str = r#"
from types import SimpleNamespace
from truth import Log, Reading, School, Truth, Walk

LOST = [event(1, "01"), event(2, "02"), event(3, "03"), event(4, "04")]
KEPT = [event(1, "01"), event(2, "02"), event(3, "13", "b"), event(4, "14", "b")]

def judged(*connections, logs=(LOST, KEPT), every_tick=True):
    """Each connection: the cursor, the life in which it began, and the messages; a number is the life from then on."""
    school = School(1)
    reading = Reading(school, ALL, every_tick, "reader")
    now = [0]
    reading.life = lambda: now[0]
    for cursor, life, *messages in connections:
        now[0] = life
        reading.connected("sse", cursor, life)
        for message in messages:
            if isinstance(message, int):
                now[0] = message
            else:
                reading.take(message)
    return broken(lambda: Walk(Truth(school, map(Log, logs)), reading).check())

reset = {"type": "reset", "reason": "history_changed"}
state = [event(1, "01") | {"snapshot": True}]
"#;

pub(crate) fn run_story_of_several_nodes(story: &str) {
    run_story(&format!("{CLUSTER}{story}"));
}

#[test]
fn the_model_of_several_nodes_finds_what_a_reader_missed_received_twice_or_out_of_order() {
    run_story_of_several_nodes(
        r#"
one = (LOST,)
whole = (None, 0, *state, ready(1, "01"), *LOST[1:])
assert not judged(whole, logs=one)
assert "2 (every tick) is missing" in judged((None, 0, *state, ready(1, "01"), *LOST[2:]), logs=one)
assert not judged((None, 0, *state, ready(1, "01"), *LOST[2:]), logs=one, every_tick=False)
assert "after (2, '02')" in judged((None, 0, *state, ready(1, "01"), LOST[1], LOST[1]), logs=one)
assert "after (3, '03')" in judged((None, 0, *state, ready(1, "01"), LOST[1], LOST[2], LOST[1]), logs=one)
assert "4 (every tick) is missing" in judged(whole[:-1] + (ready(4, "04"),), logs=one)
assert "left out" in judged(whole[:-1] + (ready(4, "04"),), logs=one, every_tick=False)
assert "before the state of" in judged((None, 0, ready(1, "01")), logs=one)
assert not judged(whole, ("e-1-01", 0, *LOST[1:]), logs=one)
heartbeat = ready(1, "01") | {"type": "heartbeat"}
assert not judged(whole, ("e-1-01", 0, LOST[1], heartbeat, LOST[2], LOST[3]), logs=one)
beginning = {"type": "heartbeat", "cursor": "e-0"}
assert not judged((None, 0, *state, LOST[1], beginning, *LOST[2:], ready(4, "04")), logs=one)
assert "the cursor (0, None) after (1, '01')" in judged((None, 0, *state, ready(1, "01"), beginning), logs=one)
assert "the cursor (1, '01') after (3, '03')" in judged(whole, ("e-1-01", 0, LOST[1], LOST[2], ready(3, "03"), heartbeat), logs=one)
assert "3 (every tick) is missing" in judged(whole, ("e-2-02", 0, LOST[3]), logs=one)
milestone = [event(1, "01"), event(2, "02", status="queued"), event(3, "03")]
received = (None, 0, *state, ready(1, "01"), milestone[2])
assert "2 (a milestone) is missing" in judged(received, logs=(milestone,), every_tick=False)
"#,
    );
}

#[test]
fn the_model_of_several_nodes_allows_a_reset_if_and_only_if_the_readers_event_was_lost() {
    run_story_of_several_nodes(
        r#"
begun = (None, 0, *state, ready(1, "01"), *LOST[1:])
again = [event(2, "02") | {"snapshot": True}, event(4, "14", "b") | {"snapshot": True}, ready(4, "14")]
assert not judged(begun, ("e-4-04", 1, reset, *again))
assert "reset from (2, '02')" in judged(begun, ("e-2-02", 1, reset, *again))
assert not judged(begun, ("e-2-02", 1, *KEPT[2:]))
assert "which is in no log with it" in judged(begun, ("e-3-03", 1, KEPT[3]))
# On a stream that is open when the history changes.
assert not judged(begun + (1, reset, *again))
assert "which is in no log with it" in judged(begun[:-1] + (1, KEPT[3]))
assert "reset from" in judged(begun + (reset, *again))
# A reader that connects while a life ends may be answered from either.
assert not judged(begun, ("e-4-04", 0, 1, reset, *again))
assert "reset from (2, '02')" in judged(begun, ("e-2-02", 0, 1, reset, *again))
assert "a reset without a reason" in judged(begun, ("e-4-04", 1, reset | {"reason": "too_far_behind"}, *again))
assert "was never in a log" in judged(begun + (event(5, "05"),))
"#,
    );
}

#[test]
fn the_model_of_several_nodes_finds_an_acknowledged_event_that_its_life_does_not_have() {
    run_story_of_several_nodes(
        r#"
def answered(*answers, logs=(LOST, KEPT), crashed=()):
    school = School(1)
    for life, message in answers:
        school.acknowledge(message, life)
    found = []
    said = broken(lambda: found.append(Truth(school, map(Log, logs)).check_answers(crashed)))
    return said or found[0]

every = [(0, LOST[0]), (0, LOST[1]), (1, KEPT[2]), (1, KEPT[3])]
assert answered(*every) == 0
assert answered(*every, (0, LOST[2])) == 1
assert answered(*every, (0, LOST[2]), crashed={0}) == 1
ended = (LOST[:3] + [event(4, "04", status="completed")], KEPT)
assert answered(*every, (0, ended[0][3]), logs=ended) == 1
assert "lost 4-04, an acknowledged milestone" in answered(*every, (0, ended[0][3]), logs=ended, crashed={0})
assert "3-03 was acknowledged in life 1" in answered(*every, (1, LOST[2]))
assert "in the logs of lives []" in answered(*every, (0, event(9, "09")))
assert "the answer to two requests" in answered(*every, every[0])
assert "the answer to no request: [2]" in answered(every[0], *every[2:])
assert "is not dense" in answered(*every, logs=(LOST, KEPT[:1] + KEPT[2:]))
created = (LOST[:3] + [event(4, "04", "new")], KEPT)
assert "lost 4-04, an acknowledged milestone" in answered(*every, (0, created[0][3]), logs=created, crashed={0})
mended = (LOST, [event(1, "01"), event(2, "12"), *LOST[2:]])
assert "differ before 4, which both have" in answered(*every, logs=mended)
"#,
    );
}

#[test]
fn the_model_of_several_nodes_finds_a_device_that_was_heard_and_a_delivery_that_is_wrong() {
    run_story_of_several_nodes(
        r#"
import asyncio
import sources
from sources import LEASE_SECS, Receiver, check_devices, check_notifier
from datetime import datetime, timezone

def device(seq, tag, status, at):
    timestamp = datetime.fromtimestamp(at, timezone.utc).isoformat()
    return event(seq, tag) | {"type": "device_status_update", "device_id": "d", "status": status, "timestamp": timestamp}

def devices(heartbeats, disturbed=(), *, ends=True):
    school = School(1)
    at = 1_000_000
    log = [device(1, "01", "online", at)] + [device(2, "02", "offline", at + 20)] * ends
    node = SimpleNamespace(number=1, disturbed=[(at + since, at + to) for since, to in disturbed])
    sender = SimpleNamespace(name="d", school=school, heartbeats=[(at + sent, at + sent, 1) for sent in heartbeats])
    return broken(check_devices, SimpleNamespace(senders=[sender], nodes=[node]), Truth(school, [Log(log)]))

assert not devices([0, 5, 10])
assert "node 1 had heard it" in devices([0, 5, 10, 16])
assert not devices([0, 5, 10, 16], [(15, 17)])
assert "never told to be offline" in devices([0], ends=False)

sources.DELIVERY_SECS = 0
def delivered(*messages, logs):
    school = School(1)
    truth = Truth(school, map(Log, logs))
    receiver = Receiver(1)
    receiver.delivered = list(messages)
    return broken(lambda: asyncio.run(check_notifier(receiver, {1: truth})))

log = [event(1, "01", status="failed"), event(2, "02"), event(3, "03", status="completed")]
first, last = ("i", log[0]), ("k", log[2])
assert not delivered(first, first, last, first, logs=[log])
assert "1 events were not delivered" in delivered(first, logs=[log])
assert "was delivered after" in delivered(last, first, logs=[log])
assert "stands for two events" in delivered(first, ("i", log[2]), logs=[log])
assert "under two ids" in delivered(first, last, ("l", log[2]), logs=[log])
assert "not due" in delivered(first, last, ("j", log[1]), logs=[log])
"#,
    );
}
