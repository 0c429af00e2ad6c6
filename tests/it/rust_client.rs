//! The asynchronous client against a real server: whatever happens in between, a worker's reports arrive once, and a reader gets
//! the whole story.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tidings::auth::Role;
use tidings::client::{Client, ClientError, Credential, Event, Reporter, Transport, Watch};

use crate::support::forwarder::Forwarder;
use crate::support::process::{Process, blocking, command, run};
use crate::support::*;

const LONG: Duration = Duration::from_secs(60);

/// Reads until every job has ended. Returns the `seq` and the status of each event.
async fn story(client: Client, transport: Transport, jobs: usize) -> Vec<(u64, String)> {
    let builder = client.watch("jobs").param("tick_ms", 0);
    let mut messages = builder.transports(&[transport]).start();
    let (mut story, mut ended) = (Vec::new(), 0);
    while ended < jobs {
        let message = messages.next().await.expect("it goes on").unwrap();
        let Some(seq) = message.seq() else { continue };
        let status = message.get("status").as_str().unwrap().to_owned();
        ended += usize::from(status == "completed");
        story.push((seq, status));
    }
    story
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn reports_arrive_once_and_readers_miss_nothing_while_the_server_is_killed_and_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| Process::on_port(folder.path(), port);
    let mut server = start("0");
    let url = server.url.clone();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let client = |token| Client::new(&url, Credential::token(token)).unwrap();
    let readers = [Transport::EventStream, Transport::LongPoll]
        .map(|transport| tokio::spawn(story(client(viewer(1)), transport, 4)));
    let reporter = Reporter::start(client(worker(1)));
    for round in 0..4 {
        let job = reporter
            .job("import")
            .id(format!("job {round}/ä"))
            .title("Students")
            .start();
        job.progress(10.0, "reading");
        if round % 2 == 0 {
            server.kill();
            job.progress(50.0, "still reading");
            server = start(&port);
        }
        assert!(reporter.flush(LONG).await);
        job.complete(json!({"round": round}));
    }
    assert!(reporter.flush(LONG).await);
    let found = client(viewer(1)).get("/api/jobs").await.unwrap();
    let jobs = found["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 4);
    for job in jobs {
        assert_eq!(job["status"], "completed");
        assert_eq!(
            (&job["attempt"], &job["job_type"]),
            (&json!(1), &json!("import"))
        );
        assert_eq!(job["metadata"], json!({"title": "Students"}));
        assert!(job["result"]["round"].is_u64());
    }
    for reader in readers {
        let story = reader.await.unwrap();
        let seqs: Vec<u64> = story.iter().map(|(seq, _)| *seq).collect();
        assert!(seqs.is_sorted_by(|one, next| one < next), "{story:?}");
        let ends = story.iter().filter(|(_, status)| status == "completed");
        assert_eq!(ends.count(), 4);
    }
    server.terminate();
}

/// How long the tokens of [`short_lived`] are valid.
const TOKEN_SECS: f64 = 2.0;

/// Returns a credential whose tokens expire soon, and how many were needed.
fn short_lived(role: Role) -> (Credential, Arc<AtomicUsize>) {
    let issued = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&issued);
    let renew = move || {
        count.fetch_add(1, Ordering::Relaxed);
        let mut claims = claims(Some(1), role);
        claims.exp = chrono::Utc::now().timestamp_millis() as f64 / 1_000.0 + TOKEN_SECS;
        async move { Ok::<_, Infallible>(sign(&claims)) }
    };
    (Credential::renewed(renew), issued)
}

/// Returns every message with a `seq`, up to one about the job `end`.
async fn until_the_end(mut messages: Watch) -> Vec<(u64, String)> {
    let mut received = Vec::new();
    loop {
        let message = messages.next().await.expect("it goes on").unwrap();
        assert_ne!(message.message_type(), "reset");
        let Some(seq) = message.seq() else { continue };
        let [job, status, progress] =
            ["job_id", "status", "progress"].map(|field| message.get(field).clone());
        received.push((seq, format!("{job} {status} {progress}")));
        if job == "end" {
            return received;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: connections pause before they return"]
async fn through_restarts_cut_connections_and_expiring_tokens_everyone_has_the_whole_story_once() {
    const JOBS: usize = 6;
    let seed = std::env::var("TIDINGS_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("TIDINGS_SEED={seed}");
    let mut chance = Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| {
        let mut serve = command(folder.path());
        serve.arg("serve").env("ROCKET_PORT", port);
        serve.env("TIDINGS_RECONNECT_SPREAD_MS", "0");
        serve.env("TIDINGS_HEARTBEAT_SECS", "1");
        serve.env("TIDINGS_JWT_LEEWAY_SECS", "0");
        Process::start(&mut serve)
    };
    let mut server = start("0");
    let direct = server.url.clone();
    let port = direct.rsplit(':').next().unwrap().to_owned();
    let network = Forwarder::to_url(&direct);
    let steady = Client::new(&direct, Credential::token(viewer(1))).unwrap();
    let first = steady.get("/api/jobs").await.unwrap()["cursor"].clone();
    let first = first.as_str().unwrap();
    let reader = |url: &str, credential: Credential, transport: Transport| {
        let client = Client::new(url, credential).unwrap();
        let watch = client.watch("jobs").param("tick_ms", 0).cursor(first);
        watch.transports(&[transport]).start()
    };
    let mut readers = Vec::new();
    for transport in [Transport::EventStream, Transport::LongPoll] {
        let (credential, issued) = short_lived(Role::Viewer);
        let watch = reader(&network.url, credential, transport);
        readers.push((tokio::spawn(until_the_end(watch)), issued));
    }
    let (credential, _) = short_lived(Role::Worker);
    let reporter = Reporter::start(Client::new(&network.url, credential).unwrap());
    let mut jobs: Vec<_> = (0..JOBS)
        .map(|number| {
            let job = reporter.job("chaos").id(format!("job-{number}"));
            (number, 0, job.start())
        })
        .collect();
    // Until each reader has needed several tokens, whatever else has happened to it.
    let (mut round, mut restarts) = (0, 0);
    while readers
        .iter()
        .any(|(_, issued)| issued.load(Ordering::Relaxed) < 4)
    {
        for (_, progress, job) in &mut jobs {
            *progress = (*progress + chance.i32(0..3)).min(99);
            job.progress(f64::from(*progress), format!("round {round}"));
        }
        match chance.u8(0..6) {
            0 => {
                let before = network.cuts();
                network.cut(true);
                until("a connection is cut", async || network.cuts() > before).await;
                network.cut(false);
            }
            1 => {
                match chance.bool() {
                    true => server.kill(),
                    false => drop(server.terminate()),
                }
                server = start(&port);
                restarts += 1;
            }
            _ => assert!(reporter.flush(LONG).await),
        }
        round += 1;
    }
    for (number, _, job) in jobs {
        job.complete(json!({"number": number}));
    }
    assert!(reporter.flush(LONG).await);
    reporter
        .job("chaos")
        .id("end")
        .start()
        .complete(Value::Null);
    assert!(reporter.flush(LONG).await);
    println!(
        "{round} rounds, {} cuts, {restarts} restarts",
        network.cuts()
    );

    let credential = Credential::token(viewer(1));
    let received = until_the_end(reader(&direct, credential, Transport::LongPoll)).await;
    assert!(
        received
            .iter()
            .map(|(seq, _)| *seq)
            .eq(1..=received.len() as u64),
        "{received:?}"
    );
    for number in 0..JOBS {
        let ended = format!("\"job-{number}\" \"completed\" 100");
        let ends = received
            .iter()
            .filter(|(_, state)| state.starts_with(&ended));
        assert_eq!(ends.count(), 1, "{received:?}");
    }
    for (reader, _) in readers {
        assert_eq!(reader.await.unwrap(), received);
    }
    server.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_hears_of_a_cancellation_and_a_dropped_job_fails() {
    let server = server().await;
    let client = Client::new(&server.url, Credential::token(worker(1))).unwrap();
    let reporter = Reporter::start(client);
    let job = reporter.job("import").id("a").start();
    assert!(reporter.flush(LONG).await);
    server
        .post("/api/jobs/a/cancel", &worker(1), json!({}))
        .await;
    until("the worker hears of it", async || {
        job.message("working");
        reporter.flush(LONG).await;
        job.is_cancel_requested()
    })
    .await;
    job.cancel("Stopped");
    drop(reporter.job("import").id("b").start());
    assert!(reporter.flush(LONG).await);
    let (_, a) = server.get("/api/jobs/a", &viewer(1)).await;
    assert_eq!(a["status"], "cancelled");
    let (_, b) = server.get("/api/jobs/b", &viewer(1)).await;
    assert_eq!(
        (&b["status"], &b["error"]["code"]),
        (&json!("failed"), &json!("dropped"))
    );
    // The same id again: another attempt.
    let again = reporter.job("import").id("b").start();
    again.complete(Value::Null);
    assert!(reporter.flush(LONG).await);
    let (_, b) = server.get("/api/jobs/b", &viewer(1)).await;
    assert_eq!(
        (&b["status"], &b["attempt"]),
        (&json!("completed"), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_ends_with_the_reason() {
    let server = server().await;
    let client = |token: String| Client::new(&server.url, Credential::token(token)).unwrap();
    let cases = [
        (client(viewer(1)), "jobs/nobody", 404, "not-found"),
        (client("no token".into()), "jobs", 401, "unauthorized"),
    ];
    for (client, scope, status, code) in cases {
        let mut messages = client.watch(scope).start();
        let error = messages.next().await.unwrap().unwrap_err();
        let ClientError::Rejected {
            status: rejected_status,
            code: named,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((rejected_status, named.as_deref()), (status, Some(code)));
        assert!(messages.next().await.is_none());
    }
    for url in [
        "tidings.example",
        "ftp://tidings.example",
        "http://tidings.example?a=b",
    ] {
        let error = Client::new(url, Credential::none()).unwrap_err();
        assert!(error.to_string().contains(url), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_with_a_key_takes_effect_once_and_what_is_deleted_is_gone() {
    let server = server().await;
    let client = Client::new(&server.url, Credential::token(admin_of(1))).unwrap();
    let created = async |key: &str| {
        let body = json!({"job_type": "import"});
        client.post_once("/api/jobs", &body, key).await.unwrap()["job_id"].clone()
    };
    let first = created("a").await;
    assert_eq!(first, created("a").await);
    assert_ne!(first, created("b").await);
    let rule = json!({"period_secs": 3_600});
    client.put("/api/schedules/import", &rule).await.unwrap();
    let removed = client.delete("/api/schedules/import").await.unwrap();
    assert_eq!(removed["status"], "removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_longer_than_the_client_allows_is_an_error() {
    // Accepts connections, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let client = Client::new(&url, Credential::none()).unwrap();
    let client = client.answer_timeout(Duration::from_millis(50));
    let error = client.get("/api/jobs").await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("within 50ms"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_an_error_that_says_where_to() {
    let redirecting = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", redirecting.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = redirecting.accept().await.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
        let answer =
            "HTTP/1.1 301 Moved\r\nLocation: https://tidings.example/\r\nContent-Length: 0\r\n\r\n";
        socket.write_all(answer.as_bytes()).await.unwrap();
    });
    let client = Client::new(&url, Credential::none()).unwrap();
    let error = client.get("/api/jobs").await.unwrap_err().to_string();
    assert!(error.contains("https://tidings.example/"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_ends_a_watch() {
    let redirecting = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", redirecting.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut socket, _)) = redirecting.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let answer = "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n";
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    let client = Client::new(&url, Credential::none()).unwrap();
    let mut messages = client.watch("jobs").start();
    let first = tokio::time::timeout(PATIENCE, messages.next()).await;
    let error = first.unwrap().unwrap().unwrap_err().to_string();
    assert!(error.contains("redirects to /login"), "{error}");
    assert!(error.contains("(HTTP 302)"), "{error}");
    assert!(messages.next().await.is_none());
}

/// Returns the next news of the connection. Skips messages.
async fn next_change(watch: &mut Watch) -> Event {
    loop {
        match watch.next_event().await.expect("it goes on").unwrap() {
            Event::Message(_) | Event::Control(_) => {}
            change => return change,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_watch_says_when_it_is_connected_and_why_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| Process::on_port(folder.path(), port);
    let mut server = start("0");
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let client = Client::new(&server.url, Credential::token(viewer(1))).unwrap();
    let mut watch = client.watch("jobs").start();
    let first = watch.next_event().await.unwrap().unwrap();
    assert!(
        matches!(first, Event::Connected(Transport::EventStream)),
        "{first:?}"
    );
    let mut types = Vec::new();
    while types.last().is_none_or(|last| last != "ready") {
        let (Event::Message(message) | Event::Control(message)) =
            watch.next_event().await.unwrap().unwrap()
        else {
            panic!("it stays connected");
        };
        types.push(message.message_type().to_owned());
    }
    assert_eq!(types, ["connected", "ready"]);
    server.kill();
    let lost = next_change(&mut watch).await;
    assert!(matches!(lost, Event::Lost { .. }), "{lost:?}");
    let Event::Lost {
        error: Some(ClientError::Unreachable(_)),
        was_accepted: false,
        pause,
        ..
    } = next_change(&mut watch).await
    else {
        panic!("nobody listens");
    };
    assert!(!pause.is_zero());
    server = start(&port);
    while !matches!(next_change(&mut watch).await, Event::Connected(_)) {}
    server.terminate();
    // Its `closing` says why.
    loop {
        match watch.next_event().await.unwrap().unwrap() {
            Event::Control(message) if message.message_type() == "closing" => break,
            Event::Lost { .. } => panic!("nothing was said"),
            _ => {}
        }
    }
}

/// A proxy that connects to this address, whatever server it is asked for. Returns its address, and what it was asked for.
async fn proxy(to: String) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
    use tokio::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (to, asked) = (to.clone(), asked.clone());
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                let (mut head, mut line) = (String::new(), String::new());
                while line != "\r\n" {
                    line.clear();
                    socket.read_line(&mut line).await.unwrap();
                    head += &line;
                }
                let _ = asked.send(head);
                let mut server = TcpStream::connect(to).await.unwrap();
                let answer = b"HTTP/1.1 200 Connected\r\n\r\n";
                socket.write_all(answer).await.unwrap();
                let _ = copy_bidirectional(&mut socket, &mut server).await;
            });
        }
    });
    (address, requests)
}

/// The variables are those of a process, so the command stands for other applications.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_used_and_left_out_where_it_is_to_be() {
    let server = server().await;
    let to = server.url.trim_start_matches("http://").to_owned();
    let (address, mut requests) = proxy(to).await;
    let folder = tempfile::tempdir().unwrap();
    let list = |no_proxy: &str| {
        let mut list = command(folder.path());
        list.args(["schedules", "list"])
            .env("TIDINGS_URL", "http://tidings.invalid")
            .env("TIDINGS_TOKEN", viewer(1))
            .env("HTTP_PROXY", format!("http://user:secret@{address}"))
            .env("NO_PROXY", no_proxy);
        blocking(move || run(&mut list))
    };
    let output = list("").await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let head = requests.recv().await.unwrap();
    let first = "CONNECT tidings.invalid:80 HTTP/1.1\r\n";
    assert!(head.starts_with(first), "{head}");
    let authorization = "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";
    assert!(head.contains(authorization), "{head}");
    assert!(!head.contains("Bearer"), "the token is for the server");
    let output = list("tidings.invalid").await;
    assert_eq!(output.status.code(), Some(5), "there is no such host");
    assert!(requests.try_recv().is_err());
}
