//! What ends the watch of a scope: the status of `--until`, or the end of the only subject.

use serde_json::Value;

use super::scope::Scope;
use crate::cli::{Exit, Failure};
use crate::id::Kind;
use crate::kind::{self, device, enrollment, job, schedule};

/// The word for every status in which a subject has ended.
const ENDED: &str = "ended";
/// The boolean fields of subjects that `--until` accepts, each with its kind.
const MARKS: [(&str, Kind); 3] = [
    ("stalled", job::KIND),
    ("cancel_requested", job::KIND),
    ("flapping", device::KIND),
];

/// How the watch of a scope ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The status of `--until` was reached, or without it the subject completed.
    Reached,
    /// The subject failed.
    Failed,
    /// The subject was cancelled.
    Cancelled,
    /// The subject ended in another way, so that it cannot reach the status any more.
    Otherwise,
}

impl End {
    /// Returns the result of several scopes: the most severe one.
    pub(super) fn of_all(ends: &[End]) -> Result<(), Failure> {
        let severity = [
            (End::Failed, Exit::WatchedFailed),
            (End::Cancelled, Exit::WatchedCancelled),
            (End::Otherwise, Exit::WatchedOtherwise),
        ];
        let worst = severity.iter().find(|(end, _)| ends.contains(end));
        worst.map_or(Ok(()), |(_, exit)| Err(Failure::new(*exit, "")))
    }
}

/// The words of `--until`. Without words, the end of a job or of an enrollment session.
#[derive(Debug, Clone)]
pub(super) struct Goal(Vec<String>);

impl Goal {
    /// Checks that each word can be reached in a scope, and that each scope can reach a word.
    pub(super) fn new(words: Vec<String>, scopes: &[Scope]) -> Result<Goal, Failure> {
        let can_reach = |scope: &Scope, word: &String| {
            let mut kinds = scope.kinds.iter();
            kinds.any(|kind| accepted(*kind).any(|accepted_word| accepted_word == *word))
        };
        let usage = |words: &[String], scopes: &[Scope]| {
            let mut kinds: Vec<_> = scopes.iter().flat_map(|scope| &scope.kinds).collect();
            kinds.sort_unstable();
            kinds.dedup();
            let nouns: Vec<_> = kinds.iter().map(|kind| kind.collection()).collect();
            let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
            let possible = kinds.iter().map(|kind| {
                let words: Vec<_> = accepted(**kind).collect();
                format!("{}: {}", kind.collection(), words.join(", "))
            });
            let possible = possible.collect::<Vec<_>>().join("; ");
            let (nouns, words) = (nouns.join(" and "), words.join(" or "));
            let problem = format!("--until: {nouns} never reach {words}; possible are {possible}");
            Failure::new(Exit::Usage, problem)
        };
        for word in &words {
            if !scopes.iter().any(|scope| can_reach(scope, word)) {
                return Err(usage(std::slice::from_ref(word), scopes));
            }
        }
        for scope in scopes {
            if !words.is_empty() && !words.iter().any(|word| can_reach(scope, word)) {
                return Err(usage(&words, std::slice::from_ref(scope)));
            }
        }
        Ok(Goal(words))
    }

    /// Returns how a message ends the watch of a scope, if it does. `is_news` tells whether the message is a change since
    /// the watch began. With several subjects, a state that existed before does not count.
    pub(super) fn judge(&self, scope: &Scope, message: &Value, is_news: bool) -> Option<End> {
        let counts = match &scope.single {
            Some(single) => single.is_subject_of(message),
            None => is_news,
        };
        if !counts {
            return None;
        }
        if !self.0.is_empty() && self.is_reached(message) {
            return Some(End::Reached);
        }
        let single = scope.single.as_ref()?;
        if self.0.is_empty() && ![job::KIND, enrollment::KIND].contains(&single.kind) {
            return None;
        }
        match outcome(message)? {
            Outcome::Completed if self.0.is_empty() => Some(End::Reached),
            Outcome::Completed | Outcome::Removed => Some(End::Otherwise),
            Outcome::Failed => Some(End::Failed),
            Outcome::Cancelled => Some(End::Cancelled),
        }
    }

    fn is_reached(&self, message: &Value) -> bool {
        let status = status(message);
        self.0.iter().any(|word| {
            status.as_ref() == Some(word)
                || message["type"] == word.as_str()
                || (word == ENDED && outcome(message).is_some())
                || MARKS.iter().any(|(mark, _)| mark == word) && message[word] == true
        })
    }
}

/// Returns the words that a subject of this kind can reach.
fn accepted(kind: Kind) -> impl Iterator<Item = &'static str> {
    let description = kind::description(kind);
    let has_end = [job::KIND, enrollment::KIND, schedule::KIND].contains(&kind);
    let statuses = description.statuses.iter().copied();
    let marks = MARKS
        .iter()
        .filter(move |(_, mark_kind)| *mark_kind == kind);
    let types = description
        .event_types
        .iter()
        .map(|event_type| event_type.name);
    statuses
        .chain(has_end.then_some(ENDED))
        .chain(marks.map(|(mark, _)| *mark))
        .chain(types)
}

/// How a subject ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Completed,
    Failed,
    Cancelled,
    Removed,
}

/// Returns how a subject ended, if the message says so.
pub(super) fn outcome(message: &Value) -> Option<Outcome> {
    match status(message)?.as_str() {
        "completed" | "complete" => Some(Outcome::Completed),
        "failed" | "error" => Some(Outcome::Failed),
        "cancelled" => Some(Outcome::Cancelled),
        schedule::REMOVED => Some(Outcome::Removed),
        _ => None,
    }
}

/// Returns the subject's status in a message, in lower case.
pub(super) fn status(message: &Value) -> Option<String> {
    use crate::kind::characteristic::{IN_CONTROL, OUT_OF_CONTROL};
    if let Some(status) = message["status"].as_str() {
        return Some(status.to_ascii_lowercase());
    }
    let in_control = message["payload"]["in_control"].as_bool()?;
    let status = if in_control {
        IN_CONTROL
    } else {
        OUT_OF_CONTROL
    };
    Some(status.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn goal(words: &[&str], scopes: &[&str]) -> Result<(Goal, Vec<Scope>), Failure> {
        let scopes: Vec<_> = scopes
            .iter()
            .map(|scope| Scope::parse(scope).unwrap())
            .collect();
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Goal::new(words, &scopes).map(|goal| (goal, scopes))
    }

    #[test]
    fn a_status_of_no_kind_in_scope_is_rejected_with_those_that_exist() {
        for (words, scopes, expected) in [
            (&["complete"][..], &["jobs/1"][..], "completed, failed"),
            (
                &["completed"],
                &["jobs/1", "devices"],
                "devices: unknown, online",
            ),
            (&["ended"], &["devices/1"], "flapping"),
            (&[""], &["jobs"], "jobs: pending"),
        ] {
            let failure = goal(words, scopes).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
        assert!(goal(&["online", "ended"], &["jobs/1", "devices"]).is_ok());
        assert!(goal(&["violation"], &["schools/1"]).is_ok());
    }

    #[test]
    fn the_end_of_a_watch_follows_from_the_status_and_the_goal() {
        let job = |status| json!({"type": "job_progress", "job_id": "1", "status": status});
        for (words, status, expected) in [
            (&[][..], "completed", Some(End::Reached)),
            (&[], "in_progress", None),
            (&["completed"], "COMPLETED", Some(End::Reached)),
            (&["completed"], "failed", Some(End::Failed)),
            (&["failed"], "completed", Some(End::Otherwise)),
            (&["failed"], "failed", Some(End::Reached)),
            (&["failed"], "cancelled", Some(End::Cancelled)),
            (&["ended"], "cancelled", Some(End::Reached)),
            (
                &["in_progress", "failed"],
                "in_progress",
                Some(End::Reached),
            ),
        ] {
            let (goal, scopes) = goal(words, &["jobs/1"]).unwrap();
            let end = goal.judge(&scopes[0], &job(status), false);
            assert_eq!(end, expected, "{words:?} {status}");
        }
        let (goal, scopes) = goal(&["failed"], &["jobs"]).unwrap();
        assert_eq!(goal.judge(&scopes[0], &job("failed"), false), None);
        assert_eq!(
            goal.judge(&scopes[0], &job("failed"), true),
            Some(End::Reached)
        );
    }
}
