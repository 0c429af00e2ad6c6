//! `tidings demo`: the server, and an ordinary worker that reads real documents and reports over HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rocket::fairing::AdHoc;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::client::Client;
use super::documents::{Document, Reading, files};
use super::{Exit, Failure, serve, token};
use crate::auth::Role;
use crate::id::SchoolId;
use crate::service::Tidings;

/// How long the demo's tokens are valid.
const TOKEN_TTL: Duration = Duration::from_secs(12 * 3_600);

/// Run the server and work through real documents.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings demo
  tidings demo ~/Documents --pause-ms 500
  ROCKET_PORT=9000 tidings demo --pause-ms 0 --exit")]
pub(super) struct Arguments {
    /// Where the documents are: a folder, or one file.
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// The school that the jobs belong to.
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
    /// Stop when all files are done, instead of serving on.
    #[arg(long)]
    exit: bool,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    serve::init_logging();
    rocket::execute(async {
        let (listening, address) = oneshot::channel();
        let listening = std::sync::Mutex::new(Some(listening));
        let rocket = serve::server()?.attach(AdHoc::on_liftoff(
            "Tidings: begin the demo",
            move |rocket| {
                let config = rocket.config();
                let address = std::net::SocketAddr::new(config.address, config.port);
                let listening = listening
                    .lock()
                    .ok()
                    .and_then(|mut listening| listening.take());
                Box::pin(async move {
                    // Fails only if the demo was given up before the server listened.
                    let _ = listening.map(|listening| listening.send((address, rocket.shutdown())));
                })
            },
        ));
        let tidings = rocket
            .state::<Arc<Tidings>>()
            .map(Arc::clone)
            .expect("the server manages its state");
        let work = tokio::spawn(async move {
            let Ok((address, shutdown)) = address.await else {
                return Ok(());
            };
            let exit = arguments.exit;
            let worked =
                tokio::task::spawn_blocking(move || work_through(&arguments, &tidings, address))
                    .await;
            if exit || !matches!(worked, Ok(Ok(()))) {
                shutdown.notify();
            }
            worked.unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)))
        });
        serve::launch(rocket).await?;
        if work.is_finished() {
            return work
                .await
                .unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error)));
        }
        work.abort();
        Ok(())
    })
}

fn work_through(
    arguments: &Arguments,
    tidings: &Tidings,
    address: std::net::SocketAddr,
) -> Result<(), Failure> {
    let school = Some(arguments.school);
    let viewer = token::mint(
        tidings.keys(),
        school,
        Role::Viewer,
        "demo-viewer",
        TOKEN_TTL,
        None,
    )?;
    let worker = token::mint(
        tidings.keys(),
        school,
        Role::Worker,
        "demo-worker",
        TOKEN_TTL,
        None,
    )?;
    let mut address = address;
    if address.ip().is_unspecified() {
        // Listening everywhere includes here.
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let server = format!("http://{address}");
    let program = std::env::current_exe().unwrap_or_else(|_| "tidings".into());
    let files = files(&arguments.directory, arguments.files as usize).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("{}: {error}", arguments.directory.display()),
        )
    })?;
    println!("Watch it, in another terminal:\n");
    println!("  curl -N '{server}/events/jobs?token={viewer}'\n");
    println!(
        "  TIDINGS_URL={server} TIDINGS_TOKEN={viewer} {} watch jobs\n",
        program.display()
    );
    println!(
        "{} documents below {}",
        files.len(),
        arguments.directory.display()
    );

    let client = Client::new(&server, Some(worker));
    let mut jobs = Vec::with_capacity(files.len());
    for path in &files {
        let metadata = json!({"path": path.display().to_string()});
        let job = client.post(
            "/api/jobs",
            &json!({"job_type": "document", "status": "queued", "metadata": metadata}),
        )?;
        jobs.push(job["job_id"].as_str().unwrap_or_default().to_owned());
    }
    for (path, id) in files.iter().zip(&jobs) {
        let ended = process(arguments, &client, path, id)?;
        println!(
            "{:<10} {}",
            ended["status"].as_str().unwrap_or("?"),
            path.display()
        );
    }
    println!(
        "All documents are done.{}",
        if arguments.exit {
            ""
        } else {
            " The server goes on; Ctrl-C ends it."
        }
    );
    Ok(())
}

/// Works on one document from start to end, and gives back the job as it ended.
fn process(
    arguments: &Arguments,
    client: &Client,
    path: &Path,
    id: &str,
) -> Result<Value, Failure> {
    let report = |verb: &str, body: Value| client.post(&format!("/api/jobs/{id}/{verb}"), &body);
    let fail = |code: &str, message: String| {
        report("fail", json!({"error": {"code": code, "message": message}}))
    };
    report(
        "start",
        json!({"message": format!("Reading {}", path.display())}),
    )?;
    let mut document = match Document::open(path, arguments.part_bytes as usize) {
        Ok(document) => document,
        Err(error) => {
            return fail(
                "unreadable",
                format!("cannot read {}: {error}", path.display()),
            );
        }
    };
    let (bytes, parts) = (document.bytes, document.parts());
    let mut reading = Reading::default();
    let mut done = 0;
    for number in 1.. {
        let part = match document.read_part() {
            Ok([]) => break,
            Ok(part) => part,
            Err(error) => {
                return fail(
                    "unreadable",
                    format!("cannot read {}: {error}", path.display()),
                );
            }
        };
        if let Err(error) = reading.take(part) {
            return fail("not_text", error.to_string());
        }
        done += part.len() as u64;
        // A file that grows while it is read is done when it is read, not before.
        let percent = (done as f64 / bytes.max(done) as f64 * 100.0).clamp(0.0, 100.0);
        let message = format!("Processing part {number} of {}", parts.max(number));
        let answer = report(
            "progress",
            json!({"progress": (percent * 100.0).round() / 100.0, "message": message}),
        )?;
        if answer["cancel_requested"] == true {
            return report(
                "cancel",
                json!({"force": true, "message": "Stopped on request"}),
            );
        }
        std::thread::sleep(Duration::from_millis(arguments.pause_ms));
    }
    match reading.finish() {
        Ok(counts) => report("complete", json!({"result": counts, "message": "Counted"})),
        Err(error) => fail("not_text", error.to_string()),
    }
}
