//! Raw HTTP/1.1: sequences of valid requests on one connection, with framing of every kind. Some bytes are changed, omitted or
//! repeated, and the segments have any size.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tidings_fuzz::bounds::REQUEST;
use tidings_fuzz::server::{LISTENING, assert_sound};
use tidings_fuzz::shapes::Request;

#[derive(Debug, Arbitrary)]
enum Framing {
    Length,
    WrongLength(u8),
    TwoLengths(u8),
    Chunked,
    ChunkedAndLength(u8),
    UnknownCoding,
    None,
}

#[derive(Debug, Arbitrary)]
enum Mutation<'a> {
    Replace(u16, u8),
    Remove(u16, u8),
    Repeat(u16, u8, u8),
    Insert(u16, &'a [u8]),
    Cut(u16),
}

#[derive(Debug)]
struct Conversation<'a> {
    requests: Vec<(Request, Framing, &'static str, bool)>,
    mutations: Vec<Mutation<'a>>,
    segments: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Conversation<'a> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Conversation<'a>> {
        let request = |_| {
            let version = *u.choose(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9"])?;
            Ok((u.arbitrary()?, u.arbitrary()?, version, u.ratio(3, 4)?))
        };
        let requests = (0..3).map(request).collect::<Result<Vec<_>>>()?;
        let count = u.int_in_range(1..=3)?;
        let mutations = (0..u.int_in_range(0..=4)?)
            .map(|_| u.arbitrary())
            .collect::<Result<_>>()?;
        let segments = (0..u.int_in_range(0..=4)?)
            .map(|_| u.arbitrary())
            .collect::<Result<_>>()?;
        Ok(Conversation {
            requests: requests.into_iter().take(count).collect(),
            mutations,
            segments,
        })
    }
}

fn write(request: &Request, framing: &Framing, version: &str, has_token: bool) -> Vec<u8> {
    let mut head = format!(
        "{} {} {version}\r\nHost: localhost\r\n",
        request.method, request.target
    );
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if has_token {
        head.push_str(&format!("Authorization: Bearer {}\r\n", LISTENING.token));
    }
    let (length, mut body) = (request.body.len(), request.body.clone());
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    match framing {
        Framing::Length => head.push_str(&format!("Content-Length: {length}\r\n")),
        Framing::WrongLength(wrong) => head.push_str(&format!("Content-Length: {wrong}\r\n")),
        Framing::TwoLengths(wrong) => head.push_str(&format!(
            "Content-Length: {length}\r\nContent-Length: {wrong}\r\n"
        )),
        Framing::Chunked => {
            head.push_str("Transfer-Encoding: chunked\r\n");
            body = chunked(&body);
        }
        Framing::ChunkedAndLength(wrong) => {
            head.push_str(&format!(
                "Transfer-Encoding: chunked\r\nContent-Length: {wrong}\r\n"
            ));
            body = chunked(&body);
        }
        Framing::UnknownCoding => head.push_str("Transfer-Encoding: x\r\n"),
        Framing::None => {}
    }
    format!("{head}\r\n{body}").into_bytes()
}

impl Mutation<'_> {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |at: u16| usize::from(at) % bytes.len().max(1);
        match *self {
            Mutation::Replace(place, byte) => {
                let place = at(place);
                bytes
                    .iter_mut()
                    .skip(place)
                    .take(1)
                    .for_each(|target| *target = byte);
            }
            Mutation::Remove(place, count) => {
                let from = at(place);
                bytes.drain(from..(from + usize::from(count)).min(bytes.len()));
            }
            Mutation::Repeat(place, count, times) => {
                let from = at(place);
                let part = bytes[from..(from + usize::from(count)).min(bytes.len())]
                    .repeat(usize::from(times % 16));
                bytes.splice(from..from, part);
            }
            Mutation::Insert(place, part) => {
                let from = at(place);
                bytes.splice(from..from, part.iter().copied());
            }
            Mutation::Cut(place) => bytes.truncate(at(place)),
        }
    }
}

fuzz_target!(|conversation: Conversation<'_>| {
    let server = &*LISTENING;
    let mut bytes = Vec::new();
    for (request, framing, version, has_token) in &conversation.requests {
        bytes.extend(write(request, framing, version, *has_token));
    }
    for mutation in &conversation.mutations {
        mutation.apply(&mut bytes);
    }
    let (mut parts, mut rest) = (Vec::new(), &bytes[..]);
    for segment in &conversation.segments {
        let (part, following) = rest.split_at(usize::from(*segment).min(rest.len()));
        parts.push(part);
        rest = following;
    }
    parts.push(rest);
    let answer = REQUEST.check(bytes.len(), || server.talk(parts));
    check(&answer, &bytes);
});

/// Checks that the output begins with the head of a response, and that no head reports a server error.
fn check(answer: &[u8], sent: &[u8]) {
    if answer.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(answer);
    assert!(text.starts_with("HTTP/1."), "{text}");
    // A status line that is quoted in a body is not at the beginning of a line.
    for (at, _) in text
        .match_indices("HTTP/1.")
        .filter(|(at, _)| *at == 0 || text[..*at].ends_with('\n'))
    {
        let status = text[at..]
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        assert_sound(
            status.expect("a head has a status"),
            &String::from_utf8_lossy(sent),
        );
    }
}
