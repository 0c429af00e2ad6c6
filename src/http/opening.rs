//! The server that answers while the database is being opened. It reports that the process is alive, and nothing else.

use rocket::fairing::AdHoc;
use rocket::http::{Header, Status};
use rocket::{Build, Request, Rocket, catch, catchers};

use super::health;
use super::problem::{Kind, Problem};
use crate::config::Settings;
use crate::config::proxy::PathPrefix;

/// Returns a server that takes the place of the real one, with the same address and certificate. Its owner handles signals.
pub(crate) fn rocket(figment: &figment::Figment) -> Rocket<Build> {
    let base_path = Settings::from_figment(figment).ok();
    let base_path = base_path.and_then(|settings| settings.base_path);
    let figment = figment
        .clone()
        .merge(("shutdown.ctrlc", false))
        .merge(("shutdown.signals", [(); 0]))
        .merge(("shutdown.grace", 1))
        .merge(("shutdown.mercy", 1));
    let rocket = rocket::custom(figment)
        .mount("/", health::alive())
        .register("/", catchers![opening])
        // A connection that is kept alive would stay with this server when the real one starts to listen.
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
fn opening(_: Status, _: &Request<'_>) -> Problem {
    Problem::new(
        Kind::Unavailable,
        "checking: the server opens and checks its database, and answers requests once that is done",
    )
}
