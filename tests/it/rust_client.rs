//! The asynchronous client against a real server: whatever happens in between, a worker's reports arrive once, and a reader gets
//! the whole story.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::client::{Client, ClientError, Credential, Reporter, Transport};

use crate::support::process::{Process, command};
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
async fn reports_arrive_once_and_readers_miss_nothing_while_the_server_is_killed_and_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| {
        let mut serve = command(folder.path());
        serve.arg("serve").env("ROCKET_PORT", port);
        serve.env("TIDINGS_RECONNECT_SPREAD_MS", "0");
        Process::start(&mut serve)
    };
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
            status: own,
            code: named,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((own, named.as_deref()), (status, Some(code)));
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
