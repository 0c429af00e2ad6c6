//! `docs/reconnecting.md`: the loops for browsers, shells and Python stay connected where an `EventSource` alone would
//! end for good.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::page::{blocks, shell};
use crate::support::process::{Group, Process, command};
use crate::support::*;

/// The shipped module, for a page that cannot import it.
fn module() -> String {
    include_str!("../../examples/browser/listen.js")
        .replace("export async function", "async function")
}

/// The states that a page received, by their `seq`.
async fn received_seqs(page: &mut Page) -> Vec<u64> {
    let seqs = "window.received.filter((own) => own.seq).map((own) => own.seq)";
    let seqs = page.evaluate(seqs).await;
    serde_json::from_value(seqs).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_page_stays_connected_through_restarts_and_expired_tickets() {
    if !needs("chromium") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| {
        let mut serve = command(folder.path());
        serve.arg("serve").env("ROCKET_PORT", port);
        // A ticket is over before the server is back.
        serve.env("TIDINGS_TICKET_TTL_SECS", "1");
        serve.env("TIDINGS_RECONNECT_SPREAD_MS", "0");
        Process::start(&mut serve)
    };
    let mut server = start("0");
    let url = server.url.clone();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let request = http
            .post(format!("{url}/api/jobs{path}"))
            .bearer_auth(worker(1));
        let (status, answer) = answer(request.json(&body)).await;
        assert!(status < 300, "{answer}");
    };
    post(
        "",
        json!({"job_id": "a", "job_type": "t", "status": "in_progress"}),
    )
    .await;
    let mut page = Page::open().await;
    page.visit(&format!("{url}/healthz")).await;
    page.until("location.pathname === '/healthz'").await;
    page.evaluate(&format!(
        "{} window.received = []; window.states = []; listen({{ channels: ['jobs'], token: () => '{}', \
         onMessage: (message) => received.push(message), onState: (state) => states.push(state) }}); true",
        module(),
        viewer(1)
    ))
    .await;
    page.until("received.some((own) => own.type === 'ready')")
        .await;
    // Once with a delay in a close message, and once without any message.
    for (seq, has_delay) in [(2, true), (3, false)] {
        if has_delay {
            server.terminate();
        } else {
            server.kill();
        }
        page.until("states.at(-1) === false").await;
        server = start(&port);
        let message = format!("after restart {seq}");
        post("/a/progress", json!({"message": message})).await;
        page.until_within(&format!("received.some((own) => own.seq === {seq})"), 60)
            .await;
    }
    post("/a/complete", json!({})).await;
    page.until("received.some((own) => own.status === 'completed')")
        .await;
    let seqs = received_seqs(&mut page).await;
    assert!(
        seqs.is_sorted_by(|one, next| one < next),
        "each once and in order: {seqs:?}"
    );
    let snapshots = "received.filter((own) => own.snapshot).length";
    assert_eq!(page.evaluate(snapshots).await, 1, "and it never began anew");
}

/// The page receives permanent errors, and what the page throws ends the loop.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_page_receives_permanent_errors_and_can_stop_at_any_time() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("a").await;
    let mut page = Page::open().await;
    page.visit(&format!("{}/healthz", server.url)).await;
    page.until("location.pathname === '/healthz'").await;
    page.evaluate(&format!("{} window.listen = listen; true", module()))
        .await;
    let outcome = |options: &str| {
        format!(
            "listen({{ channels: ['jobs'], token: () => '{}', onMessage() {{}}, {options} }}) \
             .then((cursor) => 'ended ' + typeof cursor, \
                   ({{ status, cause, cursor }}) => `${{status ?? cause}} ${{typeof cursor}}`)",
            viewer(1)
        )
    };
    for (options, expected) in [
        ("channels: ['jobs/nope']", "404 string"),
        ("channels: ['cats']", "422 string"),
        ("channels: ['schools/2']", "404 string"),
        ("token: () => 'none'", "401 string"),
        ("token: () => { throw 'no login' }", "no login string"),
        ("token: () => Promise.reject()", "undefined string"),
        ("onMessage() { throw 'oops' }", "oops string"),
        ("onMessage() { throw null }", "null string"),
        ("signal: AbortSignal.abort()", "ended string"),
        ("signal: AbortSignal.timeout(300)", "ended string"),
        (
            "signal: AbortSignal.timeout(300), token: () => new Promise((done) => setTimeout(done, 400, 'none'))",
            "ended string",
        ),
    ] {
        let outcome_seen = page.evaluate(&outcome(options)).await;
        assert_eq!(outcome_seen, expected, "{options}");
    }
    until("no stream is left open", async || {
        server.tidings.streams() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_page_listens_to_a_server_below_a_path() {
    if !needs("chromium") {
        return;
    }
    let server = server_with(json!({"base_path": "/tidings"})).await;
    server.running_job("a").await;
    let mut page = Page::open().await;
    page.visit(&format!("{}/healthz", server.url)).await;
    page.until("location.pathname === '/healthz'").await;
    page.evaluate(&format!("{} window.received = []; true", module()))
        .await;
    for base in ["/tidings".to_owned(), format!("{}/tidings", server.url)] {
        page.evaluate(&format!(
            "received.length = 0; listen({{ server: '{base}', channels: ['jobs'], token: () => '{}', \
             onMessage: (message) => received.push(message) }}); true",
            viewer(1)
        ))
        .await;
        page.until("received.some((own) => own.type === 'ready')")
            .await;
    }
}

/// Runs a loop that prints the messages of the jobs of school 1, while its server is stopped and killed.
async fn stays_connected(script: impl Fn(&str, &str) -> Command) {
    let folder = tempfile::tempdir().unwrap();
    let start = |port: &str| Process::on_port(folder.path(), port);
    let mut server = start("0");
    let url = server.url.clone();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let post = async |path: &str, body: Value| {
        let request = reqwest::Client::new().post(format!("{url}/api/jobs{path}"));
        let (status, response) = answer(request.bearer_auth(worker(1)).json(&body)).await;
        assert!(status < 300, "{response}");
    };
    let create = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    post("", create).await;
    let heard = folder.path().join("heard");
    let output = std::fs::File::create(&heard).unwrap();
    let mut script = script(&url, &viewer(1));
    script.stdin(Stdio::null()).stdout(Stdio::from(output));
    let running = Group::start(&mut script);
    let messages = || -> Vec<Value> {
        let heard = std::fs::read_to_string(&heard).unwrap();
        // The last line may not be whole yet.
        let lines = heard.split_inclusive('\n');
        let whole = lines.filter(|line| line.ends_with('\n'));
        whole
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let seqs = || -> Vec<u64> {
        let messages = messages();
        messages
            .iter()
            .filter_map(|message| message["seq"].as_u64())
            .collect()
    };
    let hears = async |seq: u64| {
        until("it is delivered", async || {
            assert!(running.runs(), "it goes on");
            seqs().contains(&seq)
        })
        .await;
    };
    hears(1).await;
    // Once with a delay in a close message, and once without any message.
    for (seq, has_delay) in [(2, true), (3, false)] {
        if has_delay {
            server.terminate();
        } else {
            server.kill();
        }
        server = start(&port);
        post(
            "/a/progress",
            json!({"message": format!("after restart {seq}")}),
        )
        .await;
        hears(seq).await;
    }
    assert_eq!(seqs(), [1, 2, 3], "each once and in order");
    let snapshots = messages()
        .iter()
        .filter(|message| message["snapshot"] == true)
        .count();
    assert_eq!(snapshots, 1, "and it never began anew");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn the_loop_for_shells_misses_nothing_when_the_server_stops_or_dies() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let script = &blocks("docs/reconnecting.md", "sh")[0];
    stays_connected(|url, token| {
        let mut shell = shell(&std::env::temp_dir(), script, url);
        shell.env("TOKEN", token);
        shell
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_for_shells_ends_when_it_is_rejected() {
    if !needs("curl") || !needs("bash") {
        return;
    }
    let server = server().await;
    let script = &blocks("docs/reconnecting.md", "sh")[0];
    let mut shell = shell(&std::env::temp_dir(), script, &server.url);
    shell.env("TOKEN", "none");
    let shell = tokio::process::Command::from(shell).output();
    let output = tokio::time::timeout(PATIENCE, shell)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("401"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn the_loop_for_python_misses_nothing_when_the_server_stops_or_dies() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !needs(&python) {
        return;
    }
    let block = &blocks("docs/reconnecting.md", "python")[0];
    let (block, _) = block.split_once("    print(").unwrap();
    let code = format!(
        "import json, os\nTOKEN = os.environ['TOKEN']\n{block}    print(json.dumps(message), flush=True)\n"
    );
    stays_connected(|url, token| {
        let mut command = Command::new(&python);
        command
            .args(["-c", &code.replace("http://127.0.0.1:8000", url)])
            .env(
                "PYTHONPATH",
                Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python"),
            )
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TOKEN", token);
        command
    })
    .await;
}

/// The page's own lines.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn the_lines_for_a_page_keep_the_present_state_of_each_job() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("a").await;
    let mut page = Page::open().await;
    page.visit(&format!("{}/healthz", server.url)).await;
    page.until("location.pathname === '/healthz'").await;
    let block = blocks("docs/reconnecting.md", "js")[0]
        .replace("import { listen } from \"./listen.js\";", "")
        .replace("const jobs", "window.jobs");
    page.evaluate(&format!(
        "{} const token = '{}'; {block} true",
        module(),
        viewer(1)
    ))
    .await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 40}))
        .await;
    page.until("window.jobs.get('a')?.progress === 40").await;
}
