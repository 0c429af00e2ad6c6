//! The WebSocket protocol byte by byte: what RFC 6455 demands of a server, in the order of the sections that the usual
//! conformance suites test: framing, pings, reserved bits and opcodes, fragments, UTF-8, closing. A JSON ping carries a
//! text that comes back in its pong: that is the echo.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::*;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// A frame as a client sends it: masked, with these first bits and this opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..=125 => bytes.push(0x80 | short as u8),
        long @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((long as u16).to_be_bytes());
        }
        huge => {
            bytes.push(0x80 | 127);
            bytes.extend((huge as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

struct Wire(TcpStream);

impl Wire {
    async fn open(server: &Server) -> Wire {
        let address = server.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            viewer(1)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        assert!(
            answer
                .to_lowercase()
                .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
        );
        Wire(stream)
    }

    async fn send(&mut self, bytes: &[u8]) {
        // It may have been closed already, for good reason.
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame: its opcode and its payload.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let first = self.0.read_u8().await.unwrap();
            assert_eq!(first & 0xf0, FIN, "whole, and no reserved bits");
            let mut length = u64::from(self.0.read_u8().await.unwrap());
            assert!(length < 128, "a server does not mask");
            if length == 126 {
                length = self.0.read_u16().await.unwrap().into();
            } else if length == 127 {
                length = self.0.read_u64().await.unwrap();
            }
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            (first & 0x0f, payload)
        };
        timeout(PATIENCE, read).await.expect("a frame")
    }

    /// The text that comes back.
    async fn echo(&mut self) -> Value {
        let (opcode, payload) = self.next().await;
        assert_eq!(opcode, TEXT, "{}", String::from_utf8_lossy(&payload));
        let message: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(message["type"], "pong", "{message}");
        message["timestamp"].clone()
    }

    /// The code with which the server closes; nothing if it says none. Then the connection ends.
    async fn closed(mut self) -> Option<u16> {
        let code = loop {
            let (opcode, payload) = self.next().await;
            if opcode == CLOSE {
                break payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        };
        // The other half: else the server would wait for our answer a while.
        let _ = self.0.shutdown().await;
        let end = timeout(PATIENCE, self.0.read(&mut [0]))
            .await
            .expect("it ends");
        assert!(matches!(end, Ok(0) | Err(_)), "nothing follows a close");
        code
    }
}

fn message(text: &str) -> Vec<u8> {
    json!({"type": "ping", "timestamp": text})
        .to_string()
        .into_bytes()
}

async fn close_after(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut wire = Wire::open(server).await;
    wire.send(bytes).await;
    wire.closed().await
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_any_length_whole_and_byte_by_byte() {
    let server = server().await;
    let mut wire = Wire::open(&server).await;
    for length in [
        0, 1, 80, 81, 82, 90, 91, 92, 93, 125, 126, 127, 128, 1_000, 16_000,
    ] {
        let text = "*".repeat(length);
        let bytes = frame(FIN | TEXT, &message(&text));
        wire.send(&bytes).await;
        assert_eq!(wire.echo().await, text);
        if length < 200 {
            for byte in &bytes {
                wire.send(&[*byte]).await;
                wire.0.flush().await.unwrap();
            }
            assert_eq!(wire.echo().await, text);
        }
    }
    // Many at once, in one write.
    let many: Vec<u8> = (0..50)
        .flat_map(|n| frame(FIN | TEXT, &message(&n.to_string())))
        .collect();
    wire.send(&many).await;
    for n in 0..50 {
        assert_eq!(wire.echo().await, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_in_order_and_pongs_are_not() {
    let server = server().await;
    let mut wire = Wire::open(&server).await;
    for payload in [&b""[..], b"hello", &[0, 255, 254, 253], &[0xfe; 125]] {
        wire.send(&frame(FIN | PING, payload)).await;
        assert_eq!(wire.next().await, (PONG, payload.to_vec()));
    }
    wire.send(&frame(FIN | PONG, b"nobody asked")).await;
    wire.send(&frame(FIN | TEXT, &message("still here"))).await;
    assert_eq!(wire.echo().await, "still here");
    assert_eq!(
        close_after(&server, &frame(FIN | PING, &[0; 126])).await,
        Some(1002)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_bits_and_opcodes_and_unmasked_frames_are_protocol_errors() {
    let server = server().await;
    for bits in [0x40, 0x20, 0x10, 0x70] {
        let bytes = frame(FIN | bits | TEXT, &message("x"));
        assert_eq!(close_after(&server, &bytes).await, Some(1002), "{bits:x}");
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(
            close_after(&server, &frame(FIN | opcode, b"")).await,
            Some(1002),
            "{opcode}"
        );
    }
    assert_eq!(close_after(&server, b"\x81\x05hello").await, Some(1002));
    // The most significant bit of a length of eight bytes is 0.
    let huge = [&[FIN | TEXT, 0xff][..], &[0xff; 8], &[0; 4]].concat();
    let code = close_after(&server, &huge).await;
    assert!(matches!(code, Some(1002 | 1009)), "{code:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_make_a_message_and_control_frames_go_between() {
    let server = server().await;
    let mut wire = Wire::open(&server).await;
    let whole = message("in many parts");
    for size in [1, 2, 7, whole.len() - 1] {
        let parts: Vec<&[u8]> = whole.chunks(size).collect();
        for (index, part) in parts.iter().enumerate() {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            let fin = if index + 1 == parts.len() { FIN } else { 0 };
            wire.send(&frame(fin | opcode, part)).await;
            if index == 0 {
                wire.send(&frame(FIN | PING, b"between")).await;
                assert_eq!(wire.next().await, (PONG, b"between".to_vec()));
            }
        }
        assert_eq!(wire.echo().await, "in many parts");
    }
    // Empty fragments are fragments.
    wire.send(&frame(TEXT, b"")).await;
    wire.send(&frame(CONTINUATION, &whole)).await;
    wire.send(&frame(FIN | CONTINUATION, b"")).await;
    assert_eq!(wire.echo().await, "in many parts");
    for (what, bytes) in [
        ("a ping in fragments", frame(PING, b"x")),
        ("nothing to continue", frame(FIN | CONTINUATION, b"x")),
        (
            "a new message within one",
            [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat(),
        ),
        (
            "a continuation after the end",
            [frame(FIN | TEXT, &whole), frame(FIN | CONTINUATION, b"b")].concat(),
        ),
    ] {
        assert_eq!(close_after(&server, &bytes).await, Some(1002), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_utf_8_wherever_they_are_cut() {
    let server = server().await;
    let mut wire = Wire::open(&server).await;
    for text in [
        "κόσμε",
        "Hello-µ@ßöäüàá-UTF-8!!",
        "\u{10ffff}",
        "\u{fffe}",
        "\u{0}",
        "😀👍🏽",
    ] {
        let whole = message(text);
        for cut in 1..whole.len() {
            wire.send(&frame(TEXT, &whole[..cut])).await;
            wire.send(&frame(FIN | CONTINUATION, &whole[cut..])).await;
            if cut % 16 == 0 {
                // Never more than a few answers wait.
                for _ in 0..16 {
                    assert_eq!(wire.echo().await, text);
                }
            }
        }
        for _ in 0..(whole.len() - 1) % 16 {
            assert_eq!(wire.echo().await, text);
        }
        // The pace of clients is a hundred messages a second: others' turn.
        wire = Wire::open(&server).await;
    }
    for bad in [
        &b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"[..],
        b"\xff",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf4\x90\x80\x80",
        b"\xed\xbf\xbf",
        b"\xce",
    ] {
        assert_eq!(
            close_after(&server, &frame(FIN | TEXT, bad)).await,
            Some(1007),
            "{bad:x?}"
        );
        let parts = [frame(TEXT, &bad[..1]), frame(FIN | CONTINUATION, &bad[1..])].concat();
        assert_eq!(
            close_after(&server, &parts).await,
            Some(1007),
            "{bad:x?} in parts"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_answered_with_its_code_and_a_bad_one_is_a_protocol_error() {
    let server = server().await;
    assert_eq!(close_after(&server, &frame(FIN | CLOSE, b"")).await, None);
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999_u16,
    ] {
        let payload = [&code.to_be_bytes()[..], "bye – κόσμε".as_bytes()].concat();
        assert_eq!(
            close_after(&server, &frame(FIN | CLOSE, &payload)).await,
            Some(code)
        );
    }
    for code in [
        0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535_u16,
    ] {
        let closed = close_after(&server, &frame(FIN | CLOSE, &code.to_be_bytes())).await;
        assert_eq!(closed, Some(1002), "{code}");
    }
    assert_eq!(
        close_after(&server, &frame(FIN | CLOSE, b"\x03")).await,
        Some(1002)
    );
    let bad_reason = [&1000_u16.to_be_bytes()[..], b"\xce\xba\xff"].concat();
    assert_eq!(
        close_after(&server, &frame(FIN | CLOSE, &bad_reason)).await,
        Some(1007)
    );
    assert_eq!(
        close_after(&server, &frame(FIN | CLOSE, &[b'x'; 126])).await,
        Some(1002)
    );
    // What comes after a close is not looked at.
    let more = [
        frame(FIN | CLOSE, &1000_u16.to_be_bytes()),
        frame(FIN | TEXT, &message("too late")),
        frame(FIN | PING, b"too late"),
    ]
    .concat();
    assert_eq!(close_after(&server, &more).await, Some(1000));
    until("nothing is left", async || server.tidings.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_text_gets_an_error_and_the_connection_goes_on() {
    let server = server().await;
    let mut wire = Wire::open(&server).await;
    wire.send(&frame(FIN | BINARY, &[0, 1, 2])).await;
    let (opcode, payload) = wire.next().await;
    let error: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!((opcode, &error["code"]), (TEXT, &json!("not_text")));
    wire.send(&frame(FIN | TEXT, &message("on and on"))).await;
    assert_eq!(wire.echo().await, "on and on");
}
