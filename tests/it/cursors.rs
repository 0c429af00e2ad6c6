//! Every cursor that is ever sent, on any transport, at any moment, is safe to come back with.
//!
//! The checker speaks HTTP and WebSocket by itself, takes cursors as opaque, and knows what was committed from the answers
//! to its own writes. It notes each cursor with what it had received until then, comes back with some of them over any
//! transport, and must find every milestone of the same scope.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tidings::config::READ_PAGE;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::listener::{Socket, send, socket, socket_url};
use crate::support::*;
use crate::websocket::until_type;

const JOBS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Sessions of the checker, after each of which it comes back with some cursors.
const SESSIONS: usize = 24;
const RETURNS: usize = 6;

/// Milestones that were committed: `seq` and job.
type Committed = Arc<Mutex<Vec<(u64, &'static str)>>>;

/// An event that a client received.
#[derive(Debug, Clone, Copy)]
struct Heard {
    seq: u64,
    job: &'static str,
    snapshot: bool,
}

/// A cursor, for which channels it was sent, and how much had been received until then.
#[derive(Debug, Clone)]
struct Place {
    cursor: String,
    scope: BTreeSet<String>,
    heard: Vec<Heard>,
    /// What brought it, and the `seq` of that: if it was no event, of the newest one before.
    by: String,
    seq: u64,
}

/// What a client takes note of while it listens.
#[derive(Default)]
struct Notes {
    scope: BTreeSet<String>,
    heard: Vec<Heard>,
    places: Vec<Place>,
    is_ready: bool,
    was_reset: bool,
    /// Whether it has come back, and its own cursors do not matter any more.
    is_back: bool,
}

impl Notes {
    fn sent(&mut self, cursor: &str, by: &str, seq: Option<u64>) {
        if self.is_back {
            return;
        }
        let newest = || self.heard.iter().map(|event| event.seq).max();
        let seq = seq.or_else(newest).unwrap_or(0);
        self.places.push(Place {
            cursor: cursor.to_owned(),
            scope: self.scope.clone(),
            heard: self.heard.clone(),
            by: by.to_owned(),
            seq,
        });
    }

    fn hear(&mut self, message: &Value) {
        if let (Some(seq), Some(job)) = (message["seq"].as_u64(), message["job_id"].as_str()) {
            self.heard.push(Heard {
                seq,
                job: JOBS.into_iter().find(|known| *known == job).unwrap(),
                snapshot: message["snapshot"] == true,
            });
        }
        self.is_ready |= message["type"] == "ready";
        self.was_reset |= message["type"] == "reset";
        if let Some(cursor) = message["cursor"].as_str() {
            let by = message["type"].as_str().unwrap();
            self.sent(cursor, by, message["seq"].as_u64());
        }
    }
}

/// Milestones of a place's scope that somebody who has come back to it, and has received all of this, has neither received nor
/// had the later state of.
fn missing(committed: &[(u64, &'static str)], place: &Place, heard: &[Heard]) -> Vec<u64> {
    let hears =
        |job: &str| place.scope.contains("jobs") || place.scope.contains(&format!("jobs/{job}"));
    let is_known = |seq: u64, job: &str| {
        let of_job = |event: &&Heard| event.job == job;
        let first = heard.iter().position(|event| event.job == job);
        let is_state = |event: &Heard| event.snapshot && seq <= event.seq;
        // Of a job that goes on while it would be delivered, the next event is the state. After a cursor that cannot be: from
        // there on every milestone must come.
        let begins_later = first.is_some_and(|first| {
            let may_begin = first < place.heard.len() || seq <= place.seq;
            seq < heard[first].seq && may_begin
        });
        begins_later
            || heard
                .iter()
                .filter(of_job)
                .any(|event| event.seq == seq || is_state(event))
    };
    let lost = committed
        .iter()
        .filter(|(seq, job)| hears(job) && !is_known(*seq, job));
    lost.map(|(seq, _)| *seq).collect()
}

/// Reports on jobs until it is dropped.
async fn work(base: String, committed: Committed, mut rng: Rng) {
    let http = reqwest::Client::new();
    let token = worker(1);
    let report = async |path: String, body: Value| {
        let request = http.post(format!("{base}{path}")).bearer_auth(&token);
        let (status, response) = answer(request.json(&body)).await;
        assert!(status < 300, "{path}: {response}");
        response["seq"].as_u64().unwrap()
    };
    for job in JOBS {
        let body = json!({"job_id": job, "job_type": "t", "status": "in_progress"});
        let seq = report("/api/jobs".into(), body).await;
        committed.lock().unwrap().push((seq, job));
    }
    // As fast as a busy school, and no faster: each return replays what has happened since.
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    loop {
        pace.tick().await;
        let job = rng.choice(JOBS).unwrap();
        if rng.u8(0..4) > 0 {
            let body = json!({"message": rng.u32(..).to_string()});
            report(format!("/api/jobs/{job}/progress"), body).await;
            continue;
        }
        let failed = json!({"error": "out of paper"});
        for (verb, body) in [("fail", failed), ("retry", json!({})), ("start", json!({}))] {
            let seq = report(format!("/api/jobs/{job}/{verb}"), body).await;
            committed.lock().unwrap().push((seq, job));
        }
    }
}

fn query(scope: &BTreeSet<String>) -> String {
    let channels = scope.iter().map(|channel| format!("channel={channel}"));
    channels.collect::<Vec<_>>().join("&")
}

/// Listens over one of the transports to what `notes` say, until there is enough.
async fn listen(
    server: &Server,
    transport: Transport,
    cursor: Option<&str>,
    notes: &mut Notes,
    enough: impl Fn(&Notes) -> bool,
) {
    let path = format!(
        "/events?{}&tick_ms=0&heartbeat=message",
        query(&notes.scope)
    );
    let get = |accept: &str, more: &str| {
        let mut request = server.request("GET", &format!("{path}{more}"), &viewer(1));
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor);
        }
        request.header("Accept", accept)
    };
    match transport {
        Transport::Poll => {
            let mut next = None;
            notes.is_ready = false;
            while !notes.is_ready {
                let mut request = get("application/json", "&wait=0");
                if let Some(next) = &next {
                    request =
                        server.request("GET", &format!("{path}&wait=0&cursor={next}"), &viewer(1));
                    request = request.header("Accept", "application/json");
                }
                let (_, response) = answer(request).await;
                let messages = response["messages"].as_array().unwrap();
                messages.iter().for_each(|message| notes.hear(message));
                let cursor = response["cursor"].as_str().unwrap();
                notes.sent(cursor, "the answer to a poll", None);
                next = Some(cursor.to_owned());
            }
        }
        Transport::EventSource => {
            let mut bytes = get("text/event-stream", "")
                .send()
                .await
                .unwrap()
                .bytes_stream();
            let mut pending = String::new();
            while !enough(notes) {
                let part = timeout(PATIENCE, bytes.next())
                    .await
                    .unwrap()
                    .unwrap()
                    .unwrap();
                pending.push_str(std::str::from_utf8(&part).unwrap());
                while let Some((block, rest)) = pending.split_once("\n\n") {
                    let value = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                    notes.hear(&serde_json::from_str(value("data: ").unwrap()).unwrap());
                    if let Some(id) = value("id: ") {
                        notes.sent(id, "an id", None);
                    }
                    pending = rest.to_owned();
                }
            }
        }
        Transport::WebSocket => {
            let url = socket_url(&server.url, &path, Some(&viewer(1)), cursor);
            let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
            while !enough(notes) {
                take(&mut socket, notes).await;
            }
        }
    }
}

/// The next of what a WebSocket brings.
async fn take(socket: &mut Socket, notes: &mut Notes) -> Value {
    match timeout(PATIENCE, socket.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
    {
        Message::Text(text) => {
            let message: Value = serde_json::from_str(&text).unwrap();
            // What is acknowledged counts from here on; what was left may be come back to from here.
            match message["type"].as_str().unwrap() {
                "subscribed" => notes.scope.extend(channels(&message)),
                "unsubscribed" => {
                    notes.sent(message["cursor"].as_str().unwrap(), "unsubscribed", None);
                    let left = channels(&message);
                    notes.scope.retain(|channel| !left.contains(channel));
                    // If it comes again without a cursor, its state is sent again.
                    let is_left = |event: &Heard| left.contains(&format!("jobs/{}", event.job));
                    notes.heard.retain(|event| !is_left(event));
                    return message;
                }
                _ => {}
            }
            notes.hear(&message);
            message
        }
        Message::Ping(payload) if !payload.is_empty() => {
            notes.sent(std::str::from_utf8(&payload).unwrap(), "a ping", None);
            Value::Null
        }
        _ => Value::Null,
    }
}

fn channels(message: &Value) -> Vec<String> {
    serde_json::from_value(message["channels"].clone()).unwrap()
}

/// A session on `/ws` that is refused, subscribes, from any cursors that it has, and leaves, in any order.
async fn multiplexed(server: &Server, rng: &mut Rng, known: &[Place]) -> Notes {
    let mut notes = Notes::default();
    // What it will want, and is refused.
    let wanted = BTreeSet::from(["jobs".to_owned()]);
    let mut socket = socket(&server.url, "/ws?tick_ms=0&heartbeat=message", &viewer(1)).await;
    let rejected = json!({"type": "subscribe", "channels": ["jobs", "schools/2"]});
    socket
        .send(Message::text(rejected.to_string()))
        .await
        .unwrap();
    let mut signs = 0;
    while signs == 0 {
        signs += usize::from(take(&mut socket, &mut notes).await["type"] == "heartbeat");
    }
    // Nothing was sent: a cursor would be for nothing, or for what is wanted.
    notes
        .places
        .iter_mut()
        .for_each(|place| place.scope = wanted.clone());
    for _ in 0..rng.usize(2..8) {
        let channel = format!("jobs/{}", rng.choice(JOBS).unwrap());
        let leaves = notes.scope.contains(&channel);
        let places: Vec<&Place> = known
            .iter()
            .filter(|place| place.scope.contains(&channel))
            .collect();
        let mut ask = json!({"type": "subscribe", "channels": [channel]});
        if leaves {
            ask["type"] = json!("unsubscribe");
        } else if let Some(place) = rng.choice(places).filter(|_| rng.bool()) {
            ask["cursor"] = json!(place.cursor);
            let is_of_channel = |heard: &&Heard| channel == format!("jobs/{}", heard.job);
            notes.heard.extend(place.heard.iter().filter(is_of_channel));
        }
        socket.send(Message::text(ask.to_string())).await.unwrap();
        // At any moment the next is asked, also in the midst of a replay; but one channel is not asked for twice.
        let answer = if leaves { "unsubscribed" } else { "subscribed" };
        while take(&mut socket, &mut notes).await["type"] != answer {}
        for _ in 0..rng.usize(0..30) {
            if notes.scope.is_empty() {
                break;
            }
            take(&mut socket, &mut notes).await;
        }
    }
    notes
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: thousands of cursors"]
async fn whatever_cursor_was_ever_sent_coming_back_with_it_misses_no_milestone() {
    let seed = std::env::var("TIDINGS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    // So small that replays, lags and pages of the store happen all the time.
    let settings = json!({"heartbeat_secs": 1, "mailbox_capacity": 8, "window_events": 4, "publishes_per_sec": 0});
    let server = server_with(settings).await;
    let committed = Committed::default();
    let working = tokio::spawn(work(server.url.clone(), Arc::clone(&committed), rng.fork()));
    until("there is something", async || {
        committed.lock().unwrap().len() > 50
    })
    .await;
    let mut known: Vec<Place> = Vec::new();
    let mut proved: HashMap<String, usize> = HashMap::new();
    for session in 0..SESSIONS {
        // Each in its turn, so that none is left out by chance.
        let transport = Transport::ALL[session % Transport::ALL.len()];
        let mut notes = if session % 4 == 3 {
            multiplexed(&server, &mut rng, &known).await
        } else {
            let mut notes = Notes::default();
            let place = rng
                .choice(&known)
                .filter(|place| !place.scope.is_empty() && rng.bool());
            match place {
                Some(place) => {
                    (notes.scope, notes.heard) = (place.scope.clone(), place.heard.clone())
                }
                None => {
                    let mut one = || format!("jobs/{}", rng.choice(JOBS).unwrap());
                    let some = [one(), one()];
                    notes.scope = match rng.bool() {
                        true => ["jobs".to_owned()].into(),
                        false => some.into(),
                    };
                }
            }
            let cursor = place.map(|place| place.cursor.clone());
            let max_places = rng.usize(1..200);
            let enough = |notes: &Notes| notes.places.len() >= max_places;
            listen(&server, transport, cursor.as_deref(), &mut notes, enough).await;
            notes
        };
        assert!(!notes.was_reset, "nothing has left retention");
        for _ in 0..RETURNS {
            let Some(place) = rng
                .choice(&notes.places)
                .filter(|place| !place.scope.is_empty())
            else {
                continue;
            };
            let before = committed.lock().unwrap().clone();
            let mut back = Notes {
                scope: place.scope.clone(),
                heard: place.heard.clone(),
                is_back: true,
                ..Notes::default()
            };
            let transport = rng.choice(Transport::ALL).unwrap();
            let enough = |notes: &Notes| notes.is_ready;
            listen(&server, transport, Some(&place.cursor), &mut back, enough).await;
            assert!(!back.was_reset, "{} of {}", place.cursor, place.by);
            let lost = missing(&before, place, &back.heard);
            assert!(
                lost.is_empty(),
                "seed {seed}, session {session}: {} of {:?} for {:?}, back over {transport:?}, loses {lost:?}",
                place.cursor,
                place.by,
                place.scope
            );
            *proved.entry(place.by.clone()).or_default() += 1;
        }
        rng.shuffle(&mut notes.places);
        notes.places.truncate(40);
        known.extend(notes.places);
    }
    assert!(!working.is_finished(), "it works to the end");
    working.abort();
    for by in [
        "connected",
        "ready",
        "job_progress",
        // Heartbeats come, too, but only on a stream that has had nothing for a second.
        "subscribed",
        "the answer to a poll",
    ] {
        assert!(
            known.iter().any(|place| place.by == by),
            "{by} was never sent: {proved:?}"
        );
    }
    assert!(proved.values().sum::<usize>() > SESSIONS, "{proved:?}");
    tokio::time::timeout(Duration::from_secs(5), server.stop())
        .await
        .ok();
}

/// What `/ws` says where it listens to nothing, has no cursor: whoever came back with one would skip what was before it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_connection_that_listens_to_nothing_is_sent_no_cursor() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("a").await;
    let mut notes = Notes::default();
    let mut ws = socket(&server.url, "/ws?heartbeat=message", &viewer(1)).await;
    let ask = async |ws: &mut Socket, notes: &mut Notes, ask: Value, until: &str| {
        ws.send(Message::text(ask.to_string())).await.unwrap();
        loop {
            let message = take(ws, notes).await;
            if message["type"] == until {
                return message;
            }
        }
    };
    // Refused, and then before any subscription.
    let other = json!({"type": "subscribe", "channels": ["schools/2"]});
    ask(&mut ws, &mut notes, other, "error").await;
    let nothing = json!({"type": "unsubscribe", "channels": ["jobs"]});
    ws.send(Message::text(nothing.to_string())).await.unwrap();
    let message = receive_type(&mut ws, "unsubscribed").await;
    assert!(message.get("cursor").is_none(), "{message}");
    let message = receive_type(&mut ws, "heartbeat").await;
    assert!(message.get("cursor").is_none(), "{message}");
    // What was listened to ended somewhere; from then on there is nothing again.
    let jobs = json!({"type": "subscribe", "channels": ["jobs"]});
    let ready = ask(&mut ws, &mut notes, jobs.clone(), "ready").await;
    let left = json!({"type": "unsubscribe", "channels": ["jobs"]});
    let left = ask(&mut ws, &mut notes, left, "unsubscribed").await;
    assert_eq!(left["cursor"], ready["cursor"]);
    server.report("/api/jobs/a/complete", json!({})).await;
    let message = receive_type(&mut ws, "heartbeat").await;
    assert!(message.get("cursor").is_none(), "{message}");
    // Coming back to it from where it ended misses nothing.
    let again = json!({"type": "subscribe", "channels": ["jobs"], "cursor": left["cursor"]});
    let state = ask(&mut ws, &mut notes, again, "job_progress").await;
    assert_eq!(
        (&state["status"], state.get("snapshot")),
        (&json!("completed"), None)
    );
}

async fn receive_type(ws: &mut Socket, wanted: &str) -> Value {
    loop {
        let message = listener::receive(ws).await.unwrap();
        if message["type"] == wanted {
            return message;
        }
    }
}

/// A job that changes between two pages of a list is delivered by the stream that goes on from either page's cursor.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_list_has_a_cursor_that_loses_no_change_of_an_earlier_page() {
    let server = server().await;
    for job in JOBS {
        server.running_job(job).await;
    }
    let (_, first) = server.get("/api/jobs?limit=2", &viewer(1)).await;
    let changed = first["jobs"][0]["job_id"].as_str().unwrap();
    server
        .report(&format!("/api/jobs/{changed}/complete"), json!({}))
        .await;
    let mut page = first.clone();
    while let Some(next) = page["next"].as_str() {
        let path = format!("/api/jobs?limit=2&page={next}");
        page = server.get(&path, &viewer(1)).await.1;
        assert_eq!(page["cursor"], first["cursor"]);
    }
    let cursor = page["cursor"].as_str().unwrap();
    let mut listener = server.resume(Transport::Poll, "/jobs", cursor).await;
    let messages = listener.until_ready().await;
    assert!(
        messages
            .iter()
            .any(|message| message["job_id"] == changed && message["status"] == "completed")
    );
}

/// More of an added channel was missed than is read at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_added_from_a_cursor_is_delivered_to_its_end_however_long_it_is() {
    let server = server_with(json!({"publishes_per_sec": 0})).await;
    server.running_job("a").await;
    let start = server.running_job("b").await;
    let messages: Vec<String> = (0..2 * READ_PAGE)
        .map(|number| number.to_string())
        .collect();
    let line = |message| json!({"op": "jobs.progress", "job_id": "b", "message": message});
    let lines = messages
        .iter()
        .map(|message| format!("{}\n", line(message)));
    let answers = server.batch(&worker(1), lines.collect::<String>()).await;
    let has_cursor = |answer: &Value| answer["event"]["cursor"].is_string();
    assert!(answers.iter().all(has_cursor), "{answers:?}");
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, r#"{"type": "subscribe", "job_id": "a"}"#).await;
    until_type(&mut ws, "ready").await;
    let ask = json!({"type": "subscribe", "job_id": "b", "cursor": start["cursor"]});
    send(&mut ws, &ask.to_string()).await;
    let received = until_type(&mut ws, "ready").await;
    let reports = received
        .iter()
        .filter(|message| message["type"] == "job_progress");
    let texts: Vec<&str> = reports
        .map(|message| message["message"].as_str().unwrap())
        .collect();
    assert_eq!(texts, messages);
}
