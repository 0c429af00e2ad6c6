//! Who asks, and about which school.

use std::sync::Arc;

use crate::auth::{Access, AuthError, Role, Schools};
use crate::id::{Channel, Kind, SchoolId, SubjectId};

/// Someone with a credential, in a school that it reaches.
#[derive(Debug, Clone)]
pub struct Caller {
    access: Access,
    school: SchoolId,
    /// The credential's subject, shared by the commands that carry it.
    name: Arc<str>,
}

impl Caller {
    /// The bearer of a credential in the school that the request names, or else in the credential's only school.
    pub fn new(access: Access, named: Option<SchoolId>) -> Result<Caller, AuthError> {
        Ok(Caller {
            school: access.school(named)?,
            name: access.subject.as_str().into(),
            access,
        })
    }

    /// Code of the application that has Tidings built in. It may do in this school what a token of role `worker` may, at the
    /// same pace: `name` is what its `sub` would be.
    pub fn in_process(name: &str, school: SchoolId) -> Caller {
        Caller {
            school,
            name: name.into(),
            access: Access {
                subject: name.to_owned(),
                schools: Schools::One(school),
                role: Role::Worker,
                channels: None,
                expires_at: None,
                returns_until: None,
            },
        }
    }

    /// What the credential allows.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The school.
    pub fn school(&self) -> SchoolId {
        self.school
    }

    /// The credential's subject.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Checks that the role suffices.
    pub fn require(&self, role: Role) -> Result<(), AuthError> {
        self.access.require(role)
    }

    /// Checks that a channel of the school is within reach.
    pub fn reach(&self, channel: &Channel) -> Result<(), AuthError> {
        self.access.reach(self.school, channel)
    }

    /// Checks that a subject is within reach.
    pub fn reach_subject(&self, kind: Kind, subject: &SubjectId) -> Result<(), AuthError> {
        self.reach(&Channel::Subject(kind, subject.clone()))
    }
}
