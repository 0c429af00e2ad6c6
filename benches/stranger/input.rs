//! The input that an unauthenticated client can send: the worst case of each form that is parsed before the credential
//! is found invalid.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The sizes in bytes. The last one exceeds hyper's limit for a request head; bodies may be that large.
pub(crate) const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 400_000];

pub(crate) const ROUTES: &[&str] = &[
    "GET /events/jobs",
    "GET /ws",
    "GET /progress/ws/1",
    "GET /api/jobs",
    "POST /api/jobs",
    "POST /api/batch",
    "PUT /api/devices/1",
    "POST /api/tickets",
    "GET /badge/jobs/1.svg",
    "GET /embed/jobs",
    "OPTIONS /api/jobs",
    "GET /monitor/schools/1",
    "GET /monitor/sign-in",
    "POST /monitor/sign-in",
    "GET /monitor/assets/monitor.css",
    "GET /metrics",
    "GET /healthz",
    "GET /nothing/here",
];

/// Where the input is in the request.
#[derive(Clone, Copy)]
enum Place {
    /// In this header, after this text.
    Header(&'static str, &'static str),
    /// In this header of a WebSocket handshake, replacing the usual value.
    Handshake(&'static str, &'static str),
    Path,
    Query,
    Body(&'static str),
}

/// A form of input.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    place: Place,
    fill: fn(usize) -> String,
}

const fn shape(name: &'static str, place: Place, fill: fn(usize) -> String) -> Shape {
    Shape { name, place, fill }
}

use Place::{Body, Handshake, Header, Path, Query};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

pub(crate) const SHAPES: &[Shape] = &[
    shape("Accept: many ranges", Header("Accept", ""), |size| {
        again("*/*,", size)
    }),
    shape(
        "Accept: one range, many parameters",
        Header("Accept", "text/html"),
        |size| numbered(";p", "=1", size),
    ),
    shape(
        "Accept-Encoding: many",
        Header("Accept-Encoding", ""),
        |size| again("br;q=0.1,", size),
    ),
    shape(
        "Accept-Language: many",
        Header("Accept-Language", ""),
        |size| again("de;q=0.1,", size),
    ),
    shape("Cookie: many names", Header("Cookie", ""), |size| {
        numbered("c", "=1;", size)
    }),
    shape(
        "Cookie: the token, long",
        Header("Cookie", "tidings_token="),
        |size| again("a", size),
    ),
    shape(
        "Authorization: a long text",
        Header("Authorization", "Bearer "),
        |size| again("a", size),
    ),
    shape(
        "Authorization: many dots",
        Header("Authorization", "Bearer "),
        |size| again("a.", size),
    ),
    shape(
        "Authorization: a header of many members",
        Header("Authorization", "Bearer "),
        token_of_members,
    ),
    shape(
        "Authorization: a deep header",
        Header("Authorization", "Bearer "),
        token_of_depth,
    ),
    shape(
        "Authorization: a long kid",
        Header("Authorization", "Bearer "),
        token_of_kid,
    ),
    shape(
        "Authorization: a long payload",
        Header("Authorization", "Bearer "),
        token_of_payload,
    ),
    shape(
        "Sec-WebSocket-Protocol: many",
        Handshake("Sec-WebSocket-Protocol", ""),
        |size| again("a, ", size),
    ),
    shape(
        "Sec-WebSocket-Key: long",
        Handshake("Sec-WebSocket-Key", ""),
        |size| again("a", size),
    ),
    shape(
        "Sec-WebSocket-Extensions: many",
        Handshake("Sec-WebSocket-Extensions", ""),
        |size| again("x;a=1, ", size),
    ),
    shape("Upgrade: many", Handshake("Upgrade", ""), |size| {
        again("h2c, ", size)
    }),
    shape("Last-Event-ID: long", Header("Last-Event-ID", ""), |size| {
        again("0-", size)
    }),
    shape(
        "Content-Type: many parameters",
        Header("Content-Type", "text/plain"),
        |size| numbered(";p", "=1", size),
    ),
    shape(
        "Content-Encoding: many",
        Header("Content-Encoding", ""),
        |size| again("identity,", size),
    ),
    shape("Origin: long", Header("Origin", "http://"), |size| {
        again("a.", size)
    }),
    shape(
        "X-Forwarded-For: many",
        Header("X-Forwarded-For", ""),
        |size| again("127.0.0.1,", size),
    ),
    shape(
        "X-Forwarded-Host: many",
        Header("X-Forwarded-Host", ""),
        |size| again("a,", size),
    ),
    shape(
        "X-Forwarded-Prefix: many",
        Header("X-Forwarded-Prefix", ""),
        |size| again("/a,", size),
    ),
    shape(
        "Access-Control-Request-Headers: many",
        Header("Access-Control-Request-Headers", ""),
        |size| numbered("x", ",", size),
    ),
    shape(
        "Idempotency-Key: long",
        Header("Idempotency-Key", ""),
        |size| again("a", size),
    ),
    shape("Range: many", Header("Range", "bytes="), |size| {
        again("0-0,", size)
    }),
    shape(
        "Referer: long",
        Header("Referer", "http://localhost/"),
        |size| again("%41", size),
    ),
    shape(
        "a header that nobody reads",
        Header("X-Nothing", ""),
        |size| again("a", size),
    ),
    shape("path: one long segment", Path, |size| {
        format!("/{}", again("%41", size))
    }),
    shape("path: many segments", Path, |size| again("/a", size)),
    shape("query: many parameters", Query, |size| again("a=1&", size)),
    shape("query: many channels", Query, |size| {
        numbered("channel=jobs/", "&", size)
    }),
    shape("query: a long token", Query, |size| {
        format!("token={}", again("a", size))
    }),
    shape("query: many ids", Query, |size| {
        format!("ids={}", again("1,", size))
    }),
    shape("query: percent-encoded", Query, |size| {
        format!("q={}", again("%f0%9f%98%80", size))
    }),
    shape("body: deep JSON", Body(JSON), |size| again("[", size)),
    shape("body: repeated members", Body(JSON), |size| {
        format!("{{{}", again("\"a\":1,", size))
    }),
    shape("body: many lines", Body("application/x-ndjson"), |size| {
        again("{}\n", size)
    }),
    shape("body: many fields of a form", Body(FORM), |size| {
        numbered("f", "=1&", size)
    }),
    shape("body: one long field of a form", Body(FORM), |size| {
        format!("token={}", again("%41", size))
    }),
];

fn again(part: &str, size: usize) -> String {
    part.repeat(size / part.len())
}

/// Returns distinct parts.
fn numbered(before: &str, after: &str, size: usize) -> String {
    let mut all = String::with_capacity(size + 16);
    for number in 0.. {
        if all.len() >= size {
            break;
        }
        all.push_str(&format!("{before}{number}{after}"));
    }
    all
}

/// Returns a token of `size` bytes with this header.
fn token(header: &str, payload: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(header), part(payload), part("signature"))
}

/// Returns the number of bytes whose base64 encoding has this length.
fn unpacked(size: usize) -> usize {
    size / 4 * 3
}

fn token_of_members(size: usize) -> String {
    let members = numbered(r#""m"#, r#"":1,"#, unpacked(size));
    token(&format!(r#"{{{members}"alg":"HS256"}}"#), "{}")
}

fn token_of_depth(size: usize) -> String {
    let deep = again("[", unpacked(size));
    token(&format!(r#"{{"alg":"HS256","x":{deep}"#), "{}")
}

fn token_of_kid(size: usize) -> String {
    let kid = again("k", unpacked(size));
    token(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), "{}")
}

fn token_of_payload(size: usize) -> String {
    token(r#"{"alg":"HS256"}"#, &again("a", unpacked(size)))
}

impl Shape {
    /// Whether a route accepts this kind of request.
    pub(crate) fn fits(&self, route: &str) -> bool {
        match self.place {
            Header(..) | Path | Query => true,
            Handshake(..) => ["GET /ws", "GET /events/jobs", "GET /progress/ws/1"].contains(&route),
            Body(_) => route.starts_with('P'),
        }
    }

    /// Returns a request with this input of this size.
    pub(crate) fn request(&self, route: &str, size: usize) -> Vec<u8> {
        let input = (self.fill)(size);
        let (mut target, mut head, mut body) = (route.to_owned(), String::new(), String::new());
        match self.place {
            Header(name, before) => head = format!("{name}: {before}{input}\r\n"),
            Handshake(name, before) => {
                let usual = [
                    ("Upgrade", "websocket"),
                    ("Connection", "Upgrade"),
                    ("Sec-WebSocket-Version", "13"),
                    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ];
                for (header, value) in usual.iter().filter(|(header, _)| *header != name) {
                    head.push_str(&format!("{header}: {value}\r\n"));
                }
                head.push_str(&format!("{name}: {before}{input}\r\n"));
            }
            Path => target.push_str(&input),
            Query => target.push_str(&format!("?{input}")),
            Body(kind) => {
                head = format!("Content-Type: {kind}\r\n");
                body = input;
            }
        }
        let length = match target.starts_with('P') {
            true => format!("Content-Length: {}\r\n", body.len()),
            false => String::new(),
        };
        format!("{target} HTTP/1.1\r\nHost: localhost\r\n{length}{head}\r\n{body}").into_bytes()
    }
}
