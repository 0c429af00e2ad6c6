//! A characteristic: its control charts, and its violations with forms to acknowledge them.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rocket::form::Form;
use rocket::response::Redirect;
use rocket::{FromForm, Route, State, get, post, routes};
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::chart::{Point, control_chart, short};
use super::form::time;
use super::page::{Html, Pages};
use super::rows::rows;
use super::school::{found, publish, view, violations};
use super::visitor::{Rejection, Visitor};
use crate::app::{ViolationAction, ViolationCommand};
use crate::config::{CHARACTERISTIC_VIOLATIONS, CHART_SAMPLES};
use crate::event::Event;
use crate::http::body::Base;
use crate::http::problem::Problem;
use crate::kind::characteristic::dispersion::Dispersion;
use crate::kind::characteristic::nelson::Rule;
use crate::kind::characteristic::{self, Sample};
use crate::log::{PartQuery, Which};
use crate::service::Tidings;

/// How the page describes a gap.
const NOT_MEASURED: &str = "not measured";

pub(super) fn routes() -> Vec<Route> {
    routes![characteristic_page, acknowledge]
}

#[get("/monitor/schools/<school>/characteristics/<id>?<page>")]
async fn characteristic_page(
    school: &str,
    id: &str,
    page: Option<u64>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let mut guest = visitor.enter(school, tidings).await?;
    let stored = found(tidings, &mut guest, characteristic::KIND, id).await?;
    let subject = stored.event.subject.clone();
    let samples = tidings
        .reads()
        .last_events(
            &guest.caller,
            characteristic::KIND,
            subject.clone(),
            Which::Type(&characteristic::SAMPLE),
            CHART_SAMPLES,
        )
        .await?;
    let characteristic = stored.state.characteristic();
    let limits = characteristic.and_then(|characteristic| characteristic.limits.as_ref());
    let dispersion = limits.and_then(|limits| limits.dispersion);
    let now = Utc::now();
    let mut shown = Shown::default();
    for event in &samples {
        shown.add(event, dispersion.as_ref(), now);
    }
    shown.table.reverse();
    let key = |rule: &Rule| json!({ "rule": rule.number(), "name": rule.name() });
    let chart = limits.map(|limits| limits.chart);
    let title = characteristic
        .and_then(|characteristic| characteristic.name.as_deref())
        .unwrap_or(id);
    let query = PartQuery {
        subject: Some(subject),
        before: page.map(|page| page.min(i64::MAX as u64)),
        limit: CHARACTERISTIC_VIOLATIONS,
        ..PartQuery::default()
    };
    let (violations, next) = violations(tidings, &guest, query).await?;
    let context = json!({
        "own": rows(std::slice::from_ref(&stored)).pop(),
        "chart": (!samples.is_empty()).then(|| control_chart("control", title, &shown.points, chart.as_ref())),
        "dispersion": dispersion.map(|dispersion| spread_chart(title, &dispersion, &shown.spreads)),
        "samples": shown.table,
        "broken": shown.broken.iter().map(key).collect::<Vec<_>>(),
        "may_write": !violations.is_empty(),
        "violations": violations,
        "next": next.map(|next| format!("?page={next}")),
        "first": page.is_some().then_some("?"),
    });
    let view = view(&visitor, &guest, &base, tidings, "characteristics", context).await?;
    Ok(pages.render("characteristic.html", &view))
}

/// The samples as the page shows them.
#[derive(Default)]
struct Shown {
    points: Vec<Point>,
    /// The points of the dispersion chart, if there is one.
    spreads: Vec<Point>,
    table: Vec<Value>,
    /// The rules that colour a point.
    broken: BTreeSet<Rule>,
}

impl Shown {
    fn add(&mut self, event: &Event, dispersion: Option<&Dispersion>, now: DateTime<Utc>) {
        let Some(sample) = characteristic::payload_of::<Sample>(&event.draft) else {
            return;
        };
        let (value, in_control, id) = (sample.mean, sample.in_control, &*sample.sample_id);
        let shown = value.map_or(NOT_MEASURED.to_owned(), short);
        let broken: Vec<Rule> = sample.rules.iter().copied().filter_map(rule).collect();
        let rules = broken.iter().map(|rule| rule.name());
        let rules = rules.collect::<Vec<_>>().join(", ");
        // A point takes the colour of a rule of its own chart.
        let (spread, main): (Vec<Rule>, Vec<Rule>) =
            broken.iter().partition(|rule| **rule == Rule::Dispersion);
        if let Some(dispersion) = dispersion {
            let point = spread_point(sample, dispersion, spread.first());
            self.spreads.push(point);
        }
        self.points.push(Point {
            value,
            in_control: in_control || main.is_empty() && !spread.is_empty(),
            rule: main.first().map(|rule| rule.number()),
            title: format!("{id}: {shown} {rules}"),
        });
        self.broken.extend(main.first());
        self.broken.extend(spread.first());
        self.table.push(json!({
            "key": event.seq,
            "id": id,
            "value": shown,
            "zone": sample.zone,
            "in_control": in_control,
            "rules": rules,
            // When the sample was taken, which may be long before it was reported.
            "at": time(sample.timestamp, now),
        }));
    }
}

/// Returns the point of a sample on the dispersion chart, or a gap if it has none there.
fn spread_point(sample: &Sample, dispersion: &Dispersion, rule: Option<&Rule>) -> Point {
    let point = sample
        .dispersion
        .filter(|point| point.chart == dispersion.chart);
    let value = point.map(|point| point.value);
    Point {
        value,
        in_control: rule.is_none(),
        rule: rule.map(|rule| rule.number()),
        title: format!(
            "{}: {}",
            sample.sample_id,
            value.map_or(String::new(), short)
        ),
    }
}

/// Returns the dispersion chart, if any sample has a point on it, and a description of what it shows.
fn spread_chart(title: &str, dispersion: &Dispersion, spreads: &[Point]) -> Value {
    let what = dispersion.chart.points();
    let has_points = spreads.iter().any(|point| point.value.is_some());
    let title = format!("{title}: {what}");
    let chart = || control_chart("dispersion", &title, spreads, Some(&dispersion.limits()));
    json!({ "chart": has_points.then(chart), "points": what })
}

/// Returns a rule by its number.
fn rule(number: u32) -> Option<Rule> {
    Rule::from_number(number.try_into().ok()?)
}

/// The reason for acknowledging a violation.
#[derive(FromForm, JsonSchema)]
#[schemars(example = serde_json::json!({ "reason": "The tool was replaced" }))]
pub(super) struct Reason<'r> {
    /// The reason, for people.
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
) -> Result<Redirect, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    visitor.sent_own_form()?;
    let asked = ViolationCommand {
        id: id.to_owned(),
        action: ViolationAction::Acknowledge,
        user: None,
        reason: form.reason.to_owned(),
    };
    let command = tidings
        .publications()
        .violation_command(guest.caller.school(), guest.caller.name(), asked)
        .await
        .map_err(Problem::from)?;
    let to = format!(
        "{}/monitor/schools/{school}/characteristics/{}",
        base.0,
        command.subject.encoded()
    );
    publish(&visitor, &guest.caller, command, tidings).await?;
    Ok(Redirect::to(to))
}
