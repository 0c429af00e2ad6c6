//! Tidings inside another Rocket application. A fairing mounts it, and a handler publishes through
//! managed state, without an HTTP request.
//!
//! `TIDINGS_ANONYMOUS_SCHOOL_ID=1 cargo run --example embed`, then
//! `curl -N localhost:8000/live/events/jobs` and `curl -X POST localhost:8000/import`.

use std::sync::Arc;

use rocket::http::Status;
use rocket::{State, get, post, routes};
use serde_json::json;
use tidings::Tidings;
use tidings::app::Caller;
use tidings::id::SchoolId;
use tidings::kind;
use tidings::kind::job::{Command, Complete, Create, Progress};
use tidings::log::Envelope;

/// The school that this application works for.
fn school() -> SchoolId {
    SchoolId::try_from(1).expect("1 is a school")
}

#[get("/")]
fn index() -> &'static str {
    "An application that embeds Tidings.\n"
}

/// Imports three rows and publishes the progress.
#[post("/import")]
async fn import(tidings: &State<Arc<Tidings>>) -> Result<String, Status> {
    // The same rules apply as to a worker whose token has this `sub`.
    let caller = Caller::in_process("importer", school());
    let publications = tidings.publications();
    let failed = |_| Status::InternalServerError;
    let create: Create = from(json!({"job_type": "import", "status": "in_progress"}));
    let receipt = publications
        .publish(&caller, create)
        .await
        .map_err(failed)?;
    let id = receipt.event().subject.clone();
    // Each report contains its attempt. A new job begins with attempt 1.
    for row in 1..=3 {
        let progress: Progress = from(
            json!({"attempt": 1, "progress": f64::from(row) * 30.0, "message": format!("Row {row} of 3")}),
        );
        let command = kind::Command::Job(Command::Progress(progress));
        let report = Envelope::new(id.clone(), command);
        publications
            .publish(&caller, report)
            .await
            .map_err(failed)?;
    }
    let complete: Complete = from(json!({"attempt": 1, "result": {"rows": 3}}));
    let command = kind::Command::Job(Command::Complete(complete));
    let report = Envelope::new(id.clone(), command);
    publications
        .publish(&caller, report)
        .await
        .map_err(failed)?;
    Ok(format!("{id}\n"))
}

fn from<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> T {
    serde_json::from_value(body).expect("the command's own fields")
}

/// The application, configured by `figment`.
pub fn application(figment: rocket::figment::Figment) -> rocket::Rocket<rocket::Build> {
    rocket::custom(figment)
        .mount("/", routes![index, import])
        .attach(tidings::http::fairing("/live"))
}

#[rocket::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rocket = application(rocket::Config::figment()).ignite().await?;
    let tidings = rocket.state::<Arc<Tidings>>().map(Arc::clone);
    let served = rocket.launch().await;
    // However Rocket ended: send every stream its close message, and finish pending writes.
    if let Some(tidings) = tidings {
        tidings::http::close(&tidings).await?;
    }
    served?;
    Ok(())
}
