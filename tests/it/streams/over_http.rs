//! Streams as HTTP answers: headers, SSE blocks and long polls.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// Sends a raw request and gives all that comes within the first `bytes` bytes or until the end.
async fn raw(server: &Server, request: String, bytes: usize) -> String {
    let mut socket = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://"))
        .await
        .unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        while answer.len() < bytes {
            match socket.read(&mut part).await.unwrap() {
                0 => break,
                count => answer.extend_from_slice(&part[..count]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_stream_over_http_1_0_is_not_chunked_and_ends_with_the_connection() {
    let server = server().await;
    server.running_job("a").await;
    let soon = chrono::Utc::now().timestamp() + 2;
    let token = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
    let request =
        format!("GET /events/jobs HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let answer = raw(&server, request, usize::MAX).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert!(body.starts_with("retry: "), "no chunk sizes: {body}");
    assert!(
        body.ends_with("\n\n") && body.contains("\"type\":\"closing\""),
        "{body}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_asked_not_to_buffer_a_stream() {
    let server = server().await;
    let response = server
        .request("GET", "/events/jobs?padding=2048&named=1", &viewer(1))
        .send()
        .await
        .unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-accel-buffering"), "no");
    assert_eq!(header("incremental"), "?1");
    let request = format!(
        "GET /events/jobs?padding=2048&named=1&token={} HTTP/1.0\r\nHost: x\r\n\r\n",
        viewer(1)
    );
    let answer = raw(&server, request, 2_400).await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert!(
        body.starts_with(':') && body.find("\nretry: ") == Some(2_047),
        "padding of so many bytes first, in the block of the first message: {body}"
    );
    assert!(
        body.contains("event: connected\ndata: {"),
        "named events: {body}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accept_header_chooses_between_event_stream_and_poll() {
    let server = server().await;
    for (accept, content_type) in [
        (None, "text/event-stream"),
        (Some("*/*"), "text/event-stream"),
        (Some("text/event-stream"), "text/event-stream"),
        (Some("application/json"), "application/json"),
        (
            Some("application/json, text/event-stream;q=0.5"),
            "application/json",
        ),
        (Some("application/json;q=0.5, */*"), "text/event-stream"),
        (Some("text/html, */*;q=0.1"), "text/event-stream"),
    ] {
        let mut request = server.request("GET", "/events/jobs?wait=0", &viewer(1));
        if let Some(accept) = accept {
            request = request.header("Accept", accept);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            response.headers()["content-type"],
            content_type,
            "{accept:?}"
        );
    }
    let (status, problem) = answer(
        server
            .request("GET", "/events/jobs", &viewer(1))
            .header("Accept", "text/html"),
    )
    .await;
    assert_eq!((status, &problem["code"]), (406, &json!("not-acceptable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_waits_as_long_as_it_was_asked_to_and_then_answers_with_a_cursor() {
    let server = server().await;
    let job = server.running_job("a").await;
    let path = format!(
        "/events/jobs?wait=1&cursor={}",
        job["cursor"].as_str().unwrap()
    );
    let (status, empty) = answer(
        server
            .request("GET", &path, &viewer(1))
            .header("Accept", "application/json"),
    )
    .await;
    assert_eq!((status, &empty["cursor"]), (200, &job["cursor"]));
    assert_eq!(
        field(empty["messages"].as_array().unwrap(), "type"),
        ["connected", "ready"]
    );
}

/// An answer that is full ends in the midst of what there is, and its cursor is that of its last message.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_poll_loses_nothing() {
    let server = server_with(json!({"window_events": 4})).await;
    let metadata = "x".repeat(15_000);
    let start = server.report("/api/jobs", json!({"job_id": "a", "job_type": "t", "status": "in_progress", "metadata": {"x": metadata}})).await;
    let mut poll = server
        .resume(
            Transport::Poll,
            "/jobs?tick_ms=0",
            start["cursor"].as_str().unwrap(),
        )
        .await;
    let waiting = tokio::spawn(async move {
        let heard = poll.take_until(|message| message["seq"] == 601).await;
        heard
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect::<Vec<_>>()
    });
    until("it waits", async || server.tidings.streams() == 1).await;
    for _ in 0..3 {
        let lines =
            vec![json!({"op": "jobs.progress", "job_id": "a", "message": "on"}).to_string(); 200];
        server
            .request("POST", "/api/batch", &worker(1))
            .body(lines.join("\n"))
            .send()
            .await
            .unwrap();
    }
    assert_eq!(waiting.await.unwrap(), (2..=601).collect::<Vec<_>>());
}

/// What clients send that want one answer, not a stream.
#[tokio::test(flavor = "multi_thread")]
async fn json_by_name_goes_before_anything_by_wildcard() {
    let server = server().await;
    let request = server
        .request("GET", "/events/jobs?wait=0", &viewer(1))
        .header("Accept", "application/json, text/plain, */*");
    assert_eq!(
        request.send().await.unwrap().headers()["content-type"],
        "application/json"
    );
}

/// The blocks of an SSE stream up to one that contains `last`, as they are written.
async fn blocks_until(server: &Server, path: &str, last: &str) -> Vec<String> {
    let mut response = server
        .request("GET", path, &viewer(1))
        .send()
        .await
        .unwrap();
    let mut text = String::new();
    while !(text.contains(last) && text.ends_with("\n\n")) {
        let part = tokio::time::timeout(PATIENCE, response.chunk())
            .await
            .unwrap();
        text.push_str(std::str::from_utf8(&part.unwrap().unwrap()).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

/// Popular clients hand a block without data to their handlers as an empty message.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn every_sse_block_has_data_and_a_heartbeat_is_a_named_event() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    for query in ["", "?padding=500", "?named=1"] {
        let path = format!("/events/jobs{query}");
        let blocks = blocks_until(&server, &path, "heartbeat\"").await;
        for block in &blocks {
            let lines = block.lines().filter(|line| line.starts_with("data: "));
            assert_eq!(lines.count(), 1, "{block}");
        }
        let first = &blocks[0];
        assert!(
            first.contains("retry: 2000\n") && first.contains("\"connected\""),
            "{first}"
        );
        let heartbeat = blocks.last().unwrap();
        let line = |name: &str| {
            let mut lines = heartbeat.lines();
            lines.find_map(|line| line.strip_prefix(name)).unwrap()
        };
        assert_eq!(line("event: "), "heartbeat", "{heartbeat}");
        let data: Value = serde_json::from_str(line("data: ")).unwrap();
        assert_eq!(
            (&data["type"], &data["cursor"]),
            (&json!("heartbeat"), &json!(line("id: ")))
        );
        assert!(data["timestamp"].is_string());
    }
}
