//! Receivers as child processes, and what the tests share.

use std::path::Path;
use std::process::Stdio;

use tidings::kind::EventDetails;
use tidings::notify::notification::{DeliveryError, Notification};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::{PATIENCE, skip};

/// A program that receives. It ends with its owner.
pub(crate) struct Receiver {
    child: Child,
    /// What it says is taken off its hands at once: it would wait for a reader otherwise, and answer nobody.
    lines: mpsc::UnboundedReceiver<String>,
}

impl Receiver {
    /// Starts `command`, which reports on its standard output.
    pub(crate) fn start(command: &mut Command) -> Receiver {
        let mut child = spawn(command.stdout(Stdio::piped()));
        let output = child.stdout.take().unwrap();
        Receiver::new(child, Box::new(output))
    }

    /// Starts `command`, which reports on its standard error.
    pub(crate) fn start_logging(command: &mut Command) -> Receiver {
        let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let output = child.stderr.take().unwrap();
        Receiver::new(child, Box::new(output))
    }

    fn new(child: Child, output: Box<dyn AsyncRead + Send + Unpin>) -> Receiver {
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(line)) = output.next_line().await {
                // The test may have ended.
                sender.send(line).ok();
            }
        });
        Receiver { child, lines }
    }

    /// Starts a Python receiver of `tests/receivers`, and reads the port that it says first.
    pub(crate) async fn python(script: &str, arguments: &[&str]) -> (Receiver, u16) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/receivers")
            .join(script);
        let mut receiver = Receiver::start(Command::new(python()).arg(path).args(arguments));
        let port = receiver.line().await.parse().unwrap();
        (receiver, port)
    }

    /// The next line that it says.
    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.recv()).await;
        line.expect("it says nothing").expect("it has ended")
    }

    /// The next line, which is JSON.
    pub(crate) async fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// The first line from now on that holds `text`.
    pub(crate) async fn line_with(&mut self, text: &str) -> String {
        loop {
            let line = self.line().await;
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Ends it, and returns what it said but nobody read.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.child.kill().await.unwrap();
        let mut rest = Vec::new();
        while let Some(line) = self.lines.recv().await {
            rest.push(line);
        }
        rest
    }
}

fn spawn(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    command.spawn().unwrap()
}

pub(crate) fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Whether Python has `module`.
pub(crate) fn needs_python(module: &str) -> bool {
    let found = std::process::Command::new(python())
        .args(["-c", &format!("import {module}")])
        .output()
        .is_ok_and(|output| output.status.success());
    found || skip(&format!("Python's {module}"))
}

/// A port that was free a moment ago, for programs that cannot choose one themselves.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Makes `cert.pem` and `key.pem` of 127.0.0.1 in `directory`. Its own authority.
pub(crate) fn make_certificate(directory: &Path) {
    let made = std::process::Command::new("openssl")
        .current_dir(directory)
        .args([
            "req",
            "-x509",
            "-days",
            "1",
            "-nodes",
            "-subj",
            "/CN=tidings-test",
        ])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    // A broker that gives up its root privileges still has to read it.
    #[cfg(unix)]
    {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt as _;
        set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        set_permissions(directory.join("key.pem"), Permissions::from_mode(0o644)).unwrap();
    }
}

/// Runs the test `name` of `module` (its `module_path!()`) once more, in a process that trusts the certificate in `directory`
/// and finds it as `TLS_DIRECTORY`: a process's trust is settled by its environment.
pub(crate) async fn rerun_trusting(directory: &Path, module: &str, name: &str) {
    let (_crate, module) = module.split_once("::").unwrap();
    let rerun = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture"])
        .env("SSL_CERT_FILE", directory.join("cert.pem"))
        .env("TLS_DIRECTORY", directory)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(2 * PATIENCE, rerun).await.unwrap().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("1 passed"), "{output:?}");
}

/// An event of a failed job.
pub(crate) fn notification(id: &str) -> Notification {
    Notification {
        id: id.into(),
        school_id: 7,
        kind: "jobs",
        subject: "report-7".into(),
        title: None,
        event_type: "job_progress",
        status: "failed",
        severity: None,
        at: "2026-03-01T08:00:00Z".parse().unwrap(),
        details: EventDetails::default(),
        json: r#"{"type":"job_progress","job_id":"report-7","message":"Schülerliste – zu groß"}"#
            .into(),
    }
}

/// The text of a failure that says that the receiver is down.
pub(crate) fn unavailable(outcome: Result<(), DeliveryError>) -> String {
    match outcome {
        Err(DeliveryError::Unavailable { cause, .. }) => cause,
        other => panic!("{other:?}"),
    }
}

/// The text of a failure that may be the event's or the receiver's.
pub(crate) fn failed(outcome: Result<(), DeliveryError>) -> String {
    match outcome {
        Err(DeliveryError::Failed(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

/// The text of a failure for good.
pub(crate) fn permanent(outcome: Result<(), DeliveryError>) -> String {
    match outcome {
        Err(DeliveryError::Permanent(cause)) => cause,
        other => panic!("{other:?}"),
    }
}
