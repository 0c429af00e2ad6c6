//! Whether a stream may be opened again after its ticket or token has expired.

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::*;

/// Returns what is opened with a ticket of a few seconds. On a slow machine, a ticket can expire before it is used: the next
/// one may not.
async fn opened_in_time<T>(mut open: impl AsyncFnMut() -> Option<T>) -> T {
    let mut opened = None;
    until("a ticket is used in time", async || {
        opened = open().await;
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

/// An `EventSource` reconnects with the same URL, and ends for good if that is refused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn an_expired_ticket_reconnects_for_a_while_with_a_cursor() {
    let settings = json!({"ticket_ttl_secs": 1, "ticket_grace_secs": 3_600});
    let server = server_with(settings).await;
    let before = server.running_job("a").await["cursor"].clone();
    server
        .report("/api/jobs/a/progress", json!({"progress": 1}))
        .await;
    let made = json!({"channels": ["jobs"]});
    let open_at = async |url: &str, cursor: Option<&Value>| {
        let request = server.http.get(format!("{}{url}", server.url));
        let request = request.header("Accept", "application/json");
        answer(match cursor {
            Some(cursor) => request.header("Last-Event-ID", cursor.as_str().unwrap()),
            None => request,
        })
        .await
    };
    let (url, first) = opened_in_time(async || {
        let (_, ticket) = server.post("/api/tickets", &viewer(1), made.clone()).await;
        let url = format!("{}&wait=0", ticket["url"].as_str().unwrap());
        let (status, first) = open_at(&url, None).await;
        (status == 200).then_some((url, first))
    })
    .await;
    let open = async |cursor| open_at(&url, cursor).await;
    until("the ticket expires", async || open(None).await.0 == 401).await;
    let read = &first["cursor"];
    server
        .report("/api/jobs/a/progress", json!({"progress": 2}))
        .await;
    let (status, response) = open(Some(read)).await;
    assert_eq!(
        (status, &response["messages"][1]["progress"]),
        (200, &json!(2.0))
    );
    // Any cursor that a client was sent will do; a text that is not a cursor proves nothing.
    assert_eq!(open(Some(&before)).await.0, 200);
    for cursor in [&json!("0"), &json!("00000000-99")] {
        let (status, problem) = open(Some(cursor)).await;
        let rejected = (status, &problem["code"]);
        assert_eq!(rejected, (401, &json!("unauthorized")), "{cursor}");
    }
    // A ticket of another school's token opens that school only, expired or not.
    let (_, theirs) = server.post("/api/tickets", &viewer(2), made).await;
    let url = format!("{}{}&wait=0", server.url, theirs["url"].as_str().unwrap());
    until("theirs expires", async || {
        server.http.get(&url).send().await.unwrap().status() == 401
    })
    .await;
    let request = server.http.get(&url).header("Accept", "application/json");
    let (status, response) = answer(request.header("Last-Event-ID", read.as_str().unwrap())).await;
    assert_eq!(
        (status, &response["messages"][0]["school_id"]),
        (200, &json!(2))
    );
    assert!(
        response["messages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|message| message.get("job_id").is_none())
    );
}

/// A `closing` that says `reconnect` must not lead to an address that cannot be opened again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_closing_promises_a_reconnection_only_where_the_credential_allows_one() {
    for (grace, returns) in [(3_600, true), (0, false)] {
        let settings = json!({
            "ticket_ttl_secs": 3, "ticket_grace_secs": grace, "reconnect_spread_ms": 0, "heartbeat_secs": 1,
        });
        let server = server_with(settings).await;
        let (url, mut stream) = opened_in_time(async || {
            let made = json!({"channels": ["jobs"]});
            let (_, ticket) = server.post("/api/tickets", &viewer(1), made).await;
            let ticket = ticket["ticket"].as_str().unwrap();
            let url = format!("{}/events/jobs?ticket={ticket}", server.url);
            let stream = server.http.get(&url).send().await.unwrap();
            (stream.status() == 200).then_some((url, stream))
        })
        .await;
        let by_token = server.listen(Transport::EventSource, "/jobs").await;
        until("the ticket expires", async || {
            server.http.get(&url).send().await.unwrap().status() == 401
        })
        .await;
        let stopping = tokio::spawn(server.stop());
        let mut text = String::new();
        while let Some(part) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&part).unwrap());
        }
        let promise = format!("\"reconnect\":{returns}");
        assert!(
            text.contains("\"code\":1001") && text.contains(&promise),
            "{text}"
        );
        let mut by_token = by_token;
        let closing = by_token
            .take_until(|message| message["type"] == "closing")
            .await;
        assert_eq!(closing.last().unwrap()["reconnect"], true);
        stopping.await.unwrap();
    }
}

/// A token that will have ended by the time of the reconnection cannot be what it is done with.
#[tokio::test(flavor = "multi_thread")]
async fn a_closing_promises_no_reconnection_beyond_the_end_of_the_token() {
    let settings = json!({"reconnect_spread_ms": 3_600_000, "jwt_leeway_secs": 0});
    let server = server_with(settings).await;
    let mut streams = Vec::new();
    for (lasts, returns) in [(30, false), (86_400, true)] {
        let mut claims = claims(Some(1), Role::Viewer);
        claims.exp = (chrono::Utc::now().timestamp() + lasts) as f64;
        let token = sign(&claims);
        let stream =
            Listener::open(Transport::EventSource, &server.url, "/jobs", &token, None).await;
        streams.push((stream, returns));
    }
    let stopping = tokio::spawn(server.stop());
    for (stream, returns) in &mut streams {
        let messages = stream
            .take_until(|message| message["type"] == "closing")
            .await;
        let closing = messages.last().unwrap();
        // The delay is drawn at random: one in a hundred falls within the half minute.
        let is_soon = closing["retry_ms"].as_u64().unwrap() < 30_000;
        assert_eq!(closing["reconnect"], *returns || is_soon, "{closing}");
    }
    drop(streams);
    stopping.await.unwrap();
}
