//! `docs/reference-http.md` and `docs/reference-messages.md` are rendered from `/openapi.json` and `/asyncapi.json`.
//! `TIDINGS_WRITE_REFERENCES=1` writes them.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;
use tidings::http::problem::PROBLEMS;
use tidings::wire::Close;

/// Fails if a page is not what is rendered now.
fn keep(page: &str, rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(page);
    if std::env::var_os("TIDINGS_WRITE_REFERENCES").is_some() {
        std::fs::write(&path, rendered).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = kept
        .lines()
        .zip(rendered.lines())
        .find(|(kept, rendered)| kept != rendered);
    assert!(
        kept == rendered,
        "docs/{page} is not what the code describes: {differs:?}. TIDINGS_WRITE_REFERENCES=1 writes it"
    );
}

/// Returns a text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

/// Follows a reference inside the document.
fn resolved<'a>(schema: &'a Value, document: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(&path[1..]).unwrap(),
        None => schema,
    }
}

/// Names the values that a schema allows.
fn values(schema: &Value, document: &Value) -> String {
    if let Some(path) = schema["$ref"].as_str() {
        let shown = resolved(schema, document);
        return match shown.get("enum") {
            Some(_) => values(shown, document),
            None => format!("`{}`", path.rsplit('/').next().unwrap()),
        };
    }
    if let Some(constant) = schema.get("const") {
        return format!("`{constant}`");
    }
    if let Some(names) = schema["enum"].as_array() {
        let names: Vec<_> = names
            .iter()
            .map(|name| format!("`{}`", name.as_str().unwrap_or("null")))
            .collect();
        return names.join(", ");
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(each) = schema[several].as_array() {
            let each: Vec<_> = each
                .iter()
                .map(|alternative| values(alternative, document))
                .collect();
            return each.join(" or ");
        }
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => several
            .iter()
            .filter_map(|kind| kind.as_str().map(str::to_owned))
            .collect(),
        _ => vec!["any JSON".to_owned()],
    };
    let mut shown = types.join(" or ");
    if schema["format"] == "date-time" {
        shown = shown.replace("string", "time");
    }
    if types.contains(&"array".to_owned()) && schema.get("items").is_some() {
        let _ = write!(shown, " of {}", values(&schema["items"], document));
    }
    let bound = |name: &str| schema[name].as_f64().filter(|bound| bound.abs() < 1e9);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(max)) => drop(write!(shown, ", {least} to {max}")),
        (Some(least), None) if least > 0.0 => drop(write!(shown, ", {least} or more")),
        _ => {}
    }
    shown
}

/// Lists the fields of an object, and those of the objects in it.
fn fields(page: &mut String, schema: &Value, document: &Value) {
    page.push_str("| field | value | meaning |\n| --- | --- | --- |\n");
    rows(page, "", schema, document);
    page.push('\n');
}

fn rows(page: &mut String, prefix: &str, schema: &Value, document: &Value) {
    let required: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let presence = if required.iter().any(|required_name| *required_name == name) {
            ""
        } else {
            ", optional"
        };
        let property = if property["description"].is_null() {
            resolved(property, document)
        } else {
            property
        };
        let meaning = property["description"].as_str().unwrap_or_default();
        let value = values(property, document);
        let _ = writeln!(
            page,
            "| `{prefix}{name}` | {}{presence} | {} |",
            cell(&value),
            cell(meaning)
        );
        let inner = resolved(property, document);
        if inner["properties"].is_object() {
            rows(page, &format!("{prefix}{name}."), inner, document);
        }
    }
}

fn operation(page: &mut String, method: &str, path: &str, operation: &Value, document: &Value) {
    let _ = writeln!(page, "### `{} {path}`\n", method.to_uppercase());
    let summary = operation["summary"].as_str().unwrap();
    let about = operation["description"].as_str().unwrap_or_default();
    let _ = writeln!(page, "{summary}. {about}\n");
    let parameters: Vec<_> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let shown: Vec<_> = parameters
        .iter()
        .filter(|parameter| parameter["in"] != "path")
        .collect();
    if !shown.is_empty() {
        page.push_str("| parameter | value | meaning |\n| --- | --- | --- |\n");
        for parameter in shown {
            let place = if parameter["in"] == "header" {
                " (header)"
            } else {
                ""
            };
            let name = parameter["name"].as_str().unwrap();
            let meaning = parameter["description"].as_str().unwrap_or_default();
            let mut value = values(&parameter["schema"], document);
            if let Some(usual) = parameter["schema"].get("default") {
                let _ = write!(value, ", default {usual}");
            }
            let _ = writeln!(
                page,
                "| `{name}`{place} | {} | {} |",
                cell(&value),
                cell(meaning)
            );
        }
        page.push('\n');
    }
    for (media, body) in operation["requestBody"]["content"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let schema = &body["schema"];
        if schema["properties"].is_object() {
            page.push_str("The body:\n\n");
            fields(page, schema, document);
        } else {
            let _ = writeln!(page, "The body is `{media}`.\n");
        }
        if let Some(example) = schema["examples"].as_array().and_then(|all| all.first()) {
            let text = example
                .as_str()
                .map_or_else(|| format!("{example}\n"), str::to_owned);
            let language = if media == "text/plain" {
                "text"
            } else {
                "json"
            };
            let _ = writeln!(page, "```{language}\n{text}```\n");
        }
    }
    page.push_str("| status | answer |\n| --- | --- |\n");
    for (status, answer) in operation["responses"].as_object().unwrap() {
        let about = answer["description"].as_str().unwrap();
        let problems = &answer["content"]["application/problem+json"]["examples"];
        let codes: Vec<_> = problems
            .as_object()
            .into_iter()
            .flatten()
            .map(|(code, _)| format!("`{code}`"))
            .collect();
        let shown = match codes.is_empty() {
            true => cell(about),
            false => codes.join(", "),
        };
        let _ = writeln!(page, "| {status} | {shown} |");
    }
    page.push('\n');
}

#[test]
fn the_reference_of_the_http_api_is_what_the_code_describes() {
    let document = tidings::http::openapi("");
    let mut page = "# Reference of the HTTP API\n\nThis page is rendered from `/openapi.json`, which every server answers. \
        [HTTP API](http-api.md) explains what the calls have in common.\n"
        .to_owned();
    for tag in document["tags"].as_array().unwrap() {
        let name = tag["name"].as_str().unwrap();
        let _ = writeln!(
            page,
            "\n## {name}\n\n{}\n",
            tag["description"].as_str().unwrap()
        );
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, described) in methods.as_object().unwrap() {
                if described["tags"][0] == name && name != "Monitor" {
                    operation(&mut page, method, path, described, &document);
                }
            }
        }
        if name == "Monitor" {
            page.push_str("[Monitor](monitor.md) describes the pages.\n");
        }
    }
    page.push_str("\n## Problems\n\n| status | name | when |\n| --- | --- | --- |\n");
    let mut problems = PROBLEMS.to_vec();
    problems.sort_by_key(|(status, ..)| *status);
    for (status, uri, _, when) in problems {
        let name = uri.rsplit(':').next().unwrap();
        let _ = writeln!(page, "| {status} | `{name}` | {} |", cell(when));
    }
    keep("reference-http.md", &format!("{}\n", page.trim_end()));
}

#[test]
fn the_reference_of_the_messages_is_what_the_code_describes() {
    let document = tidings::http::asyncapi("");
    let mut page = "# Reference of the messages\n\nThis page is rendered from `/asyncapi.json`, which every server answers. \
        [Streams](streams.md) explains when each message is sent, and [Kinds](kinds.md) what the states mean.\n\n\
        Ids are strings, or numbers where `id_type` says so.\n"
        .to_owned();
    for (title, of_clients) in [
        ("From the server", false),
        ("From the client of a WebSocket", true),
    ] {
        let _ = writeln!(page, "\n## {title}\n");
        for (name, message) in document["components"]["messages"].as_object().unwrap() {
            let payload = &message["payload"];
            if name.starts_with("Client") != of_clients {
                continue;
            }
            let _ = writeln!(page, "### `{name}`\n");
            match payload["description"].as_str() {
                Some(about) => {
                    let _ = writeln!(page, "{about}\n");
                    fields(&mut page, payload, &document);
                }
                None => drop(writeln!(
                    page,
                    "The bare text {}.\n",
                    values(payload, &document)
                )),
            }
            if payload["type"] != "string" {
                let example = &message["examples"][0]["payload"];
                let example = serde_json::to_string_pretty(example).unwrap();
                let _ = writeln!(page, "```json\n{example}\n```\n");
            }
        }
    }
    page.push_str(
        "## Close codes\n\nBefore it closes a stream, the server sends `closing` with the code, and a WebSocket is closed with it. \
        After the codes with a time, `reconnect` is false if the token or ticket will have expired by then: a client that can get a fresh one \
        reconnects with it.\n\n\
        | code | when | reconnect |\n| --- | --- | --- |\n",
    );
    for close in Close::ALL {
        let reconnect = match (close, close.retry_ms()) {
            (Close::TokenExpired, _) => "at once, with a fresh token".to_owned(),
            (Close::ShuttingDown { .. }, _) => {
                "after `retry_ms`, which spreads the clients over time".to_owned()
            }
            (Close::Rejected | Close::RejectedUnauthorized, _) => "with another token".to_owned(),
            (_, Some(millis)) => format!("after {} s", millis / 1_000),
            (_, None) => "no".to_owned(),
        };
        let (code, when) = (close.code(), close.when());
        let _ = writeln!(page, "| {code} | {} | {reconnect} |", cell(when));
    }
    page.push_str("\n## Channels\n\n| channel | sent | accepted |\n| --- | --- | --- |\n");
    for (name, channel) in document["channels"].as_object().unwrap() {
        let names = |action: &str| {
            let operation = &document["operations"][format!("{name}.{action}")];
            let each = operation["messages"].as_array().unwrap().iter();
            let names: Vec<_> = each
                .map(|message| {
                    message["$ref"]
                        .as_str()
                        .unwrap()
                        .rsplit('/')
                        .next()
                        .unwrap()
                })
                .collect();
            names.join(", ")
        };
        let address = channel["address"].as_str().unwrap();
        let _ = writeln!(
            page,
            "| `{address}` | {} | {} |",
            names("send"),
            names("receive")
        );
    }
    keep("reference-messages.md", &page);
}
