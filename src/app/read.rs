//! The use case *read*: subjects, their parts, and notifiers, if the caller's credential covers them.

use std::sync::Arc;

use super::caller::Caller;
use super::publish::Rejected;
use crate::auth::Role;
use crate::id::{Channel, Epoch, Kind, SchoolId, SubjectId};
use crate::kind;
use crate::log::consumers::{DeadLetterPage, Offset, Standing};
use crate::log::{ListPage, ListQuery, PartPage, PartQuery, Store, StoreError, StoredSubject};

/// Reads on behalf of callers.
pub struct ReadService {
    store: Arc<dyn Store>,
}

/// The proof that a caller may see the notifiers of its school. Only [`ReadService::notifiers_of`] creates one.
#[derive(Debug, Clone, Copy)]
pub struct NotifiersOf(SchoolId);

impl NotifiersOf {
    /// Returns the school.
    pub fn school(self) -> SchoolId {
        self.0
    }
}

impl ReadService {
    /// Creates a service that reads from this store.
    pub fn new(store: Arc<dyn Store>) -> ReadService {
        ReadService { store }
    }

    /// Returns the epoch of the database.
    pub fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// Returns a subject. One that exists only in another school is not found.
    pub async fn subject(
        &self,
        caller: &Caller,
        kind: Kind,
        subject: SubjectId,
    ) -> Result<StoredSubject, Rejected> {
        caller.authorize_subject(kind, &subject)?;
        let not_found = kind::not_found(kind, subject.as_str());
        let stored = self.store.subject(caller.school(), kind, subject).await?;
        stored.ok_or_else(|| not_found.into())
    }

    /// Returns a page of the subjects of a kind.
    pub async fn subjects(
        &self,
        caller: &Caller,
        kind: Kind,
        query: ListQuery,
    ) -> Result<ListPage, Rejected> {
        caller.authorize(&Channel::Collection(kind))?;
        Ok(self.store.subjects(caller.school(), kind, query).await?)
    }

    /// Returns a page of the parts of a subject, or of all subjects of a kind.
    pub async fn parts(
        &self,
        caller: &Caller,
        kind: Kind,
        query: PartQuery,
    ) -> Result<PartPage, Rejected> {
        let channel = match &query.subject {
            Some(id) => Channel::Subject(kind, id.clone()),
            None => Channel::Collection(kind),
        };
        caller.authorize(&channel)?;
        Ok(self.store.parts(caller.school(), kind, query).await?)
    }

    /// Checks that the caller may see the notifiers of its school. They receive everything there, so it needs all permissions.
    pub fn notifiers_of(&self, caller: &Caller) -> Result<NotifiersOf, Rejected> {
        caller.require(Role::Admin)?;
        caller.authorize(&Channel::School(caller.school()))?;
        Ok(NotifiersOf(caller.school()))
    }

    /// Returns the state of each notifier for the school, and the `seq` of the end of the school's log.
    pub async fn notifiers(&self, of: NotifiersOf) -> Result<(Vec<Standing>, u64), StoreError> {
        self.store.notifiers(of.0).await
    }

    /// Returns the position of a notifier in the log of the school.
    pub async fn notifier_offset(&self, of: NotifiersOf, name: &str) -> Result<Offset, StoreError> {
        self.store.notifier_offset(name, of.0).await
    }

    /// Returns the dead letters of a notifier in the school before this `seq`, newest first.
    pub async fn dead_letters(
        &self,
        of: NotifiersOf,
        name: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        self.store.dead_letters(name, of.0, before, limit).await
    }
}
