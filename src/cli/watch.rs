//! `tidings watch`: live progress bars in the terminal, one a job, or NDJSON.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::{Client, Received};
use super::{Exit, Failure};

/// Silence after which a connection counts as lost, until the server says how often it gives a sign of life.
const SILENCE: Duration = Duration::from_secs(60);
/// And from then on, in such signs.
const SILENT_HEARTBEATS: u32 = 3;
/// First and longest delay before a new attempt.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Messages read ahead of the terminal.
const READ_AHEAD: usize = 256;
/// Bars on the screen at a time; more jobs are told in lines.
const BARS_MAX: usize = 40;

/// Watch a scope.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings watch jobs
  tidings watch jobs/42                     (exits with the job's outcome)
  tidings watch 'jobs?job_type=document&status=failed' --json
  tidings watch schools/1 --url https://tidings.example --token \"$TOKEN\"")]
pub(super) struct Arguments {
    /// What follows /events/ in the URL: jobs, jobs/42, schools/1, with a query if you like.
    scope: String,
    /// The server.
    #[arg(long, env = "TIDINGS_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// A token; better in the environment than on a command line that others can see.
    #[arg(long, env = "TIDINGS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Go on from this cursor instead of a snapshot.
    #[arg(long)]
    cursor: Option<String>,
    /// Print every message as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// How a job ended.
#[derive(Clone, Copy)]
enum Outcome {
    Completed,
    Failed,
    Cancelled,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = Client::new(&arguments.url, arguments.token.clone());
    let path = format!("/{}", arguments.scope.trim_start_matches('/'));
    let single = single_job(&arguments.scope);
    let mut screen = Screen::new(arguments.json);
    let mut cursor = arguments.cursor.clone();
    let mut delay = RETRY;
    let mut silence = SILENCE;
    let mut connected_once = false;
    loop {
        let resumed = cursor.is_some();
        match client.events(&path, cursor.as_deref()) {
            Ok(events) => {
                connected_once = true;
                delay = RETRY;
                let (received, messages) = sync_channel(READ_AHEAD);
                // Ends with the connection, or when nobody takes its messages any more.
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
                            // It may have been over before the cursor: then nothing more will be told of it.
                            if let Some(id) = single {
                                let job = client.get(&format!("/api/jobs/{id}"))?;
                                if let Some(outcome) = outcome(&job) {
                                    screen.show(&job)?;
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
                    let own = single.is_some_and(|id| message["job_id"] == id);
                    if let Some(outcome) = outcome(&message).filter(|_| own) {
                        screen.finish();
                        return end(outcome);
                    }
                }
            }
            // Nobody there from the start is a mistake; later it is a server that will come back.
            Err(failure) if failure.exit != Exit::Unreachable || !connected_once => {
                return Err(failure);
            }
            Err(_) => {}
        }
        screen.say(&format!(
            "connection lost; trying again in {} s",
            delay.as_secs()
        ));
        std::thread::sleep(delay);
        delay = (delay * 2).min(RETRY_MAX);
    }
}

/// The exit that tells the outcome.
fn end(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Completed => Ok(()),
        Outcome::Failed => Err(Failure::new(Exit::JobFailed, "")),
        Outcome::Cancelled => Err(Failure::new(Exit::JobCancelled, "")),
    }
}

/// The job's id, if the scope is one job.
fn single_job(scope: &str) -> Option<&str> {
    let path = scope.split('?').next()?.trim_start_matches('/');
    path.strip_prefix("jobs/").filter(|id| !id.is_empty())
}

fn outcome(message: &Value) -> Option<Outcome> {
    match message["status"].as_str()?.to_ascii_lowercase().as_str() {
        "completed" => Some(Outcome::Completed),
        "failed" => Some(Outcome::Failed),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    }
}

/// The terminal, or a pipe.
struct Screen {
    json: bool,
    bars: MultiProgress,
    /// The bars of jobs that are not over, and whether they run: those stand above the waiting ones.
    jobs: HashMap<String, (ProgressBar, bool)>,
}

impl Screen {
    fn new(json: bool) -> Screen {
        Screen {
            json,
            bars: MultiProgress::new(),
            jobs: HashMap::new(),
        }
    }

    fn say(&self, text: &str) {
        if self.json || self.bars.is_hidden() {
            eprintln!("{text}");
        } else {
            // A terminal that cannot be written to has nobody to complain to.
            let _ = self.bars.println(text);
        }
    }

    fn show(&mut self, message: &Value) -> Result<(), Failure> {
        if self.json {
            print_line(&message.to_string())
        } else if message["job_id"].is_string() {
            self.show_job(message)
        } else {
            Ok(())
        }
    }

    fn show_job(&mut self, message: &Value) -> Result<(), Failure> {
        let text = |field: &str| plain(message[field].as_str().unwrap_or_default());
        let (id, status) = (text("job_id"), text("status"));
        let name = plain(message["metadata"]["path"].as_str().unwrap_or(&id));
        let line = format!(
            "{status:<11} {:>4} {name}  {}",
            percent(message),
            text("message")
        );
        let ended = outcome(message).is_some();
        if self.bars.is_hidden() {
            return print_line(&line);
        }
        // A line each for jobs that were over before we looked, and where the screen is full of bars.
        let known = self.jobs.contains_key(&id);
        let told_only = ended && message["snapshot"] == true;
        if !known && (told_only || self.jobs.len() >= BARS_MAX) {
            self.say(&line);
            return Ok(());
        }
        let runs = status.eq_ignore_ascii_case("in_progress");
        let bars = &self.bars;
        let (bar, above) = self.jobs.entry(id.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(100));
            let style = ProgressStyle::with_template("{prefix:<32!} {bar:24} {pos:>3}% {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            (bar, false)
        });
        if runs && !*above {
            bars.remove(bar);
            *bar = bars.insert(0, bar.clone());
            *above = true;
        }
        let stalled = if message["stalled"] == true {
            "STALLED "
        } else {
            ""
        };
        bar.set_prefix(name);
        bar.set_position(message["progress"].as_f64().unwrap_or(0.0) as u64);
        bar.set_message(format!(
            "{stalled}{}{}",
            text("message"),
            time_left(message)
        ));
        if ended {
            bar.finish_and_clear();
            self.jobs.remove(&id);
            self.say(&line);
        }
        Ok(())
    }

    fn finish(&self) {
        self.jobs.values().for_each(|(bar, _)| bar.abandon());
    }
}

/// What somebody else wrote, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// Prints a line; nobody there to read it any more is a quiet end.
fn print_line(line: &str) -> Result<(), Failure> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::new(Exit::Failed, ""),
        _ => error.into(),
    })
}

fn percent(message: &Value) -> String {
    message["progress"]
        .as_f64()
        .map_or("?".to_owned(), |progress| format!("{progress:.0}%"))
}

fn time_left(message: &Value) -> String {
    let at = message["eta_at"]
        .as_str()
        .and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    let left = at.map(|at| (at.to_utc() - chrono::Utc::now()).num_seconds().max(0));
    left.map_or(String::new(), |secs| {
        format!(" ({}:{:02} left)", secs / 60, secs % 60)
    })
}
