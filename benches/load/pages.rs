//! The monitor: how long a page takes with many stored jobs, how large it is, and what live updates of a page cost a
//! browser.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::server::{Connection, Server};
use crate::{histogram, quantiles};

/// How often each page is requested.
const LOOKS: usize = 200;
/// How long the browser is observed.
const WATCH_FOR: Duration = Duration::from_secs(20);

/// Pages of a school with `ended` finished jobs, `running` jobs, and devices.
pub(crate) async fn pages(ended: usize, running: usize) {
    let server = Server::start().await;
    let worker = server.client(&server.worker);
    for first in (0..ended).step_by(1_000) {
        let commands = |n: usize| {
            let id = format!("e{n}");
            let end = match n.is_multiple_of(10) {
                true => {
                    json!({"op": "jobs.fail", "job_id": id, "error": {"code": "no", "message": "No"}})
                }
                false => json!({"op": "jobs.complete", "job_id": id}),
            };
            let create = json!({"op": "jobs.create", "job_id": id, "job_type": "load", "status": "in_progress"});
            [create, end]
        };
        let commands: Vec<Value> = (first..first + 1_000).flat_map(commands).collect();
        server.publish(&server.worker, &commands).await;
    }
    server.create_jobs(running).await;
    for report in 0..500 {
        let body = json!({"progress": report as f64 / 5.0});
        let answer = worker.post("/api/jobs/j0/progress", &body).await;
        answer.expect("the server answers");
    }
    let device = |n| json!({"op": "devices.put", "device_id": format!("d{n}")});
    let devices: Vec<Value> = (0..100).map(device).collect();
    server.publish(&server.worker, &devices).await;
    let http = reqwest::Client::new();
    let school = format!("http://{}/monitor/schools/1", server.address);
    for path in ["", "/jobs", "/jobs?status=failed", "/jobs/j0", "/devices"] {
        let (mut times, mut bytes) = (histogram(), 0);
        for _ in 0..LOOKS {
            let request = http
                .get(format!("{school}{path}"))
                .bearer_auth(&server.worker);
            let asked = Instant::now();
            let answer = request.header("Accept-Encoding", "gzip").send().await;
            let body = answer.expect("an answer").bytes().await.expect("a page");
            times.saturating_record(asked.elapsed().as_nanos() as u64);
            bytes = body.len();
        }
        let request = http
            .get(format!("{school}{path}"))
            .bearer_auth(&server.worker);
        let plain = request
            .send()
            .await
            .expect("an answer")
            .bytes()
            .await
            .expect("a page")
            .len();
        println!(
            "pages     {ended} ended, {running} running  {:<22} {bytes:>6} bytes packed, {plain:>7} plain  answer {}",
            if path.is_empty() { "overview" } else { path },
            quantiles(&times)
        );
    }
}

/// What a page of `running` jobs costs a browser, with `rate` reports per second.
pub(crate) async fn browser(running: usize, rate: u32) {
    let server = Server::start().await;
    server.create_jobs(running).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut page) = Page::open(&folder).await else {
        println!("browser   chromium is not installed");
        return;
    };
    let mut number = 0;
    for path in ["", "/jobs"] {
        let url = format!("http://{}/monitor/schools/1{path}", server.address);
        let cookie = json!({"name": "tidings_token", "value": server.worker, "url": url});
        page.call("Network.setCookie", cookie).await;
        page.call("Performance.enable", json!({})).await;
        page.call("Page.navigate", json!({ "url": url })).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = page.metrics().await;
        let mut worker = Connection::open(&server.address, &server.worker).await;
        let mut rounds = tokio::time::interval(Duration::from_secs(1) / rate);
        let (start, cpu) = (Instant::now(), server.cpu_secs());
        while start.elapsed() < WATCH_FOR {
            rounds.tick().await;
            number += 1;
            let body = format!(r#"{{"progress":{}}}"#, number / running * 10);
            worker
                .post(&format!("/api/jobs/j{}/progress", number % running), &body)
                .await;
        }
        let secs = start.elapsed().as_secs_f64();
        let after = page.metrics().await;
        let share = |name: &str| (after(name) - before(name)) / secs * 100.0;
        println!(
            "browser   {running} running, {rate} reports/s, {:<9} main thread {:>4.1} % busy: script {:.1}, style {:.1}, layout {:.1}; server {:.1} % of a core",
            if path.is_empty() { "overview" } else { path },
            share("TaskDuration"),
            share("ScriptDuration"),
            share("RecalcStyleDuration"),
            share("LayoutDuration"),
            (server.cpu_secs() - cpu) / secs * 100.0,
        );
    }
}

/// A page in a browser, over its DevTools protocol.
struct Page {
    process: Child,
    socket: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
    calls: u64,
}

impl Page {
    async fn open(folder: &TempDir) -> Option<Page> {
        let process = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .arg("about:blank")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let port = folder.path().join("DevToolsActivePort");
        let address = loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let Ok(text) = std::fs::read_to_string(&port) else {
                continue;
            };
            let port = text.lines().next().unwrap_or_default().to_owned();
            let Ok(list) = reqwest::get(format!("http://127.0.0.1:{port}/json/list")).await else {
                continue;
            };
            let pages: Vec<Value> = list.json().await.unwrap_or_default();
            let page = pages.iter().find(|page| page["type"] == "page");
            if let Some(address) = page.and_then(|page| page["webSocketDebuggerUrl"].as_str()) {
                break address.to_owned();
            }
        };
        let (socket, _) = connect_async(address).await.expect("the browser listens");
        Some(Page {
            process,
            socket,
            calls: 0,
        })
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let message = json!({"id": self.calls, "method": method, "params": params});
        let sent = self.socket.send(Message::text(message.to_string())).await;
        sent.expect("the browser reads");
        loop {
            let message = self.socket.next().await.expect("open").expect("whole");
            let answer: Value = serde_json::from_slice(&message.into_data()).unwrap_or_default();
            if answer["id"] == self.calls {
                return answer["result"].clone();
            }
        }
    }

    /// Returns the seconds spent since the page was opened, by name.
    async fn metrics(&mut self) -> impl Fn(&str) -> f64 + use<> {
        let answer = self.call("Performance.getMetrics", json!({})).await;
        move |name| {
            let metrics = answer["metrics"].as_array().into_iter().flatten();
            let found = metrics.into_iter().find(|metric| metric["name"] == name);
            found
                .and_then(|metric| metric["value"].as_f64())
                .unwrap_or(0.0)
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Fails only if the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
