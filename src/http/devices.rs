//! `POST /api/devices/<id>/heartbeat`: the high-rate call. `subjects.rs` has the other calls for devices.

use std::sync::Arc;
use std::time::Duration;

use rocket::{Route, State, post, routes};
use schemars::JsonSchema;
use serde::Serialize;

use super::body::{Json, Unread};
use super::commands::subject;
use super::contract::Document;
use super::problem::{Kind, Problem};
use crate::app::Caller;
use crate::config::Settings;
use crate::id::SubjectId;
use crate::kind::device::{self, KIND};
use crate::presence::HeartbeatAnswer;
use crate::service::Tidings;
use crate::wire::example::{self, AT_MILLIS};
use crate::wire::timestamp;

pub(super) fn routes() -> Vec<Route> {
    routes![heartbeat]
}

pub(super) fn describe(document: &mut Document) {
    let device = example::subject(&device::DESCRIPTION).expect("events of devices have examples");
    let lease_secs = Settings::default().device_lease_secs;
    let answer = HeartbeatAnswer {
        status: device::Status::Online,
        seen_at: example::time(AT_MILLIS),
        expires_at: example::time(AT_MILLIS) + Duration::from_secs(lease_secs.get().into()),
    };
    let example = HeartbeatResult::new(&device, &answer);
    document.route(routes![heartbeat], &heartbeat, |operation| {
        operation
            .named("devices.heartbeat", device::DESCRIPTION.title, "Device: `heartbeat`")
            .about("A sign of life, which renews the device's lease. The body is not read. Requires the role `worker`.")
            .body("*/*", serde_json::json!({ "examples": [{}] }))
            .answers_json("The device's status and lease.", &example)
            .fails(&[Kind::TooFast, Kind::Unavailable]);
    });
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
    let heartbeat = tidings.publications().heartbeat(&caller, &device).await?;
    Ok(Json::of(&HeartbeatResult::new(&device, &heartbeat)))
}

/// The answer to a heartbeat.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Heartbeat")]
pub(super) struct HeartbeatResult<'a> {
    /// The device.
    device_id: &'a SubjectId,
    /// Its status.
    status: device::Status,
    /// When it was last heard from.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    last_seen: String,
    /// When its lease is over.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    expires_at: String,
}

impl HeartbeatResult<'_> {
    pub(super) fn new<'a>(
        device_id: &'a SubjectId,
        heartbeat: &HeartbeatAnswer,
    ) -> HeartbeatResult<'a> {
        HeartbeatResult {
            device_id,
            status: heartbeat.status,
            last_seen: timestamp(heartbeat.seen_at),
            expires_at: timestamp(heartbeat.expires_at),
        }
    }
}
