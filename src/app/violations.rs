//! Acknowledging violations. A violation has its own id, but is stored with its characteristic.

use super::publish::{PublishService, Rejected};
use crate::id::SchoolId;
use crate::kind::characteristic::{
    Acknowledge, Command as CharacteristicCommand, KIND, ViolationId,
};
use crate::kind::{Command, Part, RuleError};
use crate::log::{Envelope, PartQuery};

/// The action on a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViolationAction {
    /// Acknowledge it.
    Acknowledge,
    /// Withdraw the acknowledgement.
    Unacknowledge,
}

/// An action on one violation.
#[derive(Debug, Clone)]
pub struct ViolationCommand {
    /// The violation's id: the server's, or one that the publisher chose.
    pub id: String,
    /// The action.
    pub action: ViolationAction,
    /// The user on whose behalf this is done. If absent, the caller.
    pub user: Option<String>,
    /// The reason that the user gives.
    pub reason: String,
}

impl ViolationCommand {
    /// Returns the command to the characteristic, where the violation has this number.
    pub(crate) fn into_command(self, number: u64, caller: &str) -> Command {
        let user = self.user.unwrap_or_else(|| caller.to_owned());
        let asked = Acknowledge {
            number,
            user: user.into(),
            reason: self.reason,
        };
        Command::Characteristic(match self.action {
            ViolationAction::Acknowledge => CharacteristicCommand::Acknowledge(asked),
            ViolationAction::Unacknowledge => CharacteristicCommand::Unacknowledge(asked),
        })
    }
}

impl ViolationAction {
    /// Returns the action for a verb of the API.
    pub fn from_verb(verb: &str) -> Option<ViolationAction> {
        match verb {
            "ack" => Some(ViolationAction::Acknowledge),
            "unack" => Some(ViolationAction::Unacknowledge),
            _ => None,
        }
    }
}

impl PublishService {
    /// Returns the command to the characteristic that carries out this action; `caller` is the name of the caller. Whether the
    /// credential covers the characteristic is checked when the command is published.
    pub async fn violation_command(
        &self,
        school: SchoolId,
        caller: &str,
        command: ViolationCommand,
    ) -> Result<Envelope, Rejected> {
        let id = self.violation_id(school, &command.id).await?;
        let to = command.into_command(id.number, caller);
        Ok(Envelope::new(id.characteristic_id, to))
    }

    /// Returns the characteristic of a violation and the violation's number there. Looks up an id that a publisher chose.
    async fn violation_id(&self, school: SchoolId, id: &str) -> Result<ViolationId, Rejected> {
        if let Some(id) = ViolationId::parse(id) {
            return Ok(id);
        }
        let query = PartQuery {
            own_id: Some(id.to_owned()),
            limit: 1,
            ..PartQuery::default()
        };
        let found = self.store().parts(school, KIND, query).await?;
        let found = found.parts.iter().find_map(Part::characteristic);
        let found = found.map(|violation| ViolationId {
            characteristic_id: violation.characteristic_id.clone(),
            number: violation.number,
        });
        found.ok_or_else(|| {
            let id = id.to_owned();
            let noun = "Violation";
            RuleError::NotFound { noun, id }.into()
        })
    }
}
