//! Imports everything from another store: see `tidings copy`. The epoch and the numbers of the events stay the same, so
//! that clients can keep using their cursors.
//!
//! Each school is one transaction. Until the import is complete, `meta` records which database it comes from, and no
//! server opens the database. An interrupted import starts again from the beginning, because the other store may have
//! changed since.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::commit::commit;
use super::migrations::{Migrated, migrate};
use super::schema::schools;
use super::{
    Address, COPIED_FROM, Fact, OpenError, answers, consumers, database_error, fact_or, ping_keys,
};
use crate::event::Event;
use crate::id::{Epoch, Kind, Place, SchoolId, SubjectId};
use crate::kind::Part;
use crate::log::consumers::{DeadLetter, Offset, Standing};
use crate::log::decide::Decisions;
use crate::log::facts::{Moment, Stored};
use crate::log::pings::PingKey;
use crate::log::{Bounds, StoreError};
use crate::store::columns::{millis, tag_bits};
use crate::store::numbers::signed;
use crate::store::shared::{Move, stamp};
use crate::store::used_key::UsedKey;
use crate::uptime::Uptime;

/// The tables whose rows belong to a school. Others in the same schema, which may be an application's own, stay as they are.
const TABLES_OF_SCHOOLS: [&str; 12] = [
    "beats",
    "counts",
    "dead_letters",
    "endings",
    "events",
    "idempotency_keys",
    "notifier_cursors",
    "notifier_set_aside",
    "parts",
    "ping_keys",
    "schools",
    "subjects",
];

/// Why a database cannot import another one.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be reached or used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It contains something else.
    #[error(
        "`{0}` is not empty; name a database without schools, for example a new one (`createdb`)"
    )]
    NotEmpty(String),
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> ImportError {
        ImportError::Open(error.into())
    }
}

/// An import into a database.
pub struct Import {
    conn: AsyncPgConnection,
    /// The school in progress, and the stamp of its row.
    school: Option<(SchoolId, Option<i64>)>,
}

impl Import {
    /// Begins to import the database with this epoch. Discards what an interrupted import of the same database has left.
    pub async fn begin(
        address: &Address,
        epoch: Epoch,
        uptime: Uptime,
    ) -> Result<Import, ImportError> {
        let mut conn = address.connect().await?;
        if let Migrated::Newer(needed) = migrate(&mut conn).await.map_err(database_error)? {
            let database = address.database().to_owned();
            return Err(OpenError::Newer { database, needed }.into());
        }
        let (epoch, uptime) = (epoch.to_string(), uptime.millis().to_string());
        let begun = async {
            conn.batch_execute("BEGIN; LOCK TABLE meta").await?;
            let origin = diesel::sql_query("SELECT value FROM meta WHERE key = $1")
                .bind::<Text, _>(COPIED_FROM)
                .load::<Fact>(&mut conn)
                .await?;
            let is_same = origin.iter().any(|fact| fact.value == epoch);
            let first: Option<i64> = schools::table
                .select(schools::school_id)
                .first(&mut conn)
                .await
                .optional()?;
            let stored_epoch = diesel::sql_query("SELECT value FROM meta WHERE key = 'epoch'")
                .load::<Fact>(&mut conn)
                .await?;
            if !is_same && (first.is_some() || !stored_epoch.is_empty()) {
                conn.batch_execute("ROLLBACK").await?;
                return QueryResult::Ok(false);
            }
            if is_same {
                discard(&mut conn).await?;
            }
            for (key, value) in [
                (COPIED_FROM, &epoch),
                ("epoch", &epoch),
                ("uptime", &uptime),
            ] {
                fact_or(&mut conn, key, value).await?;
            }
            conn.batch_execute("COMMIT").await?;
            Ok(true)
        };
        match begun.await.map_err(database_error)? {
            true => Ok(Import { conn, school: None }),
            false => Err(ImportError::NotEmpty(address.database().to_owned())),
        }
    }

    /// Begins a school.
    pub async fn begin_school(&mut self, school: SchoolId) -> Result<(), StoreError> {
        let begun = self.conn.batch_execute("BEGIN").await;
        begun.map_err(database_error)?;
        self.school = Some((school, None));
        Ok(())
    }

    /// Adds events, the oldest first.
    pub async fn events(&mut self, events: Vec<Arc<Event>>) -> Result<(), StoreError> {
        let mut group = Decisions::default();
        group.events = events;
        self.write(&group).await
    }

    /// Adds states of subjects.
    pub async fn subjects(
        &mut self,
        kind: Kind,
        states: Vec<(SubjectId, Stored)>,
    ) -> Result<(), StoreError> {
        let school = self.current().0;
        let mut group = Decisions::default();
        let states = states.into_iter();
        group.states = states
            .map(|(id, stored)| ((school, kind, id), stored))
            .collect();
        self.write(&group).await
    }

    /// Adds parts of subjects.
    pub async fn parts(&mut self, kind: Kind, parts: Vec<Part>) -> Result<(), StoreError> {
        let school = self.current().0;
        let address = |part: &Part| ((school, kind, part.subject().clone()), part.number());
        let parts = parts.into_iter().map(|part| (address(&part), part));
        let mut group = Decisions::default();
        group.parts = parts.collect();
        self.write(&group).await
    }

    /// Adds uses of idempotency keys.
    pub async fn keys(&mut self, keys: &[UsedKey]) -> Result<(), StoreError> {
        let (school, _) = self.current();
        let answers = keys
            .iter()
            .map(|used| used.answer.as_ref().map(answers::to_json));
        let answers: Vec<Option<String>> = answers.collect();
        let bytes = keys
            .iter()
            .filter_map(|used| Some(answers::bytes(&used.key, used.answer.as_ref()?)));
        let bytes: i64 = bytes.sum();
        macro_rules! column {
            ($used:ident => $value:expr) => {
                keys.iter().map(|$used| $value).collect::<Vec<_>>()
            };
        }
        let written = diesel::sql_query(
            "INSERT INTO idempotency_keys (school_id, key, fingerprint, kind, subject_id, seq, created_at, answer) \
             SELECT $1, k.* FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[]) AS k",
        )
        .bind::<BigInt, _>(school.get())
        .bind::<Array<Text>, _>(column!(used => used.key.as_str()))
        .bind::<Array<Text>, _>(column!(used => used.fingerprint.as_str()))
        .bind::<Array<Text>, _>(column!(used => used.kind.collection()))
        .bind::<Array<Text>, _>(column!(used => used.subject.as_str()))
        .bind::<Array<BigInt>, _>(column!(used => signed(used.seq)))
        .bind::<Array<BigInt>, _>(column!(used => millis(used.used_at)))
        .bind::<Array<Nullable<Text>>, _>(answers)
        .execute(&mut self.conn)
        .await;
        written.map_err(database_error)?;
        let counted = diesel::update(schools::table.find(school.get()))
            .set(schools::answer_bytes.eq(schools::answer_bytes + bytes))
            .execute(&mut self.conn)
            .await;
        counted.map(drop).map_err(database_error)
    }

    /// Adds keys for pings.
    pub async fn ping_keys(&mut self, keys: &[PingKey]) -> Result<(), StoreError> {
        let (school, _) = self.current();
        for key in keys {
            ping_keys::insert(&mut self.conn, school, key, u64::MAX)
                .await
                .map_err(database_error)?;
        }
        Ok(())
    }

    /// Adds the offset of a notifier, with its status, the subjects that are set aside, and its dead letters.
    pub async fn notifier(
        &mut self,
        standing: &Standing,
        offset: &Offset,
        letters: &[DeadLetter],
    ) -> Result<(), StoreError> {
        let (school, _) = self.current();
        let written = consumers::import(&mut self.conn, school, standing, offset, letters).await;
        written.map_err(database_error)
    }

    /// Ends a school with the bounds of its log.
    pub async fn end_school(&mut self, bounds: Bounds) -> Result<(), StoreError> {
        let (school, _) = self.current();
        let ended = async {
            diesel::update(schools::table.find(school.get()))
                .set((
                    schools::head.eq(signed(bounds.head.seq)),
                    schools::head_tag.eq(tag_bits(bounds.head)),
                    schools::floor.eq(signed(bounds.floor.seq)),
                    schools::floor_tag.eq(tag_bits(bounds.floor)),
                ))
                .execute(&mut self.conn)
                .await?;
            self.conn.batch_execute("COMMIT").await
        };
        ended.await.map_err(database_error)?;
        self.school = None;
        Ok(())
    }

    /// Completes the import: servers can open the database now.
    pub async fn end(
        mut self,
        not_before: &[(String, Option<DateTime<Utc>>)],
    ) -> Result<(), StoreError> {
        let ended = async {
            self.conn.batch_execute("BEGIN").await?;
            for (name, at) in not_before {
                consumers::register(&mut self.conn, name, *at).await?;
            }
            diesel::sql_query("DELETE FROM meta WHERE key = $1")
                .bind::<Text, _>(COPIED_FROM)
                .execute(&mut self.conn)
                .await?;
            // Gives the planner statistics about the copied rows before the first query.
            self.conn.batch_execute("COMMIT; ANALYZE").await
        };
        ended.await.map_err(database_error)
    }

    fn current(&self) -> (SchoolId, Option<i64>) {
        self.school.expect("a school has begun")
    }

    async fn write(&mut self, group: &Decisions) -> Result<(), StoreError> {
        let (school, expected) = self.current();
        let newest = group.events.last().map_or(0, |event| event.seq);
        let moved = Move {
            school,
            expected,
            stamp: stamp(),
            // `end_school` sets the tag.
            head: Place::untagged(newest),
        };
        let now = Moment {
            at: DateTime::UNIX_EPOCH,
            uptime: Uptime::default(),
        };
        let written = commit(
            &mut self.conn,
            group,
            std::slice::from_ref(&moved),
            false,
            now,
        )
        .await;
        match written.map_err(database_error)?.is_empty() {
            false => {
                self.school = Some((school, Some(moved.stamp)));
                Ok(())
            }
            true => Err(StoreError::Database(
                "another program has written to the database during the copy".into(),
            )),
        }
    }
}

/// Deletes everything that belongs to schools, and the saved uptime.
async fn discard(conn: &mut AsyncPgConnection) -> QueryResult<()> {
    let names = TABLES_OF_SCHOOLS.join(", ");
    conn.batch_execute(&format!(
        "TRUNCATE {names}; DELETE FROM meta WHERE key = 'uptime'"
    ))
    .await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_table_of_schools_that_a_migration_creates_is_discarded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
        let mut tables = Vec::new();
        for migration in std::fs::read_dir(folder).unwrap() {
            let script = std::fs::read_to_string(migration.unwrap().path().join("up.sql")).unwrap();
            for table in script.split("CREATE TABLE ").skip(1) {
                let (name, rest) = table.split_once(' ').unwrap();
                let columns = rest.split_once(");").unwrap().0;
                if columns.contains("school_id") {
                    tables.push(name.to_owned());
                }
            }
        }
        tables.sort();
        assert_eq!(tables, TABLES_OF_SCHOOLS);
    }
}
