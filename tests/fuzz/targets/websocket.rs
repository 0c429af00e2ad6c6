//! WebSocket frames: sequences of valid and invalid frames on any endpoint, through the real session. The server's own frames
//! must be valid, contain JSON, and close with a code that names the client's error.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidings_fuzz::bounds::REQUEST;
use tidings_fuzz::server::LISTENING;
use tidings_fuzz::shapes::{COLLECTIONS, object, query, text};

#[derive(Debug)]
struct Frame {
    first: u8,
    is_masked: bool,
    /// The length in the frame's header, if it is wrong.
    lie: Option<u8>,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Conversation {
    path: String,
    frames: Vec<Frame>,
}

fn message(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if u.ratio(1, 8)? {
        return Ok(u.arbitrary::<&[u8]>()?.to_vec());
    }
    let mut fields = object(u, 2)?;
    let verb = *u.choose(&["ping", "subscribe", "unsubscribe", "auth", "publish"])?;
    fields.insert(u.choose(&["type", "action"])?.to_string(), verb.into());
    if u.ratio(2, 3)? {
        let channel = match u.ratio(1, 3)? {
            true => text(u)?,
            false => format!("{}/{}", u.choose(&COLLECTIONS)?, text(u)?),
        };
        fields.insert("channels".to_owned(), vec![Value::from(channel)].into());
    }
    Ok(Value::Object(fields).to_string().into_bytes())
}

fn frame(u: &mut Unstructured<'_>) -> Result<Frame> {
    // Usually text in one frame; sometimes anything.
    let first = if u.ratio(3, 4)? { 0x81 } else { u.arbitrary()? };
    let is_masked = !u.ratio(1, 16)?;
    let lie = if u.ratio(1, 16)? {
        Some(u.arbitrary()?)
    } else {
        None
    };
    Ok(Frame {
        first,
        is_masked,
        lie,
        payload: message(u)?,
    })
}

impl<'a> Arbitrary<'a> for Conversation {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Conversation> {
        let path = match u.int_in_range(0..=9)? {
            0 => "/ws/samples".to_owned(),
            1 => "/ws/device-status".to_owned(),
            2 => "/ws/enrollment".to_owned(),
            3 => "/ws/upload-progress".to_owned(),
            4 => "/progress/ws/a".to_owned(),
            5 => format!("/events/{}", u.choose(&COLLECTIONS)?),
            6 => "/events/schools/1".to_owned(),
            _ => "/ws".to_owned(),
        };
        let query = if u.arbitrary()? {
            query(u)?
        } else {
            String::new()
        };
        let frames = (0..u.int_in_range(0..=8)?)
            .map(|_| frame(u))
            .collect::<Result<_>>()?;
        Ok(Conversation {
            path: format!("{path}{query}"),
            frames,
        })
    }
}

impl Frame {
    fn write(&self, to: &mut Vec<u8>) {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let mask = if self.is_masked { 0x80 } else { 0 };
        to.push(self.first);
        match (self.lie, self.payload.len()) {
            (Some(lie), _) => to.push(lie),
            (None, length @ ..126) => to.push(mask | u8::try_from(length).expect("less than 126")),
            (None, length) => {
                to.push(mask | 126);
                to.extend(
                    u16::try_from(length)
                        .expect("messages are short")
                        .to_be_bytes(),
                );
            }
        }
        let mask = if self.is_masked { MASK } else { [0; 4] };
        if self.is_masked {
            to.extend(mask);
        }
        to.extend(
            self.payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
    }
}

fuzz_target!(|conversation: Conversation| {
    let server = &*LISTENING;
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n\r\n",
        conversation.path, server.token
    );
    let mut frames = Vec::new();
    for frame in &conversation.frames {
        // Frames with a 64-bit length are not the subject of this target.
        if frame.payload.len() <= usize::from(u16::MAX) {
            frame.write(&mut frames);
        }
    }
    let answer = REQUEST.check(head.len() + frames.len(), || {
        server.talk([head.as_bytes(), &frames])
    });
    check(&answer);
});

fn check(answer: &[u8]) {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return;
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split(' ').nth(1).unwrap_or_default();
    assert!(
        status.starts_with(['1', '4']) || ["200", "303"].contains(&status),
        "{head}"
    );
    if status != "101" {
        return;
    }
    let mut rest = &answer[end + 4..];
    while let Some((opcode, payload, following)) = read(rest) {
        match opcode {
            1 => check_text(payload),
            8 => check_close(payload),
            9 | 10 => assert!(payload.len() < 126),
            other => panic!("a frame with opcode {other}"),
        }
        rest = following;
    }
}

/// Reads a frame of the server, which must be unfragmented and unmasked.
fn read(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, short], rest) = bytes.split_first_chunk::<2>()?;
    assert_eq!(first & 0xf0, 0x80, "a fragmented frame");
    let (length, rest) = match short {
        ..126 => (usize::from(short), rest),
        126 => rest
            .split_first_chunk()
            .map(|(two, rest)| (usize::from(u16::from_be_bytes(*two)), rest))?,
        127 => {
            let (eight, rest) = rest.split_first_chunk()?;
            (
                usize::try_from(u64::from_be_bytes(*eight)).expect("it fits into memory"),
                rest,
            )
        }
        _ => panic!("a masked frame"),
    };
    let (payload, following) = rest.split_at_checked(length)?;
    Some((first & 0x0f, payload, following))
}

fn check_text(payload: &[u8]) {
    let text = std::str::from_utf8(payload).expect("text is UTF-8");
    // Clients of the upload endpoint expect the bare word.
    if text != "pong" {
        let message: Value = serde_json::from_str(text).expect("a message is JSON");
        assert!(message.is_object(), "{text}");
    }
}

fn check_close(payload: &[u8]) {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return assert!(payload.is_empty(), "an incomplete close code");
    };
    let code = u16::from_be_bytes(*code);
    std::str::from_utf8(reason).expect("a reason is UTF-8");
    assert!(
        matches!(code, 1000..=1003 | 1007..=1010 | 1012..=1013 | 3000..=4999),
        "close {code}"
    );
}
