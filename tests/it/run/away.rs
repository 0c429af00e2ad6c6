//! The server is down, slow or refuses. The command never suffers.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::support::forwarder::Forwarder;

/// Runs a script for a server at this address. Fails if it does not end.
async fn run_for(url: &str, script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut run = command(folder.path());
    run.args(["run", "--wait", "2", "--", "sh", "-c", script])
        .env("TIDINGS_URL", url)
        .env("TIDINGS_TOKEN", worker(1));
    end_of(run, b"input\n").await
}

fn is_unharmed(output: &Output) {
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "input\n");
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("err\n"), "{stderr}");
    assert!(stderr.contains("could not be reported"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

const SCRIPT: &str = "cat; echo err >&2; exit 9";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_server_that_is_down_or_silent_costs_the_command_nothing() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [closed, silent.local_addr().unwrap()] {
        let output = run_for(&format!("http://{address}"), SCRIPT).await;
        is_unharmed(&output);
    }
    for url in ["http://no-such-host.invalid", "not a url"] {
        let output = run_for(url, SCRIPT).await;
        is_unharmed(&output);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_server_that_rejects_reports_does_not_affect_the_command_and_its_reason_is_printed() {
    for status in [401, 403, 404, 409, 413, 422, 429, 500, 503] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || reject(stream.unwrap(), status, ""));
            }
        });
        let output = run_for(&url, SCRIPT).await;
        is_unharmed(&output);
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains(&format!("because {status} (HTTP {status})")),
            "{stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_server_that_asks_to_wait_is_not_asked_again_before() {
    for status in [429, 503] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, times) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                asked.send(Instant::now()).unwrap();
                reject(stream.unwrap(), status, "Retry-After: 3\r\n");
            }
        });
        // The end of the command is reported at once. Everything else waits.
        let ended = tokio::spawn(async move { run_for(&url, "read a; sleep 5; exit 9").await });
        let (first, second) =
            blocking(move || (times.recv().unwrap(), times.recv().unwrap())).await;
        let pause = second - first;
        assert!(pause >= Duration::from_secs(3), "{status}: {pause:?}");
        let output = ended.await.unwrap();
        assert_eq!(output.status.code(), Some(9));
    }
}

/// Answers one request with a problem.
fn reject(mut stream: TcpStream, status: u16, headers: &str) {
    let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    // Closing a connection with unread bytes would reset it.
    let mut request = vec![0; length];
    reader.read_exact(&mut request).unwrap();
    let body = json!({"detail": format!("because {status}"), "code": "refused"}).to_string();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} Refused\r\nContent-Type: application/problem+json\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_reported_and_does_not_affect_the_command() {
    let server = server().await;
    for (token, reason) in [
        ("", "(HTTP 401)"),
        ("a b", "--token"),
        (&viewer(1), "(HTTP 403)"),
    ] {
        let mut run = run_script(&server, &["--wait", "2"], "exit 9");
        let output = end_of(
            std::mem::replace(run.env("TIDINGS_TOKEN", token), Command::new("true")),
            b"",
        )
        .await;
        assert_eq!(output.status.code(), Some(9));
        assert!(
            text(&output.stderr).contains(reason),
            "{}",
            text(&output.stderr)
        );
    }
    assert_eq!(jobs(&server).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_the_server_is_away_is_reported_when_it_is_back() {
    let server = server().await;
    let network = Forwarder::to(&server);
    let mut run = run_script(
        &server,
        &[],
        "echo 10%; read a; echo 40%; read b; echo 60%; read c; exit 3",
    );
    let mut child = started(run.env("TIDINGS_URL", &network.url));
    let mut input = child.stdin.take().unwrap();
    job_when(&server, "the first report", |job| job["progress"] == 10.0).await;
    network.cut(true);
    input.write_all(b"\n").unwrap();
    // The command goes on meanwhile.
    read_until(child.stdout.as_mut().unwrap(), "40%\n");
    network.cut(false);
    job_when(&server, "the report of meanwhile", |job| {
        job["progress"] == 40.0
    })
    .await;
    network.cut(true);
    input.write_all(b"\n\n").unwrap();
    read_until(child.stdout.as_mut().unwrap(), "60%\n");
    network.cut(false);
    let output = blocking(move || output_of(child)).await;
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(3), "")
    );
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["progress"]),
        (&json!("failed"), &json!(60.0))
    );
    assert_eq!(job["error"]["details"]["exit_code"], 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_server_that_is_back_soon_after_the_command_has_ended_gets_the_report_however_long_it_was_away()
 {
    let server = server().await;
    let network = Forwarder::to(&server);
    network.cut(true);
    // Meanwhile the delays between attempts have grown beyond `--wait`.
    let script = "sleep 8; echo end; exit 3";
    let mut run = run_script(&server, &["--wait", "7"], script);
    let mut child = started(run.env("TIDINGS_URL", &network.url));
    read_until(child.stdout.as_mut().unwrap(), "end\n");
    let cuts = network.cuts();
    until("the end could not be reported", async || {
        network.cuts() > cuts
    })
    .await;
    network.cut(false);
    let output = blocking(move || output_of(child)).await;
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(3), "")
    );
    assert_eq!(only_job(&server).await["status"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_lower_limits_gets_a_shorter_report() {
    for settings in [
        json!({"body_limit_bytes": 4_000}),
        json!({"metadata_limit_bytes": 200}),
    ] {
        let server = server_with(settings).await;
        let script = "seq 2000; exit 3";
        let output = end_of(run_script(&server, &[], script), b"").await;
        assert_eq!(
            (output.status.code(), text(&output.stderr).as_str()),
            (Some(3), "")
        );
        let job = only_job(&server).await;
        assert_eq!(
            (&job["status"], &job["error"]["message"]),
            (&json!("failed"), &json!("exited with code 3"))
        );
    }
}
