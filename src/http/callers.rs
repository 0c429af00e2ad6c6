//! Callers who leave before they are answered.
//!
//! Rocket runs a handler in a task of its own, to its end, whether its client is still there or not. A search may take long: while
//! it goes on, the kernel is asked every now and then which connections there are. One that the client has closed is not among them, or
//! no longer established, and the search ends: its future is dropped, and asks for no further turn.
//!
//! One task asks for all, while there is anybody to ask for. Where the kernel cannot be asked (other systems than Linux), a
//! search goes on to one of its bounds. Streams are found out by writing to them.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rocket::request::{FromRequest, Outcome, Request};
use tokio::sync::Notify;

use super::dead_peers;
use super::problem::{Kind, Problem};
use crate::config::CALLER_LOOK_PERIOD;
use crate::service::Tidings;
use crate::tasks::{Task, Tasks};

/// Those whose connections are watched; managed by the application.
#[derive(Clone, Default)]
pub(super) struct Callers(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    connections: HashMap<u64, (SocketAddr, Arc<Notify>)>,
    next: u64,
    /// Whether the task runs that looks after them.
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
    /// Does this as long as the connection lasts.
    pub(super) async fn lasts<T, E: From<Problem>>(
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
                // Nobody reads it.
                Err(Problem::new(Kind::Unavailable, "the caller has left").into())
            }
        }
    }
}

/// A connection is watched until this is dropped.
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
            tasks.supervise(Task::new("callers"), move || callers.clone().look(port));
        }
        Watch {
            callers: self.clone(),
            number,
            gone,
        }
    }

    /// Looks which connections are gone, as long as any is watched.
    async fn look(self, port: u16) {
        loop {
            tokio::time::sleep(CALLER_LOOK_PERIOD).await;
            // Before the kernel is asked: a connection that is made afterwards is not among those that it names.
            let watched: Vec<_> = {
                let mut watched = self.watched();
                if watched.connections.is_empty() {
                    watched.is_watched = false;
                    return;
                }
                watched.connections.values().cloned().collect()
            };
            let open = tokio::task::spawn_blocking(move || dead_peers::open_to(port)).await;
            // Who cannot be asked about is taken to be there.
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
