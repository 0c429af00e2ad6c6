//! The server that answers while the database is being opened. `/healthz` reports that the process is alive; every other
//! request is rejected with the reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rocket::fairing::AdHoc;
use rocket::http::{Header, Status};
use rocket::{Build, Request, Rocket, catch, catchers};

use super::health;
use super::problem::{Kind, Problem};
use crate::config::Settings;
use crate::config::proxy::PathPrefix;

/// What the server waits for. Clones share their state.
#[derive(Clone, Default)]
pub(crate) struct Stage {
    is_database_unreachable: Arc<AtomicBool>,
}

impl Stage {
    /// Records whether the database could not be reached at the last attempt.
    pub(crate) fn database_is_unreachable(&self, now: bool) {
        self.is_database_unreachable.store(now, Ordering::Relaxed);
    }
}

/// Returns a server that takes the place of the real one, with the same address and certificate. Its owner handles signals.
pub(crate) fn rocket(figment: &figment::Figment, stage: Stage) -> Rocket<Build> {
    let base_path = Settings::from_figment(figment).ok();
    let base_path = base_path.and_then(|settings| settings.base_path);
    let figment = figment
        .clone()
        .merge(("shutdown.ctrlc", false))
        .merge(("shutdown.signals", [(); 0]))
        .merge(("shutdown.grace", 1))
        .merge(("shutdown.mercy", 1));
    let rocket = rocket::custom(figment)
        .manage(stage)
        .mount("/", health::alive())
        .register("/", catchers![opening])
        // A connection that is kept alive would still reach this server after the real one has started to listen.
        .attach(AdHoc::on_response(
            "Tidings: one request per connection",
            |_, response| {
                response.set_header(Header::new("Connection", "close"));
                Box::pin(std::future::ready(()))
            },
        ));
    match base_path.as_ref().map(PathPrefix::as_str) {
        None | Some("") => rocket,
        Some(prefix) => rocket.mount(prefix, health::alive()),
    }
}

#[catch(default)]
fn opening(_: Status, request: &Request<'_>) -> Problem {
    let stage = request.rocket().state::<Stage>();
    let is_unreachable =
        stage.is_some_and(|stage| stage.is_database_unreachable.load(Ordering::Relaxed));
    Problem::new(
        Kind::Unavailable,
        match is_unreachable {
            true => {
                "waiting: the server cannot reach its database, and tries again until it can; its log says why"
            }
            false => {
                "checking: the server opens and checks its database, and answers requests once that is done"
            }
        },
    )
}
