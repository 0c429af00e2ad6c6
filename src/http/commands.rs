//! Commands as they come in: the bodies of HTTP calls and the lines of a batch.

use serde::de::DeserializeOwned;

use super::body;
use super::problem::{Kind as ProblemKind, Problem};
use crate::id::{Kind, SubjectId};
use crate::kind::{self, Body, Command};
use crate::log::Envelope;

/// A body as it was sent.
pub(super) struct Sent<'a>(pub(super) &'a [u8]);

impl Body for Sent<'_> {
    type Error = Problem;

    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        body::parse(self.0)
    }
}

/// Reads what makes a subject known that may bring its id in its body. Nothing if the kind has no such thing.
pub(super) fn create(
    kind: Kind,
    body: impl Body<Error = Problem>,
) -> Option<Result<Envelope, Problem>> {
    let read = Command::read(kind, "create", body)?;
    Some(read.map(|command| {
        let subject = command.names().cloned();
        Envelope::new(subject.unwrap_or_else(SubjectId::generate), command)
    }))
}

/// The id in a path or a line. One that cannot exist does not exist.
pub(super) fn subject(kind: Kind, id: &str) -> Result<SubjectId, Problem> {
    id.parse().map_err(|_| not_found(kind, id))
}

/// That there is no such subject.
pub(super) fn not_found(kind: Kind, id: &str) -> Problem {
    kind::not_found(kind, id).into()
}

/// That there is no such verb.
pub(super) fn no_such_verb(kind: Kind) -> Problem {
    let own = kind::description(kind);
    let (noun, verbs) = (own.noun.to_lowercase(), own.verbs.join(", "));
    Problem::new(
        ProblemKind::NotFound,
        format!("what can be done to this {noun}: {verbs}"),
    )
}
