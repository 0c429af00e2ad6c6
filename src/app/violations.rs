//! Acknowledging violations, which are named by their own ids and stored with their characteristics.

use super::publish::{PublishService, Refused};
use crate::id::SchoolId;
use crate::kind::characteristic::{
    Acknowledge, Command as CharacteristicCommand, KIND, ViolationId,
};
use crate::kind::{Command, Part, RuleError};
use crate::log::{Envelope, PartQuery};

/// What is done to a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViolationAction {
    /// Acknowledge it.
    Acknowledge,
    /// Take that back.
    Unacknowledge,
}

/// Something to be done to a violation.
#[derive(Debug, Clone)]
pub struct ViolationCommand {
    /// The violation's id: ours, or the publisher's own.
    pub id: String,
    /// What.
    pub action: ViolationAction,
    /// On whose behalf; the caller's own if absent.
    pub user: Option<String>,
    /// Why.
    pub reason: String,
}

impl ViolationAction {
    /// The action with this verb of the API.
    pub fn from_verb(verb: &str) -> Option<ViolationAction> {
        match verb {
            "ack" => Some(ViolationAction::Acknowledge),
            "unack" => Some(ViolationAction::Unacknowledge),
            _ => None,
        }
    }
}

impl PublishService {
    /// The characteristic's command that carries this out; `caller` is who asks. Whether the characteristic is within reach is
    /// checked when the command is published.
    pub async fn violation_command(
        &self,
        school: SchoolId,
        caller: &str,
        command: ViolationCommand,
    ) -> Result<Envelope, Refused> {
        let id = self.violation_id(school, &command.id).await?;
        let user = command.user.unwrap_or_else(|| caller.to_owned());
        let asked = Acknowledge {
            number: id.number,
            user: user.into(),
            reason: command.reason,
        };
        let command = match command.action {
            ViolationAction::Acknowledge => CharacteristicCommand::Acknowledge(asked),
            ViolationAction::Unacknowledge => CharacteristicCommand::Unacknowledge(asked),
        };
        let command = Command::Characteristic(command);
        Ok(Envelope::new(id.characteristic_id, command))
    }

    /// The characteristic that an id belongs to, and the violation's number there. A publisher's own id is looked up.
    async fn violation_id(&self, school: SchoolId, id: &str) -> Result<ViolationId, Refused> {
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
        let found = found.map(|own| ViolationId {
            characteristic_id: own.characteristic_id.clone(),
            number: own.number,
        });
        found.ok_or_else(|| {
            let id = id.to_owned();
            let noun = "Violation";
            RuleError::NotFound { noun, id }.into()
        })
    }
}
