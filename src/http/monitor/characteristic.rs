//! A characteristic: its control chart, and its violations to be acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rocket::form::Form;
use rocket::response::Redirect;
use rocket::{FromForm, Route, State, get, post, routes};
use serde_json::{Value, json};

use super::chart::{Point, control_chart, short};
use super::form::time;
use super::page::{Html, Pages};
use super::rows::rows;
use super::school::{found, may_act, view, violations};
use super::visitor::{Refusal, Visitor};
use crate::config::{CHART_SAMPLES, PAGE_DEFAULT};
use crate::http::body::Base;
use crate::http::problem::Problem;
use crate::http::violations::address;
use crate::kind::Command;
use crate::kind::characteristic;
use crate::kind::characteristic::nelson::Rule;
use crate::service::Tidings;
use crate::store::{Envelope, ViolationQuery, Which};

/// What the page says of a gap.
const NOT_MEASURED: &str = "not measured";

pub(super) fn routes() -> Vec<Route> {
    routes![characteristic_page, acknowledge]
}

#[get("/monitor/schools/<school>/characteristics/<id>")]
async fn characteristic_page(
    school: &str,
    id: &str,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Refusal> {
    let mut guest = visitor.enter(school, tidings).await?;
    let stored = found(tidings, &mut guest, characteristic::KIND, id).await?;
    let subject = stored.event.subject.clone();
    let now = Utc::now();
    let samples = tidings
        .store()
        .last_events(
            guest.school,
            characteristic::KIND,
            subject.clone(),
            Which::Type(&characteristic::SAMPLE),
            CHART_SAMPLES,
        )
        .await?;
    let mut points = Vec::new();
    let mut table = Vec::new();
    // The rules that colour a point.
    let mut seen = BTreeSet::new();
    for event in &samples {
        let told: Value = serde_json::from_str(&event.draft.fields).unwrap_or_default();
        let payload = &told["payload"];
        let value = payload["mean"].as_f64();
        let shown = value.map_or(NOT_MEASURED.to_owned(), short);
        let in_control = payload["in_control"] != false;
        let numbers = payload["rules"].as_array().into_iter().flatten();
        let broken: Vec<Rule> = numbers.filter_map(rule).collect();
        let rules = broken.iter().map(|rule| rule.name());
        let rules = rules.collect::<Vec<_>>().join(", ");
        let sample = payload["sample_id"].as_str().unwrap_or_default();
        points.push(Point {
            value,
            in_control,
            rule: broken.first().map(|rule| rule.number()),
            title: format!("{sample}: {shown} {rules}"),
        });
        seen.extend(broken.first());
        table.push(json!({
            "key": event.seq,
            "id": sample,
            "value": shown,
            "zone": payload["zone"],
            "in_control": in_control,
            "rules": rules,
            "at": time(sampled_at(payload).unwrap_or(event.at), now),
        }));
    }
    table.reverse();
    let key = |rule: &Rule| json!({ "rule": rule.number(), "name": rule.name() });
    let own = stored.state.characteristic();
    let chart = own.and_then(|own| own.limits.as_ref());
    let chart = chart.map(|limits| limits.chart);
    let title = own.and_then(|own| own.name.as_deref()).unwrap_or(id);
    let query = ViolationQuery {
        characteristic_id: Some(subject),
        limit: PAGE_DEFAULT,
        ..ViolationQuery::default()
    };
    let own = json!({
        "own": rows(std::slice::from_ref(&stored)).pop(),
        "chart": (!points.is_empty()).then(|| control_chart(title, &points, chart.as_ref())),
        "samples": table,
        "broken": seen.iter().map(key).collect::<Vec<_>>(),
        "violations": violations(tidings, &guest, query).await?,
    });
    let view = view(&visitor, &guest, &base, tidings, "characteristics", own).await?;
    Ok(pages.render("characteristic.html", &view))
}

/// When a sample was taken, which may be long before it was reported.
fn sampled_at(payload: &Value) -> Option<DateTime<Utc>> {
    payload["timestamp"].as_str()?.parse().ok()
}

/// A rule by its number.
fn rule(number: &Value) -> Option<Rule> {
    Rule::from_number(number.as_u64()?.try_into().ok()?)
}

/// Why a violation is well, or what is done about it.
#[derive(FromForm)]
struct Reason<'r> {
    reason: &'r str,
}

#[post("/monitor/schools/<school>/violations/<id>/ack", data = "<form>")]
async fn acknowledge(
    school: &str,
    id: &str,
    form: Form<Reason<'_>>,
    visitor: Visitor,
    base: Base,
    tidings: &State<Arc<Tidings>>,
) -> Result<Redirect, Refusal> {
    let guest = visitor.enter(school, tidings).await?;
    let violation = address(tidings, guest.school, id).await?;
    let subject = violation.characteristic_id;
    may_act(tidings, &visitor, &guest, characteristic::KIND, &subject)?;
    let command = characteristic::Command::Acknowledge(characteristic::Acknowledge {
        number: violation.number,
        user: guest.access.subject.as_str().into(),
        reason: form.reason.to_owned(),
    });
    let to = format!(
        "{}/monitor/schools/{school}/characteristics/{}",
        base.0,
        subject.encoded()
    );
    let envelope = Envelope::new(subject, Command::Characteristic(command));
    let published = tidings.publisher().publish(guest.school, envelope).await;
    published.map_err(Problem::from)?;
    Ok(Redirect::to(to))
}
