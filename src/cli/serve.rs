//! `tidings serve`.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use figment::Figment;
use rocket::config::Sig;
use rocket::fairing::AdHoc;
use rocket::{Build, Orbit, Rocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn, LevelFilter};
use tracing_subscriber::prelude::*;

use super::opening::opened;
use super::{Exit, Failure, http_version, terminal};
use crate::config::{
    self, CLOSE_MESSAGES_MAX, ConfigError, START_PAUSE_MAX, START_PAUSE_MIN, Settings,
};
use crate::failures::Failures;
use crate::http::opening::Stage;
use crate::http::{self, OldHandshakes, shutdown};
use crate::service::{StartError, Tidings};

/// Added to a signal's number in the exit code of a process that the signal ends.
const SIGNALLED: i32 = 128;
const SIGTERM: i32 = 15;
const SIGINT: i32 = 2;
/// Open files in addition to streams and readers of the database: publishers, the writer, the runtime.
const OTHER_FILES: u64 = 128;
/// Selects the lines to log, as `RUST_LOG` does.
const LOG_VARIABLE: &str = "TIDINGS_LOG";

/// Libraries that, at some level, log whole requests, including credentials, or rows, including payloads.
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
    "diesel",
    "diesel_async",
    "tokio_postgres",
    "redis",
];

pub(super) fn run() -> Result<(), Failure> {
    let old = init_logging()?;
    // Check this before Rocket reads the settings for its runtime: Rocket's error would show the invalid value.
    let figment = super::figment()?;
    rocket::execute(async {
        match opened(figment, old, None).await? {
            Some(rocket) => launch(rocket).await,
            None => Ok(()),
        }
    })
}

/// Logs to standard error. Returns the handshakes over HTTP/1.0, which are recognized in Rocket's log.
pub(super) fn init_logging() -> Result<OldHandshakes, Failure> {
    let chosen = std::env::var_os(LOG_VARIABLE).unwrap_or_default();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(chosen.to_string_lossy());
    let filter = filter.map_err(|_| {
        let problem =
            "is not a valid filter of log lines; write `debug`, or `warn,tidings::cli=info`";
        Failure::new(
            Exit::Failed,
            format!("the environment variable {LOG_VARIABLE} {problem}"),
        )
    })?;
    let discreet = FilterFn::new(|metadata| {
        let target = metadata.target();
        let is_within = |root: &&str| {
            let rest = target.strip_prefix(*root);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        // Rocket's macros also log under our name, for example that a guard forwards a request.
        !SILENCED.iter().any(is_within) && !target.ends_with("::_")
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| terminal::Log)
        // In a file, colours make the log hard to search.
        .with_ansi(terminal::has_colours(&std::io::stderr()))
        .with_filter(filter.and(discreet));
    let old = OldHandshakes::default();
    // Fails if a logger is already set, which then stays in use.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(http_version::layer(old.clone()))
        .try_init();
    Ok(old)
}

/// Called at the first signal instead of stopping the server.
pub(super) type AtSignal = Arc<dyn Fn() + Send + Sync>;

/// Returns the server. Once it listens, it announces itself on standard output and handles signals, including earlier ones.
pub(super) fn server(
    figment: Figment,
    old: OldHandshakes,
    at_signal: Option<AtSignal>,
    stage: &Stage,
) -> Result<Rocket<Build>, Failure> {
    let signals = Signals::listen(&figment, at_signal.is_some())?;
    let figment = take_signals(figment)?;
    let rocket = started(&figment, stage)?.manage(old);
    Ok(
        rocket.attach(AdHoc::on_liftoff("Tidings: announce", move |rocket| {
            Box::pin(async move {
                handle_signals(signals, rocket, at_signal);
                let config = rocket.config();
                let address = SocketAddr::new(config.address, config.port);
                let line = format!("Tidings listens on {}", url(config, address));
                // The server works without its standard output.
                if terminal::print_line(&line).is_err() {
                    tracing::warn!("{line}; standard output cannot be written to");
                }
            })
        })),
    )
}

/// Starts Tidings. Retries while its database cannot be reached: nodes and their database may be started in any order, and
/// an orchestrator should not replace a node because of an unreachable database.
fn started(figment: &Figment, stage: &Stage) -> Result<Rocket<Build>, StartError> {
    let (mut pause, mut failures) = (START_PAUSE_MIN, Failures::default());
    loop {
        let unreachable = match crate::server(figment.clone()) {
            Err(StartError::Unreachable(cause)) => cause,
            other => {
                if let Some(failed) = failures.worked() {
                    tracing::info!(failed, "the database can be reached");
                }
                stage.database_is_unreachable(false);
                return other;
            }
        };
        stage.database_is_unreachable(true);
        if let Some(failed) = failures.failed(std::time::Instant::now()) {
            tracing::warn!(
                cause = unreachable,
                failed,
                "the server cannot start yet, and tries again"
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(START_PAUSE_MAX);
    }
}

/// Returns the URL of the server at this address.
pub(super) fn url(config: &rocket::Config, address: SocketAddr) -> String {
    let scheme = if config.tls_enabled() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{address}")
}

/// Raises the limit on open files. Each stream is an open file, and a service gets only 1,024 by default.
fn raise_open_files(settings: &Settings) {
    let max_streams = settings.max_streams.get() as u64;
    // A reader has three files open: the database, its journal, and the index of the journal. `/readyz` has another reader.
    let readers = u64::from(settings.reader_connections.get()) + 1;
    let wanted = max_streams + 3 * readers + OTHER_FILES;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < wanted => {
            tracing::warn!(
                limit,
                wanted,
                max_streams,
                "the limit on open files is too low for the maximum number of streams"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on open files cannot be raised"),
    }
}

/// SIGTERM and SIGINT, received from the creation of this value on.
pub(super) struct Signals {
    /// None if signals cannot be received.
    streams: Option<(Signal, Signal)>,
    /// Whether each of the two signals stops the server.
    stops: (bool, bool),
}

impl Signals {
    /// Starts to listen. Rocket's settings decide which signals stop the server, unless `all` is set.
    pub(super) fn listen(figment: &Figment, all: bool) -> Result<Signals, Failure> {
        let shutdown = shutdown_settings(figment)?;
        let terminate = signal(SignalKind::terminate());
        let streams =
            terminate.and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
        if let Err(error) = &streams {
            tracing::warn!(%error, "signals cannot be received");
        }
        let signals = &shutdown.signals;
        Ok(Signals {
            streams: streams.ok(),
            stops: (
                all || signals.contains(&Sig::Term),
                all || shutdown.ctrlc || signals.contains(&Sig::Int),
            ),
        })
    }

    /// Returns the number of the next signal, and whether it stops the server.
    async fn next(&mut self) -> (i32, bool) {
        let Some((terminate, interrupt)) = &mut self.streams else {
            return pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => (SIGTERM, self.stops.0),
            _ = interrupt.recv() => (SIGINT, self.stops.1),
        }
    }

    /// Waits for a signal that stops the server, and returns its number.
    pub(super) async fn stop(&mut self) -> i32 {
        loop {
            if let (number, true) = self.next().await {
                return number;
            }
        }
    }
}

fn shutdown_settings(figment: &Figment) -> Result<rocket::config::Shutdown, Failure> {
    let config = rocket::Config::try_from(figment);
    Ok(config
        .map_err(|error| ConfigError::read(&error, figment))?
        .shutdown)
}

/// Makes Rocket ignore SIGINT and SIGTERM: it would stop accepting connections before streams are closed. Rocket still
/// handles other signals.
fn take_signals(figment: Figment) -> Result<Figment, Failure> {
    let mut signals = shutdown_settings(&figment)?.signals;
    signals.retain(|signal| !matches!(signal, Sig::Int | Sig::Term));
    Ok(figment
        .merge(("shutdown.ctrlc", false))
        .merge(("shutdown.signals", signals)))
}

/// Handles signals. The first one stops the server gracefully. The second one exits at once: everything acknowledged is
/// on disk, and only the times of the devices' last heartbeats may be lost.
fn handle_signals(mut signals: Signals, rocket: &Rocket<Orbit>, at_signal: Option<AtSignal>) {
    let shutdown = rocket.shutdown();
    let tidings = rocket.state::<Arc<Tidings>>().map(Arc::clone);
    let tidings = tidings.expect("the server manages its state");
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let number = signals.stop().await;
            if asked {
                tracing::warn!("asked to stop a second time: exiting at once");
                std::process::exit(SIGNALLED + number);
            }
            asked = true;
            match &at_signal {
                Some(act) => act(),
                None => drop(tokio::spawn(stop(Arc::clone(&tidings), shutdown.clone()))),
            }
        }
    });
}

/// Closes every stream while the server still accepts and answers requests. Then shuts the server down.
pub(super) async fn stop(tidings: Arc<Tidings>, shutdown: rocket::Shutdown) {
    let streams = tidings.hub().attached();
    tracing::info!(streams, "stopping: closing the streams");
    tidings.stop();
    shutdown::streams_closed(&tidings, Instant::now() + CLOSE_MESSAGES_MAX).await;
    shutdown.notify();
}

/// Serves until the server is stopped, then completes pending writes.
pub(super) async fn launch(rocket: Rocket<Build>) -> Result<(), Failure> {
    let tidings = rocket.state::<Arc<Tidings>>().map(Arc::clone);
    if let Some(tidings) = &tidings {
        raise_open_files(tidings.settings());
        let joined = tidings.join().await;
        if let Err(error) = joined {
            http::close(tidings).await?;
            return Err(error.found_in(rocket.figment()).into());
        }
    }
    let figment = rocket.figment().clone();
    let served = rocket.launch().await;
    if let Some(tidings) = tidings {
        http::close(&tidings).await?;
        tracing::info!("stopped");
    }
    match served {
        Ok(_) => Ok(()),
        // Rocket has cut connections that did not end in time. Everything acknowledged is in the database.
        Err(error) if matches!(error.kind(), rocket::error::ErrorKind::Shutdown(..)) => {
            tracing::warn!("some connections did not end in time and were cut");
            Ok(())
        }
        Err(error) => Err(unserved(error.kind(), &figment)),
    }
}

/// Describes why Rocket failed, with the setting or the address at fault.
pub(super) fn unserved(kind: &rocket::error::ErrorKind, figment: &Figment) -> Failure {
    use rocket::error::ErrorKind;
    let setting = |name: &str| figment.find_value(name).ok();
    let problem = match kind {
        ErrorKind::Config(error) => error.to_string(),
        // Each of Rocket's messages about its certificate and key contains this.
        ErrorKind::Bind(error) | ErrorKind::Io(error) if error.to_string().contains(" TLS ") => {
            let tls = config::place(figment.find_metadata("tls"), &["tls"]);
            format!("the files in the setting {tls}, `certs` and `key`, cannot be used: {error}")
        }
        ErrorKind::Bind(error) => {
            let host = setting("address").and_then(|address| address.into_string());
            let port = setting("port").and_then(|port| port.to_u128());
            let (host, port) = (host.unwrap_or_default(), port.unwrap_or_default());
            format!("cannot listen on {host}:{port}: {error}")
        }
        other => other.to_string(),
    };
    Failure::new(Exit::Failed, problem)
}
