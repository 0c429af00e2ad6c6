//! The command of `--exec`: a shell runs it for each change, one after the other.
//!
//! The command gets the message in environment variables and on its standard input. The message is never part of the command's text, so no
//! title or message can be executed.
//!
//! 1. The command never runs twice at the same time. Changes wait in order, at most [`QUEUE_MAX`] of them. When the queue is full, reading
//!    stops until there is room. The server then continues from there, and skips nothing but progress.
//! 2. A failure of the command is reported, and does not end the watch.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::changes::subject;
use super::goal::status;
use super::lines;
use super::notice::Notices;
use super::scope::{Scope, id};
use crate::cli::Failure;
use crate::cli::terminal::{json_line, plain};
use crate::kind::job;

/// The number of changes that wait for the command.
const QUEUE_MAX: usize = 256;
/// The longest value of an environment variable, in bytes. Linux accepts up to 128 KiB. A longer value is left out.
const VARIABLE_MAX_BYTES: usize = 64 * 1024;
/// The longest line of the command's output that is shown at once, in bytes.
const LINE_MAX_BYTES: u64 = 8 * 1024;
/// How long to wait for the last output while a background process keeps it open.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// What the command gets about a change.
struct Facts {
    /// The subject, for the user.
    subject: String,
    variables: [(&'static str, String); 9],
    event: String,
}

impl Facts {
    fn of(scope: &Scope, message: &Value) -> Facts {
        let text = |value: &Value| value.as_str().map(plain).unwrap_or_default();
        // The state that is read for a single subject has no `type`.
        let state = scope.single.as_ref().and_then(|single| {
            let id = id(message, single.kind)?;
            Some((single.kind, id))
        });
        let about = subject(message).or(state);
        let (name, title) = match &about {
            Some((kind, id)) => {
                let name = Some(text(&message["name"])).filter(|name| !name.is_empty());
                let title = match *kind == job::KIND {
                    true => lines::name(message),
                    false => name.unwrap_or_else(|| plain(id)),
                };
                (plain(&format!("{}/{id}", kind.collection())), title)
            }
            None => (String::new(), String::new()),
        };
        let error = &message["error"];
        let candidates = [&error["message"], error, &message["message"]];
        let explanation = candidates
            .into_iter()
            .find(|candidate| candidate.is_string());
        let progress = &message["progress"];
        let event = json_line(message);
        let status = status(message).unwrap_or_default();
        Facts {
            variables: [
                ("TIDINGS_SCOPE", plain(&scope.text)),
                ("TIDINGS_TYPE", text(&message["type"])),
                ("TIDINGS_SUBJECT", name.clone()),
                ("TIDINGS_STATUS", plain(&status)),
                ("TIDINGS_TITLE", title),
                (
                    "TIDINGS_PROGRESS",
                    progress
                        .as_f64()
                        .map_or(String::new(), |percent| percent.to_string()),
                ),
                ("TIDINGS_MESSAGE", explanation.map_or(String::new(), text)),
                ("TIDINGS_TIMESTAMP", text(&message["timestamp"])),
                ("TIDINGS_EVENT", event.clone()),
            ],
            subject: name,
            event,
        }
    }
}

/// A command that is run for changes.
pub(super) struct Hook {
    queue: SyncSender<Facts>,
    runner: JoinHandle<()>,
    /// Signals the end of the command's output, which is printed above the bars.
    output: Option<Receiver<()>>,
    notices: Notices,
    /// Whether the user was notified that reading waits for the command.
    was_behind: bool,
}

impl Hook {
    pub(super) fn start(command: String, notices: Notices) -> Result<Hook, Failure> {
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let (writer, output) = match &notices.bars {
            Some(_) => {
                let (reader, writer) = io::pipe()?;
                let (ended, output) = sync_channel(1);
                let notices = notices.clone();
                std::thread::Builder::new()
                    .name("tidings-exec-output".into())
                    .spawn(move || {
                        show(reader, &notices);
                        // Fails if nothing waits for it any more.
                        let _ = ended.send(());
                    })?;
                (Some(writer), Some(output))
            }
            None => (None, None),
        };
        let runner = Runner {
            command,
            output: writer,
            notices: notices.clone(),
        };
        let runner = std::thread::Builder::new()
            .name("tidings-exec".into())
            .spawn(move || runner.run(&waiting))?;
        Ok(Hook {
            queue,
            runner,
            output,
            notices,
            was_behind: false,
        })
    }

    /// Queues a run of the command for a change. Blocks while the queue is full.
    pub(super) fn run(&mut self, scope: &Scope, message: &Value) {
        match self.queue.try_send(Facts::of(scope, message)) {
            Err(TrySendError::Full(facts)) => {
                if !std::mem::replace(&mut self.was_behind, true) {
                    let notice = format!(
                        "the --exec command is {QUEUE_MAX} changes behind; reading waits for it"
                    );
                    self.notices.print(&notice);
                }
                // Fails only if the runner has panicked.
                let _ = self.queue.send(facts);
            }
            // Disconnected only if the runner has panicked, which has already been printed.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Waits until the command has run for every change.
    pub(super) fn finish(self) {
        drop(self.queue);
        // Fails only if the runner has panicked, which has already been printed.
        let _ = self.runner.join();
        if let Some(output) = self.output {
            // A process in the background may keep it open.
            let _ = output.recv_timeout(OUTPUT_WAIT);
        }
    }
}

/// Runs the command, on a separate thread.
struct Runner {
    command: String,
    /// Where it writes to; by default, standard error. Standard output has the events.
    output: Option<PipeWriter>,
    notices: Notices,
}

impl Runner {
    fn run(self, waiting: &Receiver<Facts>) {
        for facts in waiting {
            let problem = match self.execute(&facts) {
                Ok(status) if status.success() => continue,
                Ok(status) => format!("the --exec command failed ({status})"),
                Err(error) => format!("the --exec command could not be run: {error}"),
            };
            self.notices.print(&format!("{problem}: {}", facts.subject));
        }
    }

    fn execute(&self, facts: &Facts) -> io::Result<ExitStatus> {
        let output = || -> io::Result<Stdio> {
            match &self.output {
                Some(pipe) => pipe.try_clone().map(Stdio::from),
                None => Ok(io::stderr().into()),
            }
        };
        let variables = facts.variables.iter().map(|(name, value)| {
            let fits = value.len() <= VARIABLE_MAX_BYTES;
            (*name, if fits { value.as_str() } else { "" })
        });
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(output()?)
            .stderr(output()?)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let event = facts.event.clone();
            // Do not wait for this: a process that the command leaves behind may keep standard input open without reading it.
            std::thread::spawn(move || {
                // Fails if nobody reads it.
                let _ = writeln!(stdin, "{event}");
            });
        }
        child.wait()
    }
}

/// Shows the command's output line by line, until every process has closed it.
fn show(output: PipeReader, notices: &Notices) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = output
            .by_ref()
            .take(LINE_MAX_BYTES)
            .read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            return;
        }
        notices.print(String::from_utf8_lossy(&line).trim_end());
    }
}
