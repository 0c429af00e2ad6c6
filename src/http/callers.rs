//! Detects clients that disconnect before they are answered.
//!
//! Rocket runs a handler to its end in a separate task, even if its client has disconnected. A search may take long. While it
//! runs, a task periodically asks the kernel for the open connections. If the client's connection is no longer among them or
//! no longer established, the search is cancelled: its future is dropped, and reads no more.
//!
//! A single task watches all connections, as long as there are any to watch. On platforms other than Linux, the kernel
//! cannot be asked, and a search runs until it reaches one of its limits. Streams detect a disconnected client when they
//! write to it.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rocket::request::{FromRequest, Outcome, Request};
use tokio::sync::Notify;

use super::dead_peers;
use super::problem::{Kind, Problem};
use crate::config::CALLER_CHECK_PERIOD;
use crate::service::Tidings;
use crate::tasks::{Task, Tasks};

/// The connections that are watched. Managed by the application.
#[derive(Clone, Default)]
pub(super) struct Callers(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    connections: HashMap<u64, (SocketAddr, Arc<Notify>)>,
    next: u64,
    /// Whether the task that watches the connections is running.
    is_watched: bool,
}

/// The connection of a request.
pub(super) struct Connection {
    callers: Callers,
    tidings: Option<Arc<Tidings>>,
    peer: Option<SocketAddr>,
    port: u16,
}

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Connection {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Connection, Self::Error> {
        let callers = request.rocket().state::<Callers>();
        Outcome::Success(Connection {
            callers: callers.cloned().unwrap_or_default(),
            tidings: request.rocket().state::<Arc<Tidings>>().map(Arc::clone),
            peer: request.remote(),
            port: request.rocket().config().port,
        })
    }
}

impl Connection {
    /// Runs `work`, and cancels it if the client disconnects.
    pub(super) async fn while_connected<T, E: From<Problem>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (Some(peer), Some(tidings)) = (self.peer, &self.tidings) else {
            return work.await;
        };
        let watch = self.callers.watch(peer, self.port, tidings.tasks());
        tokio::select! {
            done = work => done,
            () = watch.gone.notified() => {
                // Nobody reads this answer.
                Err(Problem::new(Kind::Unavailable, "the client has disconnected").into())
            }
        }
    }
}

/// Watches a connection until it is dropped.
struct Watch {
    callers: Callers,
    number: u64,
    gone: Arc<Notify>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.callers.watched().connections.remove(&self.number);
    }
}

impl Callers {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, peer: SocketAddr, port: u16, tasks: &Tasks) -> Watch {
        let gone = Arc::new(Notify::new());
        let mut watched = self.watched();
        let number = watched.next;
        watched.next += 1;
        watched
            .connections
            .insert(number, (peer, Arc::clone(&gone)));
        if !std::mem::replace(&mut watched.is_watched, true) {
            let callers = self.clone();
            tasks.supervise(Task::new("callers"), move || {
                callers.clone().watch_connections(port)
            });
        }
        Watch {
            callers: self.clone(),
            number,
            gone,
        }
    }

    /// Periodically checks which connections are gone. Ends when none is watched.
    async fn watch_connections(self, port: u16) {
        loop {
            tokio::time::sleep(CALLER_CHECK_PERIOD).await;
            // Take the list before asking the kernel: a connection that is made after the kernel's answer would seem to be
            // gone.
            let watched: Vec<_> = {
                let mut watched = self.watched();
                if watched.connections.is_empty() {
                    watched.is_watched = false;
                    return;
                }
                watched.connections.values().cloned().collect()
            };
            let open = tokio::task::spawn_blocking(move || dead_peers::open_to(port)).await;
            // If the kernel cannot be asked, assume that all clients are connected.
            let Ok(Ok(open)) = open else {
                continue;
            };
            for (peer, gone) in watched {
                if !open.contains(&peer) {
                    gone.notify_one();
                }
            }
        }
    }
}
