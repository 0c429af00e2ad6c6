//! Commands on a connection that goes on: `publish` on `/ws`, and lines of `POST /api/batch?stream=1`. Each is answered
//! after its commit, in order, while more arrive.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::sqlite::SqliteConnection;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::Body;
use serde_json::{Value, json};
use tidings::auth::Role;
use tidings::config::PIPELINE_COMMANDS;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::listener::{receive, send, socket, socket_url, until_closed};
use crate::support::process::{Guarded, Patient, blocking};
use crate::support::*;

fn publish(id: impl Into<Value>, command: Value) -> String {
    let mut message = command;
    message["type"] = "publish".into();
    message["id"] = id.into();
    message.to_string()
}

fn create(job: &str) -> Value {
    json!({"op": "jobs.create", "job_id": job, "job_type": "test", "status": "in_progress"})
}

fn progress(job: &str, progress: u64) -> Value {
    json!({"op": "jobs.progress", "job_id": job, "progress": progress})
}

/// A token of school 1 that expires soon.
fn worker_for(secs: i64) -> String {
    let mut claims = claims(Some(1), Role::Worker);
    claims.exp = (chrono::Utc::now().timestamp() + secs) as f64;
    sign(&claims)
}

/// A batch that is being sent and answered.
struct Batch {
    lines: Option<mpsc::Sender<Vec<u8>>>,
    response: reqwest::Response,
    received: Vec<u8>,
}

impl Batch {
    async fn open(server: &Server, query: &str, token: &str) -> Batch {
        let (lines, mut sent) = mpsc::channel::<Vec<u8>>(1);
        // Rocket looks at the beginning of a body before it calls a handler.
        let nothing = [b' '; 16].into_iter().chain([b'\n']).collect();
        lines.send(nothing).await.unwrap();
        let body = futures_util::stream::poll_fn(move |cx| {
            sent.poll_recv(cx)
                .map(|part| part.map(Ok::<_, std::io::Error>))
        });
        let path = format!("/api/batch?stream=1{query}");
        let request = server.request("POST", &path, token);
        let response = request.body(Body::wrap_stream(body)).send().await.unwrap();
        Batch {
            lines: Some(lines),
            response,
            received: Vec::new(),
        }
    }

    async fn send(&self, line: impl ToString) {
        let line = format!("{}\n", line.to_string()).into_bytes();
        self.lines.as_ref().unwrap().send(line).await.unwrap();
    }

    /// Returns the next line, or none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await;
            match chunk.expect("a line in time").unwrap() {
                Some(bytes) => self.received.extend(bytes),
                None => return None,
            }
        }
    }

    /// Returns the next line that is a result.
    async fn result(&mut self) -> Value {
        loop {
            let line = self.next().await.unwrap();
            if line["type"] != "heartbeat" {
                return line;
            }
        }
    }

    /// Ends the request. Returns what is left of the response.
    async fn end(mut self) -> Vec<Value> {
        self.lines = None;
        let mut rest = Vec::new();
        while let Some(line) = self.next().await {
            rest.push(line);
        }
        rest
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_the_socket_take_effect_and_are_answered_in_their_order() {
    let server = server().await;
    let mut ws = socket(&server.url, "/ws", &worker(1)).await;
    let count = 2 * PIPELINE_COMMANDS as u64;
    send(&mut ws, &publish(0, create("a"))).await;
    for id in 1..=count {
        let percent = id as f64 / 10.0;
        let command = json!({"op": "jobs.progress", "job_id": "a", "progress": percent});
        send(&mut ws, &publish(id, command)).await;
    }
    send(
        &mut ws,
        &publish("last", json!({"op": "jobs.complete", "job_id": "a"})),
    )
    .await;
    for id in 0..=count {
        let answer = receive(&mut ws).await.unwrap();
        let shown = [
            &answer["type"],
            &answer["id"],
            &answer["status"],
            &answer["event"]["seq"],
        ];
        assert_eq!(
            shown,
            [&json!("published"), &json!(id), &json!(200), &json!(id + 1)]
        );
    }
    let answer = receive(&mut ws).await.unwrap();
    assert_eq!(answer["id"], "last");
    let (_, job) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(job["cursor"], answer["event"]["cursor"], "{job} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_the_socket_that_is_rejected_has_the_problem_of_a_line_and_the_next_one_is_carried_out()
 {
    let server = server().await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/ws", &worker(1)).await;
    let expected = [
        (
            json!({"op": "jobs.dance", "job_id": "a"}),
            422,
            "invalid-body",
        ),
        (json!({"job_id": "a"}), 422, "invalid-body"),
        (progress("nobody", 1), 404, "not-found"),
        (
            json!({"op": "jobs.progress", "job_id": "a", "school_id": 2}),
            404,
            "not-found",
        ),
        (
            json!({"op": "jobs.queue", "job_id": "a"}),
            409,
            "illegal-transition",
        ),
    ];
    for (command, ..) in &expected {
        send(&mut ws, &publish("x", command.clone())).await;
    }
    send(&mut ws, &publish("y", progress("a", 5))).await;
    for (command, status, code) in &expected {
        let answer = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&answer["id"], &answer["status"]),
            (&json!("x"), &json!(status)),
            "{command}"
        );
        assert_eq!(answer["problem"]["code"], *code, "{command}");
    }
    assert_eq!(receive(&mut ws).await.unwrap()["event"]["progress"], 5.0);
    // Without an id, and with ids that are not valid.
    let mut bare = progress("a", 6);
    bare["action"] = "publish".into();
    send(&mut ws, &bare.to_string()).await;
    let answer = receive(&mut ws).await.unwrap();
    assert!(
        answer.get("id").is_none() && answer["status"] == 200,
        "{answer}"
    );
    for id in [json!([1]), json!("x".repeat(129))] {
        send(&mut ws, &publish(id, progress("a", 7))).await;
        assert_eq!(receive(&mut ws).await.unwrap()["code"], "invalid_field");
    }
    // Numbers that would be rounded. The client learns which command is meant.
    for number in ["18446744073709551616", "1e999"] {
        let command = r#"{"type": "publish", "id": 8, "op": "jobs.progress", "job_id": "a", "metadata": {"rows": N}}"#;
        send(&mut ws, &command.replace('N', number)).await;
        let answer = receive(&mut ws).await.unwrap();
        let (code, id) = (&answer["code"], &answer["id"]);
        assert_eq!((code, id), (&json!("invalid_field"), &json!(8)), "{answer}");
    }
    // A byte order mark is ignored, as in a body.
    let marked = format!("\u{feff}{}", publish("z", progress("a", 9)));
    send(&mut ws, &marked).await;
    assert_eq!(receive(&mut ws).await.unwrap()["event"]["progress"], 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_not_publish_gets_an_error_and_stays_connected() {
    let server = server().await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(&mut ws, &publish(7, progress("a", 1))).await;
    let received = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&received["type"], &received["code"], &received["id"]),
        (&json!("error"), &json!("forbidden"), &json!(7))
    );
    let auth = json!({"type": "auth", "token": worker(1)});
    send(&mut ws, &auth.to_string()).await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "authenticated");
    send(&mut ws, &publish(8, progress("a", 1))).await;
    assert_eq!(receive(&mut ws).await.unwrap()["status"], 200);
    let auth = json!({"type": "auth", "token": viewer(1)});
    send(&mut ws, &auth.to_string()).await;
    send(&mut ws, &publish(9, progress("a", 2))).await;
    assert_eq!(receive(&mut ws).await.unwrap()["type"], "authenticated");
    assert_eq!(receive(&mut ws).await.unwrap()["code"], "forbidden");

    for path in ["/ws/samples", "/progress/ws/a?cursor="] {
        let mut ws = socket(&server.url, path, &worker(1)).await;
        send(&mut ws, &publish(1, progress("a", 3))).await;
        let error = loop {
            let message = receive(&mut ws).await.unwrap();
            if message["type"] == "error" {
                break message;
            }
        };
        assert_eq!(error["code"], "unknown_type", "{path}");
    }
    let (status, _) = answer(
        server
            .request("POST", "/api/batch?stream=1", &viewer(1))
            .body(""),
    )
    .await;
    assert_eq!(status, 403);
    let (_, job) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(job["progress"], 1.0, "nothing else has taken effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_count_towards_the_rate_limit_of_their_user_and_not_of_messages() {
    let settings =
        json!({"client_messages_per_sec": 1, "publishes_per_sec": 1, "batch_limit_commands": 50});
    let server = server_with(settings).await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/ws", &worker(1)).await;
    for id in 0..60 {
        send(&mut ws, &publish(id, progress("a", 1))).await;
    }
    let mut statuses = Vec::new();
    for id in 0..60 {
        let answer = receive(&mut ws).await.unwrap();
        assert_eq!(answer["id"], id);
        statuses.push(answer["status"].as_u64().unwrap());
    }
    assert!(
        statuses[..49].iter().all(|status| *status == 200),
        "{statuses:?}"
    );
    assert_eq!(statuses[59], 429, "{statuses:?}");
    // What only looks like a command is a message.
    for _ in 0..5 {
        send(&mut ws, r#"{"type":"ping","timestamp":"publish"}"#).await;
    }
    let (messages, code) = until_closed(&mut ws).await;
    assert_eq!(code, Some(1013));
    assert!(
        messages.iter().any(|message| message["code"] == "too_fast"),
        "{messages:?}"
    );
}

type Halves = (
    SplitSink<listener::Socket, Message>,
    SplitStream<listener::Socket>,
);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_client_that_reads_no_answers_is_slowed_down_and_slows_nobody_else() {
    const COMMANDS: usize = 6_000;
    let server = server().await;
    server.running_job("a").await;
    let ws = socket(&server.url, "/ws", &worker(1)).await;
    let (mut outgoing, mut incoming): Halves = ws.split();
    let filler = "x".repeat(3_000);
    let sender = tokio::spawn(async move {
        for id in 0..COMMANDS {
            let command =
                json!({"op": "jobs.progress", "job_id": "a", "message": format!("{id} {filler}")});
            outgoing
                .send(Message::text(publish(id, command)))
                .await
                .unwrap();
        }
        outgoing
    });
    // The server stops reading, so that the sender waits.
    let mut last = 0;
    until("nothing more is carried out", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (_, job) = server.get("/api/jobs/a", &viewer(1)).await;
        let seq = job["seq"].as_u64().unwrap();
        std::mem::replace(&mut last, seq) == seq
    })
    .await;
    assert!(!sender.is_finished() && last < COMMANDS as u64, "{last}");
    server.running_job("b").await;
    for id in 0..COMMANDS {
        let text = loop {
            let message = timeout(PATIENCE, incoming.next()).await.unwrap();
            if let Message::Text(text) = message.unwrap().unwrap() {
                break text;
            }
        };
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&answer["id"], &answer["status"]),
            (&json!(id), &json!(200))
        );
    }
    drop(sender.await.unwrap());
}

/// Of what is unanswered when the server says `closing`, nothing has an effect.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn what_has_an_effect_is_answered_before_the_socket_or_the_stream_is_closed() {
    for stops in [true, false] {
        let server = server().await;
        server.running_job("a").await;
        server.running_job("b").await;
        let token = if stops { worker(1) } else { worker_for(2) };
        let ws = socket(&server.url, "/ws", &token).await;
        let (mut outgoing, mut incoming): Halves = ws.split();
        let mut batch = Batch::open(&server, "", &token).await;
        let lines = batch.lines.take().unwrap();
        let publisher = tokio::spawn(async move {
            for id in 0.. {
                let message = publish(
                    id,
                    json!({"op": "jobs.progress", "job_id": "a", "message": format!("{id}")}),
                );
                if outgoing.send(Message::text(message)).await.is_err() {
                    break;
                }
            }
        });
        let sender = tokio::spawn(async move {
            for id in 0.. {
                let line =
                    json!({"op": "jobs.progress", "job_id": "b", "message": format!("{id}")});
                if lines.send(format!("{line}\n").into_bytes()).await.is_err() {
                    break;
                }
            }
        });
        let code = if stops { 1001 } else { 4401 };
        let on_socket = tokio::spawn(async move {
            let mut last = None;
            loop {
                let message = timeout(PATIENCE, incoming.next())
                    .await
                    .unwrap()
                    .unwrap()
                    .unwrap();
                let Message::Text(text) = message else {
                    continue;
                };
                let message: Value = serde_json::from_str(&text).unwrap();
                match message["type"].as_str() {
                    Some("published") => last = Some(message["event"]["message"].clone()),
                    Some("closing") => {
                        assert_eq!(message["code"], code);
                        return last;
                    }
                    _ => panic!("{message}"),
                }
            }
        });
        let on_stream = tokio::spawn(async move {
            let mut last = None;
            while let Some(line) = batch.next().await {
                match line["type"].as_str() {
                    None => last = Some(line["event"]["message"].clone()),
                    Some("closing") => {
                        assert_eq!(line["code"], code);
                        return last;
                    }
                    _ => {}
                }
            }
            panic!("the stream ends without `closing`");
        });
        until("much is carried out", async || {
            let (_, job) = server.get("/api/jobs/b", &viewer(1)).await;
            job["seq"].as_u64().unwrap() > 500
        })
        .await;
        let server = match stops {
            true => server_in(server.stop().await, json!({})).await,
            false => server,
        };
        for (job, answered) in [("a", on_socket), ("b", on_stream)] {
            let last = answered.await.unwrap();
            let (_, job) = server.get(&format!("/api/jobs/{job}"), &viewer(1)).await;
            assert_eq!(Some(&job["message"]), last.as_ref(), "stops: {stops}");
        }
        publisher.abort();
        sender.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_repeated_safely_on_the_socket_in_a_stream_and_in_a_batch() {
    let server = server().await;
    server.running_job("a").await;
    let mut ws = socket(&server.url, "/ws", &worker(1)).await;
    let mut command = progress("a", 5);
    command["idempotency_key"] = "k".into();
    let mut answers = Vec::new();
    for id in [1, 2] {
        send(&mut ws, &publish(id, command.clone())).await;
        answers.push(receive(&mut ws).await.unwrap()["event"].clone());
    }
    let mut batch = Batch::open(&server, "", &worker(1)).await;
    batch.send(&command).await;
    answers.push(batch.result().await["event"].clone());
    answers.push(server.batch(&worker(1), command.to_string()).await[0]["event"].clone());
    assert!(answers[0].is_object());
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    command["progress"] = 6.into();
    send(&mut ws, &publish(3, command)).await;
    assert_eq!(receive(&mut ws).await.unwrap()["status"], 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_stream_is_answered_while_the_request_goes_on() {
    let server = server().await;
    let mut batch = Batch::open(&server, "", &worker(1)).await;
    assert_eq!(batch.response.status(), 200);
    assert_eq!(
        batch.response.headers()["content-type"],
        "application/x-ndjson"
    );
    batch.send(create("a")).await;
    for number in 1..=5 {
        let line = batch.result().await;
        assert_eq!(
            (&line["line"], &line["status"]),
            (&json!(number), &json!(200))
        );
        batch.send(progress("a", number)).await;
    }
    assert_eq!(batch.result().await["line"], 6);
    until("it counts as a stream", async || {
        server.tidings.streams() == 1
    })
    .await;
    // Not a line, an empty one, one that is too long, and one that arrives in parts.
    batch.send("nonsense").await;
    batch.send("").await;
    batch.send(format!("{{{}", "x".repeat(100_000))).await;
    let lines = batch.lines.as_ref().unwrap();
    lines.send(br#"{"op":"jobs.progr"#.to_vec()).await.unwrap();
    lines
        .send(br#"ess","job_id":"a","progress":9}"#.to_vec())
        .await
        .unwrap();
    for (number, code) in [(7, "malformed-json"), (8, "body-too-large")] {
        let line = batch.result().await;
        assert_eq!(
            (&line["line"], &line["problem"]["code"]),
            (&json!(number), &json!(code))
        );
    }
    // The last line needs no end.
    let rest: Vec<Value> = batch.end().await;
    let shown: Vec<_> = rest
        .iter()
        .filter(|line| line["type"] != "heartbeat")
        .collect();
    assert_eq!(shown[0]["event"]["progress"], 9.0, "{rest:?}");
    assert_eq!(
        (&shown[1]["type"], &shown[1]["code"], &shown[1]["reconnect"]),
        (&json!("closing"), &json!(1000), &json!(false))
    );
    assert_eq!(shown.len(), 2);
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

/// While another program has locked the database, each round of commands is answered only after seconds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for a lock several times"]
async fn every_line_is_answered_after_the_body_has_ended_even_if_that_takes_long() {
    let server = server().await;
    server.running_job("a").await;
    let batch = Batch::open(&server, "", &worker(1)).await;
    let path = server.folder.path().join("tidings.db");
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other
        .batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE")
        .unwrap();
    for number in 1..=PIPELINE_COMMANDS {
        let report = json!({"op": "jobs.progress", "job_id": "a", "message": number.to_string()});
        batch.send(report).await;
    }
    let mut rest = batch.end().await;
    let closing = rest.pop().unwrap();
    assert_eq!(
        (&closing["type"], &closing["code"]),
        (&json!("closing"), &json!(1000))
    );
    rest.retain(|line| line["type"] != "heartbeat");
    assert_eq!(rest.len(), PIPELINE_COMMANDS);
    for line in rest {
        assert_eq!(line["problem"]["code"], "unavailable", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_stream_with_nothing_to_answer_has_heartbeats_and_takes_no_place_once_its_client_has_left()
 {
    let server = server_with(json!({"heartbeat_secs": 1, "max_streams_per_user": 1})).await;
    let mut batch = Batch::open(&server, "", &worker(1)).await;
    assert_eq!(batch.next().await.unwrap()["type"], "heartbeat");
    let another = server
        .request("POST", "/api/batch?stream=1", &worker(1))
        .body("");
    assert_eq!(answer(another).await.0, 429);
    drop(batch);
    until("its place is free", async || server.tidings.streams() == 0).await;
    let twice = server
        .request("POST", "/api/batch?stream=2", &worker(1))
        .body("");
    assert_eq!(answer(twice).await.0, 400);
    let several = for_schools(&[1, 2], Role::Worker);
    let unnamed = server
        .request("POST", "/api/batch?stream=1", &several)
        .body("");
    assert_eq!(answer(unnamed).await.0, 400);
    let mut batch = Batch::open(&server, "&school_id=1", &several).await;
    let mut line = create("a");
    line["school_id"] = 2.into();
    batch.send(line).await;
    assert_eq!(batch.result().await["event"]["school_id"], 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_stream_whose_answers_are_not_read_is_slowed_down() {
    let server = server().await;
    server.running_job("a").await;
    let mut batch = Batch::open(&server, "", &worker(1)).await;
    let lines = batch.lines.take().unwrap();
    let sender = tokio::spawn(async move {
        let filler = "x".repeat(3_000);
        for id in 0..6_000 {
            let line =
                json!({"op": "jobs.progress", "job_id": "a", "message": format!("{id} {filler}")});
            lines.send(format!("{line}\n").into_bytes()).await.unwrap();
        }
    });
    let mut last = 0;
    until("nothing more is carried out", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (_, job) = server.get("/api/jobs/a", &viewer(1)).await;
        let seq = job["seq"].as_u64().unwrap();
        std::mem::replace(&mut last, seq) == seq
    })
    .await;
    assert!(!sender.is_finished() && last < 6_000, "{last}");
    server.running_job("b").await;
    for number in 1..=6_000 {
        assert_eq!(batch.result().await["line"], number);
    }
    sender.await.unwrap();
}

/// An independent implementation.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn python_websockets_publishes_many_commands_before_it_reads_an_answer() {
    let Some(python) = python_with_websockets() else {
        return;
    };
    let server = server().await;
    server.running_job("a").await;
    let script = r#"
import asyncio, json, sys, websockets
async def main(url):
    async with websockets.connect(url) as socket:
        for number in range(100):
            command = {"type": "publish", "id": number, "op": "jobs.progress", "job_id": "a", "progress": number}
            await socket.send(json.dumps(command))
        answers = [json.loads(await socket.recv()) for _ in range(100)]
    print(all(own["id"] == number and own["status"] == 200 for number, own in enumerate(answers)), flush=True)
asyncio.run(main(sys.argv[1]))
"#;
    let url = socket_url(&server.url, "/ws", Some(&worker(1)), None);
    let mut child = Guarded(
        Command::new(python)
            .args(["-c", script, &url])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let output = child.0.stdout.take().unwrap();
    let line = blocking(move || BufReader::new(Patient(output)).lines().next()).await;
    assert_eq!(line.unwrap().unwrap(), "True");
    let (_, job) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(job["progress"], 99.0);
}
