//! The text index: finds the ended jobs that may contain a text that is searched for.
//!
//! `job_texts` (migration 16) indexes the *trigrams*, every three consecutive characters, of each job that has ended: of its
//! texts as [`search`] compares them, and of its type and status between marks, which also narrow a search. A search for
//! three or more characters reads only the jobs that have the trigrams of the text, and checks each with
//! [`search::mentions`]. A search for fewer characters checks all jobs.
//!
//! 1. Triggers on `jobs` update the index in the transaction that changes the job. A job that has not ended is not in the
//!    index: a search checks all of these, by the index on their status. So neither a new job nor a report costs anything.
//! 2. Nothing is missed: a job with more text than [`INDEXED_TEXT_MAX_BYTES`] has a mark in the index in place of its texts,
//!    and every search checks it.
//! 3. A window of the index is a range of its rows, which are ordered by school and then as in lists. So the time for a
//!    window is bounded even if none of its jobs match, and other schools' jobs cost nothing.
//! 4. The load that a hostile publisher can put on the index is bounded: a commit counts the bytes of indexed texts
//!    [`INDEXED_TEXT_WEIGHT`] times, so that a turn of a school contains fewer of them.
//!
//! Deliberately absent: texts of other kinds, of which a school has few subjects. They are scanned.
//!
//! The index is a contentless FTS5 table with `detail = none`, which takes about 100 bytes per job. The Postgres store has
//! no such index: it stores the compared texts in a column and scans them.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use super::jobs::{ENDS, JobsTable};
use super::limit::{BOUND, Limit};
use super::schema::{jobs, school_numbers};
use super::search;
use super::sources::{Source, Window};
use super::table::{Table, from_millis};
use crate::config::{INDEX_SPAN, INDEX_TERMS_MAX, INDEXED_TEXT_MAX_BYTES, INDEXED_TEXT_WEIGHT};
use crate::id::{Kind, SchoolId};
use crate::kind::{State, job};
use crate::log::{ListQuery, Order};
use crate::store::numbers::{signed, unsigned};

/// Encloses a job's type and the number of its status, and replaces, three times in a row, texts that are too long. If a
/// text itself contains the mark, searches only check the job unnecessarily.
const MARK: char = '\u{1}';
/// The number of characters of a trigram.
const TERM_CHARS: usize = 3;
/// The number of low bits of a row id that contain `created_seq`; the school's number is above them. No log has 2^40
/// events.
const SCHOOL_SHIFT: u32 = 40;

diesel::define_sql_function! {
    /// The text of a job that is indexed. Called by the triggers.
    #[allow(dead_code, reason = "only triggers call it")]
    fn job_text(
        job_id: Text, job_type: Text, status: Text, message: Text, metadata: Text, error_code: Nullable<Text>,
        error_message: Nullable<Text>
    ) -> Text;
}

/// Registers the function with a connection. Without it, the triggers make writes to `jobs` fail.
pub(super) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    job_text_utils::register_impl(
        conn,
        |id: String,
         job_type: String,
         status: String,
         message: String,
         metadata: String,
         error_code: Option<String>,
         error_message: Option<String>| {
            let mut texts = vec![id, message];
            texts.extend(error_code);
            texts.extend(error_message);
            text_of(&job_type, &status, &texts, &metadata)
        },
    )
}

fn text_of(job_type: &str, status: &str, texts: &[String], metadata: &str) -> String {
    let mut text = format!("{}{}", marked(job_type), marked(status_number(status)));
    let bytes = metadata.len() + texts.iter().map(String::len).sum::<usize>();
    let mut folded = search::folded_texts(texts.iter().map(String::as_str));
    let is_indexed = bytes <= INDEXED_TEXT_MAX_BYTES && search::folded_json(metadata, &mut folded);
    text.push_str(&match is_indexed {
        true => folded,
        false => too_long(),
    });
    text
}

fn marked(text: &str) -> String {
    format!("{MARK}{text}{MARK}")
}

fn too_long() -> String {
    String::from_iter([MARK; TERM_CHARS])
}

/// Returns one character for a terminal status.
fn status_number(status: &str) -> &'static str {
    let ends = ENDS.iter().zip(["0", "1", "2"]);
    let number = ends.into_iter().find(|(end, _)| **end == status);
    number.map_or("", |(_, number)| number)
}

/// Returns how many bytes of a commit the indexed texts of a state count for.
pub(super) fn bytes(kind: Kind, state: &State) -> usize {
    match kind == job::KIND && state.is_over() {
        true => state.text_bytes().min(INDEXED_TEXT_MAX_BYTES) * INDEXED_TEXT_WEIGHT,
        false => 0,
    }
}

/// Returns the FTS5 query for a search. Returns `None` if the index does not serve the search.
pub(super) fn terms(query: &ListQuery, wanted: &str) -> Option<String> {
    let ended = query.statuses.iter().filter(|status| ENDS.contains(status));
    let ended: Vec<&str> = ended.copied().collect();
    let sources = JobsTable.sources(query);
    let has_ended = query.statuses.is_empty() || !ended.is_empty();
    if !has_ended || sources.iter().all(|source| source.stalled) {
        return None;
    }
    let too_long = all_of(&too_long()).expect("it is a trigram");
    let mut terms = format!("({} OR {too_long})", all_of(wanted)?);
    let numbers = ended.iter().map(|status| status_number(status).to_owned());
    for values in [numbers.collect(), query.categories.clone()] {
        let any: Option<Vec<String>> = values.iter().map(|value| all_of(&marked(value))).collect();
        if let Some(any) = any.filter(|any| !any.is_empty()) {
            terms.push_str(&format!(" AND ({})", any.join(" OR ")));
        }
    }
    Some(terms)
}

/// Returns trigrams of a text, in the syntax of FTS5: all of them, or a sample of [`INDEX_TERMS_MAX`] at most. Returns
/// `None` if the text has none.
fn all_of(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let all: Vec<String> = chars
        .windows(TERM_CHARS)
        .filter(|term| !term.contains(&'\0'))
        .map(|term| term.iter().collect::<String>().replace('"', "\"\""))
        .collect();
    let step = all.len().div_ceil(INDEX_TERMS_MAX).max(1);
    let few = all.iter().step_by(step).map(|term| format!("\"{term}\""));
    let few: Vec<String> = few.collect();
    (!few.is_empty()).then(|| format!("({})", few.join(" AND ")))
}

/// Returns the next rows of a list, at most `rows`: the ended jobs that the index returns, and all jobs that have not ended.
pub(super) fn window<'a>(
    conn: &mut SqliteConnection,
    school: SchoolId,
    query: &'a ListQuery,
    terms: &str,
    rows: usize,
) -> QueryResult<Window<'a>> {
    let newest_first = query.order == Order::Newest;
    let back = match newest_first {
        true => Order::Oldest,
        false => Order::Newest,
    };
    let step = |from: i64, by: i64| match newest_first {
        true => from - by,
        false => from + by,
    };
    let place = |seq: i64| step(0, seq);
    let beyond = query.beyond.map(|seq| step(signed(seq), 1));
    let first = job_from(conn, school, query.order, beyond)?;
    let (Some((first, _)), Some((last, _))) = (first, job_from(conn, school, back, None)?) else {
        return Ok(Window::default());
    };
    // `JobsTable::window` divides the rows among the sources. Request `rows` of each: all of the first may be in one source.
    let unfinished = unfinished(query);
    let of_all = rows * unfinished.len().max(1);
    let rest = JobsTable.window(conn, school, query, unfinished, of_all)?;
    let span = step(first, signed(rows * INDEX_SPAN));
    let range = (first.min(span), first.max(span));
    let ended = candidates(conn, school, query.order, terms, range, rows)?;
    let mut ends: Vec<i64> = rest.end.iter().map(|(seq, _)| signed(*seq)).collect();
    ends.extend((place(span) < place(last)).then_some(span));
    ends.extend(ended.get(rows - 1));
    let mut parts = rest.parts;
    parts.push((ended_source(query), ended));
    let mut all: Vec<i64> = parts.iter().flat_map(|(_, seqs)| seqs).copied().collect();
    all.sort_unstable_by_key(|seq| place(*seq));
    ends.extend(all.get(rows - 1).filter(|_| all.len() > rows));
    let Some(end) = ends.into_iter().min_by_key(|end| place(*end)) else {
        return Ok(Window { end: None, parts });
    };
    for (_, seqs) in &mut parts {
        seqs.retain(|seq| place(*seq) <= place(end));
    }
    // A window ends at an existing job: the last one up to `end`.
    let nearest = job_from(conn, school, back, Some(end))?;
    let (end, at) = nearest.expect("the first job is not beyond the end");
    Ok(Window {
        end: Some((unsigned(end), from_millis(at)?)),
        parts,
    })
}

/// Returns the first job of a list, starting at `from`, and when it was created.
fn job_from(
    conn: &mut SqliteConnection,
    school: SchoolId,
    order: Order,
    from: Option<i64>,
) -> QueryResult<Option<(i64, i64)>> {
    let mut select = jobs::table
        .filter(jobs::school_id.eq(school.get()))
        .select((jobs::created_seq, jobs::created_at))
        .into_boxed::<Sqlite>();
    select = match order {
        Order::Newest => select.order(jobs::created_seq.desc()),
        Order::Oldest => select.order(jobs::created_seq.asc()),
    };
    if let Some(from) = from {
        select = match order {
            Order::Newest => select.filter(jobs::created_seq.le(from)),
            Order::Oldest => select.filter(jobs::created_seq.ge(from)),
        };
    }
    select.at_most(1).get_result(conn).optional()
}

/// Returns the sources that are read without the text index: jobs that have not ended, by status, and stalled jobs if they
/// are a separate source.
fn unfinished(query: &ListQuery) -> Vec<Source<'_>> {
    let mut sources = JobsTable.sources(query);
    sources.retain(|source| source.stalled);
    let is_wanted = |status: &str| query.statuses.is_empty() || query.statuses.contains(&status);
    let statuses = job::DESCRIPTION.statuses.iter().copied();
    let statuses = statuses.filter(|status| !ENDS.contains(status) && is_wanted(status));
    sources.extend(statuses.map(|status| Source {
        status: Some(status),
        statuses: &[],
        ..ended_source(query)
    }));
    sources
}

/// Returns the conditions for jobs that the text index returns.
fn ended_source(query: &ListQuery) -> Source<'_> {
    Source {
        categories: &query.categories,
        statuses: &query.statuses,
        not_stalled: JobsTable
            .sources(query)
            .iter()
            .any(|source| source.not_stalled),
        ..Source::default()
    }
}

/// Returns the jobs in a range that match the FTS5 query, in the order of the list, at most `limit`.
fn candidates(
    conn: &mut SqliteConnection,
    school: SchoolId,
    order: Order,
    terms: &str,
    (from, to): (i64, i64),
    limit: usize,
) -> QueryResult<Vec<i64>> {
    #[derive(QueryableByName)]
    struct Candidate {
        #[diesel(sql_type = BigInt)]
        seq: i64,
    }
    let number = school_numbers::table
        .filter(school_numbers::school_id.eq(school.get()))
        .select(school_numbers::number);
    let Some(number) = number.get_result::<i64>(conn).optional()? else {
        return Ok(Vec::new());
    };
    let base = number << SCHOOL_SHIFT;
    let direction = match order {
        Order::Newest => "DESC",
        Order::Oldest => "ASC",
    };
    let found: Vec<Candidate> = diesel::sql_query(format!(
        "SELECT rowid - ? AS seq FROM job_texts WHERE job_texts MATCH ? AND rowid >= ? AND rowid <= ? ORDER BY rowid {direction} LIMIT {BOUND}"
    ))
    .bind::<BigInt, _>(base)
    .bind::<Text, _>(terms)
    .bind::<BigInt, _>(base + from.max(0))
    .bind::<BigInt, _>(base + to)
    .bind::<BigInt, _>(signed(limit))
    .load(conn)?;
    Ok(found.into_iter().map(|row| row.seq).collect())
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection;
    use diesel_migrations::MigrationHarness;

    use super::super::functions;
    use super::super::migrations::MIGRATIONS;
    use super::*;

    #[test]
    fn a_window_in_which_nothing_fits_ends_after_a_range_of_the_log() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        functions::register(&mut conn).unwrap();
        conn.run_pending_migrations(MIGRATIONS).unwrap();
        let (rows, school) = (10, 1.try_into().unwrap());
        let span = rows * INDEX_SPAN;
        let seqs = [1, span / 2, span, 2 * span, 9 * span];
        for seq in seqs {
            conn.batch_execute(&format!(
                "INSERT INTO jobs (school_id, job_id, job_type, status, message, metadata, attempt, stalled, cancel_requested,
                     created_at, heard_at, finished_at, stall_after_secs, timeout_secs, created_seq, last_seq, last_at)
                 VALUES (1, 'j{seq}', 't', 'failed', 'Report', '{{}}', 1, FALSE, FALSE, 1, 1, 1, 1, 1, {seq}, {seq}, 1)"
            ))
            .unwrap();
        }
        for (order, expected) in [
            (Order::Oldest, [Some(span), Some(2 * span), None]),
            (Order::Newest, [Some(9 * span), Some(span), None]),
        ] {
            for (text, finds) in [("nowhere", 0), ("report", seqs.len())] {
                let mut query = ListQuery {
                    order,
                    ..ListQuery::default()
                };
                let terms = terms(&query, text).unwrap();
                let (mut ends, mut found) = (Vec::new(), 0);
                while ends.last() != Some(&None) {
                    let window = window(&mut conn, school, &query, &terms, rows).unwrap();
                    found += window
                        .parts
                        .iter()
                        .map(|(_, seqs)| seqs.len())
                        .sum::<usize>();
                    let end = window.end.map(|(seq, _)| seq);
                    ends.push(end.map(|seq| seq as usize));
                    query.beyond = end;
                }
                assert_eq!(
                    (&ends[..], found),
                    (&expected[..], finds),
                    "{order:?} {text}"
                );
            }
        }
    }

    #[test]
    fn the_index_is_asked_for_few_trigrams_whatever_is_searched_for() {
        let asked = |text: &str| all_of(text).map(|terms| terms.matches("AND").count() + 1);
        for (text, count) in [
            ("", None),
            ("ab", None),
            ("abc", Some(1)),
            ("\"\"\"", Some(1)),
            ("日本語の", Some(2)),
            ("ab\0cd", None),
        ] {
            assert_eq!(asked(text), count, "{text:?}");
        }
        let count = asked(&"0123456789".repeat(30)).unwrap();
        assert!(
            (INDEX_TERMS_MAX / 2..=INDEX_TERMS_MAX).contains(&count),
            "{count}"
        );
        assert_eq!(all_of("a\"b").unwrap(), "(\"a\"\"b\")");
    }
}
