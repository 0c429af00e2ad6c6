//! What strangers try, by the attack's name. Forged tokens, escaped limits, enumeration and cross-site requests with a
//! cookie are in `access`; what is merely wrong in `bad_input.rs`.

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// Sends bytes as they are, and gives what is answered before the connection ends or rests.
async fn raw(server: &Server, request: &[u8]) -> Vec<u8> {
    let address = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have closed before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut part = [0; 4_096];
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut part));
        match read.await {
            Ok(Ok(count)) if count > 0 => answer.extend_from_slice(&part[..count]),
            _ => return answer,
        }
        if answer.len() > 64 * 1024 {
            return answer;
        }
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.get(..12)?).ok()?;
    line.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

fn request(line: &str, token: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Nothing has changed, and everything works.
async fn is_well(server: &Server, jobs: usize) {
    let (status, list) = server.get("/api/jobs?limit=500", &viewer(1)).await;
    assert_eq!(
        (status, list["jobs"].as_array().unwrap().len()),
        (200, jobs)
    );
    let health = reqwest::get(format!("{}/readyz", server.url))
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: many long requests"]
async fn an_accept_header_or_a_query_of_any_length_is_rejected_before_it_is_walked() {
    let server = server().await;
    let (ranges, fields) = ("*/*,".repeat(60_000), "a=1&".repeat(15_000));
    let accept = format!("Accept: {ranges}\r\n");
    let shorter = format!("Accept: {}\r\n", "*/*,".repeat(10_000));
    let asked = request("GET /events/jobs", &viewer(1), &shorter, b"");
    let answer = raw(&server, &asked).await;
    assert_eq!(status(&answer), Some(400));
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("`Accept` has 40000 bytes"), "{text}");
    for path in ["/events/jobs", "/ws", "/ws/samples", "/progress/ws/1"] {
        for stranger in [
            request(&format!("GET {path}"), "none", &accept, b""),
            request(&format!("GET {path}?{fields}"), "none", "", b""),
        ] {
            let answer = raw(&server, &stranger).await;
            assert!(matches!(status(&answer), Some(400..=499)), "{path}");
        }
    }
    for path in [
        "/api/jobs",
        "/api/violations",
        "/api/notifiers",
        "/monitor/1",
    ] {
        let many = request(&format!("GET {path}?{fields}"), "none", "", b"");
        let answer = raw(&server, &many).await;
        assert!(
            matches!(status(&answer), Some(400 | 404 | 414 | 431)),
            "{path}"
        );
    }
    is_well(&server, 0).await;
}

/// Whatever is parsed before the credential is known to be none, has a bound that is looked at first. What stays below the
/// bounds is measured by `cargo bench --bench stranger`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: thousands of requests"]
async fn headers_tokens_and_addresses_beyond_their_bounds_are_rejected_before_they_are_walked() {
    use tidings::config::{HEADERS_MAX_BYTES, TOKEN_MAX_BYTES};
    let server = server().await;
    let routes = [
        "GET /events/jobs",
        "GET /ws",
        "GET /ws/samples",
        "GET /progress/ws/1",
        "GET /api/jobs",
        "POST /api/jobs",
        "POST /api/batch",
        "PUT /api/devices/1",
        "POST /api/tickets",
        "GET /embed/jobs",
        "GET /monitor/schools/1",
    ];
    let headers = [
        ("Cookie", "a=1;"),
        ("Origin", "http://a."),
        ("Last-Event-ID", "0-"),
        ("X-Forwarded-For", "127.0.0.1,"),
        ("X-Forwarded-Prefix", "/a,"),
        ("Sec-WebSocket-Protocol", "a,"),
        ("Upgrade", "h2c,"),
        ("Accept-Language", "de,"),
        ("X-Nothing", "a"),
    ];
    for route in routes {
        for (name, part) in headers {
            let long = part.repeat(HEADERS_MAX_BYTES / part.len());
            let line = format!("{name}: {long}\r\n");
            let answer = raw(&server, &request(route, "none", &line, b"")).await;
            let text = String::from_utf8_lossy(&answer);
            assert_eq!(status(&answer), Some(431), "{route} {name}: {text}");
            assert!(
                text.contains("at most 65536 are accepted"),
                "{route} {name}: {text}"
            );
        }
    }
    // Below the bound of all headers, that of tokens.
    let max_bytes = TOKEN_MAX_BYTES;
    for (bytes, expected) in [
        (max_bytes, "it is not three parts"),
        (
            max_bytes + 1,
            "it has 16385 bytes; at most 16384 are accepted",
        ),
    ] {
        let token = "a".repeat(bytes);
        let cookie = format!("Cookie: tidings_token={token}\r\n");
        for stranger in [
            request("GET /api/jobs", &token, "", b""),
            request(&format!("GET /api/jobs?token={token}"), "", "", b""),
            request("GET /api/jobs", "", &cookie, b""),
            request(
                &format!("GET /events/jobs?ticket={token}"),
                "",
                "Accept: */*\r\n",
                b"",
            ),
        ] {
            // Without a credential in the header, where it may stand elsewhere.
            let stranger = String::from_utf8(stranger).unwrap();
            let stranger = stranger.replace("Authorization: Bearer \r\n", "");
            let answer = raw(&server, stranger.as_bytes()).await;
            let text = String::from_utf8_lossy(&answer);
            assert_eq!(status(&answer), Some(401), "{text}");
            assert!(text.contains(expected), "{text}");
        }
    }
    // Signing in leads back to an address, if that is short: the answer grows no faster than the request.
    for (count, is_kept) in [(10, true), (10_000, false)] {
        let page = format!("GET /monitor/schools/1?q={}", "%41".repeat(count));
        let answer = raw(
            &server,
            format!("{page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(status(&answer), Some(303), "{text}");
        assert_eq!(
            text.contains("schools%2F1") || text.contains("/schools/1"),
            is_kept,
            "{text}"
        );
        assert!(answer.len() < 8_192, "{}", answer.len());
    }
    is_well(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accept_header_of_several_lines_is_one_list() {
    let server = server().await;
    let lines = "Accept: text/html\r\nAccept: application/json;q=0.9\r\n";
    let answer = raw(
        &server,
        &request("GET /events/jobs?wait=0", &viewer(1), lines, b""),
    )
    .await;
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("\"messages\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn path_tricks() {
    let server = server().await;
    server.running_job("ours").await;
    let theirs = json!({"job_id": "theirs", "job_type": "t"});
    server.post("/api/jobs", &worker(2), theirs).await;
    for path in [
        "/api/jobs/../jobs/theirs",
        "/api/jobs/..%2fjobs%2ftheirs",
        "/api/jobs/%2e%2e/%2e%2e/etc/passwd",
        "/api/jobs/theirs%00",
        "/api/jobs/theirs%0a",
        "/api/jobs/theirs;school_id=2",
        "/api/jobs/theirs?school_id=2",
        "/api//jobs/theirs",
        "/api/jobs/theirs/",
        "//api/jobs/theirs",
        "/api/jobs/THEIRS",
        "/events/jobs/theirs",
        "/events/jobs/%74heirs",
        "/events/schools/2",
        "/monitor/schools/2/jobs/theirs",
        "/monitor/assets/../../Cargo.toml",
        "/monitor/assets/%2e%2e%2f%2e%2e%2fCargo.toml",
        "/monitor/assets/monitor.css",
    ] {
        let answer = raw(
            &server,
            &request(&format!("GET {path}"), &worker(1), "", b""),
        )
        .await;
        let status = status(&answer);
        assert!(
            matches!(status, Some(400 | 404 | 422)),
            "{path}: {status:?}"
        );
        let text = String::from_utf8_lossy(&answer);
        assert!(
            !text.contains("\"job_type\"") && !text.contains("[package]"),
            "{path}: {text}"
        );
    }
    is_well(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_headers_and_endless_requests() {
    let server = server().await;
    let token = viewer(1);
    let long = format!("X-Long: {}\r\n", "x".repeat(1024 * 1024));
    let many = "X-Many: x\r\n".repeat(5_000);
    for more in [long, many] {
        let answer = raw(&server, &request("GET /api/jobs", &token, &more, b"")).await;
        // hyper answers 431, or has closed before it was asked all.
        let status = status(&answer);
        assert!(matches!(status, None | Some(400 | 431)), "{status:?}");
    }
    let uri = format!("GET /api/jobs?q={}", "x".repeat(100_000));
    let answer = raw(&server, &request(&uri, &token, "", b"")).await;
    assert!(matches!(status(&answer), None | Some(400 | 414 | 431)));
    is_well(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_bombs() {
    let server = server().await;
    // Ten megabytes of nothing in ten kilobytes: nobody unpacks it.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &vec![b' '; 10 * 1024 * 1024]).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 64 * 1024);
    for path in ["/api/jobs", "/api/batch"] {
        let more = "Content-Encoding: gzip\r\nContent-Type: application/json\r\n";
        let answer = raw(
            &server,
            &request(&format!("POST {path}"), &worker(1), more, &bomb),
        )
        .await;
        let text = String::from_utf8_lossy(&answer);
        assert!(
            status(&answer) == Some(415) && text.contains("unsupported-encoding"),
            "{path}: {text}"
        );
    }
    is_well(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn header_injection_through_names_and_addresses() {
    let server = server().await;
    let evil = "a%0d%0aSet-Cookie:%20evil=1";
    for path in [
        format!("/monitor/sign-in?next={evil}"),
        format!("/monitor/schools/1?x={evil}"),
        format!("/api/jobs/{evil}"),
        format!("/events/jobs/{evil}"),
    ] {
        let answer = raw(
            &server,
            &request(&format!("GET {path}"), &worker(1), "", b""),
        )
        .await;
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let head = text.split("\r\n\r\n").next().unwrap();
        assert!(!head.contains("set-cookie: evil"), "{path}: {head}");
    }
    let more = "Content-Type: application/x-www-form-urlencoded\r\n";
    for token in ["x".to_owned(), worker(1)] {
        let form = format!("token={token}&next=%2Fmonitor%0d%0aSet-Cookie%3A+evil%3D1");
        let post = request("POST /monitor/sign-in", "", more, form.as_bytes());
        let answer = String::from_utf8_lossy(&raw(&server, &post).await).to_lowercase();
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(!head.contains("evil"), "{head}");
    }
    let origin = "Origin: http://evil.example\r\nX-Forwarded-Proto: https\r\n";
    let answer = raw(&server, &request("GET /api/jobs", &worker(1), origin, b"")).await;
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(
        !text.contains("access-control-allow-origin: http://evil.example"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn request_smuggling_through_two_lengths() {
    let server = server().await;
    let token = worker(1);
    let inner = format!(
        "POST /api/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 36\r\n\r\n{{\"job_id\":\"smuggled\",\"job_type\":\"t\"}}"
    );
    for lengths in [
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        format!("Content-Length: 0\r\nContent-Length: {}\r\n", inner.len()),
    ] {
        let head = format!(
            "GET /api/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{lengths}\r\n",
            viewer(1)
        );
        raw(
            &server,
            [head.as_bytes(), inner.as_bytes()].concat().as_slice(),
        )
        .await;
    }
    is_well(&server, 0).await;
}

/// A client that sends its first request slowly, or not at all, gets a while. One that has been answered, or waits for its
/// answer, is left alone.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn connections_whose_first_request_does_not_arrive_are_closed() {
    let server = server_with(json!({"request_timeout_secs": 2, "heartbeat_secs": 60})).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let connect = async |bytes: &str| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    };
    let token = viewer(1);
    let head = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}")
    };
    let cursor = first_cursor(&server).await;
    let polls = format!("GET /events/jobs?wait=8&cursor={cursor}");
    // In the order of their lengths, so that what must end has ended before what goes on is looked at.
    let mut kept = connect(&head("GET /healthz", "\r\n")).await;
    let mut polling = connect(&head(&polls, "Accept: application/json\r\n\r\n")).await;
    let mut streaming = connect(&head("GET /events/jobs", "\r\n")).await;
    let idle = connect("").await;
    let partial = connect("GET / HTTP/1.1\r\nHost: local").await;
    let bodiless = connect(&head("POST /api/jobs", "Content-Length: 10\r\n\r\n{")).await;
    let mut trickling = connect("GET / HTTP/1.1\r\n").await;
    let trickles = async {
        while trickling.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickles).await.unwrap();
    for mut stream in [idle, partial, bodiless] {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
        let _ = read.await.expect("it is closed");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    let mut poll = Vec::new();
    let ends = async {
        while !poll.ends_with(b"0\r\n\r\n") {
            poll.push(polling.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, ends).await.unwrap();
    assert_eq!(status(&poll), Some(200));
    server
        .report("/api/jobs", json!({"job_id": "seen", "job_type": "t"}))
        .await;
    let mut story = Vec::new();
    let received = async {
        while !story.windows(6).any(|part| part == b"\"seen\"") {
            story.push(streaming.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, received).await.unwrap();
    // A connection that has been answered once can be used again.
    kept.write_all(head("GET /healthz", "Connection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answers = String::new();
    kept.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
}

/// A connection that was used cannot be held for ever, neither without a request nor with one that never becomes whole. Streams
/// without events, long polls and readers that are slow are left alone.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn connections_that_were_used_are_closed_when_they_are_without_a_request() {
    let settings = json!({"keep_alive_timeout_secs": 2, "heartbeat_secs": 60});
    let server = server_with(settings).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let token = viewer(1);
    let connect = async |line: &str, more: &str| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let reads_until = async |stream: &mut TcpStream, end: &[u8]| {
        let mut answer = Vec::new();
        let reads = async {
            while !answer.ends_with(end) {
                let read = stream.read_u8().await;
                answer.push(read.unwrap_or_else(|error| {
                    panic!("{error} after {}", String::from_utf8_lossy(&answer))
                }));
            }
        };
        tokio::time::timeout(PATIENCE, reads).await.unwrap();
        answer
    };
    let cursor = first_cursor(&server).await;
    let polls = format!("GET /events/jobs?wait=8&cursor={cursor}");
    let mut polling = connect(&polls, "Accept: application/json\r\n").await;
    let mut streaming = connect("GET /events/jobs", "").await;
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut socket = connect("GET /ws", upgrade).await;
    reads_until(&mut socket, b"\r\n\r\n").await;
    let subscribes = br#"{"type":"subscribe","channels":["jobs"]}"#;
    // A text frame with a mask of zeros.
    let length = u8::try_from(subscribes.len()).unwrap();
    let head = [0x81, 0x80 | length, 0, 0, 0, 0];
    socket
        .write_all(&[&head[..], subscribes].concat())
        .await
        .unwrap();
    let mut slow = connect("GET /openapi.json", "Connection: close\r\n").await;
    let mut idle = connect("GET /healthz", "").await;
    let mut trickling = connect("GET /healthz", "").await;
    for stream in [&mut idle, &mut trickling] {
        reads_until(stream, b"\r\n\r\n").await;
    }
    trickling.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let trickles = async {
        while trickling.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickles).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, idle.read_to_end(&mut answer)).await;
    ended.expect("it is closed").unwrap();

    answer.clear();
    slow.read_to_end(&mut answer).await.unwrap();
    assert_eq!(status(&answer), Some(200));
    assert!(answer.trim_ascii_end().ends_with(b"}") || answer.ends_with(b"0\r\n\r\n"));
    assert_eq!(
        status(&reads_until(&mut polling, b"0\r\n\r\n").await),
        Some(200)
    );
    server
        .report("/api/jobs", json!({"job_id": "seen", "job_type": "t"}))
        .await;
    for stream in [&mut streaming, &mut socket] {
        reads_until(stream, b"\"seen\"").await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn an_answer_that_is_read_too_slowly_does_not_hold_its_connection() {
    const BYTES: usize = 16_000;
    let server = server_with(json!({"response_timeout_secs": 1, "heartbeat_secs": 60})).await;
    let address = server.url.trim_start_matches("http://").parse().unwrap();
    let token = viewer(1);
    let metadata = json!({"filling": "x".repeat(BYTES)});
    let job = json!({"job_id": "a", "job_type": "t", "metadata": metadata});
    server.report("/api/jobs", job).await;
    let ask = async |path: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // Less than the answer, whose rest waits in the server.
        socket.set_recv_buffer_size(2_048).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    // A stream has no length, and tells slow readers the newest state.
    let mut streaming = ask("/events/jobs/a").await;
    let mut slow = ask("/api/jobs/a").await;
    let (mut read, mut part) = (0, [0; 128]);
    let reads = async {
        while let Ok(more @ 1..) = slow.read(&mut part).await {
            read += more;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reads).await.unwrap();
    assert!(read < BYTES, "{read}");
    // The answer to a reader that keeps up is complete.
    let answer = server.get("/api/jobs/a", &token).await.1;
    assert_eq!(answer["metadata"]["filling"].as_str().unwrap().len(), BYTES);
    let mut heard = Vec::new();
    let reads = async {
        while !heard.ends_with(b"ready") {
            heard.push(streaming.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, reads).await.unwrap();
}

/// Requests that are sound, to be spoiled.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let text = include_str!("corpus/requests.txt");
    let requests = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pair = |line: &str| {
        let (line, body) = line.split_once(" | ").unwrap_or((line, ""));
        (line.to_owned(), body.replace("\\n", "\n").into_bytes())
    };
    requests.map(pair).collect()
}

/// Changes some bytes, cuts, repeats, or puts in what programs stumble over.
fn spoil(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const STUMBLES: [&[u8]; 14] = [
        b"\0",
        b"\xff\xfe",
        b"%00",
        b"%ff",
        b"\"",
        b"{",
        b"[[[[[[[[",
        b"1e999",
        b"-1",
        b"99999999999999999999",
        b"null",
        b"\xe2\x80\xa8",
        b"\\ud800",
        b"&&==",
    ];
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=bytes.len());
        match rng.u8(0..5) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 => bytes.truncate(at),
            2 => {
                let part = bytes[at..].to_vec();
                bytes.extend(part);
            }
            3 if at < bytes.len() => {
                bytes.remove(at);
            }
            _ => {
                let stumble = rng.choice(STUMBLES).unwrap();
                bytes.splice(at..at, stumble.iter().copied());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: thousands of requests"]
async fn fuzzed_requests_are_answered_and_break_nothing() {
    let server = server().await;
    server.running_job("a").await;
    let corpus = corpus();
    let seed = std::env::var("TIDINGS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    let http = reqwest::Client::new();
    for round in 0..1_500 {
        let (line, body) = rng.choice(&corpus).unwrap();
        let (method, path) = line.split_once(' ').unwrap();
        let (mut path, mut body) = (path.as_bytes().to_vec(), body.clone());
        match body.is_empty() || rng.bool() {
            true => spoil(&mut rng, &mut path),
            false => spoil(&mut rng, &mut body),
        }
        // What no client library lets through is tried as it is; now and then, for it takes a connection each.
        let Ok(text) = String::from_utf8(path.clone()) else {
            continue;
        };
        let Ok(address) = reqwest::Url::parse(&format!("{}{text}", server.url)) else {
            continue;
        };
        if address.port() != reqwest::Url::parse(&server.url).unwrap().port() {
            continue;
        }
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let sent = http
            .request(method.clone(), address.clone())
            .bearer_auth(worker(1));
        let sent = sent
            .header("Accept", "application/json")
            .body(body.clone())
            .send()
            .await;
        let answer = sent.unwrap_or_else(|error| {
            panic!("seed {seed}, round {round}: {method} {address}: {error}")
        });
        let status = answer.status().as_u16();
        assert!(
            status < 500,
            "seed {seed}, round {round}: {method} {address} {:?}: {status}",
            String::from_utf8_lossy(&body)
        );
    }
    let health = reqwest::get(format!("{}/readyz", server.url))
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
    // The log is whole, whatever of it was sound after all.
    let mut listener = server
        .resume(
            Transport::EventSource,
            "/schools/1?tick_ms=0",
            &first_cursor(&server).await,
        )
        .await;
    let messages = listener.until_ready().await;
    let seqs: Vec<u64> = messages
        .iter()
        .filter_map(|message| message["seq"].as_u64())
        .collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

async fn first_cursor(server: &Server) -> String {
    let (_, list) = server.get("/api/jobs", &viewer(1)).await;
    let epoch = list["cursor"]
        .as_str()
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    format!("{epoch}-0")
}

#[tokio::test(flavor = "multi_thread")]
async fn fuzzed_client_messages_are_answered_and_break_nothing() {
    let server = server_with(json!({"client_messages_per_sec": 0})).await;
    server.running_job("a").await;
    let sound = [
        r#"{"type":"subscribe","channels":["jobs","jobs/a"],"cursor":"00000001-1"}"#,
        r#"{"action":"unsubscribe","job_id":"a"}"#,
        r#"{"type":"subscribe","characteristic_ids":[1,2]}"#,
        r#"{"type":"ping","timestamp":"now"}"#,
        r#"{"type":"auth","token":"x.y.z"}"#,
        "ping",
    ];
    let seed = std::env::var("TIDINGS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = Rng::with_seed(seed);
    for path in [
        "/ws",
        "/events/jobs",
        "/progress/ws/a",
        "/ws/samples",
        "/ws/upload-progress",
    ] {
        let mut socket = listener::socket(&server.url, path, &viewer(1)).await;
        for _ in 0..200 {
            let mut message = rng.choice(sound).unwrap().as_bytes().to_vec();
            spoil(&mut rng, &mut message);
            listener::send(&mut socket, &String::from_utf8_lossy(&message)).await;
        }
        listener::send(&mut socket, r#"{"type":"ping","timestamp":"the last"}"#).await;
        loop {
            // Bare texts are not JSON: `receive` is for messages.
            let message = futures_util::StreamExt::next(&mut socket).await;
            let message = message.unwrap_or_else(|| panic!("seed {seed}: {path} was closed"));
            let text = message.unwrap().into_text().unwrap_or_default();
            let message: Value = serde_json::from_str(&text).unwrap_or_default();
            if message["type"] == "pong" && message["timestamp"] == "the last" {
                break;
            }
        }
    }
    is_well(&server, 1).await;
}
