//! `GET /api/notifiers`: the state of the notifiers, what is pending, and what they could not deliver.

use std::sync::Arc;

use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, get, routes};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::body::Json;
use super::contract::{Document, Operation, Part};
use super::listing::{only_known, page_of};
use super::parameters::{COMMON, PAGES};
use super::problem::{Kind, Problem};
use super::subjects::READ_PROBLEMS;
use crate::app::{Caller, NotifiersOf};
use crate::id::{SchoolId, SubjectId};
use crate::kind::job;
use crate::log::StoreError;
use crate::log::consumers::{DeadLetter, SetAside, Standing};
use crate::notify::NotifierStatus;
use crate::service::Tidings;
use crate::wire::example::{self, AT_MILLIS, LATER_MILLIS, SEQ};
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![list, set_aside, dead_letters]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Notifiers";
    document.tag(
        TAG,
        "The state of the notifiers, and what they could not deliver.",
    );
    document.route(routes![list], &list, |operation| {
        operation
            .named("notifiers.list", TAG, "List notifiers")
            .about("Requires the role `admin`.")
            .answers_json(
                "All notifiers.",
                &NotifierList {
                    school_id: example::school(),
                    notifiers: vec![example_state()],
                },
            )
            .fails(READ_PROBLEMS);
    });
    document.route(routes![set_aside], &set_aside, |operation| {
        operation
            .named(
                "notifiers.set_aside",
                TAG,
                "List the subjects that a notifier has set aside",
            )
            .about("Requires the role `admin`.")
            .answers_json(
                "All of them.",
                &SetAsideList {
                    set_aside: vec![SetAsideSubject::from(&example_set_aside())],
                },
            )
            .with_path_example("name", EXAMPLE_NAME)
            .fails(READ_PROBLEMS);
    });
    document.route(routes![dead_letters], &dead_letters, |operation| {
        operation
            .named(
                "notifiers.dead_letters",
                TAG,
                "List the events that a notifier has given up on",
            )
            .about("Requires the role `admin`.")
            .answers_json(
                "A page, newest first.",
                &DeadLetterPage {
                    dead_letters: vec![GivenUp::from(&example_dead_letter())],
                    next: None,
                },
            )
            .with_path_example("name", EXAMPLE_NAME)
            .fails(READ_PROBLEMS);
    });
}

/// The notifier of the examples.
const EXAMPLE_NAME: &str = "operations";
/// Why the deliveries of the examples failed.
const EXAMPLE_CAUSE: &str = "answered 503";

/// Returns the state of a notifier that has delivered events, and retries one.
fn example_state() -> NotifierState {
    let failed_at = example::time(AT_MILLIS);
    let shown = NotifierStatus {
        name: EXAMPLE_NAME.to_owned(),
        medium: "webhook",
        retry: None,
    };
    let standing = Standing {
        name: shown.name.clone(),
        seq: SEQ - 1,
        set_aside: 0,
        delivered: 311,
        failed: 2,
        dead: 0,
        delivered_at: Some(failed_at),
        last_failure: Some((failed_at, EXAMPLE_CAUSE.to_owned())),
    };
    NotifierState {
        retry: Some(Retry {
            seq: SEQ,
            attempts: 1,
            due_at: timestamp(example::time(AT_MILLIS + LATER_MILLIS)),
        }),
        ..resource(&shown, Some(&standing), SEQ)
    }
}

fn example_set_aside() -> SetAside {
    SetAside {
        kind: job::KIND,
        subject: example_job(),
        seq: SEQ,
        event_type: job::JOB_PROGRESS.name.to_owned(),
        attempts: 5,
        cause: EXAMPLE_CAUSE.to_owned(),
        due: example::time(AT_MILLIS + LATER_MILLIS),
    }
}

fn example_dead_letter() -> DeadLetter {
    DeadLetter {
        seq: SEQ,
        event_type: job::JOB_PROGRESS.name.to_owned(),
        kind: job::KIND.collection().to_owned(),
        subject: example_job().to_string(),
        attempts: 12,
        cause: EXAMPLE_CAUSE.to_owned(),
        at: example::time(AT_MILLIS),
    }
}

fn example_job() -> SubjectId {
    example::subject(&job::DESCRIPTION).expect("events of jobs have examples")
}

#[get("/api/notifiers")]
async fn list(
    caller: Result<Caller, Problem>,
    whole: Result<Whole, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let of = tidings.reads().notifiers_of(&caller?)?;
    let Whole = whole?;
    let notifiers = of_school(tidings, of).await?;
    Ok(Json::of(&NotifierList {
        school_id: of.school(),
        notifiers,
    }))
}

/// All notifiers.
#[derive(JsonSchema, Serialize)]
struct NotifierList {
    school_id: SchoolId,
    notifiers: Vec<NotifierState>,
}

/// The state of a notifier for a school.
#[derive(JsonSchema, Serialize)]
pub(super) struct NotifierState {
    /// Its name in the settings.
    pub(super) name: String,
    /// `webhook`, `email`, `mqtt`, `ntfy`, `home_assistant`, or the medium of an application's own notifier.
    pub(super) medium: String,
    /// The place in the log up to which it has delivered.
    pub(super) seq: u64,
    /// How many events the log has beyond that place.
    pub(super) lag: u64,
    /// How many subjects are set aside, to be retried later.
    pub(super) set_aside: u64,
    /// How many events it has delivered.
    pub(super) delivered: u64,
    /// How many attempts have failed.
    pub(super) failed_attempts: u64,
    /// How many events it has given up on.
    pub(super) dead_letters: u64,
    /// When it last delivered.
    #[schemars(with = "Option<chrono::DateTime<chrono::Utc>>")]
    pub(super) delivered_at: Option<String>,
    /// When an attempt last failed.
    #[schemars(with = "Option<chrono::DateTime<chrono::Utc>>")]
    pub(super) failed_at: Option<String>,
    /// Why it failed.
    pub(super) cause: Option<String>,
    /// The event that is being retried.
    pub(super) retry: Option<Retry>,
}

/// An event that is being retried.
#[derive(JsonSchema, Serialize)]
pub(super) struct Retry {
    /// Its place in the log.
    pub(super) seq: u64,
    /// How many attempts have failed.
    pub(super) attempts: u32,
    /// When the next attempt is due.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    pub(super) due_at: String,
}

/// Returns the state of each notifier for a school.
pub(super) async fn of_school(
    tidings: &Tidings,
    of: NotifiersOf,
) -> Result<Vec<NotifierState>, StoreError> {
    let (standings, head) = tidings.reads().notifiers(of).await?;
    let resource = |shown: NotifierStatus| {
        let standing = standings
            .iter()
            .find(|standing| standing.name == shown.name);
        resource(&shown, standing, head)
    };
    let shown = tidings.notifiers().statuses(of.school());
    Ok(shown.into_iter().map(resource).collect())
}

fn resource(shown: &NotifierStatus, standing: Option<&Standing>, head: u64) -> NotifierState {
    let seq = standing.map_or(0, |standing| standing.seq);
    let failure = standing.and_then(|standing| standing.last_failure.as_ref());
    let delivered_at = standing.and_then(|standing| standing.delivered_at);
    let retry = shown.retry.map(|retry| {
        let wait = retry.due.saturating_duration_since(Instant::now());
        Retry {
            seq: retry.seq,
            attempts: retry.attempts,
            due_at: timestamp(chrono::Utc::now() + wait),
        }
    });
    NotifierState {
        name: shown.name.to_string(),
        medium: shown.medium.to_string(),
        seq,
        lag: head.saturating_sub(seq),
        set_aside: standing.map_or(0, |standing| standing.set_aside),
        delivered: standing.map_or(0, |standing| standing.delivered),
        failed_attempts: standing.map_or(0, |standing| standing.failed),
        dead_letters: standing.map_or(0, |standing| standing.dead),
        delivered_at: delivered_at.map(timestamp),
        failed_at: failure.map(|(at, _)| timestamp(*at)),
        cause: failure.map(|(_, cause)| cause.to_string()),
        retry,
    }
}

fn require_known(tidings: &Tidings, of: NotifiersOf, name: &str) -> Result<(), Problem> {
    let known = tidings.notifiers().statuses(of.school());
    match known.iter().any(|shown| shown.name == name) {
        true => Ok(()),
        false => Err(Problem::new(
            Kind::NotFound,
            "this notifier does not exist; GET /api/notifiers lists all notifiers",
        )),
    }
}

/// Returns all of them, without pages: there are not many.
#[get("/api/notifiers/<name>/set-aside")]
async fn set_aside(
    name: &str,
    caller: Result<Caller, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let reads = tidings.reads();
    let of = reads.notifiers_of(&caller?)?;
    require_known(tidings, of, name)?;
    let mut offset = reads.notifier_offset(of, name).await?;
    offset.set_aside.sort_by_key(|subject| subject.due);
    Ok(Json::of(&SetAsideList {
        set_aside: offset.set_aside.iter().map(SetAsideSubject::from).collect(),
    }))
}

/// The subjects that a notifier has set aside.
#[derive(JsonSchema, Serialize)]
struct SetAsideList<'a> {
    set_aside: Vec<SetAsideSubject<'a>>,
}

/// A subject whose event could not be delivered yet.
#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
struct SetAsideSubject<'a> {
    /// The collection of the subject.
    kind: &'static str,
    /// The subject.
    subject_id: &'a SubjectId,
    /// The place of the event in the log.
    seq: u64,
    /// The type of the event.
    r#type: String,
    /// How many attempts have failed.
    attempts: u32,
    /// Why the last attempt failed.
    cause: String,
    /// When the next attempt is due.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    due_at: String,
}

impl<'a> From<&'a SetAside> for SetAsideSubject<'a> {
    fn from(set_aside: &'a SetAside) -> SetAsideSubject<'a> {
        SetAsideSubject {
            kind: set_aside.kind.collection(),
            subject_id: &set_aside.subject,
            seq: set_aside.seq,
            r#type: set_aside.event_type.to_string(),
            attempts: set_aside.attempts,
            cause: set_aside.cause.to_string(),
            due_at: timestamp(set_aside.due),
        }
    }
}

#[get("/api/notifiers/<name>/dead-letters")]
async fn dead_letters(
    name: &str,
    caller: Result<Caller, Problem>,
    page: Result<Page, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let reads = tidings.reads();
    let (of, Page(before, limit)) = (reads.notifiers_of(&caller?)?, page?);
    require_known(tidings, of, name)?;
    let page = reads.dead_letters(of, name, before, limit).await?;
    Ok(Json::of(&DeadLetterPage {
        dead_letters: page.letters.iter().map(GivenUp::from).collect(),
        next: page.next.map(|next| next.to_string()),
    }))
}

/// A page of events that a notifier has given up on.
#[derive(JsonSchema, Serialize)]
struct DeadLetterPage {
    dead_letters: Vec<GivenUp>,
    /// The `page` that follows; null if none does.
    next: Option<String>,
}

/// An event that a notifier has given up on.
#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
struct GivenUp {
    /// Its place in the log.
    seq: u64,
    /// Its type.
    r#type: String,
    /// The collection of its subject.
    kind: String,
    /// Its subject.
    subject_id: String,
    /// How many attempts have failed.
    attempts: u32,
    /// Why the last attempt failed.
    cause: String,
    /// When the notifier gave up on it.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    timestamp: String,
}

impl From<&DeadLetter> for GivenUp {
    fn from(letter: &DeadLetter) -> GivenUp {
        GivenUp {
            seq: letter.seq,
            r#type: letter.event_type.to_string(),
            kind: letter.kind.to_string(),
            subject_id: letter.subject.to_string(),
            attempts: letter.attempts,
            cause: letter.cause.to_string(),
            timestamp: timestamp(letter.at),
        }
    }
}

/// Rejects parameters: this list has no pages or filters.
struct Whole;

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Whole {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Whole, Problem> {
        Problem::outcome(only_known(request, &[]).map(|()| Whole))
    }
}

/// `page`, `limit`.
struct Page(Option<u64>, usize);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Page {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Page, Problem> {
        let page = only_known(request, PAGES).and_then(|()| page_of(request));
        Problem::outcome(page.map(|(before, limit)| Page(before, limit)))
    }
}

impl Part for Whole {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(COMMON).fails(&[Kind::InvalidQuery]);
    }
}

impl Part for Page {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(PAGES).fails(&[Kind::InvalidQuery]);
    }
}
