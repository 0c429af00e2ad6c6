//! `tidings watch`: live progress bars in the terminal, one per job, and lines for everything else. Alternatively, NDJSON.

mod lines;
mod screen;

use std::borrow::Cow;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use clap::Args;
use rocket::http::RawStr;
use serde_json::Value;

use self::screen::Screen;
use super::client::{Client, DEFAULT_URL, Received, url};
use super::credential::{self, is_visible};
use super::{Exit, Failure};
use crate::config::Secret;
use crate::id::{Channel, NameError, SchoolId, SubjectId};
use crate::kind::{self, enrollment, job};

/// Silence after which a connection counts as lost, until the server announces the interval of its heartbeats.
const SILENCE: Duration = Duration::from_secs(60);
/// After that, the number of missed heartbeats after which it counts as lost.
const SILENT_HEARTBEATS: u32 = 3;
/// The first delay before reconnecting.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How many messages are read ahead of the terminal.
const READ_AHEAD: usize = 256;

/// Watch a scope.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings watch jobs
  tidings watch jobs/42                     (exits with the job's outcome)
  tidings watch enrollments/17              (and with the session's)
  tidings watch devices
  tidings watch 'jobs?job_type=document&status=failed' --json
  tidings watch schools/1 --url https://tidings.example --token \"$TOKEN\"

Exit codes: 0 the watched job or enrollment completed, 10 it failed, 11 it was cancelled, 2 the command line is not
valid, 3 denied, 4 not found, 5 the server cannot be reached, 1 another error, or standard output was closed.")]
pub(super) struct Arguments {
    /// The part of the URL after /events/: jobs, jobs/42, devices, schools/1, optionally with a query.
    #[arg(value_parser = scope)]
    scope: String,
    /// The URL of the server.
    #[arg(long, env = "TIDINGS_URL", default_value = DEFAULT_URL, value_parser = url)]
    url: String,
    /// A token. Prefer the environment variable: other users can see the command line.
    #[arg(long, env = "TIDINGS_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// Resume from this cursor instead of a snapshot.
    #[arg(long, value_parser = cursor)]
    cursor: Option<String>,
    /// Print every message as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// The job or enrollment session that is watched, if it is only one. It has an outcome.
struct Single {
    collection: &'static str,
    id_field: &'static str,
    id: SubjectId,
}

/// How a job or an enrollment session ended.
#[derive(Clone, Copy)]
enum Outcome {
    Completed,
    Failed,
    Cancelled,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let token = credential::token(arguments.token)?;
    let client = Client::new(&arguments.url, token);
    let path = address(&arguments.scope);
    let single = Single::of(&arguments.scope);
    let mut screen = Screen::new(arguments.json);
    let mut cursor = arguments.cursor.clone();
    let mut delay = RETRY;
    let mut silence = SILENCE;
    let mut connected_once = false;
    let mut is_lost = false;
    loop {
        let resumed = cursor.is_some();
        let mut problem = format!("connection to {} lost", arguments.url);
        match client.events(&path, cursor.as_deref()) {
            Ok(events) => {
                if std::mem::take(&mut is_lost) {
                    screen.say(&format!("reconnected to {}", arguments.url));
                }
                connected_once = true;
                delay = RETRY;
                let (received, messages) = sync_channel(READ_AHEAD);
                // The thread ends with the connection, or when its messages are no longer received.
                std::thread::spawn(move || {
                    events
                        .map(|event| received.send(event))
                        .take_while(Result::is_ok)
                        .for_each(drop)
                });
                loop {
                    let Received {
                        message,
                        cursor: at,
                    } = match messages.recv_timeout(silence) {
                        Ok(received) => received,
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                    };
                    cursor = at.or(cursor);
                    let Some(message) = message else { continue };
                    screen.show(&message)?;
                    match message["type"].as_str() {
                        Some("connected") => {
                            let heartbeat = message["heartbeat_secs"]
                                .as_u64()
                                .unwrap_or(20)
                                .clamp(1, 3_600);
                            silence = Duration::from_secs(heartbeat) * SILENT_HEARTBEATS;
                        }
                        Some("ready") if resumed => {
                            // It may have ended before the cursor. Then no further message arrives.
                            if let Some(Single { collection, id, .. }) = &single {
                                let id = id.encoded();
                                let subject = client.get(&format!("/api/{collection}/{id}"))?;
                                if let Some(outcome) = outcome(&subject) {
                                    screen.show(&subject)?;
                                    return end(outcome);
                                }
                            }
                        }
                        Some("closing") if message["code"] == 4401 => {
                            return Err(Failure::new(Exit::Denied, "the token has expired"));
                        }
                        Some("closing") if message["reconnect"] == false => {
                            let reason =
                                message["reason"].as_str().unwrap_or("closed by the server");
                            return Err(Failure::new(Exit::Failed, reason));
                        }
                        Some("closing") => {
                            delay =
                                Duration::from_millis(message["retry_ms"].as_u64().unwrap_or(0))
                                    .clamp(RETRY, RETRY_MAX);
                        }
                        _ => {}
                    }
                    let is_own = |single: &Single| message[single.id_field] == single.id.as_str();
                    let own = single.as_ref().is_some_and(is_own);
                    if let Some(outcome) = outcome(&message).filter(|_| own) {
                        screen.finish();
                        return end(outcome);
                    }
                }
            }
            // If the server was never reached, the URL is probably wrong. Otherwise the server will return.
            Err(failure) if !failure.is_passing() || !connected_once => return Err(failure),
            Err(failure) => problem = failure.message,
        }
        is_lost = true;
        let secs = delay.as_secs();
        screen.say(&format!("{problem}; trying again in {secs} s"));
        std::thread::sleep(delay);
        delay = (delay * 2).min(RETRY_MAX);
    }
}

/// Exits with the code of the outcome.
fn end(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Completed => Ok(()),
        Outcome::Failed => Err(Failure::new(Exit::WatchedFailed, "")),
        Outcome::Cancelled => Err(Failure::new(Exit::WatchedCancelled, "")),
    }
}

fn cursor(text: &str) -> Result<String, String> {
    match is_visible(text) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("must be the `cursor` of a message or a list, without spaces".into()),
    }
}

fn scope(text: &str) -> Result<String, String> {
    let path = text.trim_start_matches('/');
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    if !is_visible(query) || query.contains('#') {
        return Err("has a query with characters that must be percent-encoded".into());
    }
    let named = |error: NameError| error.to_string();
    let mut names_channel = !path.is_empty();
    if names_channel {
        kind::channel(path).map_err(named)?;
    }
    for (name, value) in fields(query) {
        match &*name {
            "channel" => {
                kind::channel(&value).map_err(named)?;
                names_channel = true;
            }
            "ids" if kind::known_kind(path).is_none() => {
                return Err(
                    "has `ids`, which require a collection: characteristics?ids=1,2".into(),
                );
            }
            "ids" => value
                .split(',')
                .try_for_each(|id| id.parse::<SubjectId>().map(drop))
                .map_err(named)?,
            "school_id" => value.parse::<SchoolId>().map(drop).map_err(named)?,
            _ => {}
        }
    }
    match names_channel {
        true => Ok(text.to_owned()),
        false => {
            Err("is empty; it must be a scope such as jobs, jobs/42, devices or schools/1".into())
        }
    }
}

/// Returns the names and values of a query, as the server reads them.
fn fields(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let decoded = |text| RawStr::new(text).url_decode_lossy();
    let fields = query.trim_start_matches('?').split('&');
    fields.map(move |field| {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        (decoded(name), decoded(value))
    })
}

/// Returns the path and query of a scope below `/events`. An id in the scope may or may not be percent-encoded.
fn address(scope: &str) -> String {
    let scope = scope.trim_start_matches('/');
    let (path, query) = scope.split_at(scope.find('?').unwrap_or(scope.len()));
    match kind::channel(path) {
        Ok(channel) => format!("/{channel}{query}"),
        // Already checked: there is no path, and the query names channels.
        Err(_) => query.to_owned(),
    }
}

impl Single {
    /// Returns `None` for any other scope.
    fn of(scope: &str) -> Option<Single> {
        let path = scope.split('?').next()?.trim_start_matches('/');
        let Ok(Channel::Subject(kind, id)) = kind::channel(path) else {
            return None;
        };
        let id_field = match kind {
            job::KIND | enrollment::KIND => kind::description(kind).id_field,
            _ => return None,
        };
        Some(Single {
            collection: kind.collection(),
            id_field,
            id,
        })
    }
}

/// Returns how a job or an enrollment session ended, if the message says so.
fn outcome(message: &Value) -> Option<Outcome> {
    match message["status"].as_str()?.to_ascii_lowercase().as_str() {
        "completed" | "complete" => Some(Outcome::Completed),
        "failed" | "error" => Some(Outcome::Failed),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    }
}
