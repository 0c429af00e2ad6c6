//! Reads the log and the current states, one page at a time. Like the embedded store, it reads through indexes that
//! are sorted by `seq`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::Utc;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::lookup::join_by_key;
use super::rows::{self, EventRow, SubjectRow};
use super::schema::{events, parts, schools, subjects};
use crate::config::{READ_PAGE, READ_PAGE_BYTES, READ_WINDOW_ROWS, SUBJECT_EVENTS_SEARCHED};
use crate::event::Event;
use crate::id::{Cursor, Epoch, Kind, Place, SchoolId, SubjectId, Tag};
use crate::kind::{self, Part, description};
use crate::log::facts::Stored;
use crate::log::{Bounds, LastEvent, LogRange, Page, Which};
use crate::scope::{Scope, without_superseded};
use crate::store::columns::{cut, place, unreadable};
use crate::store::numbers::{signed, unsigned};
use crate::store::sources::{Source, sources};

type Conn = AsyncPgConnection;

/// Returns the bounds of a school's log; both are 0 before its first event.
pub(super) async fn bounds(conn: &mut Conn, school: SchoolId) -> QueryResult<Bounds> {
    let row: Option<(i64, Option<i64>, i64, Option<i64>)> = schools::table
        .find(school.get())
        .select((
            schools::head,
            schools::head_tag,
            schools::floor,
            schools::floor_tag,
        ))
        .first(conn)
        .await
        .optional()?;
    let (head, head_tag, floor, floor_tag) = row.unwrap_or_default();
    Ok(Bounds {
        head: place(head, head_tag),
        floor: place(floor, floor_tag),
    })
}

/// Returns the tag of an event, if the log has the event. The tag of the newest event is known without reading the
/// event.
pub(super) async fn tag_at(
    conn: &mut Conn,
    school: SchoolId,
    seq: u64,
) -> QueryResult<Option<Tag>> {
    let Bounds { head, floor } = bounds(conn, school).await?;
    if seq == head.seq && seq > floor.seq {
        return Ok(head.tag);
    }
    Ok(tags(conn, school, &[signed(seq)]).await?.remove(&seq))
}

/// Returns the tags of events that are in the log, by `seq`.
pub(super) async fn tags(
    conn: &mut Conn,
    school: SchoolId,
    seqs: &[i64],
) -> QueryResult<HashMap<u64, Tag>> {
    if seqs.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<EventRow> = events::table
        .filter(events::school_id.eq(school.get()))
        .filter(events::seq.eq_any(seqs))
        .select(EventRow::as_select())
        .load(conn)
        .await?;
    // The tag does not depend on the epoch.
    let tag = |row: EventRow| {
        let event = row.into_event(Cursor::FOREIGN.epoch)?;
        Ok(event.tag.map(|tag| (event.seq, tag)))
    };
    let tags = rows.into_iter().filter_map(|row| tag(row).transpose());
    tags.collect()
}

/// Returns every event after `after` up to `upto`, or as many as one read returns.
pub(super) async fn range(
    conn: &mut Conn,
    epoch: Epoch,
    school: SchoolId,
    after: u64,
    upto: u64,
) -> QueryResult<LogRange> {
    let Bounds { head, floor } = bounds(conn, school).await?;
    let head = head.seq;
    let upto = upto.min(head);
    let source = Source::Everything;
    let part = source.part(conn, epoch, school, (after, upto)).await?;
    let through = match part.events.last() {
        Some(last) if !part.is_whole => last.seq,
        _ => upto,
    };
    let mut last = HashMap::new();
    if through < head {
        let ticks = part.events.iter().filter(|event| event.is_tick());
        let subjects: HashSet<(Kind, SubjectId)> = ticks
            .map(|event| (event.kind, event.subject.clone()))
            .collect();
        last = superseding(conn, school, subjects).await?;
    }
    Ok(LogRange {
        events: part.events,
        through,
        head,
        floor,
        last,
    })
}

/// Returns the last events that supersede the ticks of these subjects.
async fn superseding(
    conn: &mut Conn,
    school: SchoolId,
    subjects: HashSet<(Kind, SubjectId)>,
) -> QueryResult<HashMap<(Kind, SubjectId), LastEvent>> {
    if subjects.is_empty() {
        return Ok(HashMap::new());
    }
    let (kinds, ids): (Vec<&str>, Vec<&str>) = subjects
        .iter()
        .map(|(kind, id)| (kind.collection(), id.as_str()))
        .unzip();
    let query = concat!(
        "SELECT s.school_id, s.kind, s.subject_id, s.created_seq, s.last_seq, s.last_tag, s.last_at, s.state \
         FROM unnest($1::text[], $2::text[]) AS w (kind, subject_id)",
        join_by_key!(
            "subjects",
            "school_id, kind, subject_id" = "$3, w.kind, w.subject_id",
            "s"
        )
    );
    let found: Vec<SubjectRow> = diesel::sql_query(query)
        .bind::<Array<Text>, _>(kinds)
        .bind::<Array<Text>, _>(ids)
        .bind::<diesel::sql_types::BigInt, _>(school.get())
        .load(conn)
        .await?;
    let mut last = HashMap::with_capacity(found.len());
    for row in found {
        let kind = rows::kind(&row.kind)?;
        let (id, stored) = row.into_stored()?;
        let subject = stored.state.subject();
        if let Some((seq, status)) = subject.superseding(stored.last.seq) {
            let event = LastEvent {
                seq,
                status: status.to_owned(),
                category: subject.category().map(Into::into),
            };
            last.insert((kind, id), event);
        }
    }
    Ok(last)
}

/// Returns the events in scope after `after`. With `conflate`, leaves out ticks that a later event in scope supersedes.
pub(super) async fn replay(
    conn: &mut Conn,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    conflate: bool,
) -> QueryResult<Page> {
    let Bounds { head, floor } = bounds(conn, scope.school).await?;
    let mut through = head;
    let mut events = Vec::new();
    for source in sources(scope) {
        let range = (after, through.seq);
        let part = source.part(conn, epoch, scope.school, range).await?;
        if let Some(last) = part.events.last().filter(|_| !part.is_whole) {
            // This source may have more: the page ends at the lowest `seq` up to which all sources are complete.
            through = through.min(last.place());
        }
        events.extend(part.events.into_iter().filter(|event| scope.matches(event)));
        // Done here, because otherwise memory would hold one page per source.
        through = cut(&mut events, through);
        // A wide event of a subject in scope is found in two sources.
        events.dedup_by_key(|event| event.seq);
    }
    if conflate {
        events = without_superseded(events);
        if through.seq < head.seq {
            let ticks = events.iter().filter(|event| event.is_tick());
            let subjects = ticks.map(|event| (event.kind, event.subject.clone()));
            let last = superseding(conn, scope.school, subjects.collect()).await?;
            events.retain(|event| {
                let later = last.get(&(event.kind, event.subject.clone()));
                let later = later.filter(|later| later.seq > event.seq);
                let is_superseded = later.is_some_and(|later| {
                    let category = later.category.as_deref();
                    scope.filter.passes(&later.status, category)
                });
                !(event.is_tick() && is_superseded)
            });
        }
    }
    Ok(Page {
        events,
        through,
        head,
        newest: head,
        floor: floor.seq,
    })
}

/// The first events of a source.
struct Selected {
    events: Vec<Arc<Event>>,
    /// Whether these are all events of the source.
    is_whole: bool,
}

impl Source<'_> {
    /// Returns the first events in this range of `seq`s, excluding its start. Events can be large, so a page is read
    /// in several parts.
    async fn part(
        &self,
        conn: &mut Conn,
        epoch: Epoch,
        school: SchoolId,
        (mut after, through): (u64, u64),
    ) -> QueryResult<Selected> {
        let mut selected = Selected {
            events: Vec::new(),
            is_whole: false,
        };
        let (mut bytes, mut limit) = (0, READ_PAGE / 8);
        while selected.events.len() < READ_PAGE && bytes <= READ_PAGE_BYTES {
            limit = limit.min(READ_PAGE - selected.events.len());
            let rows = self.rows(conn, school, (after, through), limit).await?;
            let is_last = rows.len() < limit;
            let before = bytes;
            for row in rows {
                let event = row.into_event(epoch)?;
                bytes += event.draft.fields.len();
                after = event.seq;
                selected.events.push(Arc::new(event));
                if bytes > READ_PAGE_BYTES {
                    return Ok(selected);
                }
            }
            if is_last {
                selected.is_whole = true;
                return Ok(selected);
            }
            if bytes - before < READ_PAGE_BYTES / 8 {
                limit = READ_PAGE;
            }
        }
        Ok(selected)
    }

    async fn rows(
        &self,
        conn: &mut Conn,
        school: SchoolId,
        (after, through): (u64, u64),
        limit: usize,
    ) -> QueryResult<Vec<EventRow>> {
        let query = events::table
            .filter(events::school_id.eq(school.get()))
            .filter(events::seq.gt(signed(after)))
            .filter(events::seq.le(signed(through)))
            .order(events::seq)
            .limit(signed(limit))
            .select(EventRow::as_select());
        match self {
            Source::Everything => query.load(conn).await,
            Source::Subject(kind, subject) => {
                query
                    .filter(events::kind.eq(kind.collection()))
                    .filter(events::subject_id.eq(*subject))
                    .load(conn)
                    .await
            }
            Source::Wide(kind) => {
                query
                    .filter(events::kind.eq(kind.collection()))
                    .filter(events::wide)
                    .load(conn)
                    .await
            }
        }
    }
}

/// Returns the current states in scope, in the order of their last events.
pub(super) async fn snapshot(
    conn: &mut Conn,
    epoch: Epoch,
    scope: &Scope,
    after: u64,
    upto: Option<Place>,
) -> QueryResult<Page> {
    let Bounds { head, floor } = bounds(conn, scope.school).await?;
    let upto = upto.unwrap_or(head);
    let mut events = Vec::new();
    let mut through = upto.seq;
    for kind in kind::KINDS {
        let all = scope.listens_to_all(*kind);
        let subjects = scope.subjects(*kind);
        if !all && subjects.is_empty() {
            continue;
        }
        let mut selection = Selection {
            scope,
            kind: *kind,
            epoch,
            range: (after, upto.seq),
            events: Vec::new(),
            seen: HashSet::new(),
        };
        match all {
            true => selection.all(conn).await?,
            false => selection.of(conn, &subjects).await?,
        }
        // This kind may have more: the page ends at the lowest `seq` up to which all kinds are complete.
        through = through.min(selection.range.1);
        events.extend(selection.events);
    }
    let through = match through == upto.seq {
        true => upto,
        false => Place::untagged(through),
    };
    let through = cut(&mut events, through);
    let untagged = |event: &&Event| event.tag.is_none() && event.seq > floor.seq;
    let seqs: Vec<i64> = events
        .iter()
        .filter(untagged)
        .map(|event| signed(event.seq))
        .collect();
    let tags = tags(conn, scope.school, &seqs).await?;
    for event in &mut events {
        event.tag = event.tag.or_else(|| tags.get(&event.seq).copied());
    }
    Ok(Page {
        events: events.into_iter().map(Arc::new).collect(),
        through,
        head: upto,
        newest: head,
        floor: floor.seq,
    })
}

/// What one kind contributes to a snapshot.
struct Selection<'a> {
    scope: &'a Scope,
    kind: Kind,
    epoch: Epoch,
    /// The range of `seq`s, excluding its start. Its end is lowered to the `seq` up to which the events that were read
    /// are complete.
    range: (u64, u64),
    events: Vec<Event>,
    /// The `seq`s of these events: a subject may be found by two indexes.
    seen: HashSet<u64>,
}

impl Selection<'_> {
    /// Reads all subjects. Two events may represent a subject, and each has its own index, so both indexes are read. A
    /// third one contains the subjects that have ended.
    async fn all(&mut self, conn: &mut Conn) -> QueryResult<()> {
        let of_kind = |selection: &Selection<'_>| {
            subjects::table
                .filter(subjects::school_id.eq(selection.scope.school.get()))
                .filter(subjects::kind.eq(selection.kind.collection()))
        };
        let (after, rows) = (signed(self.range.0), self.rows());
        let active = of_kind(self)
            .filter(subjects::finished_at.is_null())
            .filter(subjects::told_seq.gt(after))
            .filter(subjects::told_seq.le(signed(self.range.1)))
            .order(subjects::told_seq)
            .limit(signed(rows))
            .select((subjects::told_seq, SubjectRow::as_select()))
            .load(conn)
            .await?;
        self.take(active, rows)?;
        let also = of_kind(self)
            .filter(subjects::also_told_seq.gt(after))
            .filter(subjects::also_told_seq.le(signed(self.range.1)))
            .order(subjects::also_told_seq)
            .limit(signed(rows))
            .select((
                subjects::also_told_seq.assume_not_null(),
                SubjectRow::as_select(),
            ))
            .load(conn)
            .await?;
        self.take(also, rows)?;
        if !self.scope.active_only {
            let wanted = &self.scope.filter.statuses;
            let statuses = description(self.kind).statuses.iter();
            for status in statuses.filter(|status| wanted.is_empty() || wanted.contains(**status)) {
                let ended = of_kind(self)
                    .filter(subjects::finished_at.is_not_null())
                    .filter(subjects::status.eq(status))
                    .filter(subjects::last_seq.gt(after))
                    .filter(subjects::last_seq.le(signed(self.range.1)))
                    .order(subjects::last_seq)
                    .limit(signed(rows))
                    .select((subjects::last_seq, SubjectRow::as_select()))
                    .load(conn)
                    .await?;
                self.take(ended, rows)?;
            }
        }
        self.parts(conn, None).await
    }

    /// Reads the subjects with these ids.
    async fn of(&mut self, conn: &mut Conn, ids: &[&SubjectId]) -> QueryResult<()> {
        let names: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        let (after, upto) = self.range;
        let found: Vec<(i64, Option<i64>, String)> = subjects::table
            .filter(subjects::school_id.eq(self.scope.school.get()))
            .filter(subjects::kind.eq(self.kind.collection()))
            .filter(subjects::subject_id.eq_any(&names))
            .filter(subjects::last_seq.gt(signed(after)))
            .select((
                subjects::told_seq,
                subjects::also_told_seq,
                subjects::subject_id,
            ))
            .load(conn)
            .await?;
        // These columns are the places of the events that represent a subject; see `Subject::places`.
        let with_first = found
            .into_iter()
            .filter_map(|(published, also_published, id)| {
                let seqs = [Some(published), also_published]
                    .into_iter()
                    .flatten()
                    .map(unsigned);
                let first = seqs.filter(|seq| *seq > after && *seq <= upto).min()?;
                Some((first, id))
            });
        // Sorted by the first event of each subject: if the page is full, all events before the first one of the next
        // subject have been read.
        let mut of_subjects: Vec<(u64, String)> = with_first.collect();
        of_subjects.sort_unstable();
        let mut bytes = 0;
        // The states of many subjects can be large together, so they are read in parts, until the page is full.
        'page: for part in of_subjects.chunks(READ_PAGE / 8) {
            let names: Vec<&str> = part.iter().map(|(_, id)| id.as_str()).collect();
            let rows: Vec<SubjectRow> = subjects::table
                .filter(subjects::school_id.eq(self.scope.school.get()))
                .filter(subjects::kind.eq(self.kind.collection()))
                .filter(subjects::subject_id.eq_any(&names))
                .select(SubjectRow::as_select())
                .load(conn)
                .await?;
            let mut rows: HashMap<String, SubjectRow> = rows
                .into_iter()
                .map(|row| (row.subject_id.clone(), row))
                .collect();
            for (first, id) in part {
                if bytes > READ_PAGE_BYTES {
                    self.range.1 = self.range.1.min(first - 1);
                    break 'page;
                }
                let Some(row) = rows.remove(id) else {
                    continue;
                };
                let (id, stored) = row.into_stored()?;
                bytes += stored.state.text_bytes();
                self.add_snapshots(&id, &stored);
            }
        }
        self.parts(conn, Some(&names)).await
    }

    /// Returns how many rows of an index are read at once. A filter may exclude most of them.
    fn rows(&self) -> usize {
        match self.scope.filter.is_empty() {
            true => READ_PAGE,
            false => READ_WINDOW_ROWS.max(READ_PAGE),
        }
    }

    /// Adds the subjects in rows of an index, of which at most `limit` were read.
    fn take(&mut self, found: Vec<(i64, SubjectRow)>, limit: usize) -> QueryResult<()> {
        if let Some((last, _)) = found.last().filter(|_| found.len() == limit) {
            self.range.1 = self.range.1.min(unsigned(*last));
        }
        let mut bytes = 0;
        for (seq, row) in found {
            let (id, stored) = row.into_stored()?;
            bytes += stored.state.text_bytes();
            self.add_snapshots(&id, &stored);
            if bytes > READ_PAGE_BYTES {
                self.range.1 = self.range.1.min(unsigned(seq));
                break;
            }
        }
        Ok(())
    }

    /// Adds the events that represent a subject and are in the range and in scope.
    fn add_snapshots(&mut self, id: &SubjectId, stored: &Stored) {
        if self.scope.active_only && stored.state.is_over() {
            return;
        }
        let subject = stored.state.subject();
        let last = (stored.last.seq, stored.last_at);
        for ((seq, at), draft) in subject.current(id, last, Utc::now()) {
            let place = match seq == stored.last.seq {
                true => stored.last,
                false => Place::untagged(seq),
            };
            let event = Event::snapshot(
                (self.epoch, place),
                self.scope.school,
                self.kind,
                id.clone(),
                at,
                draft,
            );
            self.add(event);
        }
    }

    fn add(&mut self, event: Event) {
        let (after, upto) = self.range;
        let draft = &event.draft;
        let is_wanted = self
            .scope
            .filter
            .passes(draft.status, draft.category.as_deref());
        if is_wanted && event.seq > after && event.seq <= upto && self.seen.insert(event.seq) {
            self.events.push(event);
        }
    }

    /// Adds the open parts of these subjects, or of all subjects of the kind.
    async fn parts(&mut self, conn: &mut Conn, ids: Option<&[&str]>) -> QueryResult<()> {
        let mut query = parts::table
            .filter(parts::school_id.eq(self.scope.school.get()))
            .filter(parts::kind.eq(self.kind.collection()))
            .filter(parts::closed_at.is_null())
            .filter(parts::seq.gt(signed(self.range.0)))
            .filter(parts::seq.le(signed(self.range.1)))
            .order(parts::seq)
            .limit(signed(READ_PAGE))
            .select((parts::seq, parts::subject_id, parts::part))
            .into_boxed();
        if let Some(ids) = ids {
            query = query.filter(parts::subject_id.eq_any(ids.to_vec()));
        }
        let found: Vec<(i64, String, String)> = query.load(conn).await?;
        if let Some((last, ..)) = found.last().filter(|_| found.len() == READ_PAGE) {
            self.range.1 = self.range.1.min(unsigned(*last));
        }
        for (_, id, json) in found {
            let part = Part::from_json(self.kind, &json).map_err(|_| unreadable("a part"))?;
            let ((seq, at), draft) = part.current();
            let place = (self.epoch, Place::untagged(seq));
            let id = rows::subject(&id)?;
            self.add(Event::snapshot(
                place,
                self.scope.school,
                self.kind,
                id,
                at,
                draft,
            ));
        }
        Ok(())
    }
}

/// Returns the last events of a subject, oldest first. Those of a given type are searched only among its newest events.
pub(super) async fn last_events(
    conn: &mut Conn,
    epoch: Epoch,
    (school, kind, subject): (SchoolId, Kind, &SubjectId),
    which: Which,
    limit: usize,
) -> QueryResult<Vec<Arc<Event>>> {
    let newest = events::table
        .filter(events::school_id.eq(school.get()))
        .filter(events::kind.eq(kind.collection()))
        .filter(events::subject_id.eq(subject.as_str()))
        .order(events::seq.desc());
    let found: Vec<EventRow> = match which {
        Which::Type(event_type) => {
            let first: Option<i64> = newest
                .limit(1)
                .offset(signed(SUBJECT_EVENTS_SEARCHED) - 1)
                .select(events::seq)
                .first(conn)
                .await
                .optional()?;
            newest
                .filter(events::name.eq(event_type.name))
                .filter(events::seq.ge(first.unwrap_or_default()))
                .limit(signed(limit))
                .select(EventRow::as_select())
                .load(conn)
                .await?
        }
        Which::Milestones => {
            newest
                .filter(events::milestone)
                .limit(signed(limit))
                .select(EventRow::as_select())
                .load(conn)
                .await?
        }
    };
    let newest_last = found.into_iter().rev();
    newest_last
        .map(|row| Ok(Arc::new(row.into_event(epoch)?)))
        .collect()
}
