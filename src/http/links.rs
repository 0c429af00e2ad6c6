//! `POST /api/links`: signed links, which show one scope without a token. The guard [`Signed`] reads them.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rocket::http::Status;
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{Route, State, post, routes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, Base, Json, Unread};
use super::contract::examples::{self, Example};
use super::contract::{Document, JSON, Operation, Part};
use super::credential::{bounded, named_school, query};
use super::parameters::{EXAMPLE_SIGNATURE, EXPIRES_MAX, LINK};
use super::problem::{Kind, Problem};
use crate::app::{Caller, SignedLink};
use crate::auth::{Access, AuthError, Link, View};
use crate::config::LINK_MAX_SECS;
use crate::id::{Channel, SchoolId};
use crate::kind::{self, Body, job};
use crate::service::Tidings;
use crate::wire::example::{self, AT_MILLIS, LATER_MILLIS};
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![create]
}

pub(super) fn describe(document: &mut Document) {
    const TAG: &str = "Links";
    document.tag(
        TAG,
        "Signed links: badges and embedded pages of one scope, without a token.",
    );
    document.route(routes![create], &create, |operation| {
        let body = operation.schemas.body::<Asked>();
        let schema = operation.schemas.answer::<Answer<'_>>();
        let asked: Result<Asked, Problem> = Example.read();
        let example = asked.and_then(|asked| {
            let (channel, view) = asked.parsed()?;
            let link = Link {
                school: example::school(),
                channel,
                view,
                expires: Some(example::time(AT_MILLIS + LATER_MILLIS).timestamp()),
            };
            Ok(examples::value(&Answer::new(&link, EXAMPLE_SIGNATURE, &Base(String::new()))))
        });
        operation
            .named("links.create", TAG, "Create a signed link to a channel")
            .about("A link of a token with the role `admin` can outlive the token. Any other link expires with the token at the latest.")
            .body(JSON, body)
            .answers(201, "The link.", JSON, schema)
            .with_example(201, JSON, example.ok())
            .fails(&[Kind::Internal]);
    });
}

/// What a link is to show.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({ "channel": "jobs/42", "view": "badge" }))]
struct Asked {
    /// The channel that it shows.
    #[schemars(with = "kind::ChannelText")]
    channel: String,
    /// `badge`: an image of the state and the percentage. `embed`: a live page for a frame, of a job or of all jobs.
    #[schemars(extend("enum" = ["badge", "embed"]))]
    view: String,
    /// After how many seconds it expires. Absent: never, or with the token.
    #[schemars(range(min = 1, max = LINK_MAX_SECS))]
    expires_in_secs: Option<u64>,
}

impl Asked {
    /// Parses the channel and the view.
    fn parsed(&self) -> Result<(Channel, View), Problem> {
        let invalid = |detail: String| Problem::new(Kind::InvalidBody, detail);
        let channel = kind::channel(&self.channel).map_err(|error| invalid(error.to_string()))?;
        let view = View::parse(&self.view)
            .ok_or_else(|| invalid("`view` must be `badge` or `embed`".to_owned()))?;
        Ok((channel, view))
    }
}

/// A signed link.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Link")]
struct Answer<'a> {
    /// The path to open, including the signature.
    url: String,
    /// The channel that it shows.
    #[schemars(with = "kind::ChannelText")]
    channel: String,
    /// `badge` or `embed`.
    view: &'a str,
    /// When it expires; null: never.
    #[schemars(with = "Option<DateTime<Utc>>")]
    expires_at: Option<String>,
}

impl Answer<'_> {
    fn new<'a>(link: &Link, signature: &str, base: &Base) -> Answer<'a> {
        Answer {
            url: url(base, link, signature),
            channel: link.channel.to_string(),
            view: link.view.as_str(),
            expires_at: link.expires_at().map(timestamp),
        }
    }
}

#[post("/api/links", data = "<body>")]
async fn create(
    base: Base,
    caller: Result<Caller, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let caller = caller?;
    let asked: Asked = body::parse(&body?.read(tidings.settings().body_limit()).await?)?;
    let invalid = |detail: String| Problem::new(Kind::InvalidBody, detail);
    let (channel, view) = asked.parsed()?;
    if view == View::Embed && !cfg!(feature = "monitor") {
        let detail = "`view` must be `badge`: this server was built without embedded pages";
        return Err(invalid(detail.to_owned()));
    }
    if view == View::Embed && !is_embeddable(&channel) {
        let detail =
            "`channel` must be `jobs` or `jobs/<job_id>` for an embedded page: it shows jobs";
        return Err(invalid(detail.to_owned()));
    }
    let expires = expiry(asked.expires_in_secs)?;
    let SignedLink { link, signature } = tidings.grants().link(&caller, channel, view, expires)?;
    let answer = Answer::new(&link, &signature, &base);
    Ok(Json {
        status: Status::Created,
        bytes: serde_json::to_vec(&answer).expect("an answer is JSON"),
        location: None,
    })
}

/// Whether an embedded page shows everything in a channel. The page's tickets open the whole channel, so a page must not be
/// allowed to read more than it shows.
fn is_embeddable(channel: &Channel) -> bool {
    match channel {
        Channel::School(_) => false,
        Channel::Collection(kind) | Channel::Subject(kind, _) => *kind == job::KIND,
    }
}

/// Returns when a link is to expire, in seconds since 1970.
fn expiry(asked_secs: Option<u64>) -> Result<Option<i64>, Problem> {
    let Some(secs) = asked_secs else {
        return Ok(None);
    };
    let fits = (1..=LINK_MAX_SECS).contains(&secs).then_some(secs);
    let secs = fits.and_then(|secs| i64::try_from(secs).ok());
    let secs = secs.ok_or_else(|| {
        let detail = format!("`expires_in_secs` must be an integer from 1 to {LINK_MAX_SECS}");
        Problem::new(Kind::InvalidBody, detail)
    })?;
    Ok(Some(Utc::now().timestamp() + secs))
}

/// Returns the path of a link, with its signature.
fn url(base: &Base, link: &Link, signature: &str) -> String {
    let (view, channel, school) = (link.view.as_str(), &link.channel, link.school);
    let extension = match link.view {
        View::Badge => ".svg",
        View::Embed => "",
    };
    let expires = link.expires.map(|at| format!("&expires={at}"));
    let expires = expires.unwrap_or_default();
    let base = &base.0;
    format!("{base}/{view}/{channel}{extension}?school_id={school}{expires}&signature={signature}")
}

/// The query of a signed link. Other parameters are ignored: people add some to bypass caches.
pub(super) struct Signed {
    school: SchoolId,
    expires: Option<i64>,
    signature: String,
}

impl Signed {
    /// Returns what the link to this view of a channel allows, and the channel.
    pub(super) fn access(
        &self,
        tidings: &Tidings,
        view: View,
        channel: &str,
    ) -> Result<(Access, Link), AuthError> {
        let link = Link {
            school: self.school,
            expires: self.expires,
            // No link is ever signed for an invalid channel.
            channel: kind::channel(channel).map_err(|_| AuthError::InvalidLink)?,
            view,
        };
        let access = tidings.keys().verify_link(&link, &self.signature)?;
        Ok((access, link))
    }

    /// Returns the query of a link that was valid.
    pub(super) fn query(&self) -> String {
        let expires = self.expires.map(|at| format!("&expires={at}"));
        let (school, signature) = (self.school, &self.signature);
        let expires = expires.unwrap_or_default();
        format!("?school_id={school}{expires}&signature={signature}")
    }
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Signed {
    type Error = Problem;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Signed, Problem> {
        Problem::outcome(signed(request))
    }
}

fn signed(request: &Request<'_>) -> Result<Signed, Problem> {
    bounded(request)?;
    let incomplete = |name: &str| {
        let detail = format!("`{name}` is missing: the link is not complete");
        Problem::new(Kind::InvalidQuery, detail)
    };
    let expires = |text: &str| {
        let at: u64 = text.parse().ok().filter(|at| *at <= EXPIRES_MAX)?;
        // Accept only one text for each number: the signature covers the number, not the text.
        let at = i64::try_from(at).ok();
        at.filter(|at| at.to_string() == text)
    };
    Ok(Signed {
        school: named_school(request)?.ok_or_else(|| incomplete("school_id"))?,
        expires: match query(request, "expires") {
            None => None,
            Some(text) => Some(expires(text).ok_or_else(|| {
                let detail = "`expires` must be an integer number of seconds since 1970";
                Problem::new(Kind::InvalidQuery, detail)
            })?),
        },
        signature: query(request, "signature")
            .ok_or_else(|| incomplete("signature"))?
            .to_owned(),
    })
}

impl Part for Signed {
    fn describe(operation: &mut Operation<'_>) {
        operation.queries(LINK);
    }
}
