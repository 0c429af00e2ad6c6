//! The command line.

mod client;
#[cfg(feature = "postgres")]
mod copy;
mod credential;
mod demo;
mod http_version;
mod new_epoch;
mod opening;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod run;
mod schedules;
mod serve;
mod shell;
#[cfg(unix)]
mod spool;
mod terminal;
mod token;
mod watch;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigError;
use crate::http::framework;

/// Exit codes for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// An error, which is printed to standard error.
    Failed = 1,
    /// The command line is not valid.
    Usage = 2,
    /// The token is missing, invalid or expired, or does not allow this.
    Denied = 3,
    /// The job, school, database or other subject of the command does not exist.
    NotFound = 4,
    /// The server cannot be reached.
    Unreachable = 5,
    /// The watched job or enrollment failed.
    WatchedFailed = 10,
    /// The watched job or enrollment was cancelled.
    WatchedCancelled = 11,
    /// The watched subject ended without a status that `--until` names.
    WatchedOtherwise = 12,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  done (watch: the job or enrollment completed, or --until was reached; run: always the exit code of the command)
   1  an error, described on standard error; or, without a message, standard output was closed
   2  the command line is not valid
   3  denied: the token is missing, invalid or expired, or does not allow this
   4  not found (new-epoch, copy: no database)
   5  the server cannot be reached
  10  the watched job or enrollment failed
  11  the watched job or enrollment was cancelled
  12  the watched subject ended without a status of --until";

const EXAMPLES: &str = "\
Examples:
  tidings serve
  tidings demo ~/Documents
  tidings token --school 1 --role worker --ttl 12h
  TIDINGS_TOKEN=$(tidings token --school 1 --role viewer) tidings watch jobs
  tidings watch jobs/42 --json
  tidings run --type backup -- restic backup --json /srv";

/// Broadcasts live progress and status.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server. Settings: `[default.tidings]` in Rocket.toml, TIDINGS_<NAME>, ROCKET_ADDRESS, ROCKET_PORT, ROCKET_TLS.
    Serve,
    /// Run the server, process real documents, and simulate a school.
    Demo(demo::Arguments),
    /// Create a token with this server's secret.
    Token(token::Arguments),
    /// Reset the cursors of all clients, after restoring a backup.
    NewEpoch(new_epoch::Arguments),
    /// Copy a SQLite database into an empty Postgres database.
    #[cfg(feature = "postgres")]
    Copy(copy::Arguments),
    /// Run a command unchanged, and report it as a job.
    #[cfg(unix)]
    Run(run::Arguments),
    /// Report progress from a script.
    #[cfg(unix)]
    Report(report::Arguments),
    /// List or send the outcomes of commands that could not be reported.
    #[cfg(unix)]
    Spool(spool::Arguments),
    /// Watch scopes: live progress bars, or NDJSON. Wait for a status, or run a command for each change.
    Watch(watch::Arguments),
    /// Define when jobs should run, and see which have not run.
    Schedules(schedules::Arguments),
    /// Print a completion script for a shell.
    Completions(shell::Completions),
    /// Print the manual page, or write the pages of all commands.
    Man(shell::Manual),
}

/// An error, with its exit code.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    /// The status of the HTTP answer that caused it.
    http_status: Option<u16>,
    /// The problem code of that answer. None if a proxy answered in place of Tidings.
    code: Option<String>,
    /// How long the server asks to wait before the next request.
    retry_after: Duration,
}

impl Failure {
    fn new(exit: Exit, message: impl Display) -> Failure {
        Failure {
            exit,
            message: message.to_string(),
            http_status: None,
            code: None,
            retry_after: Duration::ZERO,
        }
    }

    /// Whether the server rejected the request because the subject has changed meanwhile (409).
    fn is_conflict(&self) -> bool {
        self.http_status == Some(409)
    }

    /// Whether the request was too long for this server.
    fn is_too_long(&self) -> bool {
        matches!(self.http_status, Some(413 | 422))
    }

    /// Whether the same request may succeed soon.
    fn is_transient(&self) -> bool {
        match self.http_status {
            Some(status) => status == 429 || status >= 500,
            None => self.exit == Exit::Unreachable,
        }
    }
}

/// Converts any other error to a general failure.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(Exit::Failed, error)
    }
}

/// Runs the command in the process's arguments.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error),
    };
    let outcome = match arguments.command {
        Command::Serve => serve::run(),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Token(arguments) => token::run(arguments),
        Command::NewEpoch(arguments) => new_epoch::run(arguments),
        #[cfg(feature = "postgres")]
        Command::Copy(arguments) => copy::run(arguments),
        #[cfg(unix)]
        Command::Run(arguments) => return run::run(arguments),
        #[cfg(unix)]
        Command::Report(arguments) => report::run(arguments),
        #[cfg(unix)]
        Command::Spool(arguments) => spool::run(arguments),
        Command::Watch(arguments) => watch::run(arguments),
        Command::Schedules(arguments) => schedules::run(arguments),
        Command::Completions(arguments) => shell::complete(&arguments, Arguments::command()),
        Command::Man(arguments) => shell::describe(&arguments, Arguments::command()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                terminal::complain(&format!("tidings: {}", failure.message));
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Prints help, or an error about the command line. clap decides about colours.
fn explain(error: &clap::Error) -> ExitCode {
    let is_plain = |argument: std::ffi::OsString| terminal::is_plain(&argument.to_string_lossy());
    if std::env::args_os().all(is_plain) {
        // Fails if the output is closed.
        let _ = error.print();
    } else {
        // The text quotes arguments unescaped.
        let text = error.render().to_string();
        text.lines().for_each(terminal::complain);
    }
    ExitCode::from(if error.use_stderr() {
        Exit::Usage as u8
    } else {
        0
    })
}

/// Rocket's settings for its own logger, which is not used here.
const ABOUT_LOGS: &[(&str, &str)] = &[
    (
        rocket::Config::LOG_LEVEL,
        "has no effect: set TIDINGS_LOG to choose what is logged",
    ),
    (
        rocket::Config::CLI_COLORS,
        "has no effect: the log has colours only on a terminal",
    ),
];

/// Returns Rocket's configuration with our defaults. Fails on settings without an effect.
fn figment() -> Result<figment::Figment, ConfigError> {
    let figment = rocket::Config::figment();
    let is_read = figment
        .metadata()
        .any(|metadata| matches!(metadata.source, Some(figment::Source::File(_))));
    if !is_read {
        let named = std::env::var_os("ROCKET_CONFIG");
        let problem = match &named {
            Some(path) if Path::new(path).exists() => {
                "ROCKET_CONFIG must name a file; it names something else"
            }
            Some(_) => "ROCKET_CONFIG names a file that does not exist",
            None if Path::new("Rocket.toml").exists() => {
                "Rocket.toml in this directory must be a file; it is something else"
            }
            None => "",
        };
        if !problem.is_empty() {
            return Err(ConfigError::Unreadable(problem.into()));
        }
    }
    framework::check(&figment)?;
    framework::reject(&figment, ABOUT_LOGS)?;
    Ok(figment
        .join(("log_level", "off"))
        .join(("ident", "Tidings"))
        .join(("shutdown.grace", 5))
        .join(("shutdown.mercy", 2)))
}
