//! The caller of a request: a credential and one school.

use std::sync::Arc;

use crate::auth::{Access, AuthError, Role, Schools};
use crate::id::{Channel, Kind, SchoolId, SubjectId};

/// The bearer of a credential, in one of the schools that the credential covers.
#[derive(Debug, Clone)]
pub struct Caller {
    access: Access,
    school: SchoolId,
}

impl Caller {
    /// Returns the bearer in the school that the request names, or else in the credential's only school.
    pub fn new(access: Access, named: Option<SchoolId>) -> Result<Caller, AuthError> {
        Ok(Caller {
            school: access.school(named)?,
            access,
        })
    }

    /// Returns a caller for code of an application that embeds Tidings. It has the permissions and the rate limits of a token
    /// of role `worker` for this school; `name` takes the place of the token's `sub`.
    pub fn in_process(name: &str, school: SchoolId) -> Caller {
        Caller {
            school,
            access: Access {
                subject: name.into(),
                schools: Schools::One(school),
                role: Role::Worker,
                channels: None,
                expires_at: None,
                reconnects_until: None,
            },
        }
    }

    /// Returns what the credential allows.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Returns the school.
    pub fn school(&self) -> SchoolId {
        self.school
    }

    /// Returns the credential's subject.
    pub fn name(&self) -> &Arc<str> {
        &self.access.subject
    }

    /// Checks that the role is sufficient.
    pub fn require(&self, role: Role) -> Result<(), AuthError> {
        self.access.require(role)
    }

    /// Checks that the credential covers a channel of the school.
    pub fn authorize(&self, channel: &Channel) -> Result<(), AuthError> {
        self.access.authorize(self.school, channel)
    }

    /// Checks that the credential covers a subject of the school.
    pub fn authorize_subject(&self, kind: Kind, subject: &SubjectId) -> Result<(), AuthError> {
        self.authorize(&Channel::Subject(kind, subject.clone()))
    }
}
