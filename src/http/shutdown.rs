//! Shutdown: every stream is closed, and every connection has received what was written to it, before the process exits.
//!
//! The same signal stops Rocket's accept loop and runs its shutdown fairings. If the loop reacts first, because connections
//! arrive at that moment, [`Rocket::launch`](rocket::Rocket::launch) returns at once: before any fairing has run, and while
//! all connections are open. So nothing here relies on the fairing alone:
//!
//! 1. As soon as Rocket's shutdown is triggered, a separate task calls [`Tidings::stop`]. A stream that is opened later is
//!    closed by its first message.
//! 2. The fairing delays Rocket until the connections are gone, if Rocket lets it run. When it returns, Rocket checks once
//!    whether any part of a connection is left, and if so, waits for its whole `grace`.
//! 3. [`close`] does both again after `launch` has returned, and only then closes the database.
//!
//! Where possible, the kernel is asked whether a connection is gone: the last bytes of a stream leave the hub before they
//! leave the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Orbit, Rocket};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

use super::dead_peers;
use crate::config::{CLOSE_STREAMS_MAX, DRAIN_PERIOD};
use crate::log::StoreError;
use crate::service::Tidings;

/// How many checks in a row must find no connection. The parts of a connection may be dropped slightly after it is closed.
const CHECKS: u32 = 2;

/// Closes the streams of an application that shuts down, and delays the shutdown until they are gone.
pub(super) struct CloseStreams;

#[rocket::async_trait]
impl Fairing for CloseStreams {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: close streams",
            kind: Kind::Liftoff | Kind::Shutdown,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        let config = rocket.config();
        tidings.listens_on(SocketAddr::new(config.address, config.port));
        let (shutdown, weak) = (rocket.shutdown(), Arc::downgrade(tidings));
        tidings.tasks().spawn("close-messages", async move {
            shutdown.await;
            if let Some(tidings) = weak.upgrade() {
                tidings.stop();
            }
        });
    }

    async fn on_shutdown(&self, rocket: &Rocket<Orbit>) {
        let Some(tidings) = rocket.state::<Arc<Tidings>>() else {
            return;
        };
        tidings.stop();
        let grace = Duration::from_secs(rocket.config().shutdown.grace.into());
        drained(tidings, Instant::now() + grace).await;
    }
}

/// Stops Tidings after its application has ended. Closes the remaining streams, waits until their connections are gone (at
/// most [`CLOSE_STREAMS_MAX`] after the first was closed), completes pending writes, and closes the database.
pub async fn close(tidings: &Tidings) -> Result<(), StoreError> {
    tidings.stop();
    let since = tidings.stopping_since().unwrap_or_else(Instant::now);
    drained(tidings, since + CLOSE_STREAMS_MAX).await;
    tidings.close().await
}

/// Waits until no stream is open, or until the deadline.
pub(crate) async fn streams_closed(tidings: &Tidings, until: Instant) {
    let streams_closed = async {
        while tidings.streams() > 0 {
            sleep(DRAIN_PERIOD).await;
        }
    };
    // The remaining streams have delivered as much as their readers took in this time.
    let _ = timeout_at(until, streams_closed).await;
}

/// Waits until no client is connected, or until the deadline.
async fn drained(tidings: &Tidings, until: Instant) {
    let drained = async {
        let mut checks = 0;
        while checks < CHECKS {
            checks = match is_connected(tidings).await {
                true => 0,
                false => checks + 1,
            };
            sleep(DRAIN_PERIOD).await;
        }
    };
    if timeout_at(until, drained).await.is_err() {
        tracing::debug!("some connections did not close in time");
    }
}

/// Whether a stream is open, or the kernel knows of a connection.
async fn is_connected(tidings: &Tidings) -> bool {
    if tidings.streams() > 0 {
        return true;
    }
    let Some(address) = tidings.address() else {
        return false;
    };
    let connected = spawn_blocking(move || dead_peers::is_connected(address.port())).await;
    connected.unwrap_or(false)
}
