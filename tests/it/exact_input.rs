//! What publishers send is passed on as it was meant, or refused with its place: numbers, surrogates, encodings.

use serde_json::{Value, json};

use crate::support::*;

/// Every way in for JSON that is passed on: method, path, and a body around a value, with its place there.
const WAYS_IN: [(&str, &str, &str, &str); 8] = [
    (
        "POST",
        "/api/jobs",
        r#"{"job_type":"t","metadata":{"n":[1,@]}}"#,
        "metadata.n[1]",
    ),
    (
        "POST",
        "/api/jobs/a/start",
        r#"{"metadata":{"n":@}}"#,
        "metadata.n",
    ),
    (
        "POST",
        "/api/jobs/a/progress",
        r#"{"metadata":{"a":{"b":@}}}"#,
        "metadata.a.b",
    ),
    (
        "POST",
        "/api/jobs/a/complete",
        r#"{"result":[[],{"n":@}]}"#,
        "result[1].n",
    ),
    ("POST", "/api/jobs/a/complete", r#"{"result":@}"#, "result"),
    (
        "POST",
        "/api/jobs/a/fail",
        r#"{"error":"E","metadata":{"n":@}}"#,
        "metadata.n",
    ),
    ("PUT", "/api/devices/d", r#"{"info":{"n":@}}"#, "info.n"),
    (
        "POST",
        "/api/devices/d/info",
        r#"{"info":{"n":@}}"#,
        "info.n",
    ),
];

async fn send(server: &Server, method: &str, path: &str, body: impl Into<reqwest::Body>) -> Value {
    let request = server.request(method, path, &worker(1)).body(body);
    let (status, answer) = answer(request).await;
    json!({"status": status, "answer": answer})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_would_be_rounded_is_rejected_with_its_location_by_every_endpoint() {
    let server = server().await;
    server.running_job("a").await;
    server.put("/api/devices/d", json!({})).await;
    let before = server.get("/api/jobs/a", &viewer(1)).await;
    for number in [
        "18446744073709551616",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "1e400",
        "-1e400",
        "1e-400",
    ] {
        for (method, path, body, place) in WAYS_IN {
            let sent = send(&server, method, path, body.replace('@', number)).await;
            assert_eq!(sent["status"], 422, "{path} {number}: {sent}");
            let detail = sent["answer"]["detail"].as_str().unwrap();
            assert!(
                detail.starts_with(&format!("`{place}` is {number}:"))
                    && detail.ends_with("as strings"),
                "{detail}"
            );
        }
        let lines = [
            format!(
                r#"{{"op":"jobs.progress","job_id":"a","metadata":{{"n":{number}}},"progress":50}}"#
            ),
            format!(r#"{{"op":"devices.info","device_id":"d","info":{{"n":{number}}}}}"#),
            format!(r#"{{"op":"jobs.progress","job_id":{number}}}"#),
        ];
        for line in server.batch(&worker(1), lines.join("\n")).await {
            assert_eq!(line["status"], 422, "{line}");
            assert!(line.to_string().contains("as strings"), "{line}");
        }
    }
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_number_that_is_accepted_is_returned_as_it_was_sent() {
    let server = server().await;
    server.running_job("a").await;
    server.put("/api/devices/d", json!({})).await;
    let sent = r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":9007199254740993,"d":1.0,"e":0.1,"f":-0.0,"g":"123456789012345678901234567890","h":5e-324,"i":1.7976931348623157e+308,"j":[0.30000000000000004]}"#;
    let response_to = async |method: &str, path: &str, body: String| {
        let request = server.request(method, path, &worker(1)).body(body);
        let response = request.send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        text
    };
    let response = response_to(
        "POST",
        "/api/jobs/a/progress",
        format!(r#"{{"metadata":{sent}}}"#),
    );
    let response = response.await;
    assert!(
        response.contains(&format!(r#""metadata":{sent}"#)),
        "{response}"
    );
    let response = response_to(
        "POST",
        "/api/devices/d/info",
        format!(r#"{{"info":{sent}}}"#),
    );
    let response = response.await;
    assert!(
        response.contains(&format!(r#""info":{sent}"#)),
        "{response}"
    );
    let line = format!(r#"{{"op":"jobs.complete","job_id":"a","result":{sent}}}"#);
    let response = response_to("POST", "/api/batch", line).await;
    assert!(
        response.contains(&format!(r#""result":{sent}"#)),
        "{response}"
    );
    let response = response_to("GET", "/api/jobs/a", String::new()).await;
    assert!(
        response.contains(&format!(r#""metadata":{sent}"#)),
        "{response}"
    );
}

/// Once whole numbers are exact, two that differ never share a fingerprint.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_not_used_again_for_another_whole_number() {
    let server = server().await;
    server.running_job("a").await;
    let progress = async |number: &str| {
        let request = server
            .request("POST", "/api/jobs/a/progress", &worker(1))
            .header("Idempotency-Key", "k")
            .body(format!(r#"{{"metadata":{{"n":{number}}}}}"#));
        answer(request).await.0
    };
    assert_eq!(progress("18446744073709551615").await, 200);
    assert_eq!(progress("18446744073709551615").await, 200);
    for another in [
        "18446744073709551614",
        "18446744073709551616",
        "18446744073709551615.0",
    ] {
        assert_eq!(progress(another).await, 422, "{another}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_surrogate_becomes_the_replacement_character_and_the_report_counts() {
    let server = server().await;
    server.running_job("a").await;
    server.put("/api/devices/d", json!({})).await;
    let mut listener = server.listen(Transport::WebSocket, "/jobs?tick_ms=0").await;
    listener.until_ready().await;
    for (written, read) in [
        (r"\ud800", "\u{fffd}"),
        (r"\udc00\ud800", "\u{fffd}\u{fffd}"),
        (r"\ud83d\ude00 \uD83D", "😀 \u{fffd}"),
        (r"\\ud800", r"\ud800"),
    ] {
        let body = format!(r#"{{"message":"{written}","metadata":{{"{written}":["{written}"]}}}}"#);
        let sent = send(&server, "POST", "/api/jobs/a/progress", body.clone()).await;
        assert_eq!(sent["status"], 200, "{sent}");
        let line = body.replacen('{', r#"{"op":"jobs.progress","job_id":"a","#, 1);
        let results = server.batch(&worker(1), line).await;
        assert_eq!(results[0]["status"], 200, "{results:?}");
        for _ in 0..2 {
            let heard = listener.next().await.unwrap();
            assert_eq!(heard["message"], read);
            assert_eq!(heard["metadata"][read], json!([read]));
        }
        let body = format!(r#"{{"info":{{"{written}":"{written}"}}}}"#);
        let sent = send(&server, "POST", "/api/devices/d/info", body).await;
        assert_eq!(sent["answer"]["info"][read], read, "{sent}");
    }
    let body = r#"{"error":{"code":"\ud800","message":"\ud800"}}"#;
    let sent = send(&server, "POST", "/api/jobs/a/fail", body).await;
    assert_eq!(
        sent["answer"]["error"],
        json!({"code": "\u{fffd}", "message": "\u{fffd}"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_utf_8_is_rejected_by_its_byte_and_a_byte_order_mark_is_passed_over() {
    let server = server().await;
    server.running_job("a").await;
    for (body, at) in [
        (&b"{\"message\":\"\xff\"}"[..], 12),
        // A surrogate in UTF-8, an overlong slash, a character that is cut off, and UTF-16.
        (b"{\"message\":\"\xed\xa0\x80\"}", 12),
        (b"{\"message\":\"\xc0\xaf\"}", 12),
        (b"\xef\xbb\xbf{\"message\":\"\xc3\"}", 15),
        (b"\xff\xfe{\0}\0", 0),
    ] {
        let sent = send(&server, "POST", "/api/jobs/a/progress", body.to_vec()).await;
        assert_eq!(sent["status"], 400, "{sent}");
        assert_eq!(sent["answer"]["code"], "malformed-json");
        let detail = sent["answer"]["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("offset {at} ")), "{detail}");
    }
    let mut lines = b"\xef\xbb\xbf{\"op\":\"jobs.progress\",\"job_id\":\"a\"}\n".to_vec();
    lines.extend(b"{\"op\":\"jobs.progress\",\"job_id\":\"a\",\"message\":\"\xff\"}\n");
    lines.extend(b"{\"op\":\"jobs.progress\",\"job_id\":\"a\",\"progress\":1}");
    let request = server.request("POST", "/api/batch", &worker(1)).body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    let statuses: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].clone())
        .collect();
    assert_eq!(statuses, [200, 400, 200]);
    let empty = send(&server, "POST", "/api/jobs/a/progress", "\u{feff}").await;
    assert_eq!(empty["status"], 200);
}
