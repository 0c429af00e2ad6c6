//! Which commands each kind has, and how their bodies are read: one table for the HTTP calls and for a batch's
//! lines.

use serde::de::DeserializeOwned;

use super::body;
use super::problem::{Kind as ProblemKind, Problem};
use crate::id::{Kind, SubjectId};
use crate::kind::{Command, characteristic, device, enrollment, job};
use crate::store::Envelope;

/// Something that a command's body can be read from.
pub(super) trait Parse {
    fn body<T: DeserializeOwned>(self) -> Result<T, Problem>;
}

impl Parse for &[u8] {
    fn body<T: DeserializeOwned>(self) -> Result<T, Problem> {
        body::parse(self)
    }
}

/// What can be done to a subject of this kind that exists: `POST /api/<collection>/<id>/<verb>`.
pub(super) fn verbs(kind: Kind) -> &'static [&'static str] {
    match kind {
        job::KIND => &[
            "queue", "start", "progress", "complete", "fail", "cancel", "retry",
        ],
        enrollment::KIND => &["progress", "complete", "error", "cancel"],
        device::KIND => &["heartbeat", "status", "info"],
        characteristic::KIND => &["samples", "violations", "limits"],
        _ => &[],
    }
}

/// Reads the body of `POST /api/<collection>`, which makes a subject known. Nothing if the kind has none.
pub(super) fn create(kind: Kind, parse: impl Parse) -> Option<Result<Envelope, Problem>> {
    match kind {
        job::KIND => Some(parse.body::<job::Create>().map(Envelope::from)),
        enrollment::KIND => Some(parse.body::<enrollment::Start>().map(Envelope::from)),
        _ => None,
    }
}

/// Reads the body of `PUT /api/<collection>/<id>`, which makes a subject known or describes it anew. Nothing if
/// the kind has none.
pub(super) fn put(kind: Kind, parse: impl Parse) -> Option<Result<Command, Problem>> {
    match kind {
        device::KIND => {
            let register = parse.body().map(device::Command::Register);
            Some(register.map(Command::Device))
        }
        characteristic::KIND => {
            let register = parse.body().map(characteristic::Command::Register);
            Some(register.map(Command::Characteristic))
        }
        _ => None,
    }
}

/// Reads the body of a verb. Nothing if the kind has no such verb.
pub(super) fn command(
    kind: Kind,
    verb: &str,
    parse: impl Parse,
) -> Option<Result<Command, Problem>> {
    match kind {
        job::KIND => job_command(verb, parse).map(|read| read.map(Command::Job)),
        enrollment::KIND => {
            enrollment_command(verb, parse).map(|read| read.map(Command::Enrollment))
        }
        device::KIND => device_command(verb, parse).map(|read| read.map(Command::Device)),
        characteristic::KIND => {
            characteristic_command(verb, parse).map(|read| read.map(Command::Characteristic))
        }
        _ => None,
    }
}

fn job_command(verb: &str, parse: impl Parse) -> Option<Result<job::Command, Problem>> {
    use job::Command;
    Some(match verb {
        "queue" => parse.body().map(Command::Queue),
        "start" => parse.body().map(Command::Start),
        "progress" => parse.body().map(Command::Progress),
        "complete" => parse.body().map(Command::Complete),
        "fail" => parse.body().map(Command::Fail),
        "cancel" => parse.body().map(Command::Cancel),
        "retry" => parse.body().map(Command::Retry),
        _ => return None,
    })
}

fn enrollment_command(
    verb: &str,
    parse: impl Parse,
) -> Option<Result<enrollment::Command, Problem>> {
    use enrollment::Command;
    Some(match verb {
        "progress" => parse.body().map(Command::Progress),
        "complete" => parse.body().map(Command::Complete),
        "error" => parse.body().map(Command::Error),
        "cancel" => parse.body().map(Command::Cancel),
        _ => return None,
    })
}

/// A heartbeat is none of them: it is no command, but renews a lease.
fn device_command(verb: &str, parse: impl Parse) -> Option<Result<device::Command, Problem>> {
    use device::Command;
    Some(match verb {
        "status" => parse.body().map(Command::Report),
        "info" => parse.body().map(Command::Info),
        _ => return None,
    })
}

fn characteristic_command(
    verb: &str,
    parse: impl Parse,
) -> Option<Result<characteristic::Command, Problem>> {
    use characteristic::Command;
    Some(match verb {
        "samples" => parse.body().map(Command::Sample),
        "violations" => parse.body().map(Command::Violation),
        "limits" => parse.body().map(Command::Limits),
        _ => return None,
    })
}

/// The id in a path or a line. One that cannot exist does not exist.
pub(super) fn subject(kind: Kind, id: &str) -> Result<SubjectId, Problem> {
    id.parse().map_err(|_| not_found(kind, id))
}

/// That there is no such subject.
pub(super) fn not_found(kind: Kind, id: &str) -> Problem {
    crate::kind::not_found(kind, id).into()
}

/// That there is no such verb.
pub(super) fn no_such_verb(kind: Kind) -> Problem {
    let noun = crate::kind::description(kind).noun.to_lowercase();
    let verbs = verbs(kind).join(", ");
    Problem::new(
        ProblemKind::NotFound,
        format!("what can be done to this {noun}: {verbs}"),
    )
}
