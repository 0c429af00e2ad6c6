//! Killed without warning: what was acknowledged is there, once, in order, on whatever transport one comes back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::listener::{Listener, Transport};
use crate::support::*;

/// Publishes until the server is gone; what was acknowledged goes into `acknowledged`.
async fn publish_until_killed(url: String, job: String, acknowledged: Arc<Mutex<Vec<Value>>>) {
    let http = reqwest::Client::new();
    for step in 0.. {
        let request = http
            .post(format!("{url}/api/jobs/{job}/progress"))
            .bearer_auth(worker(1))
            .json(&json!({"message": format!("{job} {step}")}));
        let Ok(response) = request.send().await else {
            return;
        };
        if response.status() != 200 {
            return;
        }
        let Ok(event) = response.json::<Value>().await else {
            return;
        };
        acknowledged.lock().unwrap().push(event);
    }
}

/// Listens until the server is gone. Returns the numbers of the events (for a first connection those after the
/// snapshot, led by the number that it ended with) and where the reader stands.
async fn listen_until_killed(
    url: String,
    transport: Transport,
    cursor: Option<String>,
) -> (Vec<u64>, Option<String>) {
    let mut listener = Listener::open(
        transport,
        &url,
        "/jobs?tick_ms=0",
        &viewer(1),
        cursor.as_deref(),
    )
    .await;
    let mut heard = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(PATIENCE, listener.next()).await {
        assert_ne!(message["type"], "reset", "{message}");
        if message["type"] == "ready" && cursor.is_none() {
            let (_, seq, _) = parts(&message["cursor"]);
            heard.push(seq);
        }
        if message.get("snapshot").is_none() {
            heard.extend(message["seq"].as_u64());
        }
    }
    (heard, listener.cursor)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real processes end"]
async fn every_acknowledged_event_survives_sigkill_and_is_read_once_on_another_transport() {
    const ROUNDS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<u64, Value> = HashMap::new();
    let mut from: Vec<Option<String>> = vec![None; 3];
    let mut stories: Vec<Vec<u64>> = vec![Vec::new(); 3];
    for round in 0..ROUNDS {
        let mut server = process::Process::start(process::command(folder.path()).arg("serve"));
        let http = reqwest::Client::new();
        let job = |publisher| format!("r{round}p{publisher}");
        for publisher in 0..4 {
            let create =
                json!({"job_id": job(publisher), "job_type": "t", "status": "in_progress"});
            let created = http
                .post(format!("{}/api/jobs", server.url))
                .bearer_auth(worker(1))
                .json(&create)
                .send()
                .await
                .unwrap();
            let event: Value = created.json().await.unwrap();
            acknowledged.insert(event["seq"].as_u64().unwrap(), event);
        }
        let listeners: Vec<_> = (0..3)
            .map(|reader| {
                let (url, transport, cursor) = (
                    server.url.clone(),
                    Transport::ALL[(reader + round) % 3],
                    from[reader].clone(),
                );
                tokio::spawn(listen_until_killed(url, transport, cursor))
            })
            .collect();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let publishers: Vec<_> = (0..4)
            .map(|publisher| {
                tokio::spawn(publish_until_killed(
                    server.url.clone(),
                    job(publisher),
                    Arc::clone(&answers),
                ))
            })
            .collect();
        // At some moment: now there is little to lose, now much.
        let enough = fastrand::usize(1..400);
        until("there is something to lose", async || {
            answers.lock().unwrap().len() > enough
        })
        .await;
        server.kill();
        for publisher in publishers {
            publisher.await.unwrap();
        }
        for (reader, listener) in listeners.into_iter().enumerate() {
            let (heard, cursor) = listener.await.unwrap();
            stories[reader].extend(heard);
            from[reader] = cursor.or(from[reader].take());
        }
        for event in answers.lock().unwrap().drain(..) {
            let seq = event["seq"].as_u64().unwrap();
            assert!(
                acknowledged.insert(seq, event).is_none(),
                "{seq} was given twice"
            );
        }
    }

    let mut server = process::Process::start(process::command(folder.path()).arg("serve"));
    // The log itself: dense, and every acknowledged event in it as it was acknowledged.
    let mut log = Listener::open(
        Transport::EventSource,
        &server.url,
        "/jobs?tick_ms=0",
        &viewer(1),
        Some(&from_start(&acknowledged)),
    )
    .await;
    let all = log.until_ready().await;
    let events: Vec<&Value> = all
        .iter()
        .filter(|message| message["seq"].is_u64())
        .collect();
    let seqs: Vec<u64> = events
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    for (seq, event) in &acknowledged {
        assert_eq!(
            events[*seq as usize - 1],
            event,
            "acknowledged, and not there as it was"
        );
    }
    // Each reader, over three transports and three crashes: every event once, in order.
    for (reader, mut story) in stories.into_iter().enumerate() {
        let transport = Transport::ALL[(reader + ROUNDS) % 3];
        let mut listener = Listener::open(
            transport,
            &server.url,
            "/jobs?tick_ms=0",
            &viewer(1),
            from[reader].as_deref(),
        )
        .await;
        let rest = listener.until_ready().await;
        story.extend(rest.iter().filter_map(|message| message["seq"].as_u64()));
        // It began with a snapshot, which stands for what was before.
        assert!(story[0] < 100, "it began early");
        let (read, last) = (seqs.len() as u64, *story.last().unwrap());
        // Over Postgres, what the killed server had sent may be committed after the log was read.
        assert!(
            last == read || store::is_postgres() && last > read,
            "reader {reader}: {last}, and the log has {read}"
        );
        assert_eq!(
            story,
            (story[0]..=last).collect::<Vec<_>>(),
            "reader {reader}"
        );
    }
    server.kill();
}

/// The cursor before the first event, of the same database.
fn from_start(acknowledged: &HashMap<u64, Value>) -> String {
    let any = acknowledged.values().next().unwrap()["cursor"]
        .as_str()
        .unwrap();
    format!("{}-0", any.split('-').next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real processes end"]
async fn sigterm_answers_what_is_under_way_and_leaves_within_the_grace_period() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = process::Process::start(process::command(folder.path()).arg("serve"));
    let http = reqwest::Client::new();
    let create = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    http.post(format!("{}/api/jobs", server.url))
        .bearer_auth(worker(1))
        .json(&create)
        .send()
        .await
        .unwrap();
    let mut listener =
        Listener::open(Transport::WebSocket, &server.url, "/jobs", &viewer(1), None).await;
    listener.until_ready().await;
    let answers = Arc::new(Mutex::new(Vec::new()));
    let publisher = tokio::spawn(publish_until_killed(
        server.url.clone(),
        "a".into(),
        Arc::clone(&answers),
    ));
    until("it publishes", async || answers.lock().unwrap().len() > 20).await;
    let ended = process::blocking(move || {
        let begin = std::time::Instant::now();
        (server.terminate(), begin.elapsed())
    });
    let heard = listener
        .take_until(|message| message["type"] == "closing")
        .await;
    assert_eq!(heard.last().unwrap()["code"], 1001);
    let (code, took) = ended.await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(9), "{took:?}");
    publisher.await.unwrap();
    let last = answers.lock().unwrap().last().unwrap()["seq"]
        .as_u64()
        .unwrap();
    let server = process::Process::start(process::command(folder.path()).arg("serve"));
    let job: Value = http
        .get(format!("{}/api/jobs/a", server.url))
        .bearer_auth(viewer(1))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert!(job["seq"].as_u64().unwrap() >= last);
}

#[test]
fn a_second_process_does_not_touch_a_database_in_use() {
    if !store::is_a_file("Postgres serves many nodes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _server = process::Process::start(process::command(folder.path()).arg("serve"));
    let second = process::run(process::command(folder.path()).arg("serve"));
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("in use by another process"),
        "{second:?}"
    );
}

#[test]
fn a_file_that_is_no_database_is_rejected_and_left_as_it_is() {
    if !store::is_a_file("there is no file") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let path = folder.path().join("data/tidings.db");
    let text = "this is somebody's diary, not a database\n".repeat(200);
    std::fs::write(&path, &text).unwrap();
    let rejected = process::run(process::command(folder.path()).arg("serve"));
    assert_eq!(rejected.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&rejected.stderr).contains("tidings.db"),
        "{rejected:?}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_receives_a_reconnect_delay_and_a_second_signal_ends_the_server_immediately() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = process::Process::start(process::command(folder.path()).arg("serve"));
    let mut listeners = Vec::new();
    for number in 0..12 {
        // A poll that is not under way gets no message.
        let transport = [Transport::EventSource, Transport::WebSocket][number % 2];
        let mut listener = Listener::open(transport, &server.url, "/jobs", &viewer(1), None).await;
        listener.until_ready().await;
        listeners.push(listener);
    }
    // A request whose body does not come: it is waited for as long as the grace period lasts.
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut stuck = tokio::net::TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
        worker(1)
    );
    tokio::io::AsyncWriteExt::write_all(&mut stuck, request.as_bytes())
        .await
        .unwrap();
    // It is being read once the server asks for its body.
    let mut answer = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stuck, &mut answer)
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    server.signal("TERM");
    let mut delays = std::collections::BTreeSet::new();
    for listener in &mut listeners {
        let heard = listener
            .take_until(|message| message["type"] == "closing")
            .await;
        let closing = heard.last().unwrap();
        assert_eq!(
            (&closing["code"], &closing["reconnect"]),
            (&json!(1001), &json!(true))
        );
        delays.insert(closing["retry_ms"].as_u64().unwrap());
    }
    assert!(delays.len() > 8, "each has its own: {delays:?}");
    assert!(delays.iter().all(|delay| *delay < 5_000), "{delays:?}");
    server.signal("TERM");
    let code = process::blocking(move || server.wait()).await;
    drop(stuck);
    assert_eq!(
        code,
        Some(143),
        "at once, and not at the end of the grace period"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_is_not_ready_and_answers_what_is_under_way() {
    let server = server().await;
    assert_eq!(
        reqwest::get(format!("{}/readyz", server.url))
            .await
            .unwrap()
            .status(),
        200
    );
    server.tidings.stop();
    let ready = reqwest::get(format!("{}/readyz", server.url))
        .await
        .unwrap();
    assert_eq!(ready.status(), 503);
    // What is under way is still answered.
    server.running_job("a").await;
}
