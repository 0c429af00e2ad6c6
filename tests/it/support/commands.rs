//! Commands that need no HTTP request.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidings::id::Kind;
use tidings::kind::{Body, Command, job};
use tidings::log::Envelope;

struct Fields(Value);

impl Body for Fields {
    type Error = serde_json::Error;

    fn read<T: DeserializeOwned + JsonSchema>(self) -> Result<T, serde_json::Error> {
        serde_json::from_value(self.0)
    }
}

/// Returns the command of this verb to a job.
pub(crate) fn job(id: &str, verb: &str, body: Value) -> Envelope {
    command(job::KIND, id, verb, body)
}

/// The same to a subject of any kind.
pub(crate) fn command(kind: Kind, id: &str, verb: &str, body: Value) -> Envelope {
    let command = Command::read(kind, verb, Fields(body)).expect("a verb of the kind");
    Envelope::new(id.parse().unwrap(), command.unwrap())
}
