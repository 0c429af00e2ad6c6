//! How streams end, and the tickets that open them for a time.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::auth::Role;

use super::over_every_transport;
use crate::support::*;

over_every_transport! {
    #[ignore = "slow: real seconds pass"]
    async fn a_stream_ends_when_its_token_does(transport) {
        let server = server().await;
        let soon = (chrono::Utc::now().timestamp_millis() + 1_500) as f64 / 1000.0;
        let token = sign(&json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": soon}));
        let mut listener = Listener::open(transport, &server.url, "/jobs", &token, None).await;
        let connected = listener.next().await.unwrap();
        assert!(connected["expires_at"].as_str().unwrap().ends_with('Z'));
        let closing = listener.take_until(|message| message["type"] == "closing").await.pop().unwrap();
        assert_eq!((&closing["code"], &closing["reconnect"]), (&json!(4401), &json!(true)));
        assert_eq!(listener.next().await, None);
        until("the subscription is gone", async || server.tidings.streams() == 0).await;
    }

    async fn a_stopping_server_says_so_with_a_time_to_come_back(transport) {
        let server = server_with(json!({"reconnect_spread_ms": 500})).await;
        server.running_job("a").await;
        let mut listener = server.listen(transport, "/jobs").await;
        listener.until_ready().await;
        if transport == Transport::Poll {
            until("the first poll has ended", async || server.tidings.streams() == 0).await;
        }
        let waiting = tokio::spawn(async move { listener.next().await });
        // The poll must be waiting before the server stops, or it is refused instead.
        until("the stream is open", async || server.tidings.streams() == 1).await;
        server.stop().await;
        let closing = waiting.await.unwrap().unwrap();
        assert_eq!((&closing["type"], &closing["code"], &closing["reconnect"]), (&json!("closing"), &json!(1001), &json!(true)));
        assert!(closing["retry_ms"].as_u64().unwrap() < 500);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_departed_reader_is_noticed_and_leaves_nothing_behind() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    for transport in [Transport::EventSource, Transport::WebSocket] {
        let mut listener = server.listen(transport, "/jobs").await;
        listener.until_ready().await;
        assert_eq!(server.tidings.streams(), 1);
        drop(listener);
        let noticed =
            async { until("the stream is gone", async || server.tidings.streams() == 0).await };
        // Two heartbeats, and a moment for a busy machine.
        tokio::time::timeout(Duration::from_secs(5), noticed)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_own_scope_and_nothing_else() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("b").await;
    let (status, ticket) = server
        .post("/api/tickets", &viewer(1), json!({"channels": ["jobs/a"]}))
        .await;
    assert_eq!(status, 201);
    let open = async |path: String| {
        server
            .http
            .get(format!("{}{path}", server.url))
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap()
    };
    let text = ticket["ticket"].as_str().unwrap();
    for _ in 0..2 {
        let answer: Value = open(format!("{}&wait=0", ticket["url"].as_str().unwrap()))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(
            answer["messages"][1]["job_id"], "a",
            "reusable within its time"
        );
    }
    for (path, status) in [
        (format!("/events/jobs/b?ticket={text}"), 403),
        (format!("/events/jobs?ticket={text}"), 403),
        (format!("/events/schools/2?ticket={text}"), 404),
        (format!("/api/jobs/a?ticket={text}"), 401),
        (format!("/api/jobs/a?token={text}"), 401),
        (format!("/events/jobs/a?token={text}"), 401),
        (format!("/events/jobs/a?ticket={}", viewer(1)), 401),
    ] {
        assert_eq!(open(path.clone()).await.status(), status, "{path}");
    }
    let (status, _) = server
        .post(
            "/api/tickets",
            &sign(&{
                let mut limited = claims(Some(1), Role::Viewer);
                limited.channels = Some(vec!["jobs/b".into()]);
                limited
            }),
            json!({"channels": ["jobs/a"]}),
        )
        .await;
    assert_eq!(
        status, 403,
        "a ticket reaches no further than the token it is made with"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_ticket_expires() {
    let server = server_with(json!({"ticket_ttl_secs": 1})).await;
    let made = json!({"channels": ["jobs"]});
    let (_, ticket) = server.post("/api/tickets", &viewer(1), made).await;
    let path = format!("{}&wait=0", ticket["url"].as_str().unwrap());
    until("the ticket expires", async || {
        let request = server.http.get(format!("{}{path}", server.url));
        let (status, answer) = answer(request.header("Accept", "application/json")).await;
        let detail = answer["detail"].as_str();
        assert!(
            status == 200 || detail.unwrap().contains("the ticket has expired"),
            "{answer}"
        );
        status == 401
    })
    .await;
}
