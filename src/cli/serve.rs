//! `tidings serve`.

use std::net::SocketAddr;
use std::sync::Arc;

use figment::Figment;
use rocket::config::Sig;
use rocket::fairing::AdHoc;
use rocket::{Build, Orbit, Rocket};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn, LevelFilter};
use tracing_subscriber::prelude::*;

use super::{Exit, Failure, http_version, terminal};
use crate::config::{self, Settings};
use crate::http::OldHandshakes;
use crate::service::Tidings;

/// What is added to a signal's number in the exit code of a process that it has ended.
const SIGNALLED: i32 = 128;
/// Files that are open in addition to streams and readers of the database: publishers, the writer, the runtime.
const OTHER_FILES: u64 = 128;
/// Which log lines are written, as in `RUST_LOG`.
const LOG_VARIABLE: &str = "TIDINGS_LOG";

/// Libraries that write whole requests into their logs at some level, credentials and all.
const SILENCED: &[&str] = &[
    "rocket",
    "_",
    "hyper",
    "h2",
    "tungstenite",
    "ureq",
    "ureq_proto",
    "lettre",
    "rumqttc",
    "rustls",
];

pub(super) fn run() -> Result<(), Failure> {
    let old = init_logging()?;
    // Before Rocket reads them for its runtime, and shows what it cannot read.
    let figment = super::figment()?;
    rocket::execute(async {
        let rocket = server(figment, old, None)?;
        launch(rocket).await
    })
}

/// Logs to standard error. What comes back learns from Rocket's log which handshakes come over HTTP/1.0.
pub(super) fn init_logging() -> Result<OldHandshakes, Failure> {
    let chosen = std::env::var_os(LOG_VARIABLE).unwrap_or_default();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(chosen.to_string_lossy());
    let filter = filter.map_err(|_| {
        let problem = "is not a filter of log lines; write `debug`, or `warn,tidings::cli=info`";
        Failure::new(
            Exit::Failed,
            format!("{LOG_VARIABLE} in the environment {problem}"),
        )
    })?;
    let discreet = FilterFn::new(|metadata| {
        let target = metadata.target();
        let root = target.split("::").next().unwrap_or_default();
        // What Rocket's macros write in our name, such as that a guard passes a request on to the next route.
        !SILENCED.contains(&root) && !target.ends_with("::_")
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| terminal::Log)
        // In a file, colours get in the way of a search.
        .with_ansi(terminal::has_colours(&std::io::stderr()))
        .with_filter(filter.and(discreet));
    let old = OldHandshakes::default();
    // Somebody has set a logger before, if this fails; then that one is used.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(http_version::layer(old.clone()))
        .try_init();
    Ok(old)
}

/// What the first signal does instead of stopping the server.
pub(super) type AtSignal = Arc<dyn Fn() + Send + Sync>;

/// The server, announcing itself on standard output once it listens.
pub(super) fn server(
    figment: Figment,
    old: OldHandshakes,
    at_signal: Option<AtSignal>,
) -> Result<Rocket<Build>, Failure> {
    let rocket = crate::server(figment)?.manage(old);
    Ok(
        rocket.attach(AdHoc::on_liftoff("Tidings: announce", |rocket| {
            Box::pin(async move {
                if let Err(error) = listen_to_signals(rocket, at_signal) {
                    tracing::warn!(%error, "signals cannot be listened to");
                }
                let config = rocket.config();
                let address = SocketAddr::new(config.address, config.port);
                let line = format!("Tidings listens on {}", url(config, address));
                // A server is not there for its output.
                if terminal::print_line(&line).is_err() {
                    tracing::warn!("{line}, which standard output does not take");
                }
            })
        })),
    )
}

/// Where the server is found, at this address.
pub(super) fn url(config: &rocket::Config, address: SocketAddr) -> String {
    let scheme = if config.tls_enabled() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{address}")
}

/// Each stream is an open file, and a service gets no more than 1,024 unless it asks.
fn raise_open_files(settings: &Settings) {
    let max_streams = settings.max_streams as u64;
    // A reader of the database has it open with its journal and their index.
    let wanted = max_streams + 3 * u64::from(settings.reader_connections) + OTHER_FILES;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < wanted => {
            tracing::warn!(
                limit,
                wanted,
                max_streams,
                "fewer files may be open than that many streams need"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on open files cannot be raised"),
    }
}

/// Who asks a second time does not want to wait any longer. What was acknowledged is on the disk; only when devices were
/// last heard of may be missing.
///
/// Rocket listens to signals a moment after liftoff. One that comes before is passed on, as it would be lost otherwise.
fn listen_to_signals(rocket: &Rocket<Orbit>, at_signal: Option<AtSignal>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = rocket.shutdown();
    let settings = &rocket.config().shutdown;
    let (by_terminate, by_interrupt) = (settings.signals.contains(&Sig::Term), settings.ctrlc);
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let (number, stops) = tokio::select! {
                _ = terminate.recv() => (15, by_terminate),
                _ = interrupt.recv() => (2, by_interrupt),
            };
            if asked {
                tracing::warn!("asked to stop a second time: leaving at once");
                std::process::exit(SIGNALLED + number);
            }
            asked = true;
            match &at_signal {
                Some(act) => act(),
                None if stops => shutdown.clone().notify(),
                None => {}
            }
        }
    });
    Ok(())
}

/// Serves until it is told to stop, then finishes what was published.
pub(super) async fn launch(rocket: Rocket<Build>) -> Result<(), Failure> {
    let tidings = rocket.state::<Arc<Tidings>>().map(Arc::clone);
    if let Some(tidings) = &tidings {
        raise_open_files(tidings.settings());
    }
    let setting = |name: &str| rocket.figment().find_value(name).ok();
    let port = setting("port")
        .and_then(|port| port.to_u128())
        .unwrap_or_default();
    let host = setting("address")
        .and_then(|address| address.into_string())
        .unwrap_or_default();
    let address = format!("{host}:{port}");
    let tls = config::place(rocket.figment().find_metadata("tls"), &["tls"]);
    let served = rocket.launch().await;
    if let Some(tidings) = tidings {
        tidings.close().await?;
    }
    match served {
        Ok(_) => Ok(()),
        // Connections that Rocket had to cut; everything acknowledged is in the database.
        Err(error) if matches!(error.kind(), rocket::error::ErrorKind::Shutdown(..)) => {
            tracing::warn!("some connections did not end in time and were cut");
            Ok(())
        }
        Err(error) => Err(Failure::new(
            Exit::Failed,
            launch_error(error.kind(), &address, &tls),
        )),
    }
}

/// What Rocket could not do, with the name of the setting or the address.
fn launch_error(kind: &rocket::error::ErrorKind, address: &str, tls: &str) -> String {
    use rocket::error::ErrorKind;
    match kind {
        ErrorKind::Config(error) => error.to_string(),
        // Rocket's own words for its certificate and key, of which each begins or goes on like this.
        ErrorKind::Bind(error) | ErrorKind::Io(error) if error.to_string().contains(" TLS ") => {
            format!("the files of the setting {tls}, `certs` and `key`, cannot be used: {error}")
        }
        ErrorKind::Bind(error) => format!("cannot listen on {address}: {error}"),
        other => other.to_string(),
    }
}
