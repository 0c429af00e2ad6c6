//! The start of `serve` and `demo`: the server answers while its database is still being opened.

use std::future::pending;

use figment::Figment;
use rocket::{Build, Rocket};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::serve::{AtSignal, Signals, server, unserved};
use super::{Exit, Failure};
use crate::config::OPENING_NOTICE_AFTER;
use crate::http::OldHandshakes;
use crate::http::opening::{self, Stage};

/// Returns the server, ready to be launched. None if it was stopped before the database was open.
pub(super) async fn opened(
    figment: Figment,
    old: OldHandshakes,
    at_signal: Option<AtSignal>,
) -> Result<Option<Rocket<Build>>, Failure> {
    let mut signals = Signals::listen(&figment, at_signal.is_some())?;
    let stage = Stage::default();
    let mut opening = open(figment.clone(), old, at_signal, stage.clone())?;
    let fallen = |_| {
        Failure::new(
            Exit::Failed,
            "the database could not be opened: its thread panicked",
        )
    };
    if let Ok(opened) = timeout(OPENING_NOTICE_AFTER, &mut opening).await {
        return opened.map_err(fallen)?.map(Some);
    }
    tracing::info!("opening the database takes a while; `/readyz` reports 503 until it is open");
    let has_port = |port: figment::value::Value| port.to_u128() != Some(0);
    let interim = match figment.find_value("port").is_ok_and(has_port) {
        true => Some(opening::rocket(&figment, stage).ignite().await),
        // The port is not known yet.
        false => None,
    };
    let interim = interim.transpose();
    let interim = interim.map_err(|error| unserved(error.kind(), &figment))?;
    let shutdown = interim.as_ref().map(|interim| interim.shutdown());
    let answered = async {
        match interim {
            Some(interim) => interim.launch().await.map(|_| ()),
            None => pending().await,
        }
    };
    // When another branch completes, the listener is dropped, and the address is free.
    let opened = tokio::select! {
        opened = &mut opening => opened.map_err(fallen)?.map(Some),
        Err(error) = answered => Err(unserved(error.kind(), &figment)),
        _ = signals.stop() => {
            tracing::info!("stopped before the database was open");
            Ok(None)
        }
    };
    // Shut down gracefully: requests in progress are still answered.
    if let Some(shutdown) = shutdown {
        shutdown.notify();
    }
    opened
}

/// Opens the database on a separate thread, not on one of the runtime, so that the process can exit
/// without waiting for it.
fn open(
    figment: Figment,
    old: OldHandshakes,
    at_signal: Option<AtSignal>,
    stage: Stage,
) -> Result<oneshot::Receiver<Result<Rocket<Build>, Failure>>, Failure> {
    let (opened, opening) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("tidings-opening".into())
        .spawn(move || {
            let _runtime = runtime.enter();
            // Fails if the server was stopped in the meantime.
            let _ = opened.send(server(figment, old, at_signal, &stage));
        })?;
    Ok(opening)
}
