//! Reads the events of one subject from the log of its school.
//!
//! An entry of each tick in an index on subjects would cost the writer as much as the rest of the tick, because the entries of
//! each subject are in a page of their own. So the index contains milestones, and only some of the ticks (see [`is_indexed`]).
//! Any other event is found from the next one of its subject, which refers to it (`previous_seq`), and the newest one from the
//! subject's row:
//!
//! ```text
//! index     1                 5                 9            row
//!           │                 │                 │             │
//!           ▼                 ▼                 ▼             ▼
//! events    1 ◀── 2 ◀── 4 ◀── 5 ◀── 6 ◀── 8 ◀── 9 ◀── 11 ◀── 12
//! ```
//!
//! Events are read in *runs*: a run begins with some entries of the index, follows the references back to the end of the run
//! before it, and returns what it found in the order of the log.
//!
//! Events of earlier versions are all in the index, and refer to none.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use diesel::connection::DefaultLoadingMode;
use diesel::expression::{AppearsOnTable, Expression, ValidGrouping, is_aggregate};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::events::EventRow;
use super::limit::Limit;
use super::schema::events;
use super::tables::table;
use crate::event::Event;
use crate::id::{Kind, SchoolId};
use crate::store::numbers::signed;

/// The number of index entries with which the first run of a page begins: so many that it usually finds all of the page.
const FIRST_ENTRIES: i64 = 6;
/// The most index entries with which a run of a page begins. What it finds beyond the page is read again for the next page.
const PAGE_MAX_ENTRIES: i64 = 32;
/// The most index entries with which a run of a search begins.
const SEARCH_MAX_ENTRIES: i64 = 256;
/// One in this many ticks is in the index, on average.
const TICKS_PER_ENTRY: u64 = 64;
/// If the numbers of two consecutive events of a subject are in different ranges of this length, the later one is in the index.
const RUN_MAX_SEQS: u64 = 65_536;
/// Larger events are in the index. SQLite divides their rows among pages, and a reference is at the end of a row.
const RUN_EVENT_BYTES: usize = 1_000;

/// Returns whether an event must be in the index on subjects. Only ticks that refer to another event can be left out. They are
/// chosen by chance, so that nothing needs to be remembered for each subject, and no publisher can avoid entries.
pub(super) fn is_indexed(event: &Event) -> bool {
    static CHANCE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let Some(previous) = event.previous else {
        return true;
    };
    !event.is_tick()
        || event.bytes() > RUN_EVENT_BYTES
        || previous / RUN_MAX_SEQS != event.seq / RUN_MAX_SEQS
        || CHANCE.hash_one(event.seq).is_multiple_of(TICKS_PER_ENTRY)
}

/// Returns with how many index entries a run begins if `left` events are wanted, and the run before it found `found` from
/// `entries`. At most twice as many, because the log may go on differently.
fn entries_for(left: i64, entries: i64, found: i64) -> i64 {
    (entries * left.max(0) / found.max(1) + 1).min(entries * 2)
}

/// A subject whose events are read.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) school: SchoolId,
    pub(super) kind: Kind,
    pub(super) id: &'a str,
}

impl Subject<'_> {
    /// Calls `add` with the events after `after` up to `through`, in the order of the log, until it returns false. Its runs are
    /// as long as `page` events need.
    pub(super) fn read(
        self,
        conn: &mut SqliteConnection,
        (after, through): (u64, u64),
        page: usize,
        mut add: impl FnMut(EventRow<'_>) -> QueryResult<bool>,
    ) -> QueryResult<()> {
        let (mut after, through) = (signed(after), signed(through));
        let (mut entries, mut left) = (FIRST_ENTRIES, signed(page));
        while after < through {
            let end = match self.entry_after(conn, after, entries)? {
                // Not further than needed.
                Some(end) if end > through => self.entry_after(conn, through - 1, 1)?,
                end => end,
            };
            let upto = end.map_or(through, |end| end.min(through));
            let run = Run {
                subject: self,
                school: self.school.get(),
                after,
                upto,
                entries_upto: end.unwrap_or(i64::MAX),
                newest: match end {
                    Some(_) => None,
                    None => self.newest(conn)?,
                },
            };
            let mut found = 0;
            let query = events::table
                .filter(events::school_id.eq(run.school))
                .filter(run)
                .order(events::seq)
                .select(EventRow::as_select());
            for row in query.load_iter::<EventRow<'_>, DefaultLoadingMode>(conn)? {
                found += 1;
                if !add(row?)? {
                    return Ok(());
                }
            }
            after = upto;
            left -= found;
            entries = entries_for(left, entries, found).min(PAGE_MAX_ENTRIES);
        }
        Ok(())
    }

    /// Returns the newest events of a type, newest first: at most `limit`, among the newest `most` of any type.
    pub(super) fn newest_of_type(
        self,
        conn: &mut SqliteConnection,
        name: &str,
        limit: usize,
        most: usize,
    ) -> QueryResult<Vec<EventRow<'static>>> {
        let mut newest = self.newest(conn)?;
        let (mut found, mut searched) = (Vec::new(), 0);
        let (mut upto, mut entries) = (i64::MAX, FIRST_ENTRIES);
        loop {
            let before = self.entry_before(conn, upto, entries)?;
            let run = Run {
                subject: self,
                school: self.school.get(),
                after: before.unwrap_or(0),
                upto,
                entries_upto: upto,
                newest: newest.take(),
            };
            // Without the fields, which may be large.
            let of_run: Vec<(i64, bool)> = events::table
                .filter(events::school_id.eq(run.school))
                .filter(run)
                .order(events::seq)
                .select((events::seq, events::name.eq(name)))
                .load(conn)?;
            let newest_first = of_run.iter().rev().take(most - searched);
            let seqs = newest_first
                .filter(|(_, is_wanted)| *is_wanted)
                .map(|(seq, _)| *seq);
            found.extend(seqs.take(limit - found.len()));
            searched += of_run.len();
            let left = signed(most.saturating_sub(searched));
            let wanted = entries_for(left, entries, signed(of_run.len()));
            entries = wanted.min(SEARCH_MAX_ENTRIES);
            match before {
                Some(before) if found.len() < limit && searched < most => upto = before,
                _ => break,
            }
        }
        let event = |seq| {
            let row = events::table.find((self.school.get(), seq));
            row.select(EventRow::as_select()).get_result(conn)
        };
        found.into_iter().map(event).collect()
    }

    /// Returns the number of the `nth` entry of the index after `after`.
    fn entry_after(
        self,
        conn: &mut SqliteConnection,
        after: i64,
        nth: i64,
    ) -> QueryResult<Option<i64>> {
        events::table
            .filter(events::school_id.eq(self.school.get()))
            .filter(events::kind.eq(self.kind.collection()))
            .filter(events::subject_id.eq(self.id))
            .filter(events::indexed)
            .filter(events::seq.gt(after))
            .order(events::seq)
            .select(events::seq)
            .row_after(nth - 1)
            .get_result(conn)
            .optional()
    }

    /// Returns the number of the entry of the index before the `count` last ones up to `upto`.
    fn entry_before(
        self,
        conn: &mut SqliteConnection,
        upto: i64,
        count: i64,
    ) -> QueryResult<Option<i64>> {
        events::table
            .filter(events::school_id.eq(self.school.get()))
            .filter(events::kind.eq(self.kind.collection()))
            .filter(events::subject_id.eq(self.id))
            .filter(events::indexed)
            .filter(events::seq.le(upto))
            .order(events::seq.desc())
            .select(events::seq)
            .row_after(count)
            .get_result(conn)
            .optional()
    }

    /// Returns the number of the newest event.
    fn newest(self, conn: &mut SqliteConnection) -> QueryResult<Option<i64>> {
        table(self.kind).last_seq(conn, self.school, self.id)
    }
}

/// Consecutive events of a subject, as a condition on the rows of `events`.
struct Run<'a> {
    subject: Subject<'a>,
    school: i64,
    after: i64,
    upto: i64,
    /// The entries of the index after `after` up to this number, from which it starts.
    entries_upto: i64,
    /// The subject's newest event, if it starts from that as well.
    newest: Option<i64>,
}

impl QueryFragment<Sqlite> for Run<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        let Run {
            subject: Subject { kind, id, .. },
            school,
            ..
        } = self;
        let subject = |out: &mut AstPass<'_, 'b, Sqlite>| {
            out.push_sql("events.kind = ");
            out.push_bind_param::<Text, str>(kind.collection())?;
            out.push_sql(" AND events.subject_id = ");
            out.push_bind_param::<Text, str>(id)
        };
        subject(&mut out)?;
        // SQLite visits the numbers of `IN` in ascending order.
        out.push_sql(
            " AND events.seq IN (WITH RECURSIVE run (seq) AS (
                SELECT events.seq FROM events INDEXED BY events_by_subject WHERE events.indexed AND events.school_id = ",
        );
        out.push_bind_param::<BigInt, _>(school)?;
        out.push_sql(" AND ");
        subject(&mut out)?;
        out.push_sql(" AND events.seq > ");
        out.push_bind_param::<BigInt, _>(&self.after)?;
        out.push_sql(" AND events.seq <= ");
        out.push_bind_param::<BigInt, _>(&self.entries_upto)?;
        out.push_sql(" UNION SELECT ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.newest)?;
        out.push_sql(
            " UNION SELECT events.previous_seq FROM run CROSS JOIN events ON events.seq = run.seq WHERE events.school_id = ",
        );
        out.push_bind_param::<BigInt, _>(school)?;
        out.push_sql(" AND ");
        subject(&mut out)?;
        out.push_sql(" AND events.previous_seq > ");
        out.push_bind_param::<BigInt, _>(&self.after)?;
        out.push_sql(") SELECT run.seq FROM run WHERE run.seq > ");
        out.push_bind_param::<BigInt, _>(&self.after)?;
        out.push_sql(" AND run.seq <= ");
        out.push_bind_param::<BigInt, _>(&self.upto)?;
        out.push_sql(")");
        Ok(())
    }
}

impl QueryId for Run<'_> {
    type QueryId = Run<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Expression for Run<'_> {
    type SqlType = Bool;
}

impl AppearsOnTable<events::table> for Run<'_> {}

impl ValidGrouping<()> for Run<'_> {
    type IsAggregate = is_aggregate::No;
}

#[cfg(test)]
mod tests {
    use diesel_migrations::MigrationHarness;
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::super::{functions, migrations};
    use super::*;
    use crate::event::{Class, Draft, EventType};
    use crate::id::Epoch;
    use crate::kind::device::DEVICE_STATUS_UPDATE;
    use crate::kind::job::{self, JOB_PROGRESS};

    const SUBJECTS: [&str; 3] = ["a", "b", "c"];
    /// The types of milestones and of ticks.
    const TYPES: [&EventType; 2] = [&DEVICE_STATUS_UPDATE, &JOB_PROGRESS];

    /// An event of a log: of which subject, and whether it is a tick.
    type Entry = (usize, bool);

    fn event(school: SchoolId, seq: u64, (subject, is_tick): Entry) -> Event {
        let draft = Draft {
            event_type: TYPES[usize::from(is_tick)],
            class: match is_tick {
                true => Class::Tick,
                false => Class::Milestone,
            },
            status: "in_progress",
            category: None,
            fields: "{}".into(),
        };
        let subject = SUBJECTS[subject].parse().unwrap();
        let at = (Epoch::generate(), seq);
        Event::new(at, school, job::KIND, subject, chrono::Utc::now(), draft)
    }

    /// Creates a database with these events, numbered from `first`, of which `old` are those of an earlier version, and
    /// with the rows of the subjects.
    fn database(log: &[Entry], first: u64, old: usize) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        functions::register(&mut conn).unwrap();
        conn.run_pending_migrations(migrations::MIGRATIONS).unwrap();
        for school in [1, 2].map(|id| SchoolId::try_from(id).unwrap()) {
            let mut last = [None; SUBJECTS.len()];
            let mut made = Vec::new();
            for (seq, entry) in (first..).zip(log) {
                let event = event(school, seq, *entry).succeeding(last[entry.0]);
                last[entry.0] = Some(seq);
                made.push(Arc::new(event));
            }
            super::super::append::append(&mut conn, &made).unwrap();
            let of_old = events::table.filter(events::seq.lt(signed(first + old as u64)));
            diesel::update(of_old)
                .set((
                    events::previous_seq.eq(None::<i64>),
                    events::indexed.eq(true),
                ))
                .execute(&mut conn)
                .unwrap();
            for (subject, seq) in SUBJECTS.iter().zip(last) {
                let Some(seq) = seq else { continue };
                diesel::sql_query(
                    "INSERT INTO jobs (school_id, job_id, job_type, status, message, metadata, attempt, stalled, cancel_requested,
                         created_at, heard_at, stall_after_secs, timeout_secs, created_seq, last_seq, last_at)
                     VALUES (?, ?, 't', 'in_progress', '', '{}', 1, FALSE, FALSE, 1, 1, 1, 1, 1, ?, 1)",
                )
                .bind::<BigInt, _>(school.get())
                .bind::<Text, _>(*subject)
                .bind::<BigInt, _>(signed(seq))
                .execute(&mut conn)
                .unwrap();
            }
        }
        conn
    }

    fn subject(id: &str) -> Subject<'_> {
        Subject {
            school: 1.try_into().unwrap(),
            kind: job::KIND,
            id,
        }
    }

    fn indexed(conn: &mut SqliteConnection) -> i64 {
        events::table
            .filter(events::indexed)
            .count()
            .get_result(conn)
            .unwrap()
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let ticks = (0..SUBJECTS.len(), proptest::bool::weighted(0.9));
        proptest::collection::vec(ticks, 0..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_read_returns_every_event_of_the_subject_in_the_order_of_the_log(
            log in entries(),
            old in 0_usize..100,
            // Some logs go over the end of a range.
            first in prop_oneof![Just(1), RUN_MAX_SEQS - 200..RUN_MAX_SEQS],
            ranges in proptest::collection::vec((0_u64..450, 0_u64..450, 1_usize..300), 1..20),
            gone in 0_u64..200,
        ) {
            let mut conn = database(&log, first, old);
            // As after retention.
            diesel::delete(events::table.filter(events::seq.lt(signed(first + gone)))).execute(&mut conn).unwrap();
            for (after, through, most) in ranges {
                let (after, through) = (first - 1 + after, first - 1 + through);
                for (number, id) in SUBJECTS.iter().enumerate() {
                    let numbered = (first..).zip(&log);
                    let expected = numbered.filter(|(seq, entry)| entry.0 == number && *seq > after && *seq <= through);
                    let expected = expected.map(|(seq, _)| seq).filter(|seq| *seq >= first + gone);
                    let expected: Vec<u64> = expected.take(most).collect();
                    let mut found = Vec::new();
                    subject(id).read(&mut conn, (after, through), most, |row| {
                        found.push(row.into_event(Epoch::generate())?.seq);
                        Ok(found.len() < most)
                    }).unwrap();
                    prop_assert_eq!(found, expected);
                }
            }
        }

        #[test]
        fn the_newest_events_of_a_type_are_found_from_the_newest_one_on(
            log in entries(),
            old in 0_usize..100,
            limit in 1_usize..100,
            most in 1_usize..200,
        ) {
            let mut conn = database(&log, 1, old);
            for (number, id) in SUBJECTS.iter().enumerate() {
                for (is_tick, event_type) in [false, true].into_iter().zip(TYPES) {
                    let newest_first = (1_u64..).zip(&log).collect::<Vec<_>>().into_iter().rev();
                    let of_subject = newest_first.filter(|(_, entry)| entry.0 == number).take(most);
                    let expected = of_subject.filter(|(_, entry)| entry.1 == is_tick).map(|(seq, _)| seq);
                    let expected: Vec<u64> = expected.take(limit).collect();
                    let rows = subject(id).newest_of_type(&mut conn, event_type.name, limit, most).unwrap();
                    let found = rows.into_iter().map(|row| row.into_event(Epoch::generate()).unwrap().seq);
                    prop_assert_eq!(found.collect::<Vec<_>>(), expected);
                }
            }
        }
    }

    #[test]
    fn a_search_for_a_type_ends_after_so_many_events() {
        let log: Vec<Entry> = (0..3_000).map(|number| (0, number > 0)).collect();
        let mut conn = database(&log, 1, 0);
        let first = TYPES[0].name;
        let mut find = |most| {
            subject("a")
                .newest_of_type(&mut conn, first, 1, most)
                .unwrap()
                .len()
        };
        assert_eq!((find(2_999), find(3_000)), (0, 1));
    }

    #[test]
    fn few_ticks_are_in_the_index_however_far_apart_those_of_a_subject_are() {
        for apart in (1..200).chain([256, 1_000, 1_024, 4_096, 10_000]) {
            let ticks = (1_u64..).map(|number| (number * apart, (number - 1) * apart));
            let (mut run, mut longest, mut indexed) = (0, 0, 0);
            for (seq, previous) in ticks.take(10_000) {
                let event = event(1.try_into().unwrap(), seq, (0, true)).succeeding(Some(previous));
                run = match is_indexed(&event) {
                    true => 0,
                    false => run + 1,
                };
                indexed += u64::from(run == 0);
                longest = longest.max(run);
            }
            let ranges = 10_000 * apart / RUN_MAX_SEQS;
            let expected = 10_000 / TICKS_PER_ENTRY + ranges;
            assert!(indexed <= 2 * expected, "{indexed} entries, {apart} apart");
            assert!(
                longest <= 4_096,
                "{longest} events in a row without an entry, {apart} apart"
            );
        }
    }

    #[test]
    fn a_reference_to_an_event_of_another_subject_leads_nowhere() {
        let mut conn = database(&[(0, false), (1, true), (0, true), (1, true)], 1, 4);
        diesel::sql_query(
            "UPDATE events SET indexed = FALSE, previous_seq = seq - 1 WHERE milestone = FALSE",
        )
        .execute(&mut conn)
        .unwrap();
        assert_eq!(indexed(&mut conn), 2);
        let mut found = Vec::new();
        subject("b")
            .read(&mut conn, (0, 4), 10, |row| {
                found.push(row.into_event(Epoch::generate())?.seq);
                Ok(true)
            })
            .unwrap();
        assert_eq!(found, [4]);
    }
}
