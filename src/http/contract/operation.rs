//! An operation of the HTTP API: a method at a URL, its parameters, its bodies and its answers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::examples;
use super::schemas::Schemas;
use crate::http::parameters::{Parameter, REPETITIONS_MAX};
use crate::http::problem::{Kind, Problem};

/// The media type of problems.
const PROBLEM: &str = "application/problem+json";
/// The media type of most bodies.
pub(in crate::http) const JSON: &str = "application/json";

/// An operation that is being described.
pub(in crate::http) struct Operation<'a> {
    pub(in crate::http) schemas: &'a mut Schemas,
    /// A unique name, such as `jobs.create`.
    id: String,
    tag: String,
    summary: String,
    about: String,
    /// The statuses of the subjects that it is about.
    statuses: Vec<&'static str>,
    parameters: Vec<Value>,
    body: Option<Value>,
    takes_body: bool,
    answers: BTreeMap<String, Value>,
    problems: Vec<Kind>,
    security: Vec<&'static str>,
}

impl<'a> Operation<'a> {
    pub(super) fn new(schemas: &'a mut Schemas) -> Operation<'a> {
        Operation {
            schemas,
            id: String::new(),
            tag: String::new(),
            summary: String::new(),
            about: String::new(),
            statuses: Vec::new(),
            parameters: Vec::new(),
            body: None,
            takes_body: false,
            answers: BTreeMap::new(),
            problems: Vec::new(),
            security: Vec::new(),
        }
    }

    /// Sets the id, the tag and the summary.
    pub(in crate::http) fn named(
        &mut self,
        id: impl Into<String>,
        tag: impl Into<String>,
        summary: impl Into<String>,
    ) -> &mut Self {
        (self.id, self.tag, self.summary) = (id.into(), tag.into(), summary.into());
        self
    }

    /// Adds sentences to the description.
    pub(in crate::http) fn about(&mut self, about: impl AsRef<str>) -> &mut Self {
        if !self.about.is_empty() {
            self.about.push(' ');
        }
        self.about.push_str(about.as_ref());
        self
    }

    /// Sets the statuses of the subjects that it is about.
    pub(super) fn of_statuses(&mut self, statuses: Vec<&'static str>) {
        for status in statuses {
            if !self.statuses.contains(&status) {
                self.statuses.push(status);
            }
        }
    }

    /// Accepts credentials by these security schemes.
    pub(super) fn secured(&mut self, schemes: &[&'static str]) {
        self.security.extend(schemes);
    }

    /// Adds problems that the operation can answer with.
    pub(in crate::http) fn fails(&mut self, kinds: &[Kind]) -> &mut Self {
        for kind in kinds {
            if !self.problems.contains(kind) {
                self.problems.push(*kind);
            }
        }
        self
    }

    /// Adds query parameters.
    pub(in crate::http) fn queries<'p>(
        &mut self,
        parameters: impl IntoIterator<Item = &'p Parameter>,
    ) -> &mut Self {
        // The token in a query is a security scheme.
        for parameter in parameters
            .into_iter()
            .filter(|parameter| parameter.name != "token")
        {
            let mut schema = parameter.values.schema(&self.statuses);
            if parameter.is_repeatable {
                schema = json!({ "type": "array", "items": schema, "maxItems": REPETITIONS_MAX });
                if parameter.is_required {
                    schema["minItems"] = 1.into();
                }
            }
            self.parameter(
                "query",
                parameter.name,
                parameter.is_required,
                parameter.about,
                schema,
            );
        }
        self
    }

    /// Adds a parameter at any place, unless there already is one with this name at this place.
    pub(in crate::http) fn parameter(
        &mut self,
        place: &str,
        name: &str,
        required: bool,
        about: &str,
        schema: Value,
    ) {
        let is_known = |parameter: &Value| parameter["in"] == place && parameter["name"] == name;
        if self.parameters.iter().any(is_known) {
            return;
        }
        let mut parameter = json!({ "in": place, "name": name, "schema": schema });
        if required {
            parameter["required"] = true.into();
        }
        if !about.is_empty() {
            parameter["description"] = about.into();
        }
        self.parameters.push(parameter);
    }

    /// Sets the example of a parameter of the path, if the path has it.
    pub(in crate::http) fn with_path_example(
        &mut self,
        name: &str,
        example: impl Into<Value>,
    ) -> &mut Self {
        let is_it = |parameter: &&mut Value| parameter["in"] == "path" && parameter["name"] == name;
        if let Some(parameter) = self.parameters.iter_mut().find(is_it) {
            parameter["example"] = example.into();
        }
        self
    }

    /// Records that the handler reads a body.
    pub(super) fn takes_body(&mut self) {
        self.takes_body = true;
    }

    /// Sets the schema of the body. An empty body counts as an empty object.
    pub(in crate::http) fn body(&mut self, media: &str, schema: Value) -> &mut Self {
        let requires = |name: &str| schema.get(name).is_some();
        let required = requires("required") || requires("anyOf");
        let mut body = json!({ "content": { media: { "schema": schema } } });
        if required {
            body["required"] = true.into();
        }
        self.body = Some(body);
        self
    }

    /// Adds an answer whose body has this schema.
    pub(in crate::http) fn answers(
        &mut self,
        status: impl ToString,
        about: &str,
        media: &str,
        schema: Value,
    ) -> &mut Self {
        let answer = self
            .answers
            .entry(status.to_string())
            .or_insert_with(|| json!({ "description": about, "content": {} }));
        answer["content"][media] = json!({ "schema": schema });
        self
    }

    /// Adds an answer that is JSON of this type, with an example.
    pub(in crate::http) fn answers_json<T: JsonSchema + Serialize>(
        &mut self,
        about: &str,
        example: &T,
    ) -> &mut Self {
        let schema = self.schemas.answer::<T>();
        self.answers(200, about, JSON, schema);
        self.with_example(200, JSON, Some(examples::value(example)))
    }

    /// Sets the example of an answer that was added before, if there is one.
    pub(in crate::http) fn with_example(
        &mut self,
        status: u16,
        media: &str,
        example: Option<Value>,
    ) -> &mut Self {
        let answer = self.answers.get_mut(&status.to_string());
        if let (Some(answer), Some(example)) = (answer, example) {
            answer["content"][media]["example"] = example;
        }
        self
    }

    /// Adds an answer without a body.
    pub(in crate::http) fn answers_empty(
        &mut self,
        status: impl ToString,
        about: &str,
    ) -> &mut Self {
        self.answers
            .insert(status.to_string(), json!({ "description": about }));
        self
    }

    /// Adds a header to an answer that was added before.
    pub(in crate::http) fn with_header(
        &mut self,
        status: u16,
        name: &str,
        about: &str,
        schema: Value,
    ) -> &mut Self {
        if let Some(answer) = self.answers.get_mut(&status.to_string()) {
            answer["headers"][name] = json!({ "description": about, "schema": schema });
        }
        self
    }

    /// Returns the operation in the form of the document.
    pub(super) fn finish(mut self) -> Value {
        assert!(
            self.takes_body || self.body.is_none(),
            "{}: no part of the handler reads a body",
            self.id
        );
        self.add_problems();
        let mut operation = Map::new();
        operation.insert("operationId".into(), self.id.into());
        operation.insert("tags".into(), json!([self.tag]));
        operation.insert("summary".into(), self.summary.into());
        if !self.about.is_empty() {
            operation.insert("description".into(), self.about.into());
        }
        if !self.parameters.is_empty() {
            operation.insert("parameters".into(), self.parameters.into());
        }
        if let Some(body) = self.body {
            operation.insert("requestBody".into(), body);
        }
        let security = self.security.iter().map(|name| json!({ *name: [] }));
        operation.insert("security".into(), security.collect());
        let answers: Map<String, Value> = self.answers.into_iter().collect();
        operation.insert("responses".into(), answers.into());
        operation.into()
    }

    /// Adds an answer for each status that its problems have.
    fn add_problems(&mut self) {
        let mut by_status: BTreeMap<u16, Vec<(Kind, Problem)>> = BTreeMap::new();
        for kind in &self.problems {
            let problem = Problem::example(*kind);
            let status = problem.status();
            by_status.entry(status).or_default().push((*kind, problem));
        }
        let problem = self.schemas.answer::<Problem>();
        for (status, problems) in by_status {
            let titles: Vec<_> = problems
                .iter()
                .map(|(_, example)| example.title())
                .collect();
            let codes: Vec<_> = problems.iter().map(|(_, example)| example.code()).collect();
            let examples: Map<String, Value> = problems
                .iter()
                .map(|(kind, example)| (example.code().to_owned(), self.schemas.problem(*kind)))
                .collect();
            let mut answer = json!({
                "description": format!("{}.", titles.join("; ")),
                "content": { PROBLEM: {
                    "schema": { "allOf": [
                        problem,
                        { "properties": { "status": { "const": status }, "code": { "enum": codes } } },
                    ] },
                    "examples": examples,
                } },
            });
            for (name, _) in problems[0].1.headers() {
                answer["headers"][name] = json!({ "schema": { "type": "string" } });
            }
            self.answers.insert(status.to_string(), answer);
        }
    }
}
