//! Real clients: Chromium's own `EventSource` and `WebSocket`, Python's `websockets`.

use std::process::{Command, Stdio};
use std::sync::Arc;

use rocket::http::ContentType;
use rocket::{State, get, post, routes};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::process::{Browser, Guarded, Patient};
use crate::support::*;

/// What pages report back.
struct Reports(mpsc::Sender<Value>);

#[get("/page")]
fn page() -> (ContentType, &'static str) {
    let html = r#"<!doctype html><title>Test</title><script>
    const query = new URLSearchParams(location.search);
    const heard = { events: [], sockets: [] };
    const report = () => fetch("/report", { method: "POST", body: JSON.stringify(heard, (_, value) => value.metadata ? { seq: value.seq, status: value.status } : value) });
    const take = (list, data) => {
      const message = JSON.parse(data);
      if (message.type === "ready" && !list.some(earlier => earlier.type === "ready")) report();
      list.push(message);
      const ends = [heard.events, heard.sockets].every(list => list.some(message => message.status === "completed"));
      if (ends) report();
    };
    new EventSource(query.get("events")).onmessage = event => take(heard.events, event.data);
    let cursor = "";
    (function connect() {
      const socket = new WebSocket(`ws://${location.host}/events/jobs?tick_ms=0&cursor=${cursor}`, ["bearer." + query.get("token")]);
      socket.onmessage = event => { cursor = JSON.parse(event.data).cursor ?? cursor; take(heard.sockets, event.data); };
      socket.onclose = () => setTimeout(connect, 200);
    })();
    </script>"#;
    (ContentType::HTML, html)
}

#[post("/report", data = "<report>")]
async fn report(report: String, reports: &State<Reports>) {
    reports
        .0
        .send(serde_json::from_str(&report).unwrap())
        .await
        .unwrap();
}

async fn application(
    folder: Arc<tempfile::TempDir>,
    port: u16,
    reports: mpsc::Sender<Value>,
) -> Server {
    let figment = figment(&folder, &json!({"reconnect_spread_ms": 100})).merge(("port", port));
    let rocket = tidings::server(figment).unwrap_or_else(|error| panic!("{error}"));
    launch(
        rocket
            .manage(Reports(reports))
            .mount("/", routes![page, report]),
        folder,
    )
    .await
}

/// Chromium's own EventSource and WebSocket, before and after the server is stopped and started again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_browser_comes_back_with_its_cursor_and_misses_nothing() {
    if !needs("chromium") {
        return;
    }
    let (reports, mut reported) = mpsc::channel(10);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = application(Arc::clone(&folder), 0, reports.clone()).await;
    let port = server.url.rsplit(':').next().unwrap().parse().unwrap();
    server.running_job("a").await;
    let (_, ticket) = server
        .post("/api/tickets", &viewer(1), json!({"channels": ["jobs"]}))
        .await;
    let events = format!(
        "/events/jobs?tick_ms=0%26ticket={}",
        ticket["ticket"].as_str().unwrap()
    )
    .replace("%26", "&");
    let page = format!(
        "{}/page?events={}&token={}",
        server.url,
        events
            .replace('?', "%3F")
            .replace('&', "%26")
            .replace('=', "%3D"),
        viewer(1)
    );
    let browser = Browser::open(folder.path(), &page).await;
    let next = async |reported: &mut mpsc::Receiver<Value>| {
        tokio::time::timeout(PATIENCE * 2, reported.recv())
            .await
            .expect("the browser reports")
            .unwrap()
    };
    // Both have their snapshot.
    next(&mut reported).await;
    next(&mut reported).await;
    for progress in 1..=10 {
        server
            .report("/api/jobs/a/progress", json!({"progress": progress}))
            .await;
    }
    server.stop().await;
    let server = application(Arc::clone(&folder), port, reports).await;
    for progress in 11..=20 {
        server
            .report("/api/jobs/a/progress", json!({"progress": progress}))
            .await;
    }
    server.report("/api/jobs/a/complete", json!({})).await;
    let heard = loop {
        let heard = next(&mut reported).await;
        if ["events", "sockets"].iter().all(|list| {
            heard[list]
                .as_array()
                .unwrap()
                .iter()
                .any(|message| message["status"] == "completed")
        }) {
            break heard;
        }
    };
    drop(browser);
    for list in ["events", "sockets"] {
        let seqs: Vec<u64> = heard[list]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect();
        assert_eq!(seqs, (1..=22).collect::<Vec<_>>(), "{list}: {heard:#}");
    }
}

/// An independent WebSocket implementation.
#[tokio::test(flavor = "multi_thread")]
async fn python_websockets_speaks_with_the_multiplexed_socket() {
    let Some(python) = python_with_websockets() else {
        return;
    };
    let server = server().await;
    server.running_job("a").await;
    let script = r#"
import asyncio, json, sys, websockets
async def main(url):
    async with websockets.connect(url) as socket:
        await socket.send("ping")
        print((json.loads(await socket.recv()))["type"], flush=True)
        await socket.send(json.dumps({"action": "subscribe", "job_id": "a"}))
        async for text in socket:
            message = json.loads(text)
            print(message.get("status", message["type"]), flush=True)
            if message.get("status") == "completed":
                break
    print("closed", socket.close_code if hasattr(socket, "close_code") else 1000, flush=True)
asyncio.run(main(sys.argv[1]))
"#;
    let url = listener::socket_url(&server.url, "/ws", Some(&viewer(1)), None);
    let mut child = Guarded(
        Command::new(python)
            .args(["-c", script, &url])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let output = Patient(child.0.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(
        [next(), next(), next(), next()],
        ["error", "subscribed", "in_progress", "ready"]
    );
    server.report("/api/jobs/a/complete", json!({})).await;
    assert_eq!([next(), next()], ["completed", "closed 1000"]);
}
