//! How much memory a write can take, which is how much is reserved for it.

use super::{BATCH_LINE_MIN_BYTES, COMMAND_BASE_BYTES, COMMAND_EVENT_BYTES, Settings};

impl Settings {
    /// Returns the memory that a command can take if its body has this many bytes.
    pub fn command_memory(&self, body_bytes: u64) -> u64 {
        memory(body_bytes, 1, self.expected_bytes(body_bytes, 1))
    }

    /// Returns the memory that a batch of this many commands can take.
    pub fn batch_memory(&self, body_bytes: u64, commands: u64) -> u64 {
        memory(
            body_bytes,
            commands,
            self.batch_events(body_bytes, commands),
        )
    }

    /// Returns the memory that a batch can take, as far as it is known before the body is read.
    pub fn unread_batch_memory(&self, body_bytes: u64) -> u64 {
        let lines = body_bytes / BATCH_LINE_MIN_BYTES + 1;
        self.batch_memory(
            body_bytes,
            lines.min(self.batch_limit_commands.get() as u64),
        )
    }

    /// Returns the maximum size of the events that a batch produces or is answered with, in bytes.
    pub fn batch_events(&self, body_bytes: u64, commands: u64) -> u64 {
        // The answer to a command may contain a result that an earlier request has stored.
        let expected = self.expected_bytes(body_bytes, commands);
        let expected = expected.saturating_add(self.body_limit_bytes.get());
        expected.min(self.batch_event_bytes.get())
    }

    /// Returns the expected maximum size of the events that commands produce, each with the stored fields of its
    /// subject.
    fn expected_bytes(&self, body_bytes: u64, commands: u64) -> u64 {
        let stored = self
            .metadata_limit_bytes
            .get()
            .saturating_add(self.message_limit_bytes);
        let each = (stored as u64).saturating_add(COMMAND_EVENT_BYTES);
        commands.saturating_mul(each).saturating_add(body_bytes)
    }
}

/// Counts the body, as bytes and as commands, and then the events that the commands produce and the answer built from
/// them.
fn memory(body_bytes: u64, commands: u64, event_bytes: u64) -> u64 {
    (body_bytes.saturating_add(event_bytes).saturating_mul(2))
        .saturating_add(commands.saturating_mul(COMMAND_BASE_BYTES))
}
