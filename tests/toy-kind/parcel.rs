//! A parcel: sent, then delivered.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Body, Bound, Cell, CommandOf, Context, Description, NoPart, Outcome, RuleError, Subject, Texts,
    bounded, not_found,
};
use crate::event::{Class, Draft, EventType, Payload};
use crate::id::{Kind, SubjectId};

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("parcels");
/// A parcel has no parts.
pub type Part = NoPart;
/// A parcel was sent or delivered.
pub static PARCEL_UPDATE: EventType = EventType::new::<Update>("parcel_update");
/// What is fixed of parcels.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Parcel",
    title: "Parcels",
    id_field: "parcel_id",
    other_ids: &[],
    event_types: &[&PARCEL_UPDATE],
    statuses: &[SENT, DELIVERED],
    made_by: "create",
    verbs: &["deliver"],
    details: Details::json_schema,
    columns: &["Recipient", "Status", "Sent"],
};
/// On its way.
pub const SENT: &str = "sent";
/// With its recipient.
pub const DELIVERED: &str = "delivered";
/// The longest `recipient`, in bytes.
pub const RECIPIENT_MAX_BYTES: usize = 256;

/// What can be asked of a parcel.
#[derive(Debug, Clone)]
pub enum Command {
    /// Send it.
    Send(Send),
    /// Deliver it.
    Deliver,
}

/// Body of `POST /api/parcels`.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// The parcel's id; made up (UUIDv7) if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    #[schemars(with = "Option<crate::kind::IdOrNumber>")]
    pub parcel_id: Option<SubjectId>,
    /// Who gets it.
    pub recipient: String,
}

/// Body of `deliver`.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deliver {}

/// A parcel's whole state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parcel {
    /// Who gets it.
    pub recipient: Arc<str>,
    /// When it was sent.
    pub created_at: DateTime<Utc>,
    /// When it was delivered.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Parcel {
    /// Where it is.
    pub fn status(&self) -> &'static str {
        match self.finished_at {
            None => SENT,
            Some(_) => DELIVERED,
        }
    }
}

impl CommandOf<Parcel> for Command {
    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "create" => body.read().map(Command::Send),
            "deliver" => body.read().map(|Deliver {}| Command::Deliver),
            _ => return None,
        })
    }

    fn names(&self) -> Option<&SubjectId> {
        match self {
            Command::Send(send) => send.parcel_id.as_ref(),
            Command::Deliver => None,
        }
    }
}

impl Subject for Parcel {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        draft(id, self)
    }

    fn text_bytes(&self) -> usize {
        self.recipient.len()
    }

    fn cells(&self) -> Vec<Vec<Cell>> {
        vec![
            vec![Cell::Name(self.recipient.as_ref().into())],
            vec![Cell::Status(self.status())],
            vec![Cell::Time(Some(self.created_at))],
        ]
    }

    fn details(&self, _: &SubjectId) -> Value {
        let details = Details {
            created_at: self.created_at,
        };
        serde_json::to_value(details).expect("details are JSON")
    }

    fn is_over(&self) -> bool {
        self.finished_at.is_some()
    }

    fn status(&self) -> &'static str {
        Parcel::status(self)
    }

    fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    fn finished_at(&self) -> Option<DateTime<Utc>> {
        self.finished_at
    }

    fn texts(&self) -> Texts<'_> {
        Texts {
            own: vec![&self.recipient],
            values: None,
        }
    }
}

/// What a parcel's events do not tell.
#[derive(JsonSchema, Serialize)]
struct Details {
    /// When it was sent.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    created_at: DateTime<Utc>,
}

/// Where a parcel is.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ParcelUpdate")]
pub struct Update {
    /// Which parcel.
    pub parcel_id: SubjectId,
    /// See [`Parcel::status`].
    pub status: Cow<'static, str>,
    /// See [`Parcel::recipient`].
    pub recipient: Arc<str>,
}

impl Payload for Update {
    const TYPE: &'static EventType = &PARCEL_UPDATE;
}

fn draft(id: &SubjectId, parcel: &Parcel) -> Draft {
    let update = Update {
        parcel_id: id.clone(),
        status: Cow::Borrowed(parcel.status()),
        recipient: Arc::clone(&parcel.recipient),
    };
    Draft::new(Class::Milestone, parcel.status(), update)
}

/// The rules: what becomes of a parcel by a command, and what is published about it. Pure.
pub fn apply(
    id: &SubjectId,
    parcel: Option<&Parcel>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Parcel>, RuleError> {
    let next = match (command, parcel) {
        (Command::Send(send), None) => Parcel {
            recipient: bounded(
                "recipient",
                &send.recipient,
                Bound::constant(RECIPIENT_MAX_BYTES),
            )?,
            created_at: context.now,
            finished_at: None,
        },
        (Command::Send(_), Some(_)) => {
            return Err(RuleError::AlreadyExists {
                noun: DESCRIPTION.noun,
                id: id.to_string(),
            });
        }
        (Command::Deliver, None) => return Err(not_found(KIND, id.as_str())),
        (Command::Deliver, Some(parcel)) if parcel.is_over() => {
            return Err(RuleError::Finished { status: DELIVERED });
        }
        (Command::Deliver, Some(parcel)) => Parcel {
            finished_at: Some(context.now),
            ..parcel.clone()
        },
    };
    let drafts = vec![draft(id, &next)];
    Ok(Outcome::new(next, drafts))
}
