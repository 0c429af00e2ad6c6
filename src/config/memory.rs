//! How much memory writes may take: what is reserved for a request, by the settings.

use super::{BATCH_LINE_MIN_BYTES, COMMAND_BASE_BYTES, COMMAND_EVENT_BYTES, Settings};

impl Settings {
    /// Memory that a command may take whose body has so many bytes.
    pub fn command_memory(&self, body_bytes: u64) -> u64 {
        memory(body_bytes, 1, self.expected_bytes(body_bytes, 1))
    }

    /// Memory that a batch of so many commands may take.
    pub fn batch_memory(&self, body_bytes: u64, commands: u64) -> u64 {
        memory(
            body_bytes,
            commands,
            self.batch_events(body_bytes, commands),
        )
    }

    /// The same as far as it is known before the body is read.
    pub fn unread_batch_memory(&self, body_bytes: u64) -> u64 {
        let lines = body_bytes / BATCH_LINE_MIN_BYTES + 1;
        self.batch_memory(body_bytes, lines.min(self.batch_limit_commands as u64))
    }

    /// Bytes of the events that a batch may lead to, or be answered with: no more than there is memory for.
    pub fn batch_events(&self, body_bytes: u64, commands: u64) -> u64 {
        // One may be answered with a result that another body brought.
        let expected = self.expected_bytes(body_bytes, commands);
        let expected = expected.saturating_add(self.body_limit_bytes);
        expected.min(self.batch_event_bytes)
    }

    /// Bytes of the events that commands lead to at most, each with what is stored of its subject.
    fn expected_bytes(&self, body_bytes: u64, commands: u64) -> u64 {
        let stored = self
            .metadata_limit_bytes
            .saturating_add(self.message_limit_bytes);
        let each = (stored as u64).saturating_add(COMMAND_EVENT_BYTES);
        commands.saturating_mul(each).saturating_add(body_bytes)
    }
}

/// The bytes as such and as commands, then the events that they lead to and the answer made of these.
fn memory(body_bytes: u64, commands: u64, event_bytes: u64) -> u64 {
    (body_bytes.saturating_add(event_bytes).saturating_mul(2))
        .saturating_add(commands.saturating_mul(COMMAND_BASE_BYTES))
}
