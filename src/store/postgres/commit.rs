//! The write of a group: one statement, and so one round trip and one transaction.
//!
//! ```text
//! lock the rows of the schools, in the order of their ids
//!   ─▶ advance the head of each school whose stamp is unchanged since its decisions     (compare and append)
//!        ─▶ for these schools only: events, states, parts, keys, counts
//! ```
//!
//! A *stamp* is a random number that each write of a school's log or states replaces. If it is still the one that was
//! loaded before the decisions, no other node has written in between, and the decisions hold; this is also how a node
//! knows that its cached states are current. For a school with another stamp, the statement writes nothing, and its
//! commands are decided again. The schools of a group do not affect one another.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::prepared::prepared;
use crate::config::INDEXED_TEXT_MAX_BYTES;
use crate::event::Event;
use crate::id::SchoolId;
use crate::kind::State;
use crate::log::decide::{Counted, Decisions};
use crate::log::facts::{Moment, Stored};
use crate::store::columns::{millis, tag_bits, uptime_millis};
use crate::store::numbers::signed;
use crate::store::shared::Move;
use crate::store::texts::{contains, folded_json, folded_texts, value_contains};

/// The statement. The rows to insert are passed as arrays, one for each column.
const COMMIT: &str = include_str!("commit.sql");

#[derive(QueryableByName)]
struct Moved {
    /// None in the only row, if no school was written.
    #[diesel(sql_type = Nullable<BigInt>)]
    school_id: Option<i64>,
}

/// Defines the columns of one table.
macro_rules! columns {
    ($(#[$doc:meta])* $name:ident { $($column:ident: $of:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Default)]
        struct $name<'a> { $($column: Vec<$of>),* }
    };
}

columns! {
    /// The columns of `events`.
    Events { school: i64, seq: i64, kind: &'a str, subject: &'a str, name: &'a str, milestone: bool, wide: bool,
        status: &'a str, category: Option<&'a str>, at: i64, fields: &'a str }
}
columns! {
    /// The columns of `subjects`.
    Subjects { school: i64, kind: &'a str, subject: &'a str, status: &'a str, category: Option<&'a str>,
        holds: Option<&'a str>, stalled: bool, created_at: i64, finished_at: Option<i64>, check_uptime: Option<i64>,
        created_seq: i64, last_seq: i64, last_tag: Option<i64>, last_at: i64, told_seq: i64, also_told_seq: Option<i64>,
        past: Option<String>, texts: Option<String>, state: String, old_status: Option<&'a str>, old_stalled: bool,
        old_finished_at: Option<i64> }
}
columns! {
    /// The columns of `parts`.
    Parts { school: i64, kind: &'a str, subject: &'a str, number: i64, own_id: Option<&'a str>, seq: i64,
        closed_at: Option<i64>, part: String }
}
columns! {
    /// The columns of `idempotency_keys`.
    Keys { school: i64, key: &'a str, fingerprint: &'a str, kind: &'a str, subject: &'a str, seq: i64,
        answer: Option<String> }
}

impl<'a> Events<'a> {
    fn push(&mut self, event: &'a Event) {
        self.school.push(event.school.get());
        self.seq.push(signed(event.seq));
        self.kind.push(event.kind.collection());
        self.subject.push(event.subject.as_str());
        self.name.push(event.draft.event_type.name);
        self.milestone.push(!event.is_tick());
        self.wide.push(event.draft.event_type.wide);
        self.status.push(event.draft.status);
        self.category.push(event.draft.category.as_deref());
        self.at.push(millis(event.at));
        self.fields.push(&event.draft.fields);
    }
}

impl<'a> Subjects<'a> {
    fn push(
        &mut self,
        (school, kind, id): (SchoolId, &'a str, &'a str),
        stored: &'a Stored,
        before: Option<&Counted>,
    ) {
        let subject = stored.state.subject();
        let [published_at, also_published_at] = subject.places(stored.last.seq);
        self.school.push(school.get());
        self.kind.push(kind);
        self.subject.push(id);
        self.status.push(subject.status());
        self.category.push(subject.category());
        self.holds.push(subject.holds());
        self.stalled.push(subject.is_stalled());
        self.created_at.push(millis(subject.created_at()));
        self.finished_at.push(subject.finished_at().map(millis));
        self.check_uptime
            .push(subject.check_uptime().map(uptime_millis));
        self.created_seq.push(signed(stored.created_seq));
        self.last_seq.push(signed(stored.last.seq));
        self.last_tag.push(tag_bits(stored.last));
        self.last_at.push(millis(stored.last_at));
        self.told_seq
            .push(signed(published_at.unwrap_or(stored.last.seq)));
        self.also_told_seq.push(also_published_at.map(signed));
        let past = subject.past().map(|(_, past)| serde_json::to_string(&past));
        self.past.push(past.map(|past| past.expect("it is JSON")));
        self.texts.push(searched_texts(id, &stored.state));
        self.state.push(stored.state.to_json());
        self.old_status.push(before.map(|counted| counted.status));
        self.old_stalled
            .push(before.is_some_and(|counted| counted.is_stalled));
        let finished_at = before.and_then(|counted| counted.finished_at);
        self.old_finished_at.push(finished_at.map(millis));
    }
}

/// Returns the texts that a search compares, for a subject that has ended. Returns `None` for a subject that has not
/// ended, because its texts change often, and for one with very long texts. For these, a search reads the state.
fn searched_texts(id: &str, state: &State) -> Option<String> {
    let is_kept = state.is_over() && state.text_bytes() <= INDEXED_TEXT_MAX_BYTES;
    is_kept.then(|| all_texts(id, state))
}

/// Returns whether one of a subject's texts contains the text that is searched for.
pub(super) fn mentions(id: &str, state: &State, wanted: &str) -> bool {
    let texts = state.subject().texts();
    let mut plain = std::iter::once(id).chain(texts.own);
    let values = texts.values.map(|values| values.get());
    plain.any(|text| contains(text, wanted))
        || values.is_some_and(|values| value_contains(values, wanted))
}

/// Returns the texts of a subject as a search compares them.
fn all_texts(id: &str, state: &State) -> String {
    let texts = state.subject().texts();
    let plain = std::iter::once(id).chain(texts.own);
    let mut all = folded_texts(plain);
    if let Some(values) = texts.values {
        folded_json(values.get(), &mut all);
    }
    // A text in Postgres cannot contain U+0000. Each match is checked against the original texts.
    all.retain(|character| character != '\0');
    all
}

/// Writes a group. Returns the schools that were written; the stamps of the others have changed.
pub(super) async fn commit(
    conn: &mut AsyncPgConnection,
    group: &Decisions,
    moves: &[Move],
    waits_for_disk: bool,
    now: Moment,
) -> QueryResult<Vec<SchoolId>> {
    let (mut events, mut subjects, mut parts, mut keys) = (
        Events::default(),
        Subjects::default(),
        Parts::default(),
        Keys::default(),
    );
    for event in &group.events {
        events.push(event);
    }
    for (address, stored) in &group.states {
        let (school, kind, id) = address;
        let before = group.before.get(address);
        subjects.push((*school, kind.collection(), id.as_str()), stored, before);
    }
    for (((school, kind, subject), number), part) in &group.parts {
        parts.school.push(school.get());
        parts.kind.push(kind.collection());
        parts.subject.push(subject.as_str());
        parts.number.push(signed(*number));
        parts.own_id.push(part.own_id().map(|id| &**id));
        parts.seq.push(signed(part.seq()));
        parts.closed_at.push(part.closed_at().map(millis));
        parts.part.push(part.to_json());
    }
    for ((school, key), used) in &group.keys {
        let event = &used.event;
        keys.school.push(school.get());
        keys.key.push(key);
        keys.fingerprint.push(&used.fingerprint);
        keys.kind.push(event.kind.collection());
        keys.subject.push(event.subject.as_str());
        // A command that changed nothing has no event.
        keys.seq.push(match event.snapshot {
            true => 0,
            false => signed(event.seq),
        });
        keys.answer
            .push(event.snapshot.then(|| super::answers::to_json(event)));
    }
    macro_rules! of_moves {
        ($moved:ident => $value:expr) => {
            moves.iter().map(|$moved| $value).collect::<Vec<_>>()
        };
    }
    let growth = growth(group);
    let grown = moves
        .iter()
        .map(|moved| growth.get(&moved.school).copied().unwrap_or_default());
    let (bytes, answer_bytes): (Vec<i64>, Vec<i64>) = grown.unzip();
    let mode = if waits_for_disk { "on" } else { "off" };
    let query = diesel::sql_query(COMMIT)
        .bind::<Array<BigInt>, _>(of_moves!(moved => moved.school.get()))
        .bind::<Array<Nullable<BigInt>>, _>(of_moves!(moved => moved.expected))
        .bind::<Array<BigInt>, _>(of_moves!(moved => moved.stamp))
        .bind::<Array<BigInt>, _>(of_moves!(moved => signed(moved.head.seq)))
        .bind::<Array<Nullable<BigInt>>, _>(of_moves!(moved => tag_bits(moved.head)))
        .bind::<Array<BigInt>, _>(bytes)
        .bind::<Array<BigInt>, _>(answer_bytes)
        .bind::<Array<BigInt>, _>(events.school)
        .bind::<Array<BigInt>, _>(events.seq)
        .bind::<Array<Text>, _>(events.kind)
        .bind::<Array<Text>, _>(events.subject)
        .bind::<Array<Text>, _>(events.name)
        .bind::<Array<Bool>, _>(events.milestone)
        .bind::<Array<Bool>, _>(events.wide)
        .bind::<Array<Text>, _>(events.status)
        .bind::<Array<Nullable<Text>>, _>(events.category)
        .bind::<Array<BigInt>, _>(events.at)
        .bind::<Array<Text>, _>(events.fields)
        .bind::<Array<BigInt>, _>(subjects.school)
        .bind::<Array<Text>, _>(subjects.kind)
        .bind::<Array<Text>, _>(subjects.subject)
        .bind::<Array<Text>, _>(subjects.status)
        .bind::<Array<Nullable<Text>>, _>(subjects.category)
        .bind::<Array<Nullable<Text>>, _>(subjects.holds)
        .bind::<Array<Bool>, _>(subjects.stalled)
        .bind::<Array<BigInt>, _>(subjects.created_at)
        .bind::<Array<Nullable<BigInt>>, _>(subjects.finished_at)
        .bind::<Array<Nullable<BigInt>>, _>(subjects.check_uptime)
        .bind::<Array<BigInt>, _>(subjects.created_seq)
        .bind::<Array<BigInt>, _>(subjects.last_seq)
        .bind::<Array<Nullable<BigInt>>, _>(subjects.last_tag)
        .bind::<Array<BigInt>, _>(subjects.last_at)
        .bind::<Array<BigInt>, _>(subjects.told_seq)
        .bind::<Array<Nullable<BigInt>>, _>(subjects.also_told_seq)
        .bind::<Array<Nullable<Text>>, _>(subjects.past)
        .bind::<Array<Nullable<Text>>, _>(subjects.texts)
        .bind::<Array<Text>, _>(subjects.state)
        .bind::<Array<Nullable<Text>>, _>(subjects.old_status)
        .bind::<Array<Bool>, _>(subjects.old_stalled)
        .bind::<Array<Nullable<BigInt>>, _>(subjects.old_finished_at)
        .bind::<Array<BigInt>, _>(parts.school)
        .bind::<Array<Text>, _>(parts.kind)
        .bind::<Array<Text>, _>(parts.subject)
        .bind::<Array<BigInt>, _>(parts.number)
        .bind::<Array<Nullable<Text>>, _>(parts.own_id)
        .bind::<Array<BigInt>, _>(parts.seq)
        .bind::<Array<Nullable<BigInt>>, _>(parts.closed_at)
        .bind::<Array<Text>, _>(parts.part)
        .bind::<Array<BigInt>, _>(keys.school)
        .bind::<Array<Text>, _>(keys.key)
        .bind::<Array<Text>, _>(keys.fingerprint)
        .bind::<Array<Text>, _>(keys.kind)
        .bind::<Array<Text>, _>(keys.subject)
        .bind::<Array<BigInt>, _>(keys.seq)
        .bind::<Array<Nullable<Text>>, _>(keys.answer)
        .bind::<BigInt, _>(millis(now.at))
        .bind::<Text, _>(mode)
        .bind::<BigInt, _>(uptime_millis(now.uptime));
    let moved: Vec<Moved> = prepared(query).load(conn).await?;
    moved
        .into_iter()
        .filter_map(|row| row.school_id)
        .map(super::rows::school)
        .collect()
}

/// Returns, for each school, how many bytes are added to its log and to its stored answers.
fn growth(group: &Decisions) -> HashMap<SchoolId, (i64, i64)> {
    let mut growth: HashMap<SchoolId, (i64, i64)> = HashMap::new();
    for event in &group.events {
        growth.entry(event.school).or_default().0 += signed(event.bytes());
    }
    for ((school, key), used) in &group.keys {
        if used.event.snapshot {
            growth.entry(*school).or_default().1 += super::answers::bytes(key, &used.event);
        }
    }
    growth
}
