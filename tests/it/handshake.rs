//! The WebSocket handshake, header by header, as clients and proxies really send it: over raw connections.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::process::{Process, command};
use crate::support::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What RFC 6455, 1.3 answers it with.
const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";
/// Every WebSocket endpoint that is nothing else.
const ENDPOINTS: [&str; 7] = [
    "/ws",
    "/ws/samples",
    "/ws/enrollment",
    "/ws/device-status",
    "/ws/upload-progress",
    "/ws/upload-progress/a",
    "/progress/ws/a",
];

/// An answer: its status line and headers in lower case, and its body if its length is given.
struct Answer {
    head: String,
    body: String,
    _connection: TcpStream,
}

impl Answer {
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }

    /// The text that a problem has for its reader.
    fn detail(&self) -> String {
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// Sends a request and reads the answer's head, and its body unless it is a stream.
async fn ask(url: &str, line: &str, headers: &str) -> Answer {
    let mut connection = TcpStream::connect(url.trim_start_matches("http://"))
        .await
        .unwrap();
    let request = format!("{line}\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .filter(|_| !request.starts_with("HEAD"));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        connection.read_exact(&mut body).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    };
    let (head, body) = timeout(PATIENCE, read).await.expect("an answer");
    Answer {
        head,
        body,
        _connection: connection,
    }
}

/// Asks for a WebSocket with these headers in addition to `Host`.
async fn shake(server: &Server, path: &str, headers: &[&str]) -> Answer {
    let line = format!("GET {path}?token={} HTTP/1.1", viewer(1));
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    ask(&server.url, &line, &format!("Host: x\r\n{headers}")).await
}

fn key() -> String {
    format!("Sec-WebSocket-Key: {KEY}")
}

#[tokio::test(flavor = "multi_thread")]
async fn switching_protocols_has_no_length_and_no_body() {
    let server = server().await;
    server.running_job("a").await;
    for path in ENDPOINTS.iter().chain(&["/events/jobs"]) {
        let headers = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            &key(),
        ];
        let answer = shake(&server, path, &headers).await;
        assert_eq!(answer.status(), "101", "{path}");
        assert!(answer.has("upgrade: websocket") && answer.has("connection: upgrade"));
        assert!(answer.has(ACCEPT), "{}", answer.head);
        for absent in ["content-length:", "transfer-encoding:", "content-type:"] {
            let mut lines = answer.head.lines();
            assert!(
                lines.all(|line| !line.starts_with(absent)),
                "{path}: {}",
                answer.head
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_understood_in_every_spelling() {
    let server = server().await;
    let version = "Sec-WebSocket-Version: 13";
    for headers in [
        [
            "Connection: keep-alive, Upgrade",
            "Upgrade: websocket",
            version,
            &key(),
        ],
        [
            "connection:upgrade",
            "upgrade:WebSocket",
            "sec-websocket-version:13",
            &key(),
        ],
        [
            "CONNECTION: UPGRADE",
            "UPGRADE: WEBSOCKET",
            "SEC-WEBSOCKET-VERSION: 13",
            &key(),
        ],
        [
            "Connection: keep-alive\r\nConnection: upgrade",
            "Upgrade: websocket",
            version,
            &key(),
        ],
        [
            "Connection: , upgrade ,",
            "Upgrade: h2c, websocket",
            version,
            &key(),
        ],
        [
            "Connection: upgrade",
            "Upgrade: h2c\r\nUpgrade: websocket",
            version,
            &key(),
        ],
        [
            "Connection: upgrade",
            "Upgrade: websocket",
            version,
            &format!("Sec-WebSocket-Key: \t {KEY} \t"),
        ],
    ] {
        let answer = shake(&server, "/events/jobs", &headers).await;
        assert_eq!(answer.status(), "101", "{headers:?}: {}", answer.body);
        assert!(
            answer.has(ACCEPT) && answer.has("upgrade: websocket"),
            "{}",
            answer.head
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_sixteen_bytes_in_base64_and_there_once() {
    let server = server().await;
    let key_lines = |keys: &[&str]| -> String {
        let lines: Vec<_> = keys
            .iter()
            .map(|key| format!("Sec-WebSocket-Key: {key}"))
            .collect();
        lines.join("\r\n")
    };
    for (keys, reason) in [
        (&[][..], "missing"),
        (&[KEY, KEY], "more than once"),
        (&[KEY, "AAAAAAAAAAAAAAAAAAAAAA=="], "more than once"),
        (&[""], "16 bytes"),
        (&["x"], "16 bytes"),
        (&["dGhlIHNhbXBsZSBub25jZQ"], "16 bytes"),
        (&["AAAAAAAAAAAAAAAAAAAA"], "16 bytes"),
        (&["AAAAAAAAAAAAAAAAAAAAAAA="], "16 bytes"),
        (&["AAAAAAAAAAAAAAAAAAAAAAAA"], "16 bytes"),
        (&["-_-_-_-_-_-_-_-_-_-_-w=="], "16 bytes"),
        (&["dGhl IHNhbXBsZSBub25jZQ=="], "16 bytes"),
        (
            &["dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ=="],
            "16 bytes",
        ),
    ] {
        for path in ["/events/jobs", "/ws", "/progress/ws/a"] {
            let headers = [
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
            ];
            let lines = key_lines(keys);
            let with_key: Vec<&str> = headers
                .into_iter()
                .chain((!keys.is_empty()).then_some(&*lines))
                .collect();
            let answer = shake(&server, path, &with_key).await;
            assert_eq!(answer.status(), "400", "{path} {keys:?}");
            let detail = answer.detail();
            assert!(
                detail.contains("Sec-WebSocket-Key") && detail.contains(reason),
                "{detail}"
            );
        }
    }
    assert_eq!(server.tidings.streams(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_other_than_13_is_answered_with_the_one_to_upgrade_to() {
    let server = server().await;
    for (version, status) in [
        ("Sec-WebSocket-Version: 8", "426"),
        ("Sec-WebSocket-Version: 14", "426"),
        ("Sec-WebSocket-Version: 8, 13", "426"),
        ("Sec-WebSocket-Version: 13, 8, 7", "426"),
        (
            "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Version: 13",
            "426",
        ),
        ("Sec-WebSocket-Version: x", "426"),
        ("Sec-WebSocket-Version:", "426"),
        ("X-Nothing: 1", "400"),
    ] {
        for path in ["/events/jobs", "/ws"] {
            let headers = ["Connection: Upgrade", "Upgrade: websocket", version, &key()];
            let answer = shake(&server, path, &headers).await;
            assert_eq!(answer.status(), status, "{path} {version}");
            assert!(answer.detail().contains("13"), "{}", answer.body);
            if status == "426" {
                for header in [
                    "upgrade: websocket",
                    "connection: upgrade",
                    "sec-websocket-version: 13",
                ] {
                    assert!(answer.has(header), "{header}: {}", answer.head);
                }
            }
        }
    }
}

/// A browser would otherwise be sent an event stream where it wants a WebSocket, or nothing that says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_a_proxy_has_stripped_is_rejected_with_the_reason() {
    let server = server().await;
    server.running_job("a").await;
    let version = "Sec-WebSocket-Version: 13";
    for path in ENDPOINTS.iter().chain(&["/events/jobs", "/events/jobs/a"]) {
        for (headers, gone) in [
            (
                &["Connection: close", version, &key()][..],
                "removed Upgrade",
            ),
            (&[version, &key()], "removed Upgrade"),
            (&[&*key()], "removed Upgrade"),
            (
                &["Connection: Upgrade", "Upgrade: h2c", version, &key()],
                "removed Upgrade",
            ),
            (
                &["Upgrade: websocket", version, &key()],
                "`Connection: Upgrade`",
            ),
            (
                &["Connection: close", "Upgrade: websocket", version, &key()],
                "`Connection: Upgrade`",
            ),
        ] {
            let answer = shake(&server, path, headers).await;
            assert_eq!(answer.status(), "400", "{path} {headers:?}");
            let detail = answer.detail();
            assert!(
                detail.contains(gone) && detail.contains("proxy_set_header Upgrade"),
                "{detail}"
            );
        }
    }
    for path in ENDPOINTS {
        let answer = shake(&server, path, &[]).await;
        assert_eq!(answer.status(), "400", "{path}");
        let detail = answer.detail();
        assert!(
            detail.contains("ws://") && detail.contains("/events/"),
            "{detail}"
        );
    }
    assert_eq!(server.tidings.streams(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_subprotocols_are_passed_over() {
    let server = server().await;
    // Once: in the next second, it is another one.
    let token = viewer(1);
    for (offered, chosen) in [
        (", tidings", Some("tidings")),
        (",,tidings ,chat", Some("tidings")),
        (" , ,bearer.TOKEN,", Some("bearer.TOKEN")),
        (
            ",bearer.TOKEN\r\nSec-WebSocket-Protocol: ,tidings",
            Some("tidings"),
        ),
        ("", None),
        (" , ", None),
    ] {
        let offered = offered.replace("TOKEN", &token);
        let headers = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            &key(),
            &format!("Sec-WebSocket-Protocol: {offered}"),
        ];
        let answer = shake(&server, "/events/jobs", &headers).await;
        assert_eq!(answer.status(), "101", "{offered}");
        let line = answer
            .head
            .lines()
            .find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        let chosen = chosen.map(|chosen| chosen.replace("TOKEN", &token).to_lowercase());
        assert_eq!(line, chosen.as_deref(), "{offered}");
    }
}

/// What a proxy sends that passes `Upgrade` on and speaks HTTP/1.0 with us, as nginx does by default.
#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_not_upgraded_but_served_what_it_can_have() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(command(folder.path()).arg("serve"));
    let handshake = format!(
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    let line =
        |path: &str, version: &str| format!("GET {path}?wait=0&token={} HTTP/{version}", viewer(1));
    for headers in [
        format!("Host: x\r\n{handshake}"),
        format!("Host: x\r\nX-Version: HTTP/1.1\r\n{handshake}"),
        handshake.clone(),
    ] {
        let answer = ask(&server.url, &line("/events/jobs", "1.0"), &headers).await;
        assert_eq!(answer.status(), "200", "{headers}");
        assert!(
            answer.has("content-type: text/event-stream"),
            "{}",
            answer.head
        );
        assert!(!answer.head.contains("upgrade"), "{}", answer.head);
        let polling = format!("{headers}Accept: application/json\r\n");
        let answer = ask(&server.url, &line("/events/jobs", "1.0"), &polling).await;
        assert!(
            answer.has("content-type: application/json"),
            "{}",
            answer.head
        );
        for path in ENDPOINTS {
            let answer = ask(&server.url, &line(path, "1.0"), &headers).await;
            assert_eq!(answer.status(), "400", "{path}");
            let detail = answer.detail();
            assert!(
                detail.contains("HTTP/1.0") && detail.contains("proxy_http_version 1.1"),
                "{detail}"
            );
        }
    }
    // The same key over HTTP/1.1 is accepted, also where HTTP/1.0 had it on a route that takes none.
    let headers = format!("Host: x\r\n{handshake}");
    ask(&server.url, &line("/healthz", "1.0"), &headers).await;
    let answer = ask(&server.url, &line("/events/jobs", "1.1"), &headers).await;
    assert_eq!(answer.status(), "101");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_a_get() {
    let server = server().await;
    let headers = format!(
        "Host: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    for (path, status) in [("/ws", "400"), ("/events/jobs", "200")] {
        let line = format!("HEAD {path}?token={} HTTP/1.1", viewer(1));
        let answer = ask(&server.url, &line, &headers).await;
        assert_eq!(answer.status(), status, "{path}");
    }
}
