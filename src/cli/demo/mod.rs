//! `tidings demo`: the server, a worker that reads real documents, and a school that lives next to it. All of it
//! goes over the public HTTP API, as anybody's own workers and devices would.

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

use self::school::{Pace, School};
use self::stop::Stop;
use self::worker::Worker;
use super::client::Client;
use super::opening::opened;
use super::terminal::{plain, print_line};
use super::{Exit, Failure, serve, token};
use crate::auth::Role;
use crate::id::SchoolId;
use crate::service::Tidings;

/// How long the tokens are valid that are printed.
const PRINTED_TTL: Duration = Duration::from_secs(12 * 3_600);
/// How long that of the worker and the school is, which does not leave the process: as long as it may run.
const WORKER_TTL: Duration = Duration::from_secs(366 * 24 * 3_600);

/// Run the server, work through real documents, and bring a school to life.
///
/// The school has scanners that beat, drop out and come back, people who are enrolled at them, and a swimming
/// bath under process control.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings demo
  tidings demo ~/Documents --pause-ms 500
  tidings demo --beat-ms 200                (a school in a hurry)
  ROCKET_PORT=9000 tidings demo --no-simulators --pause-ms 0 --exit")]
pub(super) struct Arguments {
    /// Where the documents are: a folder, or one file.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// The school that everything belongs to.
    #[arg(long, default_value = "1")]
    school: SchoolId,
    /// Work through at most so many files.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    files: u32,
    /// Read so many bytes at a time.
    #[arg(long, default_value_t = 8 * 1024, value_parser = clap::value_parser!(u32).range(1..=64 * 1024 * 1024))]
    part_bytes: u32,
    /// Rest so long between two parts, so that there is something to see.
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
    /// The school's pace: how often the bath's temperature is taken; the rest goes by it.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=60_000))]
    beat_ms: u32,
    /// Only the documents, without a school.
    #[arg(long)]
    no_simulators: bool,
    /// Stop when all files are done, instead of going on with some of them anew now and then.
    #[arg(long)]
    exit: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let old = serve::init_logging()?;
    // What is left when a signal comes is cancelled while the server still listens: the demo ends first, then the server.
    let figment = super::figment()?;
    let folder = &arguments.directory;
    let files = documents::files(folder, arguments.files as usize).map_err(|error| {
        let folder = folder.display();
        Failure::new(
            Exit::Failed,
            format!("cannot read documents below {folder}: {error}"),
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
                    // Listening everywhere includes here.
                    address.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                let url = serve::url(config, address);
                let listening = listening
                    .lock()
                    .ok()
                    .and_then(|mut listening| listening.take());
                Box::pin(async move {
                    // Fails only if the demo was given up before the server listened.
                    let _ = listening.map(|listening| listening.send((url, rocket.shutdown())));
                })
            },
        ));
        let tidings = rocket
            .state::<Arc<Tidings>>()
            .map(Arc::clone)
            .expect("the server manages its state");
        let performance = tokio::spawn(async move {
            let Ok((server, shutdown)) = listens.await else {
                return Ok(());
            };
            let (ending, ended) = (shutdown.clone(), stop.clone());
            // Ends with the server.
            tokio::spawn(async move {
                ending.await;
                ended.set();
            });
            let served = Arc::clone(&tidings);
            let performed = tokio::task::spawn_blocking(move || {
                perform(&arguments, &files, &tidings, &server, &stop)
            })
            .await;
            serve::stop(served, shutdown).await;
            performed.unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)))
        });
        serve::launch(rocket).await?;
        // It ends with the server, if not before.
        performance
            .await
            .unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)))
    })
}

/// Does everything that the demo does in addition to serving, until it is time to stop. No answer of the server ends it.
fn perform(
    arguments: &Arguments,
    files: &[PathBuf],
    tidings: &Tidings,
    server: &str,
    stop: &Stop,
) -> Result<(), Failure> {
    let mint = |role, name: &str, ttl| {
        let claims = token::claims(Some(arguments.school), role, name, ttl);
        tidings.keys().mint(claims)
    };
    let client = Client::of_own_server(
        server,
        Some(mint(Role::Worker, "demo-worker", WORKER_TTL)?.into()),
    );
    let pace = Pace {
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
    let visitor = mint(Role::Worker, "demo-visitor", PRINTED_TTL)?;
    let viewer = mint(Role::Viewer, "demo-viewer", PRINTED_TTL)?;
    print_line(&invitation(arguments, server, &visitor, &viewer))?;
    let folder = plain(&arguments.directory.to_string_lossy());
    print_line(&match files.len() {
        0 => format!("There are no documents below {folder}."),
        1 => format!("1 document below {folder}"),
        count => format!("{count} documents below {folder}"),
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

/// Works through the documents, and goes on afterwards unless it is to end then.
fn work(arguments: &Arguments, worker: &Worker<'_>) -> Result<(), Failure> {
    if !worker.work_through()? {
        return Ok(());
    }
    let has_documents = !worker.files.is_empty();
    if arguments.exit && !has_documents {
        return Ok(());
    }
    if arguments.exit {
        return print_line("All documents are done.");
    }
    print_line(match (has_documents, arguments.no_simulators) {
        (true, _) => {
            "All documents are done. The demo goes on, with one of them anew now and then; Ctrl-C ends it."
        }
        (false, false) => "The school goes on without documents; Ctrl-C ends it.",
        (false, true) => "The server goes on, and nothing is reported to it; Ctrl-C ends it.",
    })?;
    worker.go_on()
}

/// What there is to watch, ready to paste.
fn invitation(arguments: &Arguments, server: &str, visitor: &str, viewer: &str) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "tidings".into());
    let everything = format!("schools/{}", arguments.school);
    let mut scopes = vec![("jobs", "documents that are read")];
    if !arguments.no_simulators {
        scopes.extend([
            ("devices", "scanners that beat, fall silent and come back"),
            ("enrollments", "people who are enrolled at them, or not"),
            (
                "characteristics",
                "the swimming bath, in and out of control",
            ),
            (&*everything, "all of it"),
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
