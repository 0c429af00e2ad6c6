//! The command line.

mod client;
mod demo;
mod http_version;
mod new_epoch;
mod opening;
mod serve;
mod terminal;
mod token;
mod watch;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::http::framework;

/// Exit codes that scripts can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// Something went wrong; standard error says what.
    Failed = 1,
    /// The command line does not fit together.
    Usage = 2,
    /// The token is missing, invalid, expired or does not reach so far.
    Denied = 3,
    /// There is no such thing.
    NotFound = 4,
    /// The server cannot be reached.
    Unreachable = 5,
    /// The job or enrollment that was watched failed.
    WatchedFailed = 10,
    /// The job or enrollment that was watched was cancelled.
    WatchedCancelled = 11,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  done (watch: the job or enrollment completed)
   1  an error, which standard error names; or, without a word, the reader of standard output has gone
   2  the command line cannot be used
   3  denied: the token is missing, invalid or expired, or does not reach so far
   4  there is no such thing (new-epoch: no database)
   5  the server cannot be reached
  10  the job or enrollment that was watched failed
  11  the job or enrollment that was watched was cancelled";

const EXAMPLES: &str = "\
Examples:
  tidings serve
  tidings demo ~/Documents
  tidings token --school 1 --role worker --ttl 12h
  TIDINGS_TOKEN=$(tidings token --school 1 --role viewer) tidings watch jobs
  tidings watch jobs/42 --json";

/// Tells people how things are going, live.
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
    /// Run the server, work through real documents, and bring a school to life.
    Demo(demo::Arguments),
    /// Make a token with this server's secret.
    Token(token::Arguments),
    /// Make all readers begin anew, after a backup was restored.
    NewEpoch(new_epoch::Arguments),
    /// Watch a scope: live progress bars, or NDJSON.
    Watch(watch::Arguments),
}

/// An error with the exit code that it leads to.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    /// The status of the HTTP answer that it was.
    http_status: Option<u16>,
}

impl Failure {
    fn new(exit: Exit, message: impl Display) -> Failure {
        Failure {
            exit,
            message: message.to_string(),
            http_status: None,
        }
    }

    /// Whether the server refused because the subject is in another state by now (409).
    fn is_conflict(&self) -> bool {
        self.http_status == Some(409)
    }

    /// Whether the same request may succeed a moment later.
    fn is_passing(&self) -> bool {
        match self.http_status {
            Some(status) => status == 429 || status >= 500,
            None => self.exit == Exit::Unreachable,
        }
    }
}

/// Any other error is plainly one.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(Exit::Failed, error)
    }
}

/// Runs the command that the process was called with.
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
        Command::Watch(arguments) => watch::run(arguments),
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

/// Prints help, or what is wrong with the command line. Whether with colours is for clap to see.
fn explain(error: &clap::Error) -> ExitCode {
    let is_plain = |argument: std::ffi::OsString| terminal::is_plain(&argument.to_string_lossy());
    if std::env::args_os().all(is_plain) {
        // The reader may have gone.
        let _ = error.print();
    } else {
        // It quotes arguments as they are.
        let text = error.render().to_string();
        text.lines().for_each(terminal::complain);
    }
    ExitCode::from(if error.use_stderr() {
        Exit::Usage as u8
    } else {
        0
    })
}

/// Rocket's settings that do not reach its logger, which is not in use here.
const ABOUT_LOGS: &[(&str, &str)] = &[
    (
        rocket::Config::LOG_LEVEL,
        "has no effect: what is logged is chosen with TIDINGS_LOG",
    ),
    (
        rocket::Config::CLI_COLORS,
        "has no effect: the log has colours on a terminal, and nowhere else",
    ),
];

/// Rocket's configuration, with our defaults below it. Nothing in it is without an effect.
fn figment() -> Result<figment::Figment, ConfigError> {
    let figment = rocket::Config::figment();
    let is_read = figment
        .metadata()
        .any(|metadata| matches!(metadata.source, Some(figment::Source::File(_))));
    if !is_read {
        let named = std::env::var_os("ROCKET_CONFIG");
        let problem = match &named {
            Some(path) if Path::new(path).exists() => {
                "ROCKET_CONFIG names something that is not a file"
            }
            Some(_) => "ROCKET_CONFIG names a file that does not exist",
            None if Path::new("Rocket.toml").exists() => {
                "Rocket.toml, in this folder, is not a file"
            }
            None => "",
        };
        if !problem.is_empty() {
            return Err(ConfigError::Unreadable(problem.into()));
        }
    }
    framework::check(&figment)?;
    framework::refuse(&figment, ABOUT_LOGS)?;
    Ok(figment
        .join(("log_level", "off"))
        .join(("ident", "Tidings"))
        .join(("shutdown.grace", 5))
        .join(("shutdown.mercy", 2)))
}
