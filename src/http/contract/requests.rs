//! The OpenAPI document.

use rocket::Route;
use rocket::http::Method;
use serde_json::{Map, Value, json};

use super::operation::Operation;
use super::parts::Handler;
use super::schemas::{self, Schemas};
use crate::id::{SchoolId, SubjectId};
use crate::kind::job::JobType;
use crate::kind::{self, DESCRIPTIONS, Description};
use crate::wire::example;

/// An OpenAPI document that is being built.
pub(in crate::http) struct Document {
    schemas: Schemas,
    paths: Map<String, Value>,
    tags: Vec<Value>,
}

/// Returns the document of all routes, mounted at `base`.
pub(in crate::http) fn document(base: &str) -> Value {
    let mut document = Document {
        schemas: Schemas::new(),
        paths: Map::new(),
        tags: Vec::new(),
    };
    for description in DESCRIPTIONS {
        let page = format!("{}, their states and their reports.", description.title);
        document.tag(description.title, &page);
    }
    crate::http::describe(&mut document);
    document.finish(base)
}

impl Document {
    /// Adds a group of operations.
    pub(in crate::http) fn tag(&mut self, name: &str, about: &str) {
        self.tags
            .push(json!({ "name": name, "description": about }));
    }

    /// Describes a route and its handler.
    pub(in crate::http) fn route<Parts>(
        &mut self,
        routes: Vec<Route>,
        handler: &impl Handler<Parts>,
        describe: impl FnOnce(&mut Operation<'_>),
    ) {
        let route = &routes[0];
        let path = path_of(route);
        self.at(route.method, &path, handler, &[], describe);
    }

    /// Describes routes whose answers are pages for people. `forms` contains the fields of the forms that they take, by the
    /// name of the route, and `public` the names of the routes that need no credential.
    #[cfg(feature = "monitor")]
    pub(in crate::http) fn pages(
        &mut self,
        tag: &'static str,
        about: &str,
        routes: &[Route],
        forms: &[(&str, Value)],
        public: &[&str],
    ) {
        self.tag(tag, about);
        for route in routes {
            let name = route.name.as_deref().unwrap_or_default().to_owned();
            let path = path_of(route).replace("{_}", "{collection}");
            let form = forms.iter().find(|(form_name, _)| *form_name == name);
            let page = Page {
                takes_form: form.is_some(),
                is_public: public.contains(&name.as_str()),
            };
            self.at(route.method, &path, &page, &[], |operation| {
                let html = || json!({ "type": "string" });
                for field in route
                    .uri
                    .query()
                    .into_iter()
                    .flat_map(|query| query.split('&'))
                {
                    let name = field.trim_matches(['<', '>', '.']);
                    operation.parameter("query", name, false, "", html());
                }
                operation
                    .named(format!("monitor.{name}"), tag, format!("Page: {name}"))
                    .answers("2XX", "The page, or a file for it.", "*/*", html())
                    .answers_empty("3XX", "Another page.")
                    .answers("4XX", "A page that says what is wrong.", "*/*", html())
                    .answers(
                        "5XX",
                        "A page that says that the server failed.",
                        "*/*",
                        html(),
                    );
                if let Some((_, fields)) = form {
                    operation.body("application/x-www-form-urlencoded", fields.clone());
                }
            });
        }
    }

    /// Describes a route for several URLs. Each of `rests` replaces `<x..>` in the path.
    pub(in crate::http) fn rests<Parts>(
        &mut self,
        routes: Vec<Route>,
        handler: &impl Handler<Parts>,
        rests: &[String],
        describe: impl Fn(&str, &mut Operation<'_>),
    ) {
        let route = &routes[0];
        let path = path_of(route);
        let (start, _) = path.rsplit_once("/{").expect("the path has a rest");
        for rest in rests {
            let path = format!("{start}{rest}");
            self.at(route.method, &path, handler, &[], |operation| {
                describe(rest, operation)
            });
        }
    }

    /// Describes a route once for each kind, and if its path has a verb, once for each of the kind's verbs. `describe` is
    /// called with the verb; it is empty for a request that reads.
    pub(in crate::http) fn kinds<Parts>(
        &mut self,
        routes: Vec<Route>,
        handler: &impl Handler<Parts>,
        describe: impl Fn(&'static Description, &str, &mut Operation<'_>),
    ) {
        let route = &routes[0];
        let path = path_of(route);
        for description in DESCRIPTIONS {
            let path = path
                .replace("{_}", description.kind.collection())
                .replace("{id}", &format!("{{{}}}", description.id_field));
            let verbs: &[&str] = match (route.method, path.contains("{verb}")) {
                (Method::Post, true) => description.verbs,
                (Method::Post, false) if description.made_by == "create" => &["create"],
                (Method::Put, _) if description.made_by == "put" => &["put"],
                (Method::Get, _) => &[""],
                (Method::Delete, _) if description.verbs.contains(&"remove") => &["remove"],
                _ => &[],
            };
            for verb in verbs {
                let body = self.schemas.command(description.kind, verb);
                if body.is_none() && route.method != Method::Get {
                    // Another route takes this verb.
                    continue;
                }
                // `DELETE` has no body: the URL names what to remove.
                let body = body.filter(|_| route.method != Method::Delete);
                let path = path.replace("{verb}", verb);
                self.at(
                    route.method,
                    &path,
                    handler,
                    description.statuses,
                    |operation| {
                        if let Some(schema) = body {
                            let name = format!("{}.{verb}", description.kind.collection());
                            let summary = format!("{}: `{verb}`", description.noun);
                            operation.named(name, description.title, summary);
                            if let Some(about) = schema["description"].as_str() {
                                operation.about(about);
                            }
                            operation.body(super::JSON, schema);
                        }
                        describe(description, verb, operation);
                    },
                );
            }
        }
    }

    fn at<Parts>(
        &mut self,
        method: Method,
        path: &str,
        handler: &impl Handler<Parts>,
        statuses: &[&'static str],
        describe: impl FnOnce(&mut Operation<'_>),
    ) {
        let mut operation = Operation::new(&mut self.schemas);
        let all: Vec<&str> = match statuses {
            [] => kind::DESCRIPTIONS
                .iter()
                .flat_map(|description| description.statuses)
                .copied()
                .collect(),
            statuses => statuses.to_vec(),
        };
        operation.of_statuses(all);
        for name in path
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next())
        {
            let schema = match name {
                "school" | "school_id" => schema_of::<SchoolId>(),
                // The id of a schedule is the type of its jobs.
                "schedule_id" => schema_of::<JobType>(),
                _ => schema_of::<SubjectId>(),
            };
            operation.parameter("path", name, true, "", schema);
            let of_kind = DESCRIPTIONS
                .iter()
                .find(|description| description.id_field == name);
            if let Some(id) = of_kind.and_then(|description| example::subject(description)) {
                operation.with_path_example(name, id.as_str());
            } else if ["school", "school_id"].contains(&name) {
                operation.with_path_example(name, example::school().get());
            }
        }
        handler.describe(&mut operation);
        describe(&mut operation);
        let operation = operation.finish();
        let method = method.as_str().to_ascii_lowercase();
        let path = self.paths.entry(path).or_insert_with(|| json!({}));
        assert!(path.get(&method).is_none(), "a route is described once");
        path[method] = operation;
    }

    fn finish(self, base: &str) -> Value {
        let mut document = head(base);
        document["tags"] = self.tags.into();
        document["paths"] = self.paths.into();
        document["components"] = json!({
            "securitySchemes": security_schemes(),
            "examples": self.schemas.examples(),
            "schemas": self.schemas.finish(),
        });
        schemas::tidy(&mut document);
        document
    }
}

/// Returns a document without operations.
pub(super) fn head(base: &str) -> Value {
    let server = if base.is_empty() { "/" } else { base };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidings",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Live progress and status",
            "description": "Workers report over HTTP. Clients follow over Server-Sent Events, WebSocket or long poll; `/asyncapi.json` describes the messages.",
            "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": server }],
        "tags": [],
        "paths": {},
        "components": {},
    })
}

/// The handler of a page. Its parameters are not described, because programs do not call it.
#[cfg(feature = "monitor")]
struct Page {
    takes_form: bool,
    is_public: bool,
}

#[cfg(feature = "monitor")]
impl Handler<()> for Page {
    fn describe(&self, operation: &mut Operation<'_>) {
        if !self.is_public {
            // Pages accept no token in the query: it would be in the history of the browser.
            operation.secured(&["bearer", "cookie"]);
        }
        if self.takes_form {
            operation.takes_body();
        }
    }
}

fn schema_of<T: schemars::JsonSchema>() -> Value {
    T::json_schema(&mut schemars::SchemaGenerator::default()).to_value()
}

/// Returns the path of a route in the form of the document. An `<id>` after a collection is named like the id in the
/// collection's messages: `{job_id}`.
fn path_of(route: &Route) -> String {
    let parts: Vec<&str> = route.uri.path().split('/').collect();
    let mut path: Vec<String> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let collection = index.checked_sub(1).map_or("", |before| parts[before]);
        let id = match (*part, kind::known_kind(collection)) {
            ("<id>", Some(kind)) => Some(kind::description(kind).id_field),
            ("<id>", None) if collection == "violations" => Some("violation_id"),
            _ => None,
        };
        path.push(match id {
            Some(id) => format!("{{{id}}}"),
            None => part.replace('<', "{").replace('>', "}"),
        });
    }
    path.join("/")
}

fn security_schemes() -> Value {
    let cookie = crate::config::Settings::default().cookie_name;
    json!({
        "bearer": {
            "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
            "description": "A token in the `Authorization` header.",
        },
        "token": {
            "type": "apiKey", "in": "query", "name": "token",
            "description": "A token, for clients that cannot send a header.",
        },
        "cookie": {
            "type": "apiKey", "in": "cookie", "name": cookie,
            "description": "A token in a cookie, whose name is a setting. Pages of other origins cannot write with it.",
        },
        "ticket": {
            "type": "apiKey", "in": "query", "name": "ticket",
            "description": "A ticket of `POST /api/tickets`, for streams only.",
        },
        "subprotocol": {
            "type": "apiKey", "in": "header", "name": "Sec-WebSocket-Protocol",
            "description": "`bearer.<token>`, for WebSockets.",
        },
    })
}

/// Returns the end of the URL of each scope, after `/events` or `/badge`: `/jobs`, `/jobs/{job_id}`, …
pub(in crate::http) fn scopes() -> Vec<String> {
    let mut scopes = vec![String::new(), "/schools/{school_id}".to_owned()];
    for kind in kind::KINDS {
        let (collection, id) = (kind.collection(), kind::description(*kind).id_field);
        scopes.push(format!("/{collection}"));
        scopes.push(format!("/{collection}/{{{id}}}"));
    }
    scopes
}
