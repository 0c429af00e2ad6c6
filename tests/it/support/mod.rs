//! Test servers, tokens, and one client for all three transports.

pub(crate) mod bus;
pub(crate) mod clients;
pub(crate) mod commands;
pub(crate) mod contract;
pub(crate) mod devtools;
pub(crate) mod forwarder;
pub(crate) mod listener;
pub(crate) mod memory;
#[cfg(target_os = "linux")]
pub(crate) mod network;
pub(crate) mod nodes;
pub(crate) mod page;
pub(crate) mod part;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod sources;
pub(crate) mod store;

use std::sync::Arc;
use std::time::Duration;

use rocket::figment::Figment;
use rocket::figment::value::{Dict, Value as Setting};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::Tidings;
use tidings::auth::{Claims, Role};

pub(crate) use listener::{Listener, Transport};

/// How long to wait for something that must happen. Long, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The secret of every test server.
pub(crate) const SECRET: &str = "a secret for tests only, long enough for HS256";

/// Small limits for the rules of the kinds.
pub(crate) const LIMITS: tidings::kind::Limits = tidings::kind::Limits {
    message_bytes: 64,
    metadata_bytes: 128,
    stall_after_secs: 60,
    timeout_secs: 300,
    enrollment_lease_secs: 60,
    device_lease_secs: 40,
};

/// A server with a separate database. It stops when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) tidings: Arc<Tidings>,
    pub(crate) http: reqwest::Client,
    shutdown: rocket::Shutdown,
    served: Option<tokio::task::JoinHandle<()>>,
    pub(crate) folder: Arc<TempDir>,
}

/// Starts a server with default settings.
pub(crate) async fn server() -> Server {
    server_with(json!({})).await
}

/// Starts a server with these settings of Tidings.
pub(crate) async fn server_with(settings: Value) -> Server {
    server_in(Arc::new(tempfile::tempdir().unwrap()), settings).await
}

/// Starts a server on this folder's database.
pub(crate) async fn server_in(folder: Arc<TempDir>, settings: Value) -> Server {
    let figment = figment(&folder, &settings);
    let rocket = tidings::server(figment).unwrap_or_else(|error| panic!("{error}"));
    launch(rocket, folder).await
}

/// Launches a Rocket application that manages Tidings.
pub(crate) async fn launch(rocket: rocket::Rocket<rocket::Build>, folder: Arc<TempDir>) -> Server {
    let (announce, announced) = tokio::sync::oneshot::channel();
    let announce = std::sync::Mutex::new(Some(announce));
    let rocket = rocket.attach(rocket::fairing::AdHoc::on_liftoff(
        "announce",
        move |rocket| {
            Box::pin(async move {
                let tidings = Arc::clone(rocket.state::<Arc<Tidings>>().unwrap());
                let port = rocket.config().port;
                announce
                    .lock()
                    .unwrap()
                    .take()
                    .unwrap()
                    .send((port, rocket.shutdown(), tidings))
                    .ok();
            })
        },
    ));
    let served = tokio::spawn(async move {
        let rocket = rocket.launch().await;
        if let Err(error) = &rocket {
            assert!(
                matches!(error.kind(), rocket::error::ErrorKind::Shutdown(..)),
                "{error}"
            );
        }
    });
    let (port, shutdown, tidings) = announced.await.expect("the server starts");
    let http = reqwest::Client::builder()
        .timeout(PATIENCE * 2)
        .build()
        .unwrap();
    Server {
        url: format!("http://127.0.0.1:{port}"),
        tidings,
        http,
        shutdown,
        served: Some(served),
        folder,
    }
}

/// Returns Rocket's configuration for a test: any free port, no signals, and these settings.
pub(crate) fn figment(folder: &TempDir, settings: &Value) -> Figment {
    let settings: Dict = serde_json::from_value(settings.clone()).unwrap();
    let base = rocket::Config::figment()
        .merge(("address", "127.0.0.1"))
        .merge(("port", 0))
        .merge(("log_level", "off"))
        .merge(("shutdown", rocket::figment::util::map! { "ctrlc" => Setting::from(false), "grace" => Setting::from(2), "mercy" => Setting::from(1) }))
        .merge(("tidings.data_dir", folder.path()))
        .merge(("tidings.jwt_secret", SECRET));
    let url = store::database_url(folder.path()).map(Setting::from);
    let settings = url
        .map(|url| ("database_url".into(), url))
        .into_iter()
        .chain(settings);
    settings.fold(base, |figment, (key, value)| {
        figment.merge((format!("tidings.{key}"), value))
    })
}

impl Server {
    /// Stops the server as on SIGTERM, and waits until it has stopped.
    pub(crate) async fn stop(mut self) -> Arc<TempDir> {
        self.shutdown.clone().notify();
        self.served.take().unwrap().await.unwrap();
        tidings::http::close(&self.tidings).await.unwrap();
        Arc::clone(&self.folder)
    }

    /// Deletes what retention does not keep. Returns in how many steps.
    pub(crate) async fn sweep(&self) -> usize {
        let mut steps = 0;
        while self
            .tidings
            .store()
            .sweep(chrono::Utc::now())
            .await
            .unwrap()
        {
            steps += 1;
        }
        steps
    }

    /// Returns a request with a token.
    pub(crate) fn request(&self, method: &str, path: &str, token: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
            .bearer_auth(token)
    }

    /// Sends a GET request. Returns the status and the JSON of the response.
    pub(crate) async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        answer(self.request("GET", path, token)).await
    }

    /// Sends a POST request with a JSON body. Returns the status and the JSON of the response.
    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        answer(self.request("POST", path, token).json(&body)).await
    }

    /// Sends a POST request as a worker of school 1. It must succeed.
    pub(crate) async fn report(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, &worker(1), body.clone()).await;
        assert!(status < 300, "{path} {body}: {status} {answer}");
        answer
    }

    /// Sends a PUT request as a worker of school 1. It must succeed.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        let request = self.request("PUT", path, &worker(1)).json(&body);
        let (status, answer) = answer(request).await;
        assert!(status < 300, "{path} {body}: {status} {answer}");
        answer
    }

    /// Sends a batch of these lines. Returns the result of each.
    pub(crate) async fn batch(&self, token: &str, lines: impl Into<String>) -> Vec<Value> {
        let request = self.request("POST", "/api/batch", token).body(lines.into());
        let response = request.send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Creates a running job of school 1.
    pub(crate) async fn running_job(&self, id: &str) -> Value {
        self.report(
            "/api/jobs",
            json!({"job_id": id, "job_type": "test", "status": "in_progress"}),
        )
        .await
    }

    /// Opens a stream as a viewer of school 1.
    pub(crate) async fn listen(&self, transport: Transport, scope: &str) -> Listener {
        Listener::open(transport, &self.url, scope, &viewer(1), None).await
    }

    /// Opens a stream that resumes from a cursor, as a viewer of school 1.
    pub(crate) async fn resume(&self, transport: Transport, scope: &str, cursor: &str) -> Listener {
        Listener::open(transport, &self.url, scope, &viewer(1), Some(cursor)).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.clone().notify();
    }
}

/// Sends a request. Returns the status and the JSON of the response.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let (client, request) = request.build_split();
    let request = request.unwrap();
    let (method, path) = (
        request.method().to_string(),
        request.url().path().to_owned(),
    );
    let response = client.execute(request).await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let json =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {status} {text:?}"));
    contract::check_answer(&method, &path, status, &json);
    (status, json)
}

/// Returns the claims of a token that is valid for ten minutes.
pub(crate) fn claims(school: Option<i64>, role: Role) -> Claims {
    Claims {
        sub: "test".into(),
        school_id: school.map(|school| school.try_into().unwrap()),
        schools: None,
        role,
        channels: None,
        exp: (chrono::Utc::now().timestamp() + 600) as f64,
        iat: None,
        iss: None,
        aud: None,
    }
}

/// Returns a token signed with the secret of the test servers.
pub(crate) fn sign(claims: &impl serde::Serialize) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

pub(crate) fn viewer(school: i64) -> String {
    sign(&claims(Some(school), Role::Viewer))
}

pub(crate) fn worker(school: i64) -> String {
    sign(&claims(Some(school), Role::Worker))
}

/// Returns an administrator's token for all schools.
pub(crate) fn admin() -> String {
    sign(&claims(None, Role::Admin))
}

/// Returns an administrator's token for one school.
pub(crate) fn admin_of(school: i64) -> String {
    sign(&claims(Some(school), Role::Admin))
}

/// Returns a token for these schools.
pub(crate) fn for_schools(schools: &[i64], role: Role) -> String {
    let mut claims = claims(None, role);
    let schools = schools.iter().map(|school| (*school).try_into().unwrap());
    claims.schools = Some(schools.collect());
    sign(&claims)
}

/// Checks a condition every few milliseconds until it is true. Fails after [`PATIENCE`].
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never came true: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns a cursor's epoch, number and tag.
pub(crate) fn parts(cursor: &Value) -> (String, u64, String) {
    let cursor = cursor.as_str().expect("a cursor is a text");
    let mut parts = cursor.split('-');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let (epoch, seq) = (part(), part());
    (epoch, seq.parse().expect("a number"), part())
}

/// Returns a field of each message.
pub(crate) fn field<'a>(messages: &'a [Value], name: &str) -> Vec<&'a Value> {
    messages.iter().map(|message| &message[name]).collect()
}

/// Whether a program that a test needs is installed. If not, reports that the test is skipped.
pub(crate) fn needs(program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .output()
        .is_ok();
    found || skip(program)
}

/// Returns the Python interpreter, which `PYTHON` can name, if it has `websockets`. If not, reports that the test is skipped.
pub(crate) fn python_with_websockets() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let found = std::process::Command::new(&python)
        .args(["-c", "import websockets"])
        .output()
        .is_ok_and(|output| output.status.success());
    (found || skip("Python's websockets")).then_some(python)
}

/// Reports that a test is skipped because something is not installed, or fails if `TIDINGS_REQUIRE_ALL` is set. Always
/// returns false.
pub(crate) fn skip(wanted: &str) -> bool {
    assert!(
        std::env::var_os("TIDINGS_REQUIRE_ALL").is_none(),
        "{wanted} is required and not installed"
    );
    say(&format!(
        "SKIPPED, at least in part: {wanted} is not installed"
    ));
    false
}

/// Prints a line. Bypasses the test harness, which captures the output of tests that pass.
fn say(line: &str) {
    use std::io::Write;
    let line = format!("{line}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}
