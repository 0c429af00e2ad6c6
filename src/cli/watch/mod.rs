//! `tidings watch`: live progress bars in the terminal, one per job, and lines for everything else. Alternatively, NDJSON.
//!
//! ```text
//! client::Watch ─▶ reader of each scope ─▶ bounded channel ─▶ screen
//! (reconnects)     (judges)                               └─▶ hook: the command of `--exec`, one run after the other
//! ```

mod changes;
mod goal;
mod hook;
mod lines;
mod notice;
mod reader;
mod scope;
mod screen;

use std::thread;

use clap::Args;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{Receiver, channel};

use self::goal::{End, Goal};
use self::hook::Hook;
use self::reader::{READ_AHEAD, Reader, Update};
use self::scope::Scope;
use self::screen::Screen;
use super::{Exit, Failure, client, credential, terminal};
use crate::id::{Cursor, NameError};

/// The maximum number of scopes. Each has its own connection.
const SCOPES_MAX: usize = 64;

/// Watch scopes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings watch jobs
  tidings watch jobs/42                     (exits with the job's outcome)
  tidings watch enrollments/17              (and with the session's)
  tidings watch jobs/42 devices/d7
  tidings watch jobs/42 jobs/43 --until completed
  tidings watch 'jobs?job_type=backup' --until failed,stalled
  tidings watch jobs --exec 'notify-send \"$TIDINGS_TITLE\" \"$TIDINGS_STATUS\"'
  tidings watch 'jobs?job_type=document&status=failed' --json
  tidings watch schools/1 --url https://tidings.example --token \"$TOKEN\"

--exec sets TIDINGS_SCOPE, TIDINGS_TYPE, TIDINGS_SUBJECT, TIDINGS_STATUS, TIDINGS_TITLE, TIDINGS_PROGRESS, TIDINGS_MESSAGE,
TIDINGS_TIMESTAMP and TIDINGS_EVENT (JSON, which is also the standard input).

Exit codes: 0 the watched job or enrollment completed, or reached a status of --until; 10 it failed, 11 it was cancelled, 12 it
ended without a status of --until; of several scopes, the first of 10, 11, 12 that applies to any of them. 2 the command line is
not valid, 3 denied, 4 not found, 5 the server cannot be reached, 1 another error, or standard output was closed.")]
pub(super) struct Arguments {
    /// The part of the URL after /events/: jobs, jobs/42, devices, schools/1, optionally with a query.
    #[arg(required = true, value_name = "SCOPE", value_parser = Scope::parse)]
    scopes: Vec<Scope>,
    #[command(flatten)]
    options: credential::Options,
    /// Exit when every scope has reached one of these, separated by commas: a status, `ended` (any final status), `stalled`,
    /// `flapping`, `cancel_requested`, or a message type such as `violation`.
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    until: Vec<String>,
    /// Run this command with `sh` after each change of a status and each other milestone, one run at a time.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Resume from this cursor instead of a snapshot.
    #[arg(long, value_parser = cursor)]
    cursor: Option<String>,
    /// Print every message as a line of JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut scopes = arguments.scopes;
    if scopes.len() > SCOPES_MAX {
        let problem =
            format!("at most {SCOPES_MAX} scopes can be watched; `?channel=` names several in one");
        return Err(Failure::new(Exit::Usage, problem));
    }
    let words = arguments.until.iter().map(|word| word.to_ascii_lowercase());
    let goal = Goal::new(words.collect(), &scopes)?;
    let account = arguments.options.account()?;
    if let Some(school) = account.school {
        scopes.iter_mut().for_each(|scope| scope.of_school(school));
    }
    let client = client::connect(&account.url, account.token)?;
    let mut screen = Screen::new(arguments.json);
    let mut hook = match arguments.exec {
        Some(command) => Some(Hook::start(command, screen.notices())?),
        None => None,
    };
    // All readers together need less than one thread. This one waits for the terminal and for the command of `--exec`.
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).thread_name("tidings-watch");
    let runtime = runtime.enable_io().enable_time().build()?;
    let (updates, mut messages) = channel(READ_AHEAD);
    for (index, scope) in scopes.iter().enumerate() {
        let reader = Reader {
            index,
            scope: scope.clone(),
            goal: goal.clone(),
            client: client.clone(),
            url: account.url.clone(),
            cursor: arguments.cursor.clone(),
            updates: updates.clone(),
        };
        runtime.spawn(reader.run());
    }
    let weak = updates.downgrade();
    drop(updates);
    let output = thread::Builder::new().name("tidings-output".into());
    output.spawn(move || {
        terminal::wait_until_unread();
        if let Some(updates) = weak.upgrade() {
            // If this fails, the watch is over.
            let _ = updates.blocking_send((0, Update::Unread));
        }
    })?;
    let ended = show(&scopes, &mut messages, &mut screen, hook.as_mut());
    // Otherwise the end would wait for names that are being resolved.
    runtime.shutdown_background();
    if let Some(hook) = hook {
        hook.finish();
    }
    screen.finish();
    ended
}

/// Shows what the readers report, until each scope has ended or one has failed.
fn show(
    scopes: &[Scope],
    messages: &mut Receiver<(usize, Update)>,
    screen: &mut Screen,
    mut hook: Option<&mut Hook>,
) -> Result<(), Failure> {
    let notices = screen.notices();
    let named = |index: usize, text: &str| match scopes {
        [_] => text.to_owned(),
        _ => format!("{}: {text}", scopes[index].text),
    };
    let mut ends: Vec<End> = Vec::new();
    while let Some((index, update)) = messages.blocking_recv() {
        match update {
            Update::Message { message, is_change } => {
                screen.show(&message)?;
                if let Some(hook) = hook.as_mut().filter(|_| is_change) {
                    hook.run(&scopes[index], &message);
                }
            }
            Update::Notice(text) => notices.print(&named(index, &text)),
            Update::Unread => return Err(terminal::unread()),
            Update::End(Ok(end)) => ends.push(end),
            Update::End(Err(failure)) => {
                return Err(Failure {
                    message: named(index, &failure.message),
                    ..failure
                });
            }
        }
    }
    End::of_all(&ends)
}

fn cursor(text: &str) -> Result<String, NameError> {
    text.parse::<Cursor>().map(|_| text.to_owned())
}
