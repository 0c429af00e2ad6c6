//! The Rust client as a process of `clients_run.py`, which describes the arguments and the output.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::client::{Client, ClientError, Credential, Job, Reporter, Transport};
use tokio::time::sleep;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// How long the last reports may take.
const FLUSH: Duration = Duration::from_secs(120);
/// The pause between two reports, and before a request is repeated.
const PAUSE: Duration = Duration::from_millis(50);
/// How many jobs end before a publisher waits for the answers.
const JOBS_WAITING: usize = 3;

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["watch", url, folder, transport, scope, tick_ms] => {
            let client = client(url, Path::new(folder).join("viewer"))?;
            watch(&client, transport, scope, tick_ms).await
        }
        ["publish", url, folder, name] => {
            let client = client(url, Path::new(folder).join("worker"))?;
            let stop = Path::new(folder).join("stop");
            tokio::try_join!(
                report(client.clone(), &stop, name),
                post(&client, &stop, name)
            )?;
            Ok(print(&json!({"type": "outbox", "waiting": 0}))?)
        }
        _ => Err("unknown arguments".into()),
    }
}

/// Returns a client with the token in the file, which is replaced before it expires.
fn client(url: &str, token: PathBuf) -> Result<Client, ClientError> {
    let renew = move || {
        let read = std::fs::read_to_string(&token);
        async move { read }
    };
    Client::new(url, Credential::renewed(renew))
}

/// Prints in one write, so that lines of two tasks do not mix.
fn print(line: &Value) -> std::io::Result<()> {
    std::io::stdout().write_all(format!("{line}\n").as_bytes())
}

async fn watch(client: &Client, transport: &str, scope: &str, tick_ms: &str) -> Outcome {
    let transport = match transport {
        "sse" => Transport::EventStream,
        _ => Transport::LongPoll,
    };
    let watch = client.watch(scope).param("tick_ms", tick_ms);
    let mut messages = watch.transports(&[transport]).start();
    while let Some(message) = messages.next().await {
        let message = message?;
        print(&Value::Object(message.fields().clone()))?;
        if message.get("job_id") == "the-end" && message.get("status") == "completed" {
            return Ok(());
        }
    }
    Err("the watch has ended".into())
}

/// Reports jobs through the outbox.
async fn report(client: Client, stop: &Path, name: &str) -> Outcome {
    let reporter = Reporter::start(client);
    let (mut number, mut waiting) = (0, Vec::new());
    while !stop.exists() {
        number += 1;
        let id = format!("{name}-{number}");
        let job = reporter.job("chaos").id(id.as_str()).start();
        for step in 1..=3 + number % 7 {
            job.progress(f64::from(step * 10), format!("step {step}"));
            sleep(PAUSE).await;
        }
        waiting.push((id, end(job, number)));
        if waiting.len() == JOBS_WAITING {
            answered(&reporter, &mut waiting).await?;
        }
    }
    answered(&reporter, &mut waiting).await
}

/// Ends the job, and returns how.
fn end(job: Job, number: u32) -> &'static str {
    if number.is_multiple_of(4) {
        job.fail("jam", "paper");
        return "failed";
    }
    job.complete(json!({"number": number}));
    "completed"
}

/// Waits until every report has been answered.
async fn answered(reporter: &Reporter, waiting: &mut Vec<(String, &str)>) -> Outcome {
    if !reporter.flush(FLUSH).await {
        return Err("reports are still waiting".into());
    }
    for (job, status) in waiting.drain(..) {
        print(&json!({"type": "ended", "job_id": job, "status": status}))?;
    }
    Ok(())
}

/// Posts reports one by one, with idempotency keys, until each is answered.
async fn post(client: &Client, stop: &Path, name: &str) -> Outcome {
    let mut number = 0;
    while !stop.exists() {
        number += 1;
        let id = format!("{name}-post-{number}");
        let path = format!("/api/jobs/{id}");
        once(
            client,
            &format!("{path}/start"),
            json!({"job_type": "post"}),
        )
        .await?;
        for step in 1..=5 {
            let body = json!({"progress": step * 10, "message": format!("step {step}")});
            once(client, &format!("{path}/progress"), body).await?;
            sleep(PAUSE).await;
        }
        once(
            client,
            &format!("{path}/complete"),
            json!({"result": number}),
        )
        .await?;
        print(&json!({"type": "ended", "job_id": id, "status": "completed"}))?;
    }
    Ok(())
}

async fn once(client: &Client, path: &str, body: Value) -> Outcome {
    let key = format!("{path}-{}", body["message"]);
    let key: String = key.chars().filter(char::is_ascii_graphic).collect();
    loop {
        match client.post_once(path, &body, &key).await {
            Ok(answer) => {
                return Ok(print(&json!({"type": "answered", "event": answer}))?);
            }
            // The token expired on its way, or the server is stopping.
            Err(ClientError::Rejected { status, .. }) if status != 401 && status < 500 => {
                return Err(format!("{path}: {status}").into());
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
