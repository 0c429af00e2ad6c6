//! Data of another school is reported as not found: every endpoint, for every kind, answers as for what does not exist, and
//! changes nothing. What a token limited to some channels, a ticket or a cookie do not open stays shut on every way in, too.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tidings::auth::Role;
use tidings::kind::{KINDS, description};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::listener::{receive, rejected, send, socket, socket_url, until_closed};
use crate::support::*;

/// One of each kind, all named `theirs`, in school 1.
async fn things(server: &Server) {
    server.running_job("theirs").await;
    server.put("/api/devices/theirs", json!({})).await;
    let session = json!({"session_id": "theirs", "device_id": "theirs", "student_id": "s"});
    server.report("/api/enrollments", session).await;
    server.put("/api/characteristics/theirs", json!({})).await;
    let rule = json!({"period_secs": 600});
    server.put("/api/schedules/theirs", rule).await;
    let violation = json!({"rule_id": 99, "rule_name": "Smells odd"});
    server
        .report("/api/characteristics/theirs/violations", violation)
        .await;
}

/// The body that a verb needs.
fn body(collection: &str, verb: &str) -> Value {
    match (collection, verb) {
        ("jobs", "fail") => json!({"error": {"code": "x", "message": "y"}}),
        ("jobs", "progress") => json!({"progress": 50}),
        ("enrollments", "progress") => json!({"progress": 33}),
        ("enrollments", "error") => json!({"error": "y", "code": "x"}),
        ("devices", "status") => json!({"status": "online"}),
        ("devices", "info") => json!({"info": {"firmware": "1"}}),
        ("characteristics", "samples") => json!({"value": 1.0}),
        ("characteristics", "violations") => json!({"rule_id": 99, "rule_name": "z"}),
        ("characteristics", "limits") => {
            json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0})
        }
        _ => json!({}),
    }
}

/// Where the log of school 1 ends.
async fn head(server: &Server) -> Value {
    server.get("/api/jobs", &viewer(1)).await.1["cursor"].clone()
}

/// An address that names a school, if it names none yet.
fn with_query(path: &str, query: &str) -> String {
    let begins = if path.contains('?') { '&' } else { '?' };
    match query.is_empty() || path.contains("school_id=") {
        true => path.to_owned(),
        false => format!("{path}{begins}{query}"),
    }
}

/// What a WebSocket receives that is closed again.
async fn messages_until_close(url: &str) -> (Vec<Value>, Option<u16>) {
    until_closed(&mut connect_async(url).await.unwrap().0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schools_ids_are_not_accepted_by_any_endpoint() {
    not_there_for(&admin_of(2), "").await;
}

/// The same for a token of several schools, which names with each request that it is about another one.
#[tokio::test(flavor = "multi_thread")]
async fn another_schools_ids_are_not_accepted_with_a_token_for_several_schools() {
    not_there_for(&for_schools(&[2, 4], Role::Admin), "school_id=2").await;
}

async fn not_there_for(other: &str, query: &str) {
    let server = server().await;
    things(&server).await;
    let before = head(&server).await;
    let about = |path: &str| with_query(path, query);
    let mut pairs = Vec::new();
    for kind in KINDS {
        let collection = kind.collection();
        for path in [
            "/api/*/theirs",
            "/events/*/theirs",
            "/events?channel=*/theirs",
            "/monitor/schools/2/*/theirs",
        ] {
            pairs.push(("GET", path.replace('*', collection), Value::Null));
        }
        for verb in description(*kind).verbs {
            let path = format!("/api/{collection}/theirs/{verb}");
            pairs.push(("POST", path, body(collection, verb)));
        }
        for path in ["/api/*?school_id=1", "/events/*?school_id=1"] {
            pairs.push(("GET", path.replace('*', collection), Value::Null));
        }
    }
    let reason = json!({"reason": "z"});
    let ticket = json!({"channels": ["schools/1"]});
    pairs.extend([
        (
            "PUT",
            "/api/characteristics/theirs/limits".into(),
            body("characteristics", "limits"),
        ),
        ("POST", "/api/violations/theirs.1/ack".into(), reason),
        ("GET", "/api/violations?school_id=1".into(), Value::Null),
        ("GET", "/api/notifiers?school_id=1".into(), Value::Null),
        (
            "GET",
            "/api/notifiers/ops/set-aside?school_id=1".into(),
            Value::Null,
        ),
        (
            "POST",
            "/api/batch?school_id=1".into(),
            json!({"op": "jobs.cancel", "job_id": "theirs"}),
        ),
        ("POST", "/api/tickets".into(), ticket),
        ("GET", "/events/schools/1".into(), Value::Null),
        ("GET", "/monitor/schools/1".into(), Value::Null),
        ("GET", "/monitor/schools/1/jobs".into(), Value::Null),
        ("GET", "/monitor/schools/1/violations".into(), Value::Null),
        ("GET", "/monitor/schools/1/jobs/theirs".into(), Value::Null),
        (
            "POST",
            "/monitor/schools/1/jobs/theirs/cancel".into(),
            Value::Null,
        ),
        (
            "POST",
            "/monitor/schools/1/violations/theirs.1/ack".into(),
            Value::Null,
        ),
    ]);
    let ask = async |method: &str, path: &str, body: &Value| {
        let mut request = server.request(method, &about(path), other);
        if method != "GET" && !path.starts_with("/monitor") {
            request = request.json(body);
        } else if method == "POST" {
            let form = "application/x-www-form-urlencoded";
            request = request.header("Content-Type", form).body("reason=z");
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.text().await.unwrap())
    };
    for (method, path, body) in pairs {
        let theirs = ask(method, &path, &body).await;
        // The same with what nobody has, be it a name or a school.
        let nobody = |text: &str| {
            text.replace("theirs", "nobody")
                .replace("school_id=1", "school_id=3")
                .replace("schools/1", "schools/3")
                .replace("school 1", "school 3")
        };
        let body: Value = serde_json::from_str(&nobody(&body.to_string())).unwrap();
        let missing = ask(method, &nobody(&path), &body).await;
        assert_eq!(theirs.0, 404, "{method} {path}: {}", theirs.1);
        assert_eq!((theirs.0, nobody(&theirs.1)), missing, "{method} {path}");
    }
    assert_eq!(head(&server).await, before, "nothing has happened there");

    // Line by line, with each kind's own verbs.
    let mut lines =
        vec![json!({"op": "violations.ack", "violation_id": "theirs.1", "reason": "z"})];
    for kind in KINDS {
        let (collection, description) = (kind.collection(), description(*kind));
        for verb in description.verbs {
            let mut line = body(collection, verb);
            line["op"] = json!(format!("{collection}.{verb}"));
            line[description.id_field] = json!("theirs");
            lines.push(line);
        }
    }
    let text = |lines: &[Value]| {
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let batch = async |text: String| -> Vec<Value> {
        let request = server.request("POST", &about("/api/batch"), other);
        let answer = request.body(text).send().await.unwrap();
        let answer = answer.text().await.unwrap();
        let lines = answer
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let theirs = batch(text(&lines)).await;
    let missing = batch(text(&lines).replace("theirs", "nobody")).await;
    for ((line, theirs), missing) in lines.iter().zip(theirs).zip(missing) {
        assert_eq!(theirs["status"], 404, "{line}: {theirs}");
        assert_eq!(
            theirs.to_string().replace("theirs", "nobody"),
            missing.to_string()
        );
    }
    // A line that names their school is answered like one that names a school that does not exist.
    for line in &mut lines {
        line["school_id"] = json!(1);
    }
    let theirs = batch(text(&lines)).await;
    for line in &mut lines {
        line["school_id"] = json!("3");
    }
    let missing = batch(text(&lines)).await;
    for (theirs, missing) in theirs.iter().zip(&missing) {
        assert_eq!((&theirs["status"], theirs), (&json!(404), missing));
    }
    assert_eq!(head(&server).await, before, "nothing has happened there");

    // What is made under a name that they have is one's own.
    for path in ["/api/devices/theirs", "/api/characteristics/theirs"] {
        let request = server.request("PUT", &about(path), other);
        let (status, made) = answer(request.json(&json!({}))).await;
        assert_eq!((status, &made["school_id"]), (200, &json!(2)), "{path}");
    }
    assert_eq!(head(&server).await, before, "nothing has happened there");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schools_ids_over_every_websocket() {
    not_heard_by(&viewer(2), "").await;
}

/// The same for a token of several schools, which names with each socket that it is about another one.
#[tokio::test(flavor = "multi_thread")]
async fn another_schools_ids_over_every_websocket_with_a_token_for_several_schools() {
    not_heard_by(&for_schools(&[2, 4], Role::Viewer), "school_id=2").await;
}

async fn not_heard_by(other: &str, query: &str) {
    let server = server().await;
    things(&server).await;
    let about = |path: &str| with_query(path, query);
    for path in [
        "/progress/ws/theirs",
        "/ws/upload-progress/theirs",
        "/ws/enrollment?session_id=theirs",
        "/ws?school_id=1",
        "/ws/samples?school_id=1",
        "/ws/device-status?school_id=1",
        "/ws/enrollment?school_id=1",
        "/ws/upload-progress?school_id=1",
    ] {
        let nobody = |text: String| {
            text.replace("theirs", "nobody")
                .replace("school_id=1", "school_id=3")
        };
        let url = |path: &str| socket_url(&server.url, &about(path), Some(other), None);
        let theirs = messages_until_close(&url(path)).await;
        let missing = messages_until_close(&url(&nobody(path.to_owned()))).await;
        assert!(theirs.1.is_some(), "{path}: {theirs:?}");
        assert_eq!(
            nobody(json!(theirs).to_string()),
            json!(missing).to_string(),
            "{path}"
        );
        assert!(
            theirs.0.iter().all(|message| message["type"] == "error"),
            "{theirs:?}"
        );
    }
    for scope in [
        "jobs/theirs",
        "schools/1",
        "enrollments?channel=jobs/theirs",
    ] {
        let path = about(&format!("/events/{scope}"));
        let url = socket_url(&server.url, &path, Some(other), None);
        assert_eq!(rejected(&url).await, 404, "{scope}");
    }
    let mut ws = socket(&server.url, &about("/ws"), other).await;
    for wanted in [
        json!({"channels": ["jobs/theirs"]}),
        json!({"channels": ["devices/theirs"]}),
        json!({"channels": ["enrollments/theirs"]}),
        json!({"characteristic_ids": ["theirs"]}),
        json!({"channels": ["schools/1"]}),
        json!({"job_id": "theirs"}),
    ] {
        let mut answers = Vec::new();
        for text in [
            wanted.to_string(),
            wanted
                .to_string()
                .replace("theirs", "nobody")
                .replace("schools/1", "schools/3"),
        ] {
            let mut message: Value = serde_json::from_str(&text).unwrap();
            message["type"] = json!("subscribe");
            send(&mut ws, &message.to_string()).await;
            // In between, `subscribed` and `ready`: what is asked for is heard of once this school has it.
            answers.push(loop {
                let received = receive(&mut ws).await.unwrap();
                match received["type"].as_str() {
                    Some("subscribed" | "ready") => {}
                    _ => break received,
                }
            });
        }
        assert_eq!(
            (&answers[0]["type"], &answers[0]["code"]),
            (&json!("error"), &json!("not_found"))
        );
        let theirs = answers[0]
            .to_string()
            .replace("theirs", "nobody")
            .replace("schools/1", "schools/3");
        assert_eq!(theirs, answers[1].to_string());
    }
}

/// A token for some channels, on the ways in where channels are named by other means than an address.
#[tokio::test(flavor = "multi_thread")]
async fn channel_limits_escaped_within_a_websocket() {
    let server = server().await;
    things(&server).await;
    server.running_job("a").await;
    server.running_job("ab").await;
    let mut limited = claims(Some(1), Role::Worker);
    limited.channels = Some(vec!["jobs/a".into(), "schools/2".into()]);
    let token = sign(&limited);
    let mut ws = socket(&server.url, "/ws", &token).await;
    for wanted in [
        json!({"channels": ["jobs"]}),
        json!({"channels": ["jobs/ab"]}),
        json!({"channels": ["jobs/a", "jobs/ab"]}),
        json!({"job_id": "ab"}),
        json!({"characteristic_id": "theirs"}),
        json!({"characteristic_ids": ["theirs"]}),
        json!({"channels": ["schools/1"]}),
    ] {
        let mut message = wanted.clone();
        message["type"] = json!("subscribe");
        send(&mut ws, &message.to_string()).await;
        let answer = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!("forbidden")),
            "{wanted}"
        );
    }
    // Going on with a token that reaches as far is well; what is listened to is not widened by it.
    send(
        &mut ws,
        &json!({"type": "subscribe", "job_id": "a"}).to_string(),
    )
    .await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "subscribed");
    for (path, code) in [
        ("/progress/ws/ab", 1008),
        ("/ws/upload-progress/ab", 1008),
        ("/ws/upload-progress", 1008),
        ("/ws/device-status", 1008),
        ("/ws/enrollment", 1008),
        ("/ws/enrollment?session_id=theirs", 1008),
    ] {
        let (messages, closed) =
            messages_until_close(&socket_url(&server.url, path, Some(&token), None)).await;
        assert_eq!(closed, Some(code), "{path}: {messages:?}");
        assert!(
            messages.iter().all(|message| message["type"] == "error"),
            "{path}: {messages:?}"
        );
    }
    for path in [
        "/events/jobs/%2561",
        "/events/jobs/a%2Fb",
        "/events/characteristics?ids=theirs",
        "/events/schools/2",
    ] {
        let status = server
            .get(
                &format!("{path}{}wait=0", if path.contains('?') { '&' } else { '?' }),
                &token,
            )
            .await
            .0;
        assert!(matches!(status, 403 | 404), "{path}: {status}");
    }
    // An acknowledgement is for anyone who may listen to a characteristic, even another one.
    let mut limited = claims(Some(1), Role::Viewer);
    limited.channels = Some(vec!["characteristics/other".into()]);
    server.put("/api/characteristics/other", json!({})).await;
    let scope = "/characteristics/other";
    let mut listener =
        Listener::open(Transport::Poll, &server.url, scope, &sign(&limited), None).await;
    listener.until_ready().await;
    server
        .report("/api/violations/theirs.1/ack", json!({"reason": "seen"}))
        .await;
    assert_eq!(listener.next().await.unwrap()["type"], "ack_update");
    // Who holds a device is not shown to those who may only name it.
    let mut limited = claims(Some(1), Role::Worker);
    limited.channels = Some(vec!["enrollments/x".into()]);
    let wanted = json!({"session_id": "x", "device_id": "theirs", "student_id": "s"});
    let (status, problem) = server
        .post("/api/enrollments", &sign(&limited), wanted)
        .await;
    assert_eq!(status, 409);
    assert_eq!(
        problem["detail"],
        "device theirs is held by another session"
    );
}

/// Every way in with a cookie, from a page of somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn cross_site_websocket_hijacking_and_cross_site_request_forgery() {
    let server = server().await;
    things(&server).await;
    let before = head(&server).await;
    let cookie = format!("tidings_token={}", admin_of(1));
    let host = server.url.trim_start_matches("http://");
    for origin in [
        "https://evil.example",
        "null",
        &format!("ftp://{host}"),
        &format!("//{host}"),
        host,
    ] {
        for path in [
            "/ws",
            "/ws/samples",
            "/progress/ws/theirs",
            "/ws/upload-progress",
            "/ws/enrollment",
            "/ws/device-status",
            "/events/jobs",
        ] {
            let mut request = socket_url(&server.url, path, None, None)
                .into_client_request()
                .unwrap();
            let headers = request.headers_mut();
            headers.insert("Cookie", cookie.parse().unwrap());
            headers.insert("Origin", origin.parse().unwrap());
            // Refused at once, or with nothing but the reason.
            let Ok((mut socket, _)) = connect_async(request).await else {
                continue;
            };
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = &message {
                    let message: Value = serde_json::from_str(text).unwrap();
                    assert_eq!(message["type"], "error", "{path} from {origin}");
                }
            }
        }
        for (method, path) in [
            ("POST", "/api/jobs"),
            ("POST", "/api/jobs/theirs/cancel"),
            ("PUT", "/api/devices/new"),
            ("POST", "/api/devices/theirs/heartbeat"),
            ("POST", "/api/batch"),
            ("POST", "/api/tickets"),
            ("POST", "/api/violations/theirs.1/ack"),
            ("PUT", "/api/characteristics/theirs/limits"),
            ("POST", "/monitor/schools/1/jobs/theirs/cancel"),
            ("POST", "/monitor/schools/1/violations/theirs.1/ack"),
        ] {
            let url = format!("{}{path}", server.url);
            let request = server.http.request(method.parse().unwrap(), url);
            let form = "application/x-www-form-urlencoded";
            let request = request.header("Content-Type", form);
            let request = request.header("Cookie", &cookie).header("Origin", origin);
            let answer = request.body("reason=z").send().await.unwrap();
            assert_eq!(answer.status(), 403, "{method} {path} from {origin}");
        }
    }
    assert_eq!(head(&server).await, before, "nothing has happened");
    // Behind a proxy that speaks TLS, a page that does not is not ours.
    for (origin, spoken) in [("https", true), ("http", false)] {
        let mut request = socket_url(&server.url, "/events/jobs", None, None)
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("Cookie", cookie.parse().unwrap());
        headers.insert("Origin", format!("{origin}://{host}").parse().unwrap());
        headers.insert("X-Forwarded-Proto", "wss".parse().unwrap());
        assert_eq!(connect_async(request).await.is_ok(), spoken, "{origin}");
    }
    for (origin, status) in [("https", 200), ("http", 403)] {
        let request = server
            .http
            .post(format!("{}/api/jobs/theirs/progress", server.url));
        let request = request
            .header("Cookie", &cookie)
            .header("X-Forwarded-Proto", "https")
            .header("Origin", format!("{origin}://{host}"));
        assert_eq!(
            request.body("{}").send().await.unwrap().status(),
            status,
            "{origin}"
        );
    }
}

/// A ticket is for its scope, and for streams.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn ticket_reuse_outside_its_scope() {
    let server = server_with(json!({"max_streams_per_user": 2})).await;
    things(&server).await;
    server.running_job("other").await;
    let mut viewer_claims = claims(Some(1), Role::Viewer);
    let wanted = json!({"channels": ["jobs/theirs"]});
    let (status, ticket) = server
        .post("/api/tickets", &sign(&viewer_claims), wanted.clone())
        .await;
    assert_eq!(status, 201, "{ticket}");
    let ticket = ticket["ticket"].as_str().unwrap();
    for path in [
        "/progress/ws/other",
        "/ws/device-status",
        "/ws/enrollment",
        "/ws/upload-progress",
    ] {
        let (messages, code) = messages_until_close(&format!(
            "{}?ticket={ticket}",
            socket_url(&server.url, path, None, None)
        ))
        .await;
        assert!(
            code.is_some() && messages.iter().all(|message| message["type"] == "error"),
            "{path}: {messages:?}"
        );
    }
    for (name, value) in [
        ("Cookie", format!("tidings_token={ticket}")),
        ("Authorization", format!("Bearer {ticket}")),
    ] {
        for (method, path) in [
            ("GET", "/events/jobs/theirs?wait=0"),
            ("GET", "/api/jobs/theirs"),
            ("POST", "/api/tickets"),
        ] {
            let request = server
                .http
                .request(method.parse().unwrap(), format!("{}{path}", server.url));
            let answer = request
                .header(name, &value)
                .json(&wanted)
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 401, "{method} {path} with {name}");
        }
    }
    let page = server
        .http
        .get(format!("{}/monitor/schools/1?ticket={ticket}", server.url));
    let page = page.send().await.unwrap();
    assert!(
        !page.text().await.unwrap().contains(ticket),
        "a ticket in a page"
    );

    // Its streams count as its user's, and end with the token that it was made with.
    viewer_claims.exp = (chrono::Utc::now().timestamp_millis() + 5_000) as f64 / 1000.0;
    let (_, ticket) = server
        .post("/api/tickets", &sign(&viewer_claims), wanted)
        .await;
    let ticket = ticket["ticket"].as_str().unwrap();
    let url = format!(
        "{}?ticket={ticket}",
        socket_url(&server.url, "/events/jobs/theirs", None, None)
    );
    let mut first = connect_async(&url).await.unwrap().0;
    let _second = connect_async(&url).await.unwrap();
    assert_eq!(rejected(&url).await, 429);
    let (messages, code) = until_closed(&mut first).await;
    assert_eq!(
        (code, &messages.last().unwrap()["code"]),
        (Some(4401), &json!(4401))
    );
}
