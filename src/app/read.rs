//! The use case *read*: subjects, their parts, their events and numbers, and notifiers, if the caller's credential covers
//! them.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::caller::Caller;
use super::publish::Rejected;
use crate::auth::{Access, AuthError, Role, Schools};
use crate::event::Event;
use crate::id::{Channel, Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind;
use crate::log::consumers::{DeadLetterPage, Offset, Standing};
use crate::log::{
    Ending, ListPage, ListQuery, PartPage, PartQuery, Store, StoreError, StoredSubject, Tally,
    TallyQuery, Which,
};

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

/// The proof that a caller may see everything on the server. Only [`ReadService::whole_server`] creates one.
#[derive(Debug, Clone, Copy)]
pub struct WholeServer(());

impl ReadService {
    /// Creates a service that reads from this store.
    pub fn new(store: Arc<dyn Store>) -> ReadService {
        ReadService { store }
    }

    /// Returns the epoch of the database.
    pub fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// Returns the end of the log of the caller's school.
    pub async fn head(&self, caller: &Caller) -> Result<Place, StoreError> {
        self.store.head(caller.school()).await
    }

    /// Returns the schools that a credential covers and that come after this one, in ascending order, at most `limit`.
    pub async fn schools(
        &self,
        access: &Access,
        after: Option<SchoolId>,
        limit: usize,
    ) -> Result<Vec<SchoolId>, StoreError> {
        let listed = match &access.schools {
            Schools::All => return self.store.schools(after, limit).await,
            Schools::Listed(listed) => listed,
            Schools::One(school) => std::slice::from_ref(school),
        };
        let rest = listed.iter().filter(|school| Some(**school) > after);
        Ok(rest.take(limit).copied().collect())
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

    /// Returns the newest events of a subject, at most `limit`, oldest first.
    pub async fn last_events(
        &self,
        caller: &Caller,
        kind: Kind,
        subject: SubjectId,
        which: Which,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, Rejected> {
        caller.authorize_subject(kind, &subject)?;
        let school = caller.school();
        let events = self
            .store
            .last_events(school, kind, subject, which, limit)
            .await?;
        Ok(events)
    }

    /// Returns the subjects of a kind that ended last with this status, latest first.
    pub async fn ended(
        &self,
        caller: &Caller,
        kind: Kind,
        status: &'static str,
        limit: usize,
    ) -> Result<Vec<StoredSubject>, Rejected> {
        caller.authorize(&Channel::Collection(kind))?;
        let school = caller.school();
        Ok(self.store.ended(school, kind, status, limit).await?)
    }

    /// Counts how the subjects of a kind have ended since `since`, by hour.
    pub async fn endings(
        &self,
        caller: &Caller,
        kind: Kind,
        since: DateTime<Utc>,
    ) -> Result<Vec<Ending>, Rejected> {
        caller.authorize(&Channel::Collection(kind))?;
        Ok(self.store.endings(caller.school(), kind, since).await?)
    }

    /// Counts the subjects of kinds in each of these schools. Kinds that the credential does not cover in a school are left
    /// out.
    pub async fn tallies(
        &self,
        access: &Access,
        schools: Vec<SchoolId>,
        mut queries: Vec<TallyQuery>,
    ) -> Result<Vec<Vec<(Kind, Tally)>>, StoreError> {
        // What a token covers can differ between schools: a channel such as `schools/7` applies only to that school.
        let covers = |school: &SchoolId, kind: Kind| {
            let authorized = access.authorize(*school, &Channel::Collection(kind));
            access.school(Some(*school)).is_ok() && authorized.is_ok()
        };
        queries.retain(|query| schools.iter().any(|school| covers(school, query.kind)));
        let kinds: Vec<Kind> = queries.iter().map(|query| query.kind).collect();
        let tallies = self.store.tallies(schools.clone(), queries).await?;
        let of_school = |(school, tallies): (&SchoolId, Vec<Tally>)| {
            let pairs = kinds.iter().copied().zip(tallies);
            pairs.filter(|(kind, _)| covers(school, *kind)).collect()
        };
        Ok(schools.iter().zip(tallies).map(of_school).collect())
    }

    /// Checks that the bearer may see everything on the server.
    pub fn whole_server(&self, access: &Access) -> Result<WholeServer, AuthError> {
        match access.is_unrestricted_admin() {
            true => Ok(WholeServer(())),
            false => Err(AuthError::NotUnrestricted),
        }
    }

    /// Returns the store itself.
    pub fn store(&self, _: WholeServer) -> &dyn Store {
        &*self.store
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
