//! The example application, as it is compiled, under test.

use std::sync::Arc;

use serde_json::json;

use crate::support::*;

#[path = "../../examples/embed.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "its `main` is the example's own; the application is what is tested"
)]
pub(crate) mod example;

#[tokio::test(flavor = "multi_thread")]
async fn an_application_publishes_from_its_own_handler_and_serves_streams_beside_its_own_routes() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = launch(example::application(figment(&folder, &json!({}))), folder).await;
    let http = &server.http;
    let index = http
        .get(&server.url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(index.contains("embeds Tidings"));
    let base = format!("{}/live", server.url);
    let mut listener = Listener::open(
        Transport::EventSource,
        &base,
        "/jobs?tick_ms=0",
        &viewer(1),
        None,
    )
    .await;
    listener.until_ready().await;
    let id = http
        .post(format!("{}/import", server.url))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let heard = listener
        .take_until(|message| message["status"] == "completed")
        .await;
    assert!(heard.iter().all(|message| message["job_id"] == id.trim()));
    assert_eq!(field(&heard, "progress"), [0.0, 30.0, 60.0, 90.0, 100.0]);
    let problem = http.get(format!("{base}/api/jobs")).send().await.unwrap();
    assert_eq!(
        problem.headers()["content-type"],
        "application/problem+json"
    );
    let missing = http
        .get(format!("{}/nothing", server.url))
        .send()
        .await
        .unwrap();
    assert_ne!(
        missing.headers()["content-type"],
        "application/problem+json",
        "the application's own errors stay its own"
    );
}
