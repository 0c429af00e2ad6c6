//! Clients behind a real load balancer in front of two nodes: when the node of a client is killed, the client continues on the other
//! one, and misses and repeats nothing.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use tidings::client::{Client, Credential, Reporter, Transport};

use crate::support::part::free_port;
use crate::support::postgres;
use crate::support::process::{Group, Process, command};
use crate::support::{PATIENCE, needs, until, viewer, worker};

const ROUNDS: usize = 4;

/// Returns the configuration of an nginx that passes requests and connections on to the nodes, to one after the other.
fn configuration(port: u16, nodes: [&str; 2], folder: &str) -> String {
    let [one, other] = nodes.map(|url| url.trim_start_matches("http://").to_owned());
    format!(
        "pid {folder}/pid;
error_log {folder}/log;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/a;
    proxy_temp_path {folder}/b;
    fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d;
    scgi_temp_path {folder}/e;
    map $http_upgrade $connection_header {{ default upgrade; '' ''; }}
    upstream tidings {{ server {one} max_fails=0; server {other} max_fails=0; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://tidings;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_header;
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn behind_a_load_balancer_clients_continue_on_another_node_when_theirs_is_killed() {
    let (Some(database), true) = (postgres::database(), needs("nginx")) else {
        return;
    };
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let node = |number: usize| {
        let mut serve = command(folders[number].path());
        serve
            .arg("serve")
            .env("TIDINGS_DATABASE_URL", &database.url)
            .env("TIDINGS_RECONNECT_SPREAD_MS", "0");
        serve
    };
    let mut nodes = [0, 1].map(|number| Process::start(&mut node(number)));
    let ports =
        [0, 1].map(|number: usize| nodes[number].url.rsplit(':').next().unwrap().to_owned());
    let folder = folders[2].path();
    let port = free_port();
    let configuration = configuration(
        port,
        [&nodes[0].url, &nodes[1].url],
        folder.to_str().unwrap(),
    );
    std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
    let mut nginx = std::process::Command::new("nginx");
    nginx
        .args(["-g", "daemon off;", "-c", "nginx.conf", "-p"])
        .arg(folder);
    let _balancer = Group::start(&mut nginx);
    let url = format!("http://127.0.0.1:{port}");
    until("the balancer is ready", async || {
        let ready = reqwest::get(format!("{url}/readyz")).await;
        ready.is_ok_and(|ready| ready.status() == 200)
    })
    .await;

    let client = |token| Client::new(&url, Credential::token(token)).unwrap();
    let transports = [Transport::EventStream, Transport::LongPoll];
    let readers = transports.map(|transport| {
        let messages = client(viewer(1)).watch("jobs").param("tick_ms", 0);
        let mut messages = messages.transports(&[transport]).start();
        tokio::spawn(async move {
            let (mut seqs, mut ended) = (Vec::new(), HashSet::new());
            while ended.len() < ROUNDS {
                let message = messages.next().await.expect("it goes on").unwrap();
                assert_ne!(message.message_type(), "reset");
                let Some(seq) = message.seq() else { continue };
                seqs.push(seq);
                if message.get("status") == "completed" {
                    ended.insert(message.get("job_id").to_string());
                }
            }
            seqs
        })
    });
    let reporter = Reporter::start(client(worker(1)));
    for round in 0..ROUNDS {
        let job = reporter.job("import").id(format!("job {round}")).start();
        job.progress(10.0, "reading");
        assert!(reporter.flush(PATIENCE).await);
        let number = round % 2;
        nodes[number].kill();
        job.progress(50.0, "still reading");
        job.complete(json!({"round": round}));
        assert!(reporter.flush(PATIENCE).await);
        nodes[number] = Process::start(node(number).env("ROCKET_PORT", &ports[number]));
    }
    for reader in readers {
        let seqs = tokio::time::timeout(Duration::from_secs(60), reader).await;
        let seqs = seqs.expect("every job ends").unwrap();
        let from = seqs[0];
        let all: Vec<u64> = (from..from + seqs.len() as u64).collect();
        assert_eq!(seqs, all, "every event, once, in order");
    }
}
