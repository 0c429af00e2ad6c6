//! Real proxies with the configurations of `docs/proxies.md`: every transport passes each of them.

use std::process::Stdio;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use rocket::request::{FromRequest, Outcome, Request};
use rocket::{get, routes};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Barrier;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::listener::{handshake, socket_url};
use crate::support::proxy::{Program, Proxy};
use crate::support::*;

/// How long the configurations let a connection be idle, and how long for the test: less than [`HEARTBEATS`] seconds.
const IDLE: [(&str, &str); 3] = [
    ("60s", "6s"),
    ("60 seconds", "6 seconds"),
    ("timeout=60", "timeout=6"),
];

/// Heartbeats, one a second, for which a stream is quiet.
const HEARTBEATS: usize = 8;

macro_rules! through {
    ($module:ident, $program:ident: $($requirement:ident),+ $(,)?) => {
        mod $module {
            use super::Program;
            $(
                #[tokio::test(flavor = "multi_thread")]
                #[ignore = "slow: a real proxy"]
                async fn $requirement() {
                    super::$requirement(Program::$program).await;
                }
            )+
        }
    };
}

through! { nginx, Nginx:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
    events_arrive_when_they_happen_over_http_2,
}

through! { haproxy, HaProxy:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
    events_arrive_when_they_happen_over_http_2,
}

through! { caddy, Caddy:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
    events_arrive_when_they_happen_over_http_2,
}

through! { apache, Apache:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
    events_arrive_when_they_happen_over_http_2,
}

through! { traefik, Traefik:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
    events_arrive_when_they_happen_over_http_2,
}

through! { squid, Squid:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
    the_server_learns_the_client_and_the_protocol,
}

through! { squid_as_a_forward_proxy, SquidForward:
    events_arrive_when_they_happen_on_every_transport_with_one_cursor,
    quiet_streams_outlive_the_idle_time_out,
    large_events_and_batches_pass_whole,
}

/// The head of a request, as the server sees it.
#[get("/seen")]
fn seen(head: Head) -> String {
    head.0.to_string()
}

struct Head(Value);

/// What the server believes of a proxy in addition, and a client might send.
const FORGEABLE: [&str; 3] = ["X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix"];
/// An address that no machine here has, without a port.
const FORGED: &str = "203.0.113.9";

#[rocket::async_trait]
impl<'r> FromRequest<'r> for Head {
    type Error = std::convert::Infallible;

    async fn from_request(request: &'r Request<'_>) -> Outcome<Head, Self::Error> {
        let mut head = json!({"address": request.client_ip()});
        for name in ["Host", "X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto"] {
            head[name] = request.headers().get(name).collect();
        }
        // Of the others, a proxy may set its own.
        let is_forged = |name: &&str| {
            let mut values = request.headers().get(name);
            values.any(|value| value.contains(FORGED))
        };
        head["forged"] = FORGEABLE.into_iter().filter(is_forged).collect();
        Outcome::Success(Head(head))
    }
}

/// A server with one more route, and a proxy in front of it.
struct Site {
    proxy: Proxy,
    server: Server,
    /// Where clients ask, and which forward proxy they use.
    url: String,
    forward: Option<String>,
}

impl Site {
    /// Nothing where the program is absent.
    async fn open(program: Program, settings: Value, replaced: &[(&str, &str)]) -> Option<Site> {
        if !program.is_here() {
            return None;
        }
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let rocket = tidings::server(figment(&folder, &settings)).unwrap();
        let server = launch(rocket.mount("/", routes![seen]), folder).await;
        let proxy = Proxy::open(program, &server, replaced).await;
        let (url, forward) = match program {
            Program::SquidForward => {
                let forward = proxy.url.trim_start_matches("http://");
                (server.url.clone(), Some(forward.to_owned()))
            }
            _ => (proxy.url.clone(), None),
        };
        Some(Site {
            proxy,
            server,
            url,
            forward,
        })
    }

    async fn listen(&self, transport: Transport, scope: &str, cursor: Option<&str>) -> Listener {
        let forward = self.forward.as_deref();
        Listener::open_through(forward, transport, &self.url, scope, &viewer(1), cursor).await
    }

    fn http(&self) -> reqwest::Client {
        match &self.forward {
            Some(_) => self.proxy.client(),
            None => reqwest::Client::new(),
        }
    }

    /// The body of a stream, from a cursor if it is not empty.
    async fn stream(
        &self,
        path: &str,
        accept: &str,
        cursor: &str,
    ) -> impl Stream<Item = reqwest::Result<impl AsRef<[u8]>>> + Unpin {
        let request = self.http().get(format!("{}{path}", self.url));
        let request = request.bearer_auth(viewer(1)).header("Accept", accept);
        let response = request
            .header("Last-Event-ID", cursor)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        response.bytes_stream()
    }

    /// A call of curl that trusts the proxy's certificate.
    fn curl(&self, path: &str) -> tokio::process::Command {
        let mut curl = tokio::process::Command::new("curl");
        curl.args([
            "--no-progress-meter",
            "--no-buffer",
            "--noproxy",
            "*",
            "--cacert",
        ])
        .arg(&self.proxy.certificate)
        .args(["--header", &format!("Authorization: Bearer {}", viewer(1))])
        .arg(format!("{}{path}", self.proxy.secure_url))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
        curl
    }

    /// A progress report that is made directly.
    async fn progress(&self, message: &str) -> Value {
        let body = json!({ "message": message });
        self.server.report("/api/jobs/a/progress", body).await
    }
}

/// Reads until it is enough.
async fn hear(
    parts: &mut (impl Stream<Item = reqwest::Result<impl AsRef<[u8]>>> + Unpin),
    heard: &mut String,
    enough: impl Fn(&str) -> bool,
) {
    while !enough(heard) {
        let part = timeout(PATIENCE, parts.next()).await.expect("more in time");
        let part = part.unwrap_or_else(|| panic!("the stream goes on after {heard}"));
        heard.push_str(std::str::from_utf8(part.unwrap().as_ref()).unwrap());
    }
}

fn is_event(message: &Value) -> bool {
    message["type"] == "job_progress"
}

async fn events_arrive_when_they_happen_on_every_transport_with_one_cursor(program: Program) {
    let Some(site) = Site::open(program, json!({}), &[]).await else {
        return;
    };
    let mut last = site.server.running_job("a").await;
    let mut cursor = None;
    let transports = Transport::ALL
        .into_iter()
        .chain([Transport::EventSource, Transport::Poll]);
    for transport in transports {
        let mut listener = site
            .listen(transport, "/jobs?tick_ms=0", cursor.as_deref())
            .await;
        // The snapshot, then what nobody heard. Nothing is published while it is waited for.
        let messages = listener.until_ready().await;
        assert_eq!(messages[0]["type"], "connected", "{transport:?}");
        let missed: Vec<&Value> = messages
            .iter()
            .filter(|message| is_event(message))
            .collect();
        assert_eq!(missed.len(), 1, "{transport:?}: {messages:?}");
        assert_eq!(missed[0]["cursor"], last["cursor"], "{transport:?}");
        for step in 0..3 {
            // One small event at a time: it comes without waiting for the next.
            let published = site.progress(&format!("{transport:?} {step}")).await;
            let messages = listener.take_until(is_event).await;
            assert_eq!(messages.last(), Some(&published), "{transport:?}");
        }
        cursor = listener.cursor;
        last = site.progress("nobody listens").await;
    }
}

async fn quiet_streams_outlive_the_idle_time_out(program: Program) {
    let replaced: Vec<_> = IDLE
        .into_iter()
        .filter(|(from, _)| program.says(from))
        .collect();
    assert!(!replaced.is_empty(), "{program:?} has an idle time-out");
    let settings = json!({"heartbeat_secs": 1});
    let Some(site) = Site::open(program, settings, &replaced).await else {
        return;
    };
    let known = site.server.running_job("a").await;
    let all_were_quiet = Barrier::new(Transport::ALL.len());
    let publish_once = async || {
        if all_were_quiet.wait().await.is_leader() {
            site.progress("it was quiet").await;
        }
    };
    let has_arrived = |heard: &str| heard.contains("it was quiet");

    let event_source = async {
        let mut parts = site.stream("/events/jobs", "text/event-stream", "").await;
        let mut heard = String::new();
        // As nothing is published, every block after `ready` is a heartbeat.
        let quiet = |heard: &str| {
            let after = heard.split_once(r#""type":"ready""#);
            after.is_some_and(|(_, after)| after.matches("\n\n").count() > HEARTBEATS)
        };
        hear(&mut parts, &mut heard, quiet).await;
        publish_once().await;
        hear(&mut parts, &mut heard, has_arrived).await;
    };
    let web_socket = async {
        let url = socket_url(&site.url, "/events/jobs", Some(&viewer(1)), None);
        let mut socket = handshake(url, site.forward.as_deref()).await;
        let mut heartbeats = 0;
        loop {
            let message = timeout(PATIENCE, socket.next()).await.unwrap();
            match message.expect("the socket is open").unwrap() {
                Message::Ping(_) => {
                    heartbeats += 1;
                    if heartbeats == HEARTBEATS {
                        publish_once().await;
                    }
                }
                Message::Text(text) if has_arrived(&text) => break,
                Message::Text(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let poll = async {
        let (path, cursor) = ("/events/jobs?wait=60", known["cursor"].as_str().unwrap());
        let mut parts = site.stream(path, "application/json", cursor).await;
        let mut heard = String::new();
        // The JSON itself has no line ends.
        let quiet = |heard: &str| heard.matches('\n').count() >= HEARTBEATS;
        hear(&mut parts, &mut heard, quiet).await;
        publish_once().await;
        hear(&mut parts, &mut heard, |heard| heard.ends_with('}')).await;
        assert!(has_arrived(&heard), "{heard}");
        serde_json::from_str::<Value>(&heard).unwrap();
    };
    tokio::join!(event_source, web_socket, poll);
}

async fn large_events_and_batches_pass_whole(program: Program) {
    let Some(site) = Site::open(program, json!({}), &[]).await else {
        return;
    };
    site.server.running_job("a").await;
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        let mut listener = site.listen(transport, "/jobs", None).await;
        listener.until_ready().await;
        listeners.push(listener);
    }
    // Incompressible, and nowhere the same.
    let result: Vec<u64> = (0..14_000_u64)
        .map(|number| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16)
        .collect();
    let request = site
        .http()
        .post(format!("{}/api/jobs/a/complete", site.url));
    let request = request
        .bearer_auth(worker(1))
        .json(&json!({ "result": result }));
    let (status, published) = answer(request).await;
    assert_eq!(status, 200, "{published}");
    assert!(published.to_string().len() > 200_000);
    for listener in &mut listeners {
        let messages = listener.take_until(is_event).await;
        assert_eq!(messages.last(), Some(&published));
    }
    // As large as the server takes.
    let limit = tidings::config::Settings::default().batch_limit_bytes.get();
    let line = json!({"op": "jobs.create", "job_id": "b", "job_type": "test"}).to_string();
    let mut lines = format!("{line}\n");
    lines.extend(std::iter::repeat_n(
        '\n',
        usize::try_from(limit).unwrap() - lines.len(),
    ));
    let request = site.http().post(format!("{}/api/batch", site.url));
    let response = request.bearer_auth(worker(1)).body(lines).send().await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains(r#""job_id":"b""#));
}

async fn the_server_learns_the_client_and_the_protocol(program: Program) {
    let Some(site) = Site::open(program, json!({}), &[]).await else {
        return;
    };
    let mut request = site.http().get(format!("{}/seen", site.url));
    for name in ["X-Real-IP", "X-Forwarded-For"]
        .into_iter()
        .chain(FORGEABLE)
    {
        request = request.header(name, FORGED);
    }
    let (_, plain) = answer(request.header("X-Forwarded-Proto", "ftp")).await;
    let expected = |url: &str, scheme: &str| {
        let host = url.split_once("://").unwrap().1;
        json!({
            "address": "127.0.0.1", "Host": [host], "X-Real-IP": ["127.0.0.1"],
            "X-Forwarded-For": ["127.0.0.1"], "X-Forwarded-Proto": [scheme], "forged": [],
        })
    };
    assert_eq!(plain, expected(&site.url, "http"));
    if !needs("curl") {
        return;
    }
    let mut curl = site.curl("/seen");
    let others = ["X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto"];
    for name in others.into_iter().chain(FORGEABLE) {
        curl.args(["--header", &format!("{name}: {FORGED}")]);
    }
    let output = curl.output().await.unwrap();
    let secure: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(secure, expected(&site.proxy.secure_url, "https"));
}

async fn events_arrive_when_they_happen_over_http_2(program: Program) {
    if !needs("curl") {
        return;
    }
    let Some(site) = Site::open(program, json!({}), &[]).await else {
        return;
    };
    site.server.running_job("a").await;
    let mut curl = site
        .curl("/events/jobs?tick_ms=0")
        .args(["--http2", "--include"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let mut until_line = async |wanted: &str| {
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("a line in time").unwrap();
            let line = line.unwrap_or_else(|| panic!("the stream ended before {wanted}"));
            if line.contains(wanted) {
                return line;
            }
        }
    };
    assert_eq!(until_line("HTTP/").await.trim(), "HTTP/2 200");
    until_line(r#""type":"ready""#).await;
    for step in 0..3 {
        let published = site.progress(&format!("step {step}")).await;
        let line = until_line(&format!("step {step}")).await;
        let data = line.strip_prefix("data: ").unwrap();
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), published);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_polls_pass_a_proxy_that_speaks_http_1_0_with_the_server() {
    let Some(site) = Site::open(Program::Nginx, json!({}), &[("1.1;", "1.0;")]).await else {
        return;
    };
    site.server.running_job("a").await;
    for transport in [Transport::EventSource, Transport::Poll] {
        let mut listener = site.listen(transport, "/jobs?tick_ms=0", None).await;
        listener.until_ready().await;
        for step in 0..3 {
            let published = site.progress(&format!("{transport:?} {step}")).await;
            let messages = listener.take_until(is_event).await;
            assert_eq!(messages.last(), Some(&published), "{transport:?}");
        }
    }
}
