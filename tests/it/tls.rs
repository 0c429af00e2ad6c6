//! HTTPS without a proxy: every transport, the command line, and what is said of files that cannot be used.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;

use crate::support::process::{Process, blocking, command, run};
use crate::support::*;

/// Makes `cert.pem` and `key.pem` for 127.0.0.1. False without openssl.
pub(crate) fn make_certificate(folder: &Path) -> bool {
    if !needs("openssl") {
        return false;
    }
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1 \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem";
    let made = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    true
}

/// A server with a certificate, by `[default.tls]` or by `ROCKET_TLS`.
fn serve(folder: &Path, in_the_file: bool) -> Process {
    let mut command = command(folder);
    command.arg("serve");
    if in_the_file {
        let file = "[default.tls]\ncerts = \"cert.pem\"\nkey = \"key.pem\"\n";
        std::fs::write(folder.join("Rocket.toml"), file).unwrap();
    } else {
        command.env("ROCKET_TLS", r#"{certs="cert.pem",key="key.pem"}"#);
    }
    Process::start(&mut command)
}

async fn connect(server: &Process, folder: &Path) -> TlsStream<TcpStream> {
    try_connect(&server.url, folder).await.unwrap()
}

/// A connection that trusts the certificate in the folder and nothing else.
pub(crate) async fn try_connect(url: &str, folder: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = url.strip_prefix("https://").expect("HTTPS");
    let stream = TcpStream::connect(address).await?;
    let name = "127.0.0.1".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

async fn ask(
    server: &Process,
    folder: &Path,
    request: &str,
    token: &str,
    more: &str,
) -> TlsStream<TcpStream> {
    let mut stream = connect(server, folder).await;
    let head =
        format!("{request} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n{more}");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn publish(server: &Process, folder: &Path, path: &str, body: Value) {
    let body = body.to_string();
    let more = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = ask(server, folder, &format!("POST {path}"), &worker(1), &more).await;
    read_until(&mut stream, "HTTP/1.1 20").await;
}

async fn read_until(stream: &mut TlsStream<TcpStream>, wanted: &str) {
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains(wanted) {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut received)).await;
        let count = read.expect("something in time").unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&received));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn every_transport_is_served_over_tls() {
    for in_the_file in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        if !make_certificate(folder) {
            return;
        }
        let mut server = serve(folder, in_the_file);
        let viewer = viewer(1);
        let wanted = |kind: &str| format!("Accept: {kind}\r\n\r\n");
        let events = wanted("text/event-stream");
        let mut events = ask(&server, folder, "GET /events/jobs", &viewer, &events).await;
        read_until(&mut events, r#""type":"ready""#).await;
        let poll = wanted("application/json");
        let mut poll = ask(&server, folder, "GET /events/jobs?wait=60", &viewer, &poll).await;
        read_until(&mut poll, r#""type":"ready""#).await;
        let stream = connect(&server, folder).await;
        let url = format!("wss://127.0.0.1/events/jobs?token={viewer}");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        let mut hear = async |wanted: &str| {
            use futures_util::StreamExt;
            loop {
                let message = tokio::time::timeout(PATIENCE, socket.next()).await;
                match message.expect("something in time") {
                    Some(Ok(Message::Text(text))) if text.contains(wanted) => return,
                    Some(Ok(_)) => {}
                    other => panic!("it ended: {other:?}"),
                }
            }
        };
        hear(r#""type":"ready""#).await;
        publish(
            &server,
            folder,
            "/api/jobs",
            json!({"job_id": "over-tls", "job_type": "t"}),
        )
        .await;
        read_until(&mut events, r#""job_id":"over-tls""#).await;
        read_until(&mut poll, r#""job_id":"over-tls""#).await;
        hear(r#""job_id":"over-tls""#).await;
        drop((events, poll, socket));
        assert_eq!(server.terminate(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_over_tls_trusts_whom_the_system_trusts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if !make_certificate(folder) {
        return;
    }
    let server = serve(folder, true);
    let job = json!({"job_id": "a", "job_type": "t", "status": "in_progress"});
    publish(&server, folder, "/api/jobs", job).await;
    publish(&server, folder, "/api/jobs/a/complete", json!({})).await;
    for (trusted, code) in [("cert.pem", 0), ("nothing.pem", 5)] {
        let mut watch = command(folder);
        watch
            .args(["watch", "jobs/a", "--json"])
            .env("SSL_CERT_FILE", folder.join(trusted))
            .env("TIDINGS_URL", &server.url)
            .env("TIDINGS_TOKEN", viewer(1));
        let output = blocking(move || run(&mut watch)).await;
        assert_eq!(output.status.code(), Some(code), "{trusted}: {output:?}");
    }
}

#[test]
fn the_demo_works_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if !make_certificate(folder) {
        return;
    }
    std::fs::write(folder.join("read.txt"), "words").unwrap();
    let output = run(command(folder)
        .args(["demo", "read.txt", "--exit", "--pause-ms", "0"])
        .arg("--no-simulators")
        .env("ROCKET_TLS", r#"{certs="cert.pem",key="key.pem"}"#));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(stdout.contains("https://127.0.0.1:"), "{stdout}");
}

#[test]
#[ignore = "slow: takes seconds"]
fn a_certificate_or_key_that_cannot_be_used_stops_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if !make_certificate(folder) {
        return;
    }
    std::fs::write(folder.join("empty.pem"), "").unwrap();
    for (certs, key) in [
        ("nowhere.pem", "key.pem"),
        ("cert.pem", "nowhere.pem"),
        ("empty.pem", "key.pem"),
        ("cert.pem", "empty.pem"),
        ("cert.pem", "cert.pem"),
        ("key.pem", "key.pem"),
    ] {
        let tls = format!(r#"{{certs="{certs}",key="{key}"}}"#);
        let output = run(command(folder).arg("serve").env("ROCKET_TLS", tls));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{certs} {key}: {stderr}");
        assert!(stderr.contains("`tls`"), "{certs} {key}: {stderr}");
    }
}
