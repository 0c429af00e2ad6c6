//! Copies everything in a SQLite database into a Postgres database. The epoch and the numbers of the events stay the same,
//! so that clients can keep using their cursors.

use super::postgres::{Address, Import, ImportError};
use super::sqlite::SqliteStore;
use crate::config::{COPY_PAGE, COPY_SUBJECTS};
use crate::id::{Kind, SchoolId, SubjectId};
use crate::kind;
use crate::log::facts::Stored;
use crate::log::{
    Catalog, Consumers, Journal, ListQuery, Log, Order, PartQuery, PingKeys, StoreError,
    StoredSubject,
};

/// The progress of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Schools that were copied completely.
    pub schools: u64,
    /// The total number of schools.
    pub of_schools: u64,
    /// Events that were copied.
    pub events: u64,
    /// Subjects that were copied.
    pub subjects: u64,
}

/// Copies a database. The store must not be in use by a server. Calls `report` after each step.
pub async fn copy(
    from: &SqliteStore,
    to: &Address,
    mut report: impl FnMut(&Progress),
) -> Result<Progress, ImportError> {
    let mut import = Import::begin(to, from.epoch(), from.uptime().now()).await?;
    let mut progress = Progress::default();
    let mut schools = Vec::new();
    loop {
        let page = from.schools(schools.last().copied(), COPY_PAGE).await?;
        let is_last = page.len() < COPY_PAGE;
        schools.extend(page);
        if is_last {
            break;
        }
    }
    // A school can have keys before it has a log.
    schools.extend(from.schools_with_ping_keys().await?);
    schools.sort_unstable();
    schools.dedup();
    progress.of_schools = schools.len() as u64;
    let names = from
        .notifier_totals()
        .await?
        .into_iter()
        .map(|total| total.name);
    let names: Vec<String> = names.collect();
    for school in schools {
        import.begin_school(school).await?;
        let mut step = Step {
            from,
            school,
            import: &mut import,
            progress: &mut progress,
            report: &mut report,
        };
        step.copy().await?;
        progress.schools += 1;
        report(&progress);
    }
    let mut registered = Vec::with_capacity(names.len());
    for name in names {
        let not_before = from.notifier_begins(&name).await?.not_before;
        registered.push((name, not_before));
    }
    import.end(&registered).await?;
    Ok(progress)
}

/// The copy of one school.
struct Step<'a, R> {
    from: &'a SqliteStore,
    school: SchoolId,
    import: &'a mut Import,
    progress: &'a mut Progress,
    report: &'a mut R,
}

impl<R: FnMut(&Progress)> Step<'_, R> {
    async fn copy(&mut self) -> Result<(), StoreError> {
        let bounds = self.from.bounds(self.school).await?;
        // Creates the school's row, even if none of its events is left.
        self.import.events(Vec::new()).await?;
        let mut after = bounds.floor.seq;
        while after < bounds.head.seq {
            let range = self
                .from
                .read_range(self.school, after, bounds.head.seq)
                .await?;
            after = range.through;
            self.progress.events += range.events.len() as u64;
            self.import.events(range.events).await?;
            (self.report)(self.progress);
        }
        for kind in kind::KINDS {
            self.subjects(*kind).await?;
            self.parts(*kind).await?;
        }
        self.keys().await?;
        let ping_keys = self.from.ping_keys(self.school).await?;
        self.import.ping_keys(&ping_keys).await?;
        self.notifiers().await?;
        self.import.end_school(bounds).await
    }

    async fn subjects(&mut self, kind: Kind) -> Result<(), StoreError> {
        let mut query = ListQuery {
            order: Order::Oldest,
            limit: COPY_SUBJECTS,
            ..ListQuery::default()
        };
        loop {
            let page = self.from.subjects(self.school, kind, query.clone()).await?;
            self.progress.subjects += page.subjects.len() as u64;
            let states = page.subjects.into_iter().map(into_stored);
            self.import.subjects(kind, states.collect()).await?;
            (self.report)(self.progress);
            if page.next.is_none() {
                return Ok(());
            }
            query.beyond = page.next;
        }
    }

    async fn parts(&mut self, kind: Kind) -> Result<(), StoreError> {
        let mut query = PartQuery {
            limit: COPY_PAGE,
            ..PartQuery::default()
        };
        loop {
            let page = self.from.parts(self.school, kind, query.clone()).await?;
            if !page.parts.is_empty() {
                self.import.parts(kind, page.parts).await?;
            }
            if page.next.is_none() {
                return Ok(());
            }
            query.before = page.next;
        }
    }

    async fn keys(&mut self) -> Result<(), StoreError> {
        let mut after = String::new();
        loop {
            let page = self.from.used_keys(self.school, after, COPY_PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.key.clone();
            self.import.keys(&page).await?;
        }
    }

    async fn notifiers(&mut self) -> Result<(), StoreError> {
        let (standings, _) = self.from.notifiers(self.school).await?;
        for standing in standings {
            let offset = self
                .from
                .notifier_offset(&standing.name, self.school)
                .await?;
            let (mut letters, mut before) = (Vec::new(), None);
            loop {
                let page = self
                    .from
                    .dead_letters(&standing.name, self.school, before, COPY_PAGE);
                let page = page.await?;
                letters.extend(page.letters);
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            self.import.notifier(&standing, &offset, &letters).await?;
        }
        Ok(())
    }
}

fn into_stored(subject: StoredSubject) -> (SubjectId, Stored) {
    let event = &subject.event;
    let stored = Stored {
        created_seq: subject.created_seq,
        last: event.place(),
        last_at: event.at,
        state: subject.state,
    };
    (event.subject.clone(), stored)
}
