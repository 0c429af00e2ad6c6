//! `tidings demo`: the server, a worker that reads real documents, and a simulated school. The worker and the school use only
//! the public HTTP API, as other workers and devices do.

mod desk;
mod documents;
mod process;
mod scanner;
mod school;
mod stop;
mod worker;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use rocket::fairing::AdHoc;
use tokio::sync::oneshot;

use self::school::{RateLimit, School};
use self::stop::Stop;
use self::worker::Worker;
use super::client::Client;
use super::opening::opened;
use super::terminal::{plain, print_line};
use super::{Exit, Failure, serve, token};
use crate::auth::{KeyError, Role};
use crate::config::Secret;
use crate::id::SchoolId;
use crate::service::Tidings;

/// The lifetime of the printed tokens, unless `max_token_secs` is shorter.
const PRINTED_TTL: Duration = Duration::from_secs(12 * 3_600);
/// The lifetime of a token of the worker and the school. They get a new one for each request.
const WORKER_TTL: Duration = Duration::from_secs(60);

/// Run the server, process real documents, and simulate a school.
///
/// The school has scanners that send heartbeats, drop out and return, people who are enrolled at them, and a swimming
/// pool under process control.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings demo
  tidings demo ~/Documents --pause-ms 500
  tidings demo --beat-ms 200                (a school in a hurry)
  ROCKET_PORT=9000 tidings demo --no-simulators --pause-ms 0 --exit")]
pub(super) struct Arguments {
    /// The documents: a directory, or one file.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// The school to publish to.
    #[arg(long, default_value = "1")]
    school: SchoolId,
    /// The maximum number of files to process.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    files: u32,
    /// How many bytes to read at a time.
    #[arg(long, default_value_t = 8 * 1024, value_parser = clap::value_parser!(u32).range(1..=64 * 1024 * 1024))]
    part_bytes: u32,
    /// The pause between two parts, so that progress is visible.
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
    /// The school's unit of time: the interval between temperature samples of the pool. All other intervals depend on it.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    beat_ms: u32,
    /// Process only the documents, without a school.
    #[arg(long)]
    no_simulators: bool,
    /// Stop when all files are processed, instead of occasionally processing one of them again.
    #[arg(long)]
    exit: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let old = serve::init_logging()?;
    // The demo ends before the server, so that it can cancel its open jobs while the server still listens.
    let figment = super::figment()?;
    let folder = &arguments.directory;
    let files = documents::files(folder, arguments.files as usize).map_err(|error| {
        let folder = folder.display();
        Failure::new(
            Exit::Failed,
            format!("cannot read documents in {folder}: {error}"),
        )
    })?;
    rocket::execute(async {
        let (listening, listens) = oneshot::channel();
        let listening = Mutex::new(Some(listening));
        let stop = Stop::default();
        let signalled = stop.clone();
        let at_signal: serve::AtSignal = Arc::new(move || signalled.set());
        let Some(rocket) = opened(figment, old, Some(at_signal)).await? else {
            return Ok(());
        };
        let rocket = rocket.attach(AdHoc::on_liftoff(
            "Tidings: begin the demo",
            move |rocket| {
                let config = rocket.config();
                let mut address = SocketAddr::new(config.address, config.port);
                if address.ip().is_unspecified() {
                    // The server listens on all addresses, including this one.
                    address.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                let url = serve::url(config, address);
                let listening = listening
                    .lock()
                    .ok()
                    .and_then(|mut listening| listening.take());
                Box::pin(async move {
                    // Fails only if the demo ended before the server listened.
                    let _ = listening.map(|listening| listening.send((url, rocket.shutdown())));
                })
            },
        ));
        let tidings = rocket
            .state::<Arc<Tidings>>()
            .map(Arc::clone)
            .expect("the server manages its state");
        // Do this before the server listens, so that it does not start if it cannot issue tokens.
        let links = match Links::issue(&tidings, arguments.school) {
            Ok(links) => links,
            Err(error) => {
                crate::http::close(&tidings).await?;
                return Err(error.into());
            }
        };
        let performance = tokio::spawn(async move {
            let Ok((server, shutdown)) = listens.await else {
                return Ok(());
            };
            let (ending, ended) = (shutdown.clone(), stop.clone());
            // The task ends with the server.
            tokio::spawn(async move {
                ending.await;
                ended.set();
            });
            let served = Arc::clone(&tidings);
            let performed = tokio::task::spawn_blocking(move || {
                perform(&arguments, &files, &links, &tidings, &server, &stop)
            })
            .await;
            serve::stop(served, shutdown).await;
            performed.unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)))
        });
        serve::launch(rocket).await?;
        // The demo ends no later than the server.
        performance
            .await
            .unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)))
    })
}

/// The tokens that the demo prints.
struct Links {
    /// May cancel and acknowledge on the pages.
    visitor: Secret,
    /// For scripts.
    viewer: Secret,
}

impl Links {
    fn issue(tidings: &Tidings, school: SchoolId) -> Result<Links, KeyError> {
        let token = |role, name| issue(tidings, school, role, name, PRINTED_TTL);
        Ok(Links {
            visitor: token(Role::Worker, "demo-visitor")?,
            viewer: token(Role::Viewer, "demo-viewer")?,
        })
    }
}

/// Issues a token that is valid this long, or as long as the settings permit.
fn issue(
    tidings: &Tidings,
    school: SchoolId,
    role: Role,
    name: &str,
    ttl: Duration,
) -> Result<Secret, KeyError> {
    let ttl = ttl.min(Duration::from_secs(tidings.settings().max_token_secs.get()));
    tidings
        .keys()
        .mint(token::claims(Some(school), role, name, ttl))
}

/// Runs the worker and the school until the demo ends. Errors from the server do not end it.
fn perform(
    arguments: &Arguments,
    files: &[PathBuf],
    links: &Links,
    tidings: &Arc<Tidings>,
    server: &str,
    stop: &Stop,
) -> Result<(), Failure> {
    let (issuer, school) = (Arc::clone(tidings), arguments.school);
    let client = Client::of_own_server(server, move || {
        issue(&issuer, school, Role::Worker, "demo-worker", WORKER_TTL)
    })?;
    let pace = RateLimit {
        beat: Duration::from_millis(arguments.beat_ms.into()),
    };
    let worker = Worker {
        client: &client,
        files,
        part_bytes: arguments.part_bytes as usize,
        pause: Duration::from_millis(arguments.pause_ms),
        pace,
        stop,
    };
    print_line(&invitation(
        arguments,
        server,
        links.visitor.reveal(),
        links.viewer.reveal(),
    ))?;
    let folder = plain(&arguments.directory.to_string_lossy());
    print_line(&match files.len() {
        0 => format!("There are no documents in {folder}."),
        1 => format!("1 document in {folder}"),
        count => format!("{count} documents in {folder}"),
    })?;

    worker.cancel_leftovers();
    let school = (!arguments.no_simulators).then(|| School::open(&client, pace, stop));
    let school = school.transpose()?;
    let worked = work(arguments, &worker);
    stop.set();
    if let Some(school) = school {
        school.join();
    }
    worker.cancel_leftovers();
    worked
}

/// Processes the documents. Continues afterwards, unless `--exit` is set.
fn work(arguments: &Arguments, worker: &Worker<'_>) -> Result<(), Failure> {
    if !worker.work_through()? {
        return Ok(());
    }
    let has_documents = !worker.files.is_empty();
    if arguments.exit && !has_documents {
        return Ok(());
    }
    if arguments.exit {
        return print_line("All documents are processed.");
    }
    print_line(match (has_documents, arguments.no_simulators) {
        (true, _) => {
            "All documents are processed. The demo continues, and occasionally processes one of them again; Ctrl-C ends it."
        }
        (false, false) => "The school continues without documents; Ctrl-C ends it.",
        (false, true) => "The server continues, and nothing is reported to it; Ctrl-C ends it.",
    })?;
    worker.continue_working()
}

/// Returns links and commands for watching the demo.
fn invitation(arguments: &Arguments, server: &str, visitor: &str, viewer: &str) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "tidings".into());
    let everything = format!("schools/{}", arguments.school);
    let mut scopes = vec![("jobs", "documents that are processed")];
    if !arguments.no_simulators {
        scopes.extend([
            (
                "devices",
                "scanners that send heartbeats, fall silent and return",
            ),
            ("enrollments", "people who are enrolled at the scanners"),
            (
                "characteristics",
                "the swimming bath, in and out of control",
            ),
            (&*everything, "everything"),
        ]);
    }
    let (last, _) = scopes.last().expect("there are jobs");
    let mut text = format!(
        "Watch it, in a browser, signed in as a worker (keep the link as secret as a password):\n
  {server}/monitor/sign-in#token={visitor}\n
in another terminal:\n
  curl -N '{server}/events/{last}?token={viewer}'\n
  export TIDINGS_URL={server} TIDINGS_TOKEN={viewer}\n"
    );
    for (scope, meaning) in &scopes {
        text += &format!(
            "  {} watch {scope:<16} # {meaning}\n",
            plain(&program.to_string_lossy())
        );
    }
    text
}
