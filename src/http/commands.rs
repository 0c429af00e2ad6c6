//! Decoding of commands, from the bodies of HTTP calls and the lines of a batch.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::body;
use super::problem::{Kind as ProblemKind, Problem};
use crate::id::{Kind, SubjectId};
use crate::kind::{self, Body, Command};
use crate::log::Envelope;

/// A body as it was received.
pub(super) struct Sent<'a>(pub(super) &'a [u8]);

impl Body for Sent<'_> {
    type Error = Problem;

    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, Problem> {
        body::parse(self.0)
    }
}

/// Reads a command that creates a subject, whose id may be in the body. None if the kind has no such command.
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

/// Parses the id in a path or a line. A subject whose id is not valid does not exist.
pub(super) fn subject(kind: Kind, id: &str) -> Result<SubjectId, Problem> {
    id.parse().map_err(|_| not_found(kind, id))
}

/// Returns the problem that the subject does not exist.
pub(super) fn not_found(kind: Kind, id: &str) -> Problem {
    kind::not_found(kind, id).into()
}

/// Returns the problem that the kind has no such verb.
pub(super) fn no_such_verb(kind: Kind) -> Problem {
    let description = kind::description(kind);
    let (noun, verbs) = (
        description.noun.to_lowercase(),
        description.verbs.join(", "),
    );
    Problem::new(
        ProblemKind::NotFound,
        format!("this verb does not exist; a {noun} supports {verbs}"),
    )
}
