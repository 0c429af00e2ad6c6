//! The list of each kind's subjects. Filters, search text and page are in the URL.

use std::sync::Arc;

use chrono::Utc;
use rocket::{Route, State, get, routes};
use serde_json::json;

use super::form::{count, optional_time};
use super::page::{Html, Pages};
use super::rows::{rows, table_rows};
use super::school::{view, violations};
use super::uptime::Uptime;
use super::visitor::{Rejection, Visitor};
use crate::config::PAGE_DEFAULT;
use crate::http::body::Base;
use crate::http::callers::Connection;
use crate::http::listing::{FormQuery, STALLED_STATUS};
use crate::http::methods::Collection;
use crate::http::problem::Problem;
use crate::kind::{self, Description, characteristic};
use crate::log::{ListPage, ListQuery, Order, PartQuery, Stalled};
use crate::service::Tidings;

pub(super) fn routes() -> Vec<Route> {
    routes![list, open_violations]
}

/// The violations that are not acknowledged.
#[get("/monitor/schools/<school>/violations?<page>")]
async fn open_violations(
    school: &str,
    page: Option<u64>,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    let query = PartQuery {
        open: Some(true),
        before: page.map(|page| page.min(i64::MAX as u64)),
        limit: PAGE_DEFAULT,
        ..PartQuery::default()
    };
    let (rows, next) = violations(tidings, &guest, query).await?;
    let context = json!({
        "may_write": !rows.is_empty(),
        "violations": rows,
        "next": next.map(|next| format!("?page={next}")),
        "first": page.is_some().then_some("?"),
    });
    let tab = characteristic::KIND.collection();
    let view = view(&visitor, &guest, &base, tidings, tab, context).await?;
    Ok(pages.render("violations.html", &view))
}

#[get("/monitor/schools/<school>/<_>", rank = 10)]
#[expect(clippy::too_many_arguments, reason = "each is a part of the request")]
async fn list(
    collection: Collection,
    school: &str,
    asked: Result<FormQuery, Problem>,
    connection: Connection,
    visitor: Visitor,
    base: Base,
    pages: &State<Pages>,
    tidings: &State<Arc<Tidings>>,
) -> Result<Html, Rejection> {
    let guest = visitor.enter(school, tidings).await?;
    let (Collection(kind), FormQuery(mut query)) = (collection, asked?);
    query.limit = PAGE_DEFAULT;
    let read = tidings.reads().subjects(&guest.caller, kind, query.clone());
    let read = async { Ok(read.await?) };
    let page: ListPage = connection.while_connected::<_, Rejection>(read).await?;
    let status =
        |name: &&'static str| json!({"name": name, "is_on": query.statuses.contains(name)});
    let description = kind::description(kind);
    let statuses = description.statuses.iter();
    let wants_stalled = query.stalled == Stalled::Apart { wanted: true };
    let is_on = wants_stalled
        || query.text.is_some()
        || !(query.statuses.is_empty() && query.categories.is_empty());
    let has_own_page = description.columns.is_empty();
    let mut rows = match has_own_page {
        true => rows(&page.subjects),
        false => table_rows(&page.subjects),
    };
    for (row, stored) in rows.iter_mut().zip(&page.subjects) {
        if let Some(device) = stored.state.device() {
            let uptime = Uptime::read(tidings, &guest.caller, stored, device).await?;
            row["uptime"] = uptime.view(stored.event.subject.as_str());
        }
    }
    let context = json!({
        "kind": {
            "title": description.title,
            "one": description.noun.to_lowercase(),
            "columns": description.columns,
            "made_by": made_by(description),
        },
        "rows": rows,
        "next": page.next.map(|next| address(&query, Some(next))),
        "first": query.beyond.is_some().then(|| address(&query, None)),
        "searched": page.searched.filter(|searched| !searched.is_complete).map(|searched| json!({
            "rows": count(searched.rows),
            "until": optional_time(searched.until, Utc::now()),
        })),
        "filter": {
            "text": query.text,
            "job_type": query.categories.first(),
            "stalled": wants_stalled,
            "sort": sort_name(query.order),
            "is_on": is_on,
            "statuses": statuses.map(status).collect::<Vec<_>>(),
        },
    });
    let view = view(&visitor, &guest, &base, tidings, kind.collection(), context).await?;
    Ok(match has_own_page {
        true => pages.render(&format!("{}.html", kind.collection()), &view),
        false => pages.render("subjects.html", &view),
    })
}

/// Returns the call that creates a subject of the kind.
fn made_by(description: &Description) -> String {
    let collection = description.kind.collection();
    match description.made_by {
        "create" => format!("POST /api/{collection}"),
        _ => format!("PUT /api/{collection}/<id>"),
    }
}

/// Returns the URL of another page of the same list.
fn address(query: &ListQuery, page: Option<u64>) -> String {
    let mut fields = Vec::new();
    fields.extend(
        query
            .statuses
            .iter()
            .map(|status| ("status", (*status).to_owned())),
    );
    fields.extend(
        query
            .categories
            .iter()
            .map(|category| ("job_type", category.clone())),
    );
    fields.extend(query.text.iter().map(|text| ("q", text.clone())));
    let wants_stalled = query.stalled == Stalled::Apart { wanted: true };
    fields.extend(wants_stalled.then(|| ("status", STALLED_STATUS.to_owned())));
    if query.order != Order::default() {
        fields.push(("sort", sort_name(query.order).to_owned()));
    }
    fields.extend(page.map(|page| ("page", page.to_string())));
    let field = |(name, value): &(&str, String)| {
        let value = rocket::http::RawStr::new(value).percent_encode();
        format!("{name}={value}")
    };
    let fields: Vec<String> = fields.iter().map(field).collect();
    format!("?{}", fields.join("&"))
}

fn sort_name(order: Order) -> &'static str {
    match order {
        Order::Newest => "newest",
        Order::Oldest => "oldest",
    }
}
