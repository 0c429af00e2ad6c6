//! Tidings broadcasts live progress and status.
//!
//! Workers report over HTTP. Authorized clients receive each report immediately over Server-Sent Events, WebSocket or long
//! poll, with the same channels, the same JSON and the same cursor. Each school has an ordered log, which everything else
//! reads.
//!
//! ```text
//! publisher ─HTTP─▶ publish ─▶ log::writer ──────────────▶ feed ─▶ hub ─▶ mailbox ─▶ SSE │ WebSocket │ poll
//!                              fair between schools,        │       per school:         (subscribe = attach,
//!                              log::decide (pure),          │       window + channels    snapshot or replay,
//!                              one commit: states + events  │                            live)
//!                                                           └─▶ segments, shared by replays
//! ```
//!
//! The outcome of a publisher's command is decided from the subject's state. The new state and its event are committed
//! together. The committed event is encoded once and offered to mailboxes. A connection is a cursor plus a mailbox; a
//! WebSocket that only waits for live events lends its socket to its mailbox, so that the task that offers an event writes it.
//! Ticks that were held back (`tick_ms`) are written when they are due, also without waking the connection's task.
//! Connecting, reconnecting and catching up after a lag are the same operation: read the log from a cursor, then receive
//! live events.
//!
//! # Terms
//!
//! *School*: the tenant, the unit of isolation and of ordering. *Subject*: an entity with a state; its *kind* is its
//! type, which defines its rules. *Command*: a publisher's request. *Event*: an immutable record of what happened. A
//! *milestone* is never dropped while it is retained; a *tick* may be superseded by a newer one of its subject.
//! *Channel*: what subscribers listen to inside a school. *Cursor*: epoch, seq and tag, which identify an event.
//! *Window*: the newest events of a school, in memory. *Segment*: a part of a log that clients share while they catch
//! up. *Mailbox*: a connection's bounded queue. *Frame*: an event's bytes in one encoding. *Uptime*: the total time
//! during which the server has listened, over all of its runs; silence is measured in uptime ([`uptime`]).
//!
//! # Invariants
//!
//! Tests in `tests/it/invariants.rs` check each invariant and carry its number. A simulation in `tests/simulation` also
//! checks 2 to 5 and 9: its seeds combine publishers, readers, a notifier, crashes, power losses and retention in
//! thousands of ways.
//!
//! 1. Commit precedes fan-out; the publisher's answer comes after the commit.
//! 2. `seq` is dense per school and its order is commit order, on every node.
//! 3. A subscriber sees strictly increasing `seq`s, each at most once, or a `reset`. Its stream omits
//!    only superseded ticks and events outside its scope. If the hub receives an event before earlier ones, the missing
//!    ones are read from the log first.
//! 4. A milestone inside retention is delivered to every live or resuming subscriber in scope.
//! 5. Attach to the hub before reading the store: otherwise an event committed in between would be missed.
//! 6. Every queue, buffer, cache and wait has a named bound ([`config`]). A slow or dead client uses a
//!    bounded amount of resources and does not slow down others.
//! 7. The school comes from the credential, never from the payload alone. A stream does not outlive its
//!    credential.
//! 8. JSON is serialised once per event and encoding on each node, whatever the number of subscribers, live or replaying.
//! 9. Empty channels, windows and schools are removed from memory.
//! 10. A subject's terminal state is final; progress never decreases within an attempt; a kind's rules are pure
//!     functions of state, command and time.
//! 11. A cursor names an event; within a snapshot, it can also name one that the client awaits. A cursor whose event is in a
//!     part of the history that was lost is answered with a `reset`; all others are honoured.
//! 12. Work that only one node may do requires a lease, whose fencing token is checked in the transaction of the write.
//!
//! # Layers
//!
//! A module imports only from lower layers, without exceptions. `tests/it/floors.rs` reads the `use` lines and fails on a
//! violation.
//!
//! ```text
//! 14  main.rs                          the program
//! 13  cli/                             command line
//! 12  lib.rs                           this map; server()
//! 11  http/                            the only layer that knows Rocket
//! 10  service.rs session/              the running server; sessions with clients, without I/O
//!  9  app/                             permissions and rate limits of publishing and subscribing
//!  8  subscribe/ dispatch.rs           a connection's stream; committed events for every consumer of the log
//!     presence/ notify/ watchdog.rs    leases of devices; webhooks, e-mail, MQTT; timers
//!     metrics.rs rejections.rs         metrics; logging of rejected requests
//!     relay.rs                         notifications of commits between nodes
//!  7  feed/ publish.rs                 reads the logs, live and for replays; executes commands
//!     lease.rs cluster.rs              work that only one node at a time does; the nodes that share one store
//!     schedules.rs                     detection of scheduled runs that did not happen
//!  6  store/ bus/ crowd.rs             databases; messages between nodes; waking of readers
//!  5  log/ hub/                        ports of a store, decisions │ in-memory fan-out
//!  4  auth/ wire/                      authorization; the only encoder
//!     client/                          the asynchronous client, which uses nothing of the server
//!     throttle.rs reserve.rs           rate limits; memory for writes
//!     tasks.rs failures.rs             supervised tasks; logging of failures
//!     wall_clock.rs alarm.rs           whether the wall clock is reliable; timers
//!  3  config/                          settings and every bound
//!  2  kind/ scope.rs                   domain rules; the scope of a subscription
//!  1  event.rs                         events
//!  0  id.rs number.rs sync.rs uptime.rs  ids and channels; conversions of numbers; locks; uptime
//!     mismatch.rs                      why JSON does not fit
//!     unverified.rs                    TLS without verification
//! ```
//!
//! # In another Rocket application
//!
//! [`http::fairing`] mounts the routes and manages an `Arc<`[`Tidings`]`>`, through which a handler publishes without an HTTP
//! request: see `examples/embed.rs`. With `default-features = false`, an application compiles only the parts whose
//! Cargo features it enables. All features are enabled by default:
//!
//! | feature | adds |
//! | --- | --- |
//! | `cli` | the `tidings` command and the module `cli`; includes `client` |
//! | `client` | the module [`client`]: reports on jobs, and watches scopes, on any Tidings server |
//! | `monitor` | the pages below `/monitor` and `/embed` |
//! | `postgres` | Postgres as the database, so that several nodes can share it |
//! | `redis` | Redis or Valkey as the bus between nodes |
//! | `webhook`, `email`, `mqtt` | the delivery methods of notifiers in the settings (`webhook` includes ntfy and Home Assistant); custom notifiers need none |
//!
//! # Public API
//!
//! | module | for applications |
//! | --- | --- |
//! | [`http`] | mounts the routes; shuts down gracefully |
//! | [`app`] | publishes and subscribes on behalf of a caller, with the permissions and rate limits of the HTTP API |
//! | [`auth`] | verifies and issues tokens |
//! | [`kind`], [`event`], [`scope`], [`id`] | commands and states of each kind; events; what a subscription covers; ids, channels and cursors |
//! | [`log`] | the traits that a store implements; a command with its subject, sender and idempotency key |
//! | [`notify`] | custom notifiers |
//! | [`config`] | settings, and every bound |
//! | [`client`] | an asynchronous client of any Tidings server |
//!
//! Semantic versioning covers these modules, [`Tidings`] and [`server`]. All other modules are public because the project's own tests
//! and command use them. They are hidden in this documentation, and can change in any version.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "the numbers of a test are small"
    )
)]

mod alarm;
pub mod app;
pub mod auth;
#[cfg(feature = "client")]
pub mod client;
pub mod config;
pub mod event;
#[cfg_attr(
    not(all(feature = "cli", feature = "monitor")),
    allow(
        dead_code,
        reason = "some of it is used only by the command or the pages"
    )
)]
pub mod http;
pub mod id;
pub mod kind;
pub mod log;
pub mod notify;
pub mod scope;

// Not part of the public API: see the crate documentation.
#[doc(hidden)]
pub mod bus;
#[doc(hidden)]
#[cfg(feature = "cli")]
#[allow(
    rustdoc::invalid_html_tags,
    reason = "the command's help consists of these comments"
)]
pub mod cli;
#[doc(hidden)]
pub mod cluster;
#[doc(hidden)]
pub mod crowd;
#[doc(hidden)]
pub mod dispatch;
#[doc(hidden)]
pub mod feed;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod lease;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod presence;
#[doc(hidden)]
pub mod publish;
#[doc(hidden)]
pub mod rejections;
#[doc(hidden)]
pub mod relay;
#[doc(hidden)]
pub mod reserve;
#[doc(hidden)]
pub mod schedules;
#[doc(hidden)]
pub mod service;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod subscribe;
#[doc(hidden)]
pub mod tasks;
#[doc(hidden)]
pub mod throttle;
#[doc(hidden)]
pub mod uptime;
#[doc(hidden)]
pub mod wall_clock;
#[doc(hidden)]
pub mod watchdog;
#[doc(hidden)]
pub mod wire;

mod failures;
mod mismatch;
mod number;
mod sync;
#[cfg(any(feature = "cli", feature = "postgres"))]
mod unverified;

use std::sync::Arc;

use rocket::{Build, Rocket};

pub use service::{StartError, Tidings};

/// Returns the complete server. `figment` contains its settings and those of Rocket. Fails on a setting that is unknown or
/// would have no effect. Must be called within a Tokio runtime.
pub fn server(figment: figment::Figment) -> Result<Rocket<Build>, StartError> {
    http::framework::check(&figment)?;
    let settings = config::Settings::from_figment(&figment)?;
    let tidings = Tidings::start(settings).map_err(|error| error.found_in(&figment))?;
    Ok(http::mount_alone(
        rocket::custom(figment),
        Arc::new(tidings),
    ))
}
