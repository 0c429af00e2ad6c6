//! The queue of connections that wait to be accepted.
//!
//! After a restart, all clients connect at once. If this queue is full, the kernel drops further attempts, and those clients
//! try again only after 1, 3, 7, … seconds. Rocket's listener has a queue of 1,024, and Rocket cannot be asked for a longer
//! one, so it is extended once the listener exists.

use std::net::SocketAddr;

use rocket::fairing::{Fairing, Info, Kind};
use rocket::{Orbit, Rocket};

use super::dead_peers;
use crate::config::ACCEPT_QUEUE;

/// Extends the queue at liftoff.
pub(super) struct Backlog;

#[rocket::async_trait]
impl Fairing for Backlog {
    fn info(&self) -> Info {
        Info {
            name: "Tidings: accept queue",
            kind: Kind::Liftoff,
        }
    }

    async fn on_liftoff(&self, rocket: &Rocket<Orbit>) {
        let config = rocket.config();
        let address = SocketAddr::new(config.address, config.port);
        if let Err(error) = dead_peers::extend_accept_queue(address, ACCEPT_QUEUE) {
            tracing::warn!(
                %error,
                "the queue of the listening socket cannot be extended: if very many clients connect at once, some have to wait for seconds"
            );
        }
    }
}
