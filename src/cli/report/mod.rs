//! `tidings report`: reports from a script, one line each.

mod delivery;

use std::io::{self, IsTerminal, Write};
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

pub(super) use self::delivery::Delivery;
use super::client::Client;
use super::run::progress;
use super::run::shorten;
use super::run::spool::{Recipient, Unreported, is_worth_another_try, send_earlier};
use super::run::taskbar::{self, Wanted};
use super::{Exit, Failure, credential, terminal};
use crate::client::worker::host;
use crate::id::SubjectId;
use crate::kind::job::JobType;

/// How long a progress report may block the script. If it is lost, the next one supersedes it.
const PROGRESS_WAIT: Duration = Duration::from_secs(2);
/// How long the report of a start or an end may block it.
const MILESTONE_WAIT: Duration = Duration::from_secs(10);
/// The first delay between two tries, which doubles each time.
const RETRY: Duration = Duration::from_millis(250);
/// The longest message, in bytes.
const MESSAGE_MAX_BYTES: usize = 512;

/// Report progress from a script.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  eval \"$(tidings report start --type import --title 'Customers')\"
  tidings report 40/200 Reading the rows
  tidings report 55%
  tidings report 'Step 3/10: Reading the rows'
  tidings report 'Writing the index'
  tidings report ok                         (or: fail 'No space left', cancel)
  trap 'tidings report exit $?' EXIT        (ok for 0, fail for any other code)

A report that cannot be sent is a message on standard error and does not fail the script, unless --strict is given. The end of a
job (ok, fail, cancel, exit) is then kept, and sent by the next start or end of a job, by `tidings run`, or by `tidings spool send`.

Exit codes: 0 reported or not, 11 the job is to be cancelled, 2 the command line is not valid; with --strict also 3 denied, 4 not
found, 5 the server cannot be reached, 1 another error.")]
pub(super) struct Arguments {
    /// start, a progress such as 40/200 or 55%, ok, fail, cancel, exit, or only a message.
    #[arg(allow_hyphen_values = true)]
    what: String,
    /// A message. For `exit`, the exit code.
    #[arg(allow_negative_numbers = true)]
    message: Vec<String>,
    /// For `start`: the type of the job.
    #[arg(long = "type", value_name = "TYPE", env = "TIDINGS_JOB_TYPE")]
    job_type: Option<JobType>,
    /// For `start`: the title of the job.
    #[arg(long)]
    title: Option<String>,
    /// The id of the job. By default that of `TIDINGS_JOB`; for `start`, a new one.
    #[arg(long)]
    id: Option<SubjectId>,
    /// The attempt that `start` has begun.
    #[arg(long, env = "TIDINGS_ATTEMPT")]
    attempt: Option<Attempt>,
    /// For `ok`: the result, as JSON.
    #[arg(long, value_name = "JSON", value_parser = json_value)]
    result: Option<Value>,
    #[command(flatten)]
    options: credential::Options,
    /// Fail if the report cannot be sent.
    #[arg(long)]
    strict: bool,
    /// Show the progress in the terminal's taskbar or tab (`OSC 9;4`).
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    taskbar: Wanted,
}

/// The attempt that `start` has begun. Empty if that is not known.
#[derive(Debug, Clone, Copy)]
struct Attempt(Option<u32>);

impl FromStr for Attempt {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Attempt, ParseIntError> {
        let attempt = Some(text).filter(|text| !text.is_empty());
        attempt.map(str::parse).transpose().map(Attempt)
    }
}

/// A report, as a verb of a job with its body.
struct Report {
    verb: &'static str,
    body: Value,
    wait: Duration,
    /// What the terminal shows from then on.
    taskbar: Option<String>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let strict = arguments.strict;
    let is_start = arguments.what == "start";
    let job = job(&arguments, is_start)?;
    let report = report(&arguments)?;
    if let Some(sequence) = report
        .taskbar
        .as_ref()
        .filter(|_| io::stdout().is_terminal() && arguments.taskbar.is_shown())
    {
        let mut out = io::stdout();
        // Fails if the terminal is gone.
        let _ = write!(out, "{sequence}").and_then(|()| out.flush());
    }
    let account = arguments.options.account()?;
    let recipient = Recipient::of(&account);
    let until = Instant::now() + report.wait;
    let client = account.client()?.until(until);
    // Send stored reports first: they can be about the same job.
    if report.verb != "progress" {
        send_earlier(&client, &recipient);
    }
    let delivery = job.delivery(&report);
    let sent = send(&delivery, &client, until);
    if is_start {
        // Export the job even if its start could not be sent: the next report then starts it.
        let attempt = sent
            .as_ref()
            .ok()
            .and_then(|answer| answer["attempt"].as_u64());
        job.export(attempt)?;
    }
    match sent {
        Ok(answer) if answer["cancel_requested"] == true && answer["status"] == "in_progress" => {
            let problem = "the job is to be cancelled";
            Err(Failure::new(Exit::WatchedCancelled, problem))
        }
        Ok(_) => Ok(()),
        Err(mut failure) => {
            if delivery.is_end() && is_worth_another_try(&failure) {
                failure.message += &Unreported::report(recipient, delivery).keep();
            }
            if strict {
                return Err(failure);
            }
            terminal::complain(&format!("tidings: not reported: {}", failure.message));
            Ok(())
        }
    }
}

/// Sends a report. Repeats it while the server is unreachable or busy, but not for longer than the script may wait.
fn send(delivery: &Delivery, client: &Client, until: Instant) -> Result<Value, Failure> {
    let mut delay = RETRY;
    loop {
        match delivery.send(client) {
            Err(failure) if failure.is_transient() && Instant::now() + delay < until => {
                std::thread::sleep(delay);
                delay *= 2;
            }
            answer => return answer,
        }
    }
}

fn json_value(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))
}

/// The job that is reported on.
struct Job {
    id: SubjectId,
    job_type: Option<JobType>,
    attempt: Option<u32>,
}

fn job(arguments: &Arguments, is_start: bool) -> Result<Job, Failure> {
    let usage = |problem: &str| Err(Failure::new(Exit::Usage, problem));
    if is_start && arguments.job_type.is_none() {
        return usage("`start` requires the type of the job: --type import");
    }
    let id = match &arguments.id {
        Some(id) => id.clone(),
        None if is_start => Uuid::now_v7().to_string().parse()?,
        None => match std::env::var("TIDINGS_JOB") {
            Ok(id) if !id.is_empty() => id
                .parse()
                .map_err(|error| Failure::new(Exit::Usage, format!("TIDINGS_JOB: {error}")))?,
            _ => {
                return usage(
                    "there is no job: begin with `eval \"$(tidings report start --type …)\"`, or name one with --id or TIDINGS_JOB",
                );
            }
        },
    };
    Ok(Job {
        id,
        job_type: arguments.job_type.clone(),
        attempt: arguments
            .attempt
            .and_then(|Attempt(attempt)| attempt)
            .filter(|_| !is_start),
    })
}

/// Builds the report from the arguments.
fn report(arguments: &Arguments) -> Result<Report, Failure> {
    let mut message = Some(arguments.message.join(" ")).filter(|message| !message.is_empty());
    let mut what = arguments.what.as_str();
    reject_hyphens(what)?;
    if what == "exit" {
        let code = message
            .take()
            .and_then(|code| code.trim().parse::<u8>().ok());
        what = match code {
            Some(0) => "ok",
            Some(code) => {
                message = Some(format!("exited with code {code}"));
                "fail"
            }
            None => {
                let problem = "`exit` requires an exit code from 0 to 255: tidings report exit $?";
                return Err(Failure::new(Exit::Usage, problem));
            }
        };
    }
    if let Some(message) = &mut message {
        shorten(message, MESSAGE_MAX_BYTES);
    }
    let cleared = Some(taskbar::CLEAR.to_owned());
    let milestone = |verb, body| Report {
        verb,
        body,
        wait: MILESTONE_WAIT,
        taskbar: cleared.clone(),
    };
    Ok(match what {
        "start" => {
            let mut body = json!({"metadata": {"host": host()}});
            if let Some(title) = &arguments.title {
                body["metadata"]["title"] = title.as_str().into();
            }
            milestone("start", with_message(body, message))
        }
        "ok" | "done" | "complete" => {
            let body = json!({"result": arguments.result});
            milestone("complete", with_message(body, message))
        }
        "fail" | "error" => {
            let message = message.unwrap_or_else(|| "failed".into());
            milestone(
                "fail",
                json!({"error": {"code": "exit", "message": message}}),
            )
        }
        "cancel" => milestone("cancel", with_message(json!({"force": true}), message)),
        other => {
            let others = message.as_deref().unwrap_or_default();
            let (percent, mut rest) = progress::reported(other, others);
            shorten(&mut rest, MESSAGE_MAX_BYTES);
            let message = Some(rest).filter(|rest| !rest.is_empty());
            let mut body = json!({});
            if let Some(percent) = percent {
                body["progress"] = percent.into();
            }
            Report {
                verb: "progress",
                body: with_message(body, message),
                wait: PROGRESS_WAIT,
                taskbar: percent.map(taskbar::at),
            }
        }
    })
}

/// Refuses a negative number, and an option that does not exist. A message of several words can begin with a hyphen.
fn reject_hyphens(what: &str) -> Result<(), Failure> {
    let Some(rest) = what.strip_prefix('-') else {
        return Ok(());
    };
    let problem = if rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        format!(
            "{what} is negative; progress must be a percentage from 0 to 100 (55%), a count (40/200) or a message"
        )
    } else if what.contains(' ') {
        return Ok(());
    } else {
        format!("there is no option {what}; see tidings report --help")
    };
    Err(Failure::new(Exit::Usage, problem))
}

fn with_message(mut body: Value, message: Option<String>) -> Value {
    if let Some(message) = message {
        body["message"] = message.into();
    }
    body
}

impl Job {
    fn delivery(&self, report: &Report) -> Delivery {
        let job_type = self.job_type.as_ref().map(JobType::as_str);
        let body = report.body.clone();
        Delivery::new(&self.id, job_type, self.attempt, report.verb, body)
    }

    /// Prints the job for the shell's `eval`: one command that POSIX shells and fish have.
    fn export(&self, attempt: Option<u64>) -> Result<(), Failure> {
        let mut line = format!("export TIDINGS_JOB={}", quoted(self.id.as_str()));
        if let Some(job_type) = &self.job_type {
            line += &format!(" TIDINGS_JOB_TYPE={}", quoted(job_type.as_str()));
        }
        line += &match attempt {
            Some(attempt) => format!(" TIDINGS_ATTEMPT={attempt}"),
            // The shell may still have the attempt of an earlier job.
            None => " TIDINGS_ATTEMPT=".to_owned(),
        };
        terminal::print_line(&line)
    }
}

/// Quotes a text as one word for the shell. In fish, a backslash within quotes is one, too, if it is before a quote.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|character| match character {
        '\'' | '\\' => format!("'\\{character}'"),
        _ => character.to_string(),
    });
    format!("'{}'", escaped.collect::<String>())
}
