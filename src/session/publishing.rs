//! Publishing on a session's connection: the interface through which a session passes on its client's commands.

use std::task::{Context, Poll};

use serde_json::{Map, Value};

use crate::auth::Access;

/// Carries out the commands of one session in their order, and answers them in the same order. Several of them can be
/// unanswered at a time; their number and size are bounded.
pub trait Publishing: Send {
    /// Whether another command can be passed.
    fn has_room(&self) -> bool;

    /// Takes a command, which has the fields of a line of a batch. `bytes` is the size of its message. The answer
    /// repeats `id`.
    fn publish(
        &mut self,
        access: &Access,
        id: Option<Value>,
        command: Map<String, Value>,
        bytes: usize,
    );

    /// Returns the next answer, as JSON, or none if no command is unanswered. The waiting commands are carried out with
    /// the permissions of `access`.
    fn poll_answer(&mut self, cx: &mut Context<'_>, access: &Access) -> Poll<Option<Vec<u8>>>;

    /// Drops the commands that are not being carried out yet. They have no effect, and are not answered.
    fn stop(&mut self);
}
