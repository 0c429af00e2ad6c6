//! The queries of lists: filters, order and pages.

use std::collections::BTreeSet;

use rocket::form::ValueField;
use rocket::request::{FromRequest, Outcome, Request};

use super::body::upper_status;
use super::credential::query;
use super::parameters::{COMMON, LIST, Parameter};
use super::problem::{Kind, Problem};
use crate::config::{FILTER_VALUES_MAX, PAGE_DEFAULT, PAGE_MAX, QUERY_TEXT_MAX_BYTES};
use crate::id::Place;
use crate::kind::job::{JobType, Status as JobStatus};
use crate::kind::{self, RuleError};
use crate::log::{ListQuery, Order, Stalled};

/// The parameters of a list: `status`, `job_type` (both repeatable), `q`, `stalled`, `sort`, `page`, `limit`.
pub(super) struct Asked(pub(super) ListQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Asked {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Asked, Problem> {
        let query = only_known(request, LIST).and_then(|()| list_query(request, |_| true));
        Problem::outcome(query.map(Asked))
    }
}

/// The same parameters from the monitor's form. There, `stalled` is another value of `status`, and a job matches if any of
/// the values does.
pub(super) struct FormQuery(pub(super) ListQuery);

#[rocket::async_trait]
impl<'r> FromRequest<'r> for FormQuery {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<FormQuery, Problem> {
        Problem::outcome(form_query(request).map(FormQuery))
    }
}

fn form_query(request: &Request<'_>) -> Result<ListQuery, Problem> {
    let is_status =
        |field: &ValueField<'_>| !(field.name == "status" && field.value == STALLED_STATUS);
    let mut asked = list_query(request, is_status)?;
    let wanted =
        asked.stalled == Stalled::Only || !request.query_fields().all(|field| is_status(&field));
    asked.stalled = match wanted || !asked.statuses.is_empty() {
        true => Stalled::Apart { wanted },
        false => Stalled::Ignored,
    };
    Ok(asked)
}

/// How the pages name stalled jobs among the statuses.
pub(super) const STALLED_STATUS: &str = "stalled";

/// Rejects unknown parameters and repeated ones that would be ignored: a filter without effect must not return everything.
pub(super) fn only_known(request: &Request<'_>, parameters: &[Parameter]) -> Result<(), Problem> {
    let mut seen: Vec<&str> = Vec::new();
    for field in request.query_fields() {
        let name = field.name.source().as_str();
        let known = || parameters.iter().chain(COMMON);
        let Some(parameter) = known().find(|parameter| parameter.name == name) else {
            /// Long enough to recognize a misspelt name.
            const SHOWN_CHARS: usize = 64;
            let name: String = name.chars().take(SHOWN_CHARS).collect();
            let known: Vec<_> = known().map(|parameter| parameter.name).collect();
            let known = known.join(", ");
            let detail = format!("`{name}` is not a parameter of this URL; it accepts {known}");
            return Err(Problem::new(Kind::InvalidQuery, detail));
        };
        if parameter.is_repeatable {
            continue;
        }
        if seen.contains(&name) {
            let detail = format!("`{name}` is given more than once; it is accepted once");
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
        seen.push(name);
    }
    // Also check `status_case` for lists without statuses: an unknown value is a mistake there, too.
    upper_status(request).map(drop)
}

/// Reads the query of a list.
fn list_query(
    request: &Request<'_>,
    counts: impl Fn(&ValueField<'_>) -> bool,
) -> Result<ListQuery, Problem> {
    let (statuses, categories) = filters_in(request.query_fields().filter(counts))?;
    let text = query(request, "q").filter(|text| !text.is_empty());
    if text.is_some_and(|text| text.len() > QUERY_TEXT_MAX_BYTES) {
        let detail = format!("`q` must have at most {QUERY_TEXT_MAX_BYTES} bytes");
        return Err(Problem::new(Kind::InvalidQuery, detail));
    }
    let stalled = match query(request, "stalled").unwrap_or_default() {
        "" | "false" => Stalled::Ignored,
        "true" => Stalled::Only,
        _ => {
            let detail = "`stalled` must be `true` or `false`";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    let order = match query(request, "sort").unwrap_or_default() {
        "" | "newest" => Order::Newest,
        "oldest" => Order::Oldest,
        _ => {
            let detail = "`sort` must be `newest` or `oldest`";
            return Err(Problem::new(Kind::InvalidQuery, detail));
        }
    };
    let (beyond, limit) = page_of(request)?;
    Ok(ListQuery {
        statuses,
        categories,
        text: text.map(str::to_owned),
        stalled,
        order,
        beyond,
        limit,
    })
}

/// The end of the log when the first page of a list was read. Every later `page` repeats it, and all pages return the
/// cursor of the first: with a later cursor, a stream would miss changes to the subjects of earlier pages.
pub(super) struct FirstHead(Option<Place>);

impl FirstHead {
    /// Returns that place. On a first page, returns `head`, the current end of the log.
    pub(super) fn or(self, head: Place) -> Place {
        self.0.map_or(head, |first| first.min(head))
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for FirstHead {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<FirstHead, Self::Error> {
        let page = query(request, "page").and_then(|page| page.split_once('-'));
        Outcome::Success(FirstHead(page.and_then(|(_, head)| head.parse().ok())))
    }
}

/// Reads `page` and `limit`, which every list has.
pub(super) fn page_of(request: &Request<'_>) -> Result<(Option<u64>, usize), Problem> {
    let invalid = |detail: String| Problem::new(Kind::InvalidQuery, detail);
    let limit = match query(request, "limit").map(str::parse) {
        None => PAGE_DEFAULT,
        Some(Ok(limit)) if (1..=PAGE_MAX).contains(&limit) => limit,
        Some(_) => {
            return Err(invalid(format!(
                "`limit` must be an integer from 1 to {PAGE_MAX}"
            )));
        }
    };
    let Some(page) = query(request, "page") else {
        return Ok((None, limit));
    };
    let (beyond, head) = page.split_once('-').unwrap_or((page, "0"));
    match (beyond.parse::<u64>(), head.parse::<Place>()) {
        (Ok(beyond), Ok(_)) if i64::try_from(beyond).is_ok() => Ok((Some(beyond), limit)),
        _ => Err(invalid(
            "`page` must be the `next` of an earlier answer".into(),
        )),
    }
}

/// Reads the repeatable filters `status` and `job_type`, within their bounds. A job's status may be in upper case.
pub(super) fn filters(request: &Request<'_>) -> Result<Filters, Problem> {
    filters_in(request.query_fields())
}

/// Statuses, and types of jobs.
type Filters = (Vec<&'static str>, Vec<String>);

fn filters_in<'r>(fields: impl Iterator<Item = ValueField<'r>>) -> Result<Filters, Problem> {
    let (mut statuses, mut job_types) = (Vec::new(), Vec::new());
    let invalid = |error: RuleError| Problem::new(Kind::InvalidQuery, error.to_string());
    let no_status = || {
        let known: BTreeSet<_> = kind::statuses().collect();
        let known = Vec::from_iter(known).join(", ");
        Problem::new(
            Kind::InvalidQuery,
            format!("`status` must be one of {known}"),
        )
    };
    for field in fields {
        if field.name == "status" {
            let of_job = || Some(field.value.parse::<JobStatus>().ok()?.as_str());
            let status = kind::known_status(field.value).or_else(of_job);
            statuses.push(status.ok_or_else(no_status)?);
        } else if field.name == "job_type" && !field.value.is_empty() {
            field.value.parse::<JobType>().map_err(invalid)?;
            job_types.push(field.value.to_owned());
        }
    }
    if statuses.len().max(job_types.len()) > FILTER_VALUES_MAX {
        return Err(Problem::new(
            Kind::InvalidQuery,
            format!("`status` and `job_type` accept at most {FILTER_VALUES_MAX} values each"),
        ));
    }
    Ok((statuses, job_types))
}
