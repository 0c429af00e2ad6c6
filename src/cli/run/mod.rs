//! `tidings run`: runs a command unchanged and reports it as a job.
//!
//! ```text
//! command ─outputs─▶ relay ─────────▶ own outputs, byte for byte
//!    ▲                 └▶ observer ─▶ board ─▶ reporter ─HTTP─▶ server
//!    └──── signals, keyboard                       └── cancel_requested ─▶ SIGTERM, SIGKILL
//! ```
//!
//! 1. The command's output, input, signals and exit code are the same as without `tidings run`.
//! 2. Nothing between the command and its outputs waits for the server. Only the reporter's thread talks to it.
//! 3. After the command has ended, this process waits for the server at most `--wait`.

mod delivery;
mod input;
mod lines;
mod observer;
mod outcome;
mod process;
pub(super) mod progress;
mod relay;
mod reporter;
mod running;
mod script;
mod signals;
pub(super) mod spool;
mod tail;
pub(super) mod taskbar;
mod tty;
mod watcher;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::spawn;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Args;
use rustix::process::Signal;
use serde_json::json;

pub(super) use self::delivery::is_unchanged_since;
use self::delivery::{Delivery, Job};
use self::observer::Observer;
pub(super) use self::observer::shorten;
use self::outcome::Outcome;
use self::process::Process;
use self::progress::Progress;
use self::reporter::{Board, Reporter};
use self::running::Running;
use self::script::Descriptor;
use self::spool::{Recipient, Run, Unreported, What, send_earlier};
use self::taskbar::Wanted;
use super::{Exit, credential, terminal};
use crate::client::worker::host;
use crate::id::SubjectId;
use crate::kind::job::JobType;

/// The first file descriptor that is not standard input, output or error.
const DESCRIPTOR_MIN: i64 = 3;
const DESCRIPTOR_MAX: i64 = 255;

/// Run a command and report it as a job.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings run -- restic backup --json /srv
  tidings run --type backup --title 'Nightly backup' -- rsync -a --info=progress2 /srv/ backup:/srv
  tidings run --fd 3 -- sh -c 'for n in $(seq 200); do work $n; echo $n/200 >&3; done'

The command runs unchanged. The exit code is the command's own; 127 if it is not found, 126 if it cannot be executed.
If the server cannot be reached or rejects the job, the command still runs, and a message says what was not reported.
If the server may accept the outcome later, it is kept, and sent by the next run or by `tidings spool send`.")]
pub(super) struct Arguments {
    /// The type of the job, by which jobs are compared and filtered [default: the name of the program].
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<JobType>,
    /// The title of the job [default: the name of the program].
    #[arg(long)]
    title: Option<String>,
    /// The id of the job [default: a new one]. A job that has failed, or that was left running, gets a new attempt.
    #[arg(long)]
    id: Option<SubjectId>,
    #[command(flatten)]
    options: credential::Options,
    /// Read progress from this file descriptor of the command: lines such as `40/200 Reading rows` or `20%`.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(DESCRIPTOR_MIN..=DESCRIPTOR_MAX))]
    fd: Option<i32>,
    /// Read progress from the last line of this file.
    #[arg(long, value_name = "FILE")]
    progress_file: Option<PathBuf>,
    /// The seconds from SIGTERM to SIGKILL if the job is cancelled on the server.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    kill_after: u32,
    /// The seconds to wait for the server after the command has ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    wait: u32,
    /// Show the progress in the terminal's taskbar or tab (`OSC 9;4`).
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    taskbar: Wanted,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command. Returns its exit code.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let began = Instant::now();
    // Do this first, while few descriptor numbers are in use.
    let descriptor = match arguments.fd.map(Descriptor::open).transpose() {
        Ok(descriptor) => descriptor,
        Err(error) => {
            terminal::complain(&format!("tidings: --fd: {error}"));
            return ExitCode::from(Exit::Usage as u8);
        }
    };
    let wait = Duration::from_secs(arguments.wait.into());
    if let Some(file) = &arguments.progress_file
        && file.metadata().is_ok_and(|metadata| !metadata.is_file())
    {
        let file = file.display();
        terminal::complain(&format!(
            "tidings: --progress-file: {file} is not a regular file; for a pipe, use --fd"
        ));
        return ExitCode::from(Exit::Usage as u8);
    }
    let board = Arc::new(Board::default());
    let progress = Progress::of(&arguments.command);
    let observer = Arc::new(Mutex::new(Observer::new(progress, Arc::clone(&board))));
    match Running::start(&arguments, descriptor, &observer, &board) {
        Ok(running) => {
            let reported = report(&arguments, &board, Some(running.process.clone()));
            let ended = running.wait(&board);
            let status = ended.status;
            let observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = Outcome::of(ended, began.elapsed(), observer.tail());
            finish(&board, outcome, wait, reported);
            exit_as(status)
        }
        Err(error) => {
            let program = arguments.command[0].to_string_lossy().into_owned();
            let message = format!("cannot run {program}: {error}");
            terminal::complain(&format!("tidings: {message}"));
            let reported = report(&arguments, &board, None);
            finish(
                &board,
                Outcome::not_started(message, began.elapsed()),
                wait,
                reported,
            );
            ExitCode::from(outcome::code_of(&error))
        }
    }
}

/// A job that is being reported.
struct Reported {
    recipient: Recipient,
    job: Job,
    started_at: DateTime<Utc>,
}

/// Starts the reporter. Returns why it cannot be started.
fn report(
    arguments: &Arguments,
    board: &Arc<Board>,
    process: Option<Process>,
) -> Result<Reported, String> {
    let account = arguments.options.account();
    let account = account.map_err(|failure| failure.message)?;
    let recipient = Recipient::of(&account);
    let name = Path::new(&arguments.command[0])
        .file_name()
        .unwrap_or(&arguments.command[0])
        .to_string_lossy()
        .into_owned();
    let job_type = arguments.job_type.as_ref().map(JobType::as_str);
    let job_type = job_type.map_or_else(|| type_of(&name), str::to_owned);
    let title = arguments.title.clone().unwrap_or_else(|| name.clone());
    let metadata = json!({"title": title, "command": name, "host": host()});
    let new_id = || {
        uuid::Uuid::now_v7()
            .to_string()
            .parse()
            .expect("a UUID is an id")
    };
    let job_id = arguments.id.clone().unwrap_or_else(new_id);
    let kill_after = Duration::from_secs(arguments.kill_after.into());
    let reported = Reported {
        recipient: recipient.clone(),
        job: Job::new(&job_id, job_type, metadata),
        started_at: Utc::now(),
    };
    let job = reported.job.clone();
    let board = Arc::clone(board);
    spawn(move || {
        // Create the client on this thread, because loading the system's certificates takes a while.
        let client = match account.client() {
            Ok(client) => client,
            Err(failure) => return board.give_up(&failure),
        };
        // Send earlier outcomes first: one can be about the same job.
        send_earlier(&client, &recipient);
        let mut stopping = None;
        let reporter = Reporter {
            board: Arc::clone(&board),
            delivery: Delivery::new(client, job),
            on_cancel: || {
                if let Some(process) = process.clone().filter(|_| stopping.is_none()) {
                    board.cancel("Cancelled on request");
                    stopping = Some(spawn(move || stop(&process, kill_after)));
                }
            },
        };
        reporter.run();
    });
    Ok(reported)
}

/// Tells the command to stop, and kills it if it does not.
fn stop(process: &Process, kill_after: Duration) {
    process.signal(Signal::TERM);
    // A suspended command handles SIGTERM only when it continues.
    process.signal(Signal::CONT);
    std::thread::sleep(kill_after);
    process.signal(Signal::KILL);
}

/// Hands the outcome to the reporter. If it cannot be sent, stores it and prints a message.
fn finish(board: &Board, outcome: Outcome, wait: Duration, reported: Result<Reported, String>) {
    let reported = match reported {
        Ok(reported) => reported,
        Err(problem) => {
            terminal::complain(&format!(
                "tidings: the command could not be reported: {problem}"
            ));
            return;
        }
    };
    let outcome = Arc::new(outcome);
    let Some(unsent) = board.finish(Arc::clone(&outcome), wait) else {
        return;
    };
    let mut message = unsent.text;
    if unsent.can_be_sent_later {
        let unreported = Unreported {
            recipient: reported.recipient,
            ended_at: outcome.ended_at,
            what: What::Run(Box::new(Run {
                job: reported.job,
                attempt: unsent.attempt,
                started_at: reported.started_at,
                outcome: Arc::unwrap_or_clone(outcome),
                latest: unsent.latest,
                is_unsent: unsent.is_unsent,
            })),
        };
        message += &unreported.keep();
    }
    terminal::complain(&format!("tidings: {message}"));
}

/// Returns the name of a program as a job's type.
fn type_of(name: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._:~-".contains(c);
    let plain: String = name
        .chars()
        .map(|c| if is_allowed(c) { c } else { '-' })
        .collect();
    match plain.parse::<JobType>() {
        Ok(job_type) => job_type.as_str().to_owned(),
        Err(_) => "command".to_owned(),
    }
}

/// Ends this process as the command has ended: with its exit code, or by its signal.
fn exit_as(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        // The command may have written a core file; this process must not write another one.
        let _ = rlimit::setrlimit(rlimit::Resource::CORE, 0, 0);
        // Returns only if the signal does not end a process.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        return ExitCode::from(u8::try_from(outcome::SIGNALLED + signal).unwrap_or(u8::MAX));
    }
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(u8::MAX))
}
