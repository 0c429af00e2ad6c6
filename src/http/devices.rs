//! `POST /api/devices/<id>/heartbeat`: the high-rate call. `subjects.rs` has the other calls for devices.

use std::sync::Arc;

use rocket::{Route, State, post, routes};
use serde_json::{Value, json};

use super::body::{Json, Unread};
use super::commands::subject;
use super::problem::Problem;
use crate::app::Caller;
use crate::id::SubjectId;
use crate::kind::device::KIND;
use crate::presence::HeartbeatAnswer;
use crate::service::Tidings;
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![heartbeat]
}

/// The body is not read, but it must have a valid form.
#[post("/api/devices/<id>/heartbeat", data = "<body>")]
async fn heartbeat(
    id: &str,
    caller: Result<Caller, Problem>,
    body: Result<Unread<'_>, Problem>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Json, Problem> {
    let caller = caller?;
    body?;
    let device = subject(KIND, id)?;
    let beat = tidings.publications().beat(&caller, &device).await?;
    let answer = serde_json::to_vec(&answer(&device, &beat)).expect("a value is JSON");
    Ok(Json::ok(answer))
}

/// Returns the answer to a heartbeat.
pub(super) fn answer(device: &SubjectId, beat: &HeartbeatAnswer) -> Value {
    json!({
        "device_id": device,
        "status": beat.status.as_str(),
        "last_seen": timestamp(beat.seen_at),
        "expires_at": timestamp(beat.expires_at),
    })
}
