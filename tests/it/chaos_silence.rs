//! What the model of the chaos with several nodes makes of jobs that fall silent, and of logs that retention shortens: each fault that is
//! planted here must be found.

use crate::chaos::run_story_of_several_nodes;

/// Logs whose events have times, in seconds.
const TIMES: &str = r#"
from datetime import datetime, timezone

def at(seq, secs, job="abandoned-1", **more):
    timestamp = datetime.fromtimestamp(secs, timezone.utc).isoformat()
    return event(seq, f"{seq:02}", job) | {"timestamp": timestamp, "stalled": False} | more

def stalled(seq, secs, *job):
    return at(seq, secs, *job) | {"stalled": True}

def timeout(seq, secs, *job):
    return at(seq, secs, *job, status="failed", error={"code": "timeout"})

"#;

fn run_story_with_times(story: &str) {
    run_story_of_several_nodes(&format!("{TIMES}{story}"));
}

#[test]
fn the_model_of_several_nodes_finds_a_silent_job_that_is_not_ended_once_and_a_reported_one_that_is()
{
    run_story_with_times(
        r#"
import silence
from silence import STALL_SECS, TIMEOUT_SECS, check_silence

def judge(*logs, disturbed=(), suspended=(), others=()):
    nodes = [SimpleNamespace(disturbed=list(disturbed), suspended=suspended)]
    nodes += [SimpleNamespace(disturbed=list(of_other), suspended=[]) for of_other in others]
    run = SimpleNamespace(nodes=nodes)
    found = []
    said = broken(lambda: found.append(check_silence(run, Truth(School(1), map(Log, logs)))))
    return said or found[0]

S, T = STALL_SECS, TIMEOUT_SECS
whole = [at(1, 0), at(2, 1), stalled(3, 1 + S), timeout(4, 1 + T)]
assert judge(whole) == (1, 1)
assert "abandoned, and has not failed" in judge(whole[:3])
assert "without having been stalled" in judge(whole[:2] + [timeout(3, 1 + T)])
assert judge(whole[:2] + [timeout(3, 1 + T)], disturbed=[(S, T)]) == (0, 1)
assert "stalled twice" in judge(whole[:3] + [stalled(4, 2 + S), timeout(5, 1 + T)])
assert "had ended" in judge(whole + [timeout(5, 2 + T)])
for what in (stalled, timeout):
    assert "less than" in judge([at(1, 0), at(2, S), what(3, S + 1)])
assert "less than" in judge(whole[:3] + [timeout(4, T - 3)])
assert judge(whole[:3] + [at(4, 6), stalled(5, 6 + S), timeout(6, 6 + T)]) == (1, 1), "a report ends the silence"
assert judge([at(1, 0), at(2, 3), stalled(3, 3 + S - 3), timeout(4, 3 + T)]) == (1, 1), "the clocks of nodes differ"
early = [at(1, 0), at(2, 3), stalled(3, 3 + S - 4), timeout(4, 3 + T)]
assert "less than" in judge(early)
assert judge(early, suspended=[(1, 3)]) == (1, 1), "the node that took the report may have been suspended"
assert "less than" in judge(early, suspended=[(2.5, 3)])
assert "less than" in judge(early, suspended=[(-20, -10)])
assert "less than" in judge(early, suspended=[(1, 3)], others=[[(0, 5)], []]), "another node has saved the time"
assert judge(early, suspended=[(1, 3)], others=[[(0, 5)], [(2, 4)]]) == (1, 1), "no other node has"
reported = [at(1, 0, "reported-1"), at(2, 2, "reported-1"), at(3, 4, "reported-1", status="completed")]
assert judge(reported) == (0, 0)
assert "less than" in judge(reported[:2] + [stalled(3, 3, "reported-1")])
assert "no limit" in judge([at(1, 0, "a"), stalled(2, 100, "a")])
assert "life 0" in judge(whole + [timeout(5, 2 + T)], whole), "in a life that has ended"

def answered(log):
    school = School(1)
    for message in whole[:2]:
        school.acknowledge(message, 0)
    return broken(lambda: Truth(school, [Log(log)]).check_answers(set()))

assert not answered(whole)
assert "the answer to no request: [4]" in answered(whole[:3] + [stalled(4, 20)])
"#,
    );
}

#[test]
fn the_model_of_several_nodes_finds_an_event_that_retention_deletes_early_and_a_reset_without_need()
{
    run_story_with_times(
        r#"
log = [at(1, 100), at(2, 101), at(3, 102)]

def retained(swept):
    return broken(lambda: Truth(School(1), [Log(log, swept)]).check_retention(5))

assert not retained({})
assert not retained({1: 105, 2: 107})
assert "2 was deleted in life 0 at the age of 4.9" in retained({1: 105, 2: 105.9})
assert "left holes" in retained({2: 110})

def expires(cursor, swept, *, when, lives=(log,), life=0, reason="expired"):
    school = School(1)
    reading = Reading(school, ALL, True, "reader")
    reading.now, reading.life = lambda: when, lambda: life
    reading.connected("sse", None, 0)
    first = at(1, 100) | {"snapshot": True} | ({"cursor": cursor} if cursor == "e-1" else {})
    for message in [first, ready(1, "01"), *log[1:]]:
        reading.take(message)
    reading.connected("sse", cursor, life)
    reading.take({"type": "reset", "reason": reason})
    for message in [log[2] | {"snapshot": True}, ready(3, "03")]:
        reading.take(message)
    logs = [Log(messages, swept if number == life else {}) for number, messages in enumerate(lives)]
    return broken(lambda: Walk(Truth(school, logs), reading).check())

assert not expires("e-1-01", {1: 105, 2: 106}, when=107)
assert "what follows was kept" in expires("e-1-01", {1: 105, 2: 106}, when=105.5)
assert "what follows was kept" in expires("e-2-02", {1: 105, 2: 106}, when=107)
assert not expires("e-1-01", {1: 105, 2: 106}, when=107, lives=(log, log), life=1)
# A cursor without a tag is not accepted, because a standby may have assigned numbers again.
assert not expires("e-1", {}, when=107, reason="unknown_epoch")
assert "whose logs have its event" in expires("e-1-01", {}, when=107, reason="unknown_epoch")
"#,
    );
}

#[test]
fn the_model_of_several_nodes_finds_an_event_that_neither_was_delivered_nor_is_reported_as_too_old()
{
    run_story_with_times(
        r#"
import asyncio
import sources
from sources import Receiver, check_notifier

sources.DELIVERY_SECS = 0
log = [at(1, 100, "a", status="failed"), at(2, 101, "b", status="failed"), at(3, 102, "b", status="completed")]

swept = {1: 105, 2: 106, 3: 107}

def delivered(*numbers, dead=()):
    receiver = Receiver(1)
    receiver.delivered = [(f"i{number}", log[number - 1]) for number in numbers]
    truths = {1: Truth(School(1), [Log(log)])}
    found = []
    said = broken(lambda: found.append(asyncio.run(check_notifier(receiver, truths, lambda: (dead, {1: Log(log, swept)})))))
    return said or found[0]

def too_old(first, last, when):
    cause = f"events {first} to {last} are past retention; it is unknown whether the notifier wanted any of them"
    return (1, last, "", cause, when * 1000)

def set_aside(seq, last, subject, when):
    cause = f"past retention before delivery, together with the subject's following events up to {last}; the last attempt: 503"
    return (1, seq, subject, cause, when * 1000)

assert delivered(1, 2, 3) == 0
assert "1 events were not delivered" in delivered(1, 3)
assert delivered(3, dead=[too_old(1, 2, 106)]) == 1
assert "1 events were not delivered" in delivered(dead=[too_old(1, 2, 106)])
assert "2 was given up as past retention, and was not deleted" in delivered(3, dead=[too_old(1, 2, 105)])
assert delivered(1, dead=[set_aside(2, 3, "b", 107)]) == 1
assert "1 events were not delivered" in delivered(dead=[set_aside(2, 3, "b", 107)])
assert "was given up: 503" in delivered(1, 2, dead=[(1, 3, "b", "503", 107000)])
"#,
    );
}
