//! The protocol's edges: the upgrade, frames, sizes and peers that give no sign of life.

use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::listener::{receive, rejected, send, socket, socket_url};
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_big_gets_an_error_and_closes_the_socket() {
    let server = server_with(json!({"client_message_limit_bytes": 1_000})).await;
    let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
    send(
        &mut ws,
        &format!(
            "{{\"type\":\"ping\",\"timestamp\":\"{}\"}}",
            "x".repeat(100_000)
        ),
    )
    .await;
    let closing = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&closing["type"], &closing["code"], &closing["reconnect"]),
        (&json!("closing"), &json!(1009), &json!(false))
    );
    assert_eq!(receive(&mut ws).await, Err(Some(1009)));
    drop(ws);
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

/// Bytes that are not WebSocket frames, an unmasked frame, a reserved opcode: closed, not crashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_protocol_is_closed_with_1002() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = server().await;
    for garbage in [
        &b"\x81\x02hi"[..],
        b"\x83\x80\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
    ] {
        let mut stream = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://"))
            .await
            .unwrap();
        let head = format!(
            "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            viewer(1)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = stream.read(&mut answer).await.unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 101"));
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        let close = rest.windows(2).any(|pair| pair == 1002_u16.to_be_bytes());
        assert!(close, "{garbage:?}: {rest:?}");
    }
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_reject_before_the_upgrade_and_the_older_endpoints_after_it() {
    let server = server().await;
    server.running_job("a").await;
    let url = |path: &str, token: Option<&str>| socket_url(&server.url, path, token, None);
    assert_eq!(rejected(&url("/events/jobs", None)).await, 401);
    assert_eq!(rejected(&url("/events/jobs", Some("x"))).await, 401);
    assert_eq!(
        rejected(&url("/events/jobs/nobody", Some(&viewer(1)))).await,
        404
    );
    assert_eq!(
        rejected(&url("/events/jobs/a", Some(&viewer(2)))).await,
        404
    );

    for (path, code) in [("/ws", 4001), ("/progress/ws/a", 1008)] {
        for token in [None, Some("x")] {
            let (mut ws, _) = tokio_tungstenite::connect_async(url(path, token))
                .await
                .unwrap();
            let error = receive(&mut ws).await.unwrap();
            assert_eq!(error["type"], "error", "{path}");
            assert!(
                error["error"].as_str().unwrap().contains("token"),
                "{error}"
            );
            assert_eq!(receive(&mut ws).await, Err(Some(code)), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_come_as_a_subprotocol_which_is_answered() {
    let server = server().await;
    for (offered, chosen) in [
        (format!("bearer.{}", viewer(1)), None),
        (format!("tidings, bearer.{}", viewer(1)), Some("tidings")),
    ] {
        let mut request = socket_url(&server.url, "/events/jobs", None, None)
            .into_client_request()
            .unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", offered.parse().unwrap());
        let (_, response) = tokio_tungstenite::connect_async(request).await.unwrap();
        assert_eq!(
            response.headers()["Sec-WebSocket-Protocol"],
            chosen.unwrap_or(&offered)
        );
    }
}

/// A peer that vanished without a word answers no ping.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_socket_that_gives_no_sign_of_life_is_given_up() {
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    let ws = socket(&server.url, "/events/jobs", &viewer(1)).await;
    until("it is open", async || server.tidings.streams() == 1).await;
    // Nobody reads, so nobody answers a ping; the connection itself stays up.
    let noticed = async { until("it is given up", async || server.tidings.streams() == 0).await };
    tokio::time::timeout(std::time::Duration::from_secs(6), noticed)
        .await
        .unwrap();
    drop(ws);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_not_called_unauthorized() {
    let server = server().await;
    server.running_job("a").await;
    for path in ["/ws", "/progress/ws/a"] {
        let url = socket_url(&server.url, path, Some(&viewer(1)), Some("yesterday"));
        let (mut ws, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        assert_eq!(receive(&mut ws).await.unwrap()["code"], "invalid-cursor");
        assert_eq!(receive(&mut ws).await, Err(Some(1008)));
    }
    let mut request = socket_url(&server.url, "/events/jobs", Some(&viewer(1)), None)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("Accept", "text/html".parse().unwrap());
    assert!(
        tokio_tungstenite::connect_async(request).await.is_ok(),
        "a handshake is not judged by its Accept header"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_websocket_version_is_answered_with_the_supported_one() {
    let server = server().await;
    let request = server
        .request("GET", "/events/jobs", &viewer(1))
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Version", "8");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 426);
    assert_eq!(response.headers()["sec-websocket-version"], "13");
}
