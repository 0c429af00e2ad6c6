//! A device: its presence and what it reports about itself.

use std::sync::Arc;

use rocket::{Route, State, get, routes};
use serde_json::json;

use super::page::{Html, Pages};
use super::rows::{pretty, rows};
use super::school::{found, view};
use super::uptime::Uptime;
use super::visitor::{Rejection, Visitor};
use crate::http::body::Base;
use crate::kind::device;
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![device_page]
}

#[get("/monitor/schools/<school>/devices/<id>")]
async fn device_page(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let mut guest = visitor.enter(school, tidings).await?;
    let stored = found(tidings, &mut guest, device::KIND, id).await?;
    let mut context = json!({ "device": rows(std::slice::from_ref(&stored)).pop() });
    if let Some(device) = stored.state.device() {
        let uptime = Uptime::read(tidings, &guest.caller, &stored, device).await?;
        context["device"]["uptime"] = uptime.view(id);
        context["info"] = pretty(device.info.get()).into();
    }
    let view = view(&visitor, &guest, &base, tidings, "devices", context).await?;
    Ok(pages.render("device.html", &view))
}
