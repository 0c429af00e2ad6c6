//! The end: every stream is told to close, and every connection has taken what was written for it, before the process goes.
//!
//! Rocket's accept loop and its shutdown fairings are told of the end by the same signal. If the loop notices first, because
//! connections arrive at that moment, [`Rocket::launch`](rocket::Rocket::launch) returns at once: no fairing has run, and all
//! connections are still open. So nothing here relies on the fairing alone:
//!
//! 1. [`Tidings::stop`] is called as soon as Rocket's signal is given, by a task of its own. A stream that opens later is told
//!    to close as its first word.
//! 2. The fairing holds Rocket up until the connections are gone, if Rocket lets it. When it returns, Rocket looks once whether
//!    anything is left of a connection, and waits for its whole `grace` if so.
//! 3. [`close`] does both once more after `launch` has returned, and only then lets go of the database.
//!
//! Whether a connection is gone is asked of the kernel, where that is possible: the last bytes of a stream leave the hub before
//! they leave the process.

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

/// Looks in a row that must find nobody: what belongs to a connection is dropped together with it, and may be a moment behind.
const LOOKS: u32 = 2;

/// Tells the streams of an application that ends to close, and holds it up until they are gone.
pub(super) struct Farewell;

#[rocket::async_trait]
impl Fairing for Farewell {
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
        tidings.tasks().spawn("farewell", async move {
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

/// Ends Tidings after its application has ended: tells streams that are left to close, waits until their connections are gone,
/// at most [`CLOSE_STREAMS_MAX`] from when the first was told, finishes what was published and lets go of the database.
pub async fn close(tidings: &Tidings) -> Result<(), StoreError> {
    tidings.stop();
    let since = tidings.stopping_since().unwrap_or_else(Instant::now);
    drained(tidings, since + CLOSE_STREAMS_MAX).await;
    tidings.close().await
}

/// Waits until no stream is open, until then at most.
pub(crate) async fn told(tidings: &Tidings, until: Instant) {
    let told = async {
        while tidings.streams() > 0 {
            sleep(DRAIN_PERIOD).await;
        }
    };
    // What is left is told as far as its reader takes it.
    let _ = timeout_at(until, told).await;
}

/// Waits until nobody is connected, until then at most.
async fn drained(tidings: &Tidings, until: Instant) {
    let drained = async {
        let mut looks = 0;
        while looks < LOOKS {
            looks = match is_connected(tidings).await {
                true => 0,
                false => looks + 1,
            };
            sleep(DRAIN_PERIOD).await;
        }
    };
    if timeout_at(until, drained).await.is_err() {
        tracing::debug!("some connections did not end in time");
    }
}

/// Whether a stream is open, or any connection of which the kernel knows.
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
