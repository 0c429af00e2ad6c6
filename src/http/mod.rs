//! Routes, guards, problems, and the three transports. Apart from the code that starts a server, only this layer knows
//! Rocket.
//!
//! [`routes`] and [`catchers`] can be mounted at any base. [`fairing`] mounts them, starts Tidings from the application's
//! own configuration, and closes its streams when the application stops. [`close`] then stops Tidings itself.

mod backlog;
mod badge;
mod base_path;
mod batch;
mod body;
mod callers;
mod commands;
mod contract;
mod cors;
mod credential;
mod dead_peers;
mod devices;
mod forwarded;
pub(crate) mod framework;
mod health;
mod idle_connections;
mod lines;
mod links;
mod listing;
mod methods;
mod metrics;
#[cfg(feature = "monitor")]
mod monitor;
mod notifiers;
pub(crate) mod opening;
mod parameters;
mod pings;
mod pipeline;
pub mod problem;
pub(crate) mod shutdown;
mod stream;
mod subjects;
mod tickets;
mod violations;

use std::sync::Arc;

use rocket::fairing::{AdHoc, Fairing};
use rocket::{Build, Catcher, Rocket, Route};

use crate::config::Settings;
use crate::notify::Notifier;
use crate::service::Tidings;

pub use self::shutdown::close;
pub use self::stream::OldHandshakes;

/// Returns all routes.
pub fn routes() -> Vec<Route> {
    let routes = [
        health::routes(),
        devices::routes(),
        violations::routes(),
        notifiers::routes(),
        pings::routes(),
        subjects::routes(),
        batch::routes(),
        tickets::routes(),
        links::routes(),
        badge::routes(),
        stream::routes(),
        cors::routes(),
        metrics::routes(),
        contract::routes(),
    ]
    .concat();
    #[cfg(feature = "monitor")]
    let routes = [routes, monitor::routes(), monitor::embed::routes()].concat();
    routes
}

/// Describes all routes except those of CORS preflights, which match every URL.
fn describe(document: &mut contract::Document) {
    subjects::describe(document);
    violations::describe(document);
    devices::describe(document);
    batch::describe(document);
    stream::describe(document);
    tickets::describe(document);
    links::describe(document);
    badge::describe(document);
    pings::describe(document);
    notifiers::describe(document);
    health::describe(document);
    metrics::describe(document);
    contract::describe(document);
    #[cfg(feature = "monitor")]
    {
        monitor::embed::describe(document);
        monitor::describe(document);
    }
}

/// Returns the OpenAPI document of the routes mounted at `base`, which has no trailing slash and is empty for the root.
pub fn openapi(base: &str) -> serde_json::Value {
    contract::openapi_document(base)
}

/// Returns the AsyncAPI document of the messages of the streams, mounted at `base`.
pub fn asyncapi(base: &str) -> serde_json::Value {
    contract::asyncapi_document(base)
}

/// Returns the catchers that answer framework errors, such as an unknown route or an unreadable request, with problems.
pub fn catchers() -> Vec<Catcher> {
    rocket::catchers![problem::catch]
}

/// Returns a fairing that starts Tidings from the settings in the application's figment, manages it as `Arc<Tidings>`, and
/// mounts its routes at `base`.
pub fn fairing(base: &'static str) -> impl Fairing {
    fairing_with(base, Vec::new())
}

/// Like [`fairing`], with the application's own notifiers in addition to those of the settings.
pub fn fairing_with(base: &'static str, notifiers: Vec<Arc<dyn Notifier>>) -> impl Fairing {
    AdHoc::try_on_ignite("Tidings", move |rocket| async move {
        let started = Settings::from_figment(rocket.figment())
            .map_err(Into::into)
            .and_then(|settings| Tidings::start_with(settings, notifiers))
            .map_err(|error| error.found_in(rocket.figment()));
        match started {
            Ok(tidings) => Ok(mount(rocket, base, Arc::new(tidings))),
            Err(error) => {
                tracing::error!(%error, "Tidings cannot start");
                Err(rocket)
            }
        }
    })
}

/// Mounts the routes of a running Tidings at `base`. Redirects `base` to the monitor unless it is the application's root.
pub fn mount(rocket: Rocket<Build>, base: &'static str, tidings: Arc<Tidings>) -> Rocket<Build> {
    let has_home = !base.trim_matches('/').is_empty();
    mount_at(rocket, base, has_home, tidings)
}

/// Makes this node known to the others before the server listens. Without this, they would reject one another's tickets.
fn joining() -> impl Fairing {
    AdHoc::try_on_ignite("Tidings: nodes", |rocket| async {
        let tidings = rocket.state::<Arc<Tidings>>().map(Arc::clone);
        match tidings.expect("it is managed").join().await {
            Ok(()) => Ok(rocket),
            Err(error) => {
                tracing::error!(%error, "Tidings cannot start");
                Err(rocket)
            }
        }
    })
}

/// Mounts the routes of a running Tidings as a complete application.
pub(crate) fn mount_alone(rocket: Rocket<Build>, tidings: Arc<Tidings>) -> Rocket<Build> {
    mount_at(rocket, "/", true, tidings)
}

fn mount_at(
    rocket: Rocket<Build>,
    base: &'static str,
    has_home: bool,
    tidings: Arc<Tidings>,
) -> Rocket<Build> {
    let base_path = tidings.settings().base_path.clone();
    let rocket = match base_path {
        Some(prefix) => rocket.attach(base_path::fairing(base, has_home, prefix)),
        None => rocket,
    };
    #[cfg(feature = "monitor")]
    let rocket = monitor::mount(rocket, base, has_home);
    rocket
        .manage(tidings)
        .manage(callers::Callers::default())
        .manage(badge::Badges::default())
        .manage(contract::Documents::default())
        .mount(base, routes())
        .register(base, catchers())
        .attach(cors::fairing(base))
        .attach(stream::fairing())
        .attach(backlog::Backlog)
        .attach(dead_peers::DeadPeers)
        .attach(idle_connections::IdleConnections::default())
        .attach(joining())
        .attach(shutdown::CloseStreams)
}
