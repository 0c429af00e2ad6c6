//! Nobody let in: each test is named after what it stops.

use std::process::Command;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::listener::socket_url;
use crate::support::*;

/// The status of a request that needs no more than a viewer.
async fn status(server: &Server, token: &str) -> u16 {
    server.get("/api/jobs", token).await.0
}

fn part(json: &Value) -> String {
    use std::fmt::Write;
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in json.to_string().as_bytes().chunks(3) {
        let word = chunk
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            write!(
                text,
                "{}",
                char::from(ALPHABET[(word >> (18 - 6 * index)) as usize & 63])
            )
            .unwrap();
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_expired_and_misdirected_tokens() {
    let server =
        server_with(json!({"jwt_issuer": "school-office", "jwt_audience": "tidings"})).await;
    let now = chrono::Utc::now().timestamp();
    let good = json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": now + 60, "iss": "school-office", "aud": "tidings"});
    let with = |changes: Value| {
        let mut claims = good.clone();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    };
    assert_eq!(status(&server, &sign(&good)).await, 200);
    assert_eq!(
        status(&server, &sign(&with(json!({"aud": ["other", "tidings"]})))).await,
        200
    );
    for (attack, claims) in [
        ("expired", with(json!({"exp": now - 60}))),
        ("not yet valid", with(json!({"nbf": now + 60}))),
        ("wrong audience", with(json!({"aud": "other"}))),
        ("wrong issuer", with(json!({"iss": "me"}))),
        ("no expiry", with(json!({"exp": null}))),
        (
            "no school and no administrator",
            with(json!({"school_id": null})),
        ),
        ("a school that cannot be", with(json!({"school_id": 0}))),
        ("a school in words", with(json!({"school_id": "one"}))),
        ("an unknown role", with(json!({"role": "root"}))),
        (
            "a channel limit that cannot be read",
            with(json!({"channels": ["*"]})),
        ),
    ] {
        assert_eq!(status(&server, &sign(&claims)).await, 401, "{attack}");
    }
    let token = sign(&good);
    let (head, signature) = token.rsplit_once('.').unwrap();
    let none = format!(
        "{}.{}.",
        part(&json!({"alg": "none", "typ": "JWT"})),
        part(&good)
    );
    let unsigned = format!(
        "{}.{}.{signature}",
        part(&json!({"alg": "none"})),
        part(&good)
    );
    let tampered = format!(
        "{}.{}.{signature}",
        head.split_once('.').unwrap().0,
        part(&with(json!({"role": "admin"})))
    );
    let stronger = encode(
        &Header::new(Algorithm::HS512),
        &good,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .unwrap();
    let other_secret = encode(
        &Header::default(),
        &good,
        &EncodingKey::from_secret(b"another secret that is long enough!!"),
    )
    .unwrap();
    for forged in [
        &none,
        &unsigned,
        &tampered,
        &stronger,
        &other_secret,
        "",
        "x",
        "a.b.c",
        ".....",
    ] {
        let (status, problem) = server.get("/api/jobs", forged).await;
        assert_eq!(
            (status, &problem["code"]),
            (401, &json!("unauthorized")),
            "{forged}"
        );
    }
    assert_eq!(
        answer(server.http.get(format!("{}/api/jobs", server.url)))
            .await
            .0,
        401,
        "no token at all"
    );
    let basic = server
        .http
        .get(format!("{}/api/jobs", server.url))
        .header("Authorization", "Basic eDp5");
    assert_eq!(answer(basic).await.0, 401);
}

/// Public keys: each algorithm verifies its own tokens, and its public key is not an HMAC secret.
#[tokio::test(flavor = "multi_thread")]
async fn algorithm_confusion() {
    if !needs("openssl") {
        return;
    }
    for (name, algorithm, generate) in [
        (
            "RS256",
            Algorithm::RS256,
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
            ][..],
        ),
        (
            "ES256",
            Algorithm::ES256,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ],
        ),
        (
            "EdDSA",
            Algorithm::EdDSA,
            &["genpkey", "-algorithm", "ed25519"],
        ),
    ] {
        let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let (private, public) = (
            folder.path().join("private.pem"),
            folder.path().join("public.pem"),
        );
        let openssl = |arguments: &[&str]| {
            assert!(
                Command::new("openssl")
                    .args(arguments)
                    .output()
                    .unwrap()
                    .status
                    .success()
            )
        };
        openssl(&[generate, &["-out", private.to_str().unwrap()]].concat());
        openssl(&[
            "pkey",
            "-in",
            private.to_str().unwrap(),
            "-pubout",
            "-out",
            public.to_str().unwrap(),
        ]);
        let server = server_in(
            std::sync::Arc::clone(&folder),
            json!({"jwt_algorithm": name, "jwt_public_key_file": public}),
        )
        .await;
        let pem = std::fs::read(&private).unwrap();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
            _ => EncodingKey::from_ed_pem(&pem),
        };
        let claims = claims(Some(1), Role::Viewer);
        let token = encode(&Header::new(algorithm), &claims, &key.unwrap()).unwrap();
        assert_eq!(status(&server, &token).await, 200, "{name}");
        let confused = encode(
            &Header::default(),
            &claims,
            &EncodingKey::from_secret(&std::fs::read(&public).unwrap()),
        )
        .unwrap();
        assert_eq!(
            status(&server, &confused).await,
            401,
            "{name}: the public key as an HMAC secret"
        );
        assert_eq!(
            status(&server, &viewer(1)).await,
            401,
            "{name}: the secret opens tickets only"
        );
        let (made, ticket) = server
            .post("/api/tickets", &token, json!({"channels": ["jobs"]}))
            .await;
        assert_eq!(made, 201, "tickets work with public keys, too");
        let url = format!("{}{}&wait=0", server.url, ticket["url"].as_str().unwrap());
        assert_eq!(
            server
                .http
                .get(url)
                .header("Accept", "application/json")
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_does_what_it_may_and_no_more() {
    let server = server().await;
    server.running_job("a").await;
    let job = json!({"job_type": "t"});
    assert_eq!(
        server.post("/api/jobs", &viewer(1), job.clone()).await.0,
        403
    );
    assert_eq!(
        server
            .post("/api/jobs/a/progress", &viewer(1), json!({}))
            .await
            .0,
        403
    );
    assert_eq!(
        server.post("/api/batch", &viewer(1), json!({})).await.0,
        403
    );
    assert_eq!(server.get("/api/jobs/a", &viewer(1)).await.0, 200);
    assert_eq!(
        server.post("/api/jobs", &admin(), job.clone()).await.1["code"],
        "school-required"
    );
    assert_eq!(
        server.post("/api/jobs?school_id=9", &admin(), job).await.0,
        201
    );
}

/// The same answer for another school's things as for missing ones, in every endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn enumeration_of_another_schools_ids() {
    let server = server().await;
    server.running_job("theirs").await;
    let other = worker(2);
    for (theirs, nobody) in [
        ("GET /api/jobs/theirs", "GET /api/jobs/nobody"),
        (
            "POST /api/jobs/theirs/progress",
            "POST /api/jobs/nobody/progress",
        ),
        (
            "POST /api/jobs/theirs/cancel",
            "POST /api/jobs/nobody/cancel",
        ),
        ("GET /events/jobs/theirs", "GET /events/jobs/nobody"),
        (
            "GET /events?channel=jobs/theirs",
            "GET /events?channel=jobs/nobody",
        ),
        ("GET /events/schools/1", "GET /events/schools/3"),
        (
            "GET /events/jobs?school_id=1",
            "GET /events/jobs?school_id=3",
        ),
        ("GET /api/jobs?school_id=1", "GET /api/jobs?school_id=3"),
    ] {
        let ask = async |line: &str| {
            let (method, path) = line.split_once(' ').unwrap();
            let (status, problem) =
                answer(server.request(method, path, &other).json(&json!({}))).await;
            (status, problem.to_string().replace("theirs", "nobody"))
        };
        let (theirs, nobody) = (ask(theirs).await, ask(nobody).await);
        assert_eq!(theirs.0, 404);
        assert_eq!(theirs, nobody);
    }
    let (_, made) = server
        .post(
            "/api/jobs",
            &other,
            json!({"job_type": "t", "job_id": "theirs"}),
        )
        .await;
    assert_eq!((&made["school_id"], &made["seq"]), (&json!(2), &json!(1)));
    let (_, job) = server.get("/api/jobs/theirs", &viewer(1)).await;
    assert_eq!(job["seq"], 1, "untouched");
    let payload = server
        .post(
            "/api/jobs",
            &other,
            json!({"job_type": "t", "school_id": 1}),
        )
        .await;
    assert_eq!(
        payload.0, 422,
        "a school in the payload is an unknown field"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_limits_escaped_through_other_spellings() {
    let server = server().await;
    server.running_job("a").await;
    server.running_job("ab").await;
    let mut limited = claims(Some(1), Role::Worker);
    limited.channels = Some(vec!["jobs/a".into()]);
    let token = sign(&limited);
    for (path, expected) in [
        ("/events/jobs/a?wait=0", 200),
        ("/events?channel=jobs/a&wait=0", 200),
        ("/events/jobs/%61?wait=0", 200),
        ("/events/jobs", 403),
        ("/events/jobs/ab", 403),
        ("/events/schools/1", 403),
        ("/events?channel=jobs/a&channel=jobs", 403),
        ("/events?channel=jobs%2Fab", 403),
        ("/events/jobs/*", 403),
        ("/events/jobs/a%2F..%2Fab", 403),
        ("/events//jobs", 403),
        ("/events/JOBS", 404),
        ("/api/jobs", 403),
        ("/api/jobs/ab", 403),
        ("/api/jobs/a", 200),
    ] {
        let response = server
            .request("GET", path, &token)
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), expected, "{path}");
    }
    assert_eq!(
        server
            .post("/api/jobs/ab/progress", &token, json!({}))
            .await
            .0,
        403
    );
    assert_eq!(
        server
            .post("/api/jobs/a/progress", &token, json!({}))
            .await
            .0,
        200
    );
    assert_eq!(
        server
            .post("/api/jobs", &token, json!({"job_type": "t"}))
            .await
            .0,
        403
    );
    let batch = json!({"op": "jobs.progress", "job_id": "ab"});
    assert_eq!(
        server.post("/api/batch", &token, batch).await.1["status"],
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cross_site_requests_with_a_cookie() {
    let server = server_with(json!({"allowed_origins": ["https://office.example"]})).await;
    server.running_job("a").await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let cookie = format!("other=1; tidings_token={}", worker(1));
    let post = async |origin: Option<&str>| {
        let mut request = server
            .http
            .post(format!("{}/api/jobs/a/progress", server.url))
            .header("Cookie", &cookie)
            .body("{}");
        if let Some(origin) = origin {
            request = request.header("Origin", origin);
        }
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post(None).await, 200, "no browser page");
    assert_eq!(post(Some(&format!("http://{host}"))).await, 200);
    assert_eq!(post(Some("https://office.example")).await, 200);
    for origin in [
        "https://evil.example",
        "null",
        "",
        &format!("http://{host}.evil.example"),
        "https://office.example.evil.example",
    ] {
        assert_eq!(post(Some(origin)).await, 403, "{origin}");
    }
    for (origin, accepted) in [
        ("https://evil.example", false),
        ("https://office.example", true),
    ] {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = socket_url(&server.url, "/events/jobs", None, None)
            .into_client_request()
            .unwrap();
        request
            .headers_mut()
            .insert("Cookie", cookie.parse().unwrap());
        request
            .headers_mut()
            .insert("Origin", origin.parse().unwrap());
        assert_eq!(
            tokio_tungstenite::connect_async(request).await.is_ok(),
            accepted,
            "cross-site WebSocket hijacking from {origin}"
        );
    }
    let preflight = async |origin: &str| {
        let request = server
            .http
            .request(reqwest::Method::OPTIONS, format!("{}/api/jobs", server.url))
            .header("Origin", origin);
        request
            .send()
            .await
            .unwrap()
            .headers()
            .get("access-control-allow-origin")
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        preflight("https://office.example").await.as_deref(),
        Some("https://office.example")
    );
    assert_eq!(preflight("https://evil.example").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_one_school_can_be_watched_if_the_settings_say_so() {
    let server = server_with(json!({"anonymous_school_id": 1})).await;
    server.running_job("a").await;
    let ask = async |method: &str, path: &str| {
        let request = server
            .http
            .request(method.parse().unwrap(), format!("{}{path}", server.url))
            .header("Accept", "application/json");
        request
            .json(&json!({}))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(ask("GET", "/api/jobs/a").await, 200);
    assert_eq!(ask("GET", "/events/jobs?wait=0").await, 200);
    assert_eq!(ask("POST", "/api/jobs/a/progress").await, 403);
    assert_eq!(ask("GET", "/events/schools/2").await, 404);
    assert_eq!(
        status(&server, "bad").await,
        401,
        "a bad token does not fall back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_told_which_check_it_failed() {
    let server =
        server_with(json!({"jwt_issuer": "school-office", "jwt_audience": "tidings"})).await;
    let now = chrono::Utc::now().timestamp();
    let good = json!({"sub": "x", "school_id": 1, "role": "viewer", "exp": now + 60, "iss": "school-office", "aud": "tidings"});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let detail = async |token: &str| {
        let (status, problem) = server.get("/api/jobs", token).await;
        assert_eq!(status, 401, "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    for (claims, reason) in [
        (
            with("exp", json!(now - 90)),
            "the token has expired: `exp` was 9",
        ),
        (with("exp", Value::Null), "`exp` is missing"),
        (with("nbf", json!(now + 90)), "`nbf` is "),
        (with("iat", json!(now + 90)), "`iat` is "),
        (
            with("iss", json!("me")),
            "`iss` does not match `jwt_issuer`",
        ),
        (with("iss", Value::Null), "`iss` is missing"),
        (
            with("aud", json!(["me"])),
            "`aud` does not match `jwt_audience`",
        ),
        (with("aud", Value::Null), "`aud` is missing"),
        (
            with("role", json!("root")),
            "`role` is not one of viewer, worker, admin",
        ),
        (with("role", json!(7)), "`role` is not a string"),
        (with("role", Value::Null), "`role` is missing"),
        (
            with("school_id", json!("one")),
            "`school_id` is neither a whole number",
        ),
        (with("school_id", Value::Null), "`school_id` is null"),
        (
            with("schools", json!([])),
            "`schools` is an empty list; it must name at least one school",
        ),
        (
            with("channels", json!(["*"])),
            "`channels` is not a list of channels",
        ),
        (
            with("channels", json!("jobs")),
            "`channels` is not a list of channels",
        ),
        (
            with("type", json!("refresh")),
            "`type` says that this is a refresh token",
        ),
        (json!([1]), "its claims are not a JSON object"),
    ] {
        let told = detail(&sign(&claims)).await;
        assert!(told.contains(reason), "{claims}: {told}");
    }
    let signed = |algorithm, secret: &[u8], claims: &Value| {
        let key = EncodingKey::from_secret(secret);
        encode(&Header::new(algorithm), claims, &key).unwrap()
    };
    let none = format!("{}.{}.", part(&json!({"alg": "none"})), part(&good));
    let odd = format!("{}.{}.", part(&json!({"alg": "X\nY"})), part(&good));
    let no_alg = format!("{}.{}.", part(&json!({"typ": "JWT"})), part(&good));
    // Of what stands in a token that nobody has signed nothing is told.
    let made_up = with("role", json!("root"));
    for (token, reason) in [
        (
            signed(Algorithm::HS512, SECRET.as_bytes(), &good),
            "algorithm (`alg`), HS512, is not accepted here; accepted: HS256",
        ),
        (none, "algorithm (`alg`), none, is not accepted"),
        (
            odd,
            "algorithm (`alg`), which is not a known algorithm, is not accepted",
        ),
        (
            no_alg,
            "its header is not a JSON object with the algorithm in `alg`",
        ),
        (
            signed(
                Algorithm::HS256,
                b"somebody else's secret, long enough",
                &made_up,
            ),
            "the token is not valid: its signature does not match a configured key",
        ),
        ("x".into(), "it is not three parts in base64url"),
        ("a.b.c.d".into(), "it is not three parts in base64url"),
    ] {
        let told = detail(&token).await;
        assert!(told.contains(reason), "{told}");
    }
    let request = server.http.get(format!("{}/api/jobs", server.url));
    let (_, problem) = answer(request).await;
    let told = problem["detail"].as_str().unwrap();
    assert!(told.contains("Authorization: Bearer"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_socket_or_renewal_is_told_the_same_as_a_refused_call() {
    let server = server().await;
    server.running_job("a").await;
    let mut bad = json!(claims(Some(1), Role::Viewer));
    bad["role"] = json!("root");
    let bad = sign(&bad);
    let (_, problem) = server.get("/api/jobs", &bad).await;
    let reason = problem["detail"].clone();
    for path in ["/ws", "/ws/samples", "/progress/ws/a"] {
        let mut socket = listener::socket(&server.url, path, &bad).await;
        let (said, _) = listener::until_closed(&mut socket).await;
        assert_eq!(
            (&said[0]["type"], &said[0]["message"]),
            (&json!("error"), &reason),
            "{path}"
        );
    }
    let mut socket = listener::socket(&server.url, "/ws", &viewer(1)).await;
    let mut renewed = async |token: &str| {
        let message = json!({"type": "auth", "token": token});
        listener::send(&mut socket, &message.to_string()).await;
        listener::receive(&mut socket).await.unwrap()
    };
    assert_eq!(renewed(&bad).await["message"], reason);
    let other_school = renewed(&viewer(2)).await;
    assert_eq!(other_school["code"], "unauthorized");
    assert_eq!(
        other_school["message"],
        "the token does not reach the school of this stream"
    );
    let fresh = renewed(&viewer(1)).await;
    assert_eq!(fresh["type"], "authenticated", "and it goes on");
    // What a sound token may not do is told, too.
    let (_, problem) = server
        .post("/api/jobs", &viewer(1), json!({"job_type": "t"}))
        .await;
    let role = "the token does not allow this: its role is viewer, and worker is required";
    assert_eq!(problem["detail"], role);
    let mut limited = claims(Some(1), Role::Viewer);
    limited.channels = Some(vec!["jobs/a".into()]);
    let (_, problem) = server.get("/events/devices", &sign(&limited)).await;
    let channels =
        "the token does not allow this: its `channels` do not cover the requested devices";
    assert_eq!(problem["detail"], channels);
}

/// Runs `tidings serve` with this `TIDINGS_LOG`, and gives its log.
fn log_of(level: &str, visit: impl AsyncFnOnce(&str)) -> String {
    log_with(&[("TIDINGS_LOG", level)], visit)
}

fn log_with(environment: &[(&str, &str)], visit: impl AsyncFnOnce(&str)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::command(folder.path());
    command.arg("serve").envs(environment.iter().copied());
    let mut server = process::Process::start(&mut command);
    // Read all the while: a full pipe would hold the server up.
    let mut stderr = server.stderr();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut log).unwrap();
        log
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(visit(&server.url));
    server.terminate();
    reader.join().unwrap()
}

#[test]
fn the_log_says_nothing_of_how_a_route_was_found() {
    let log = log_of("info", async |url| {
        let put = reqwest::Client::new().put(format!("{url}/api/characteristics/c"));
        let put = put.bearer_auth(worker(1)).json(&json!({}));
        assert!(put.send().await.unwrap().status().is_success());
    });
    assert!(!log.contains("forwarding"), "{log}");
}

#[test]
fn a_refused_credential_stands_in_the_log_with_route_address_and_reason() {
    let log = log_of("info", async |url| {
        let http = reqwest::Client::new();
        let mut bad = json!(claims(Some(1), Role::Viewer));
        bad["role"] = json!("SECRET-ROLE");
        let bad = sign(&bad);
        let get = async |path: &str| {
            let request = http.get(format!("{url}{path}"));
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(get(&format!("/api/devices?token={bad}")).await, 401);
        assert_eq!(get(&format!("/events/jobs/{bad}")).await, 401);
        let mut socket = listener::socket(url, "/ws/enrollment", &bad).await;
        listener::until_closed(&mut socket).await;
        let mut socket = listener::socket(url, "/ws", &viewer(1)).await;
        let message = json!({"type": "auth", "token": bad});
        listener::send(&mut socket, &message.to_string()).await;
        listener::receive(&mut socket).await.unwrap();
        let form = http.post(format!("{url}/monitor/sign-in"));
        let form = form.header("Content-Type", "application/x-www-form-urlencoded");
        let form = form.body(format!("next=&token={bad}")).send().await;
        assert_eq!(form.unwrap().status(), 401);
        let page = http.get(format!("{url}/monitor/system"));
        let page = page.header("Cookie", format!("tidings_token={bad}"));
        assert_eq!(page.send().await.unwrap().status(), 200, "the sign-in page");
        let mut limited = claims(Some(1), Role::Viewer);
        limited.channels = Some(vec!["devices".into()]);
        let elsewhere = http.get(format!("{url}/events?channel=jobs/SECRET-ID"));
        let elsewhere = elsewhere.bearer_auth(sign(&limited)).send().await;
        assert_eq!(elsewhere.unwrap().status(), 403);
        let forbidden = http.post(format!("{url}/api/jobs")).bearer_auth(viewer(1));
        assert_eq!(forbidden.send().await.unwrap().status(), 403);
        // Nobody is signed in, which is not a refusal.
        assert_eq!(get("/monitor").await, 200);
    });
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("a credential was rejected"))
        .collect();
    let expected = [
        (
            "/api/devices",
            "unauthorized",
            "`role` is not one of viewer, worker, admin",
        ),
        ("/events/jobs/...", "unauthorized", "a token is required"),
        ("/ws/enrollment", "unauthorized", "`role` is not one of"),
        ("/ws", "unauthorized", "`role` is not one of"),
        ("/monitor/sign-in", "unauthorized", "`role` is not one of"),
        ("/monitor/system", "unauthorized", "`role` is not one of"),
        (
            "/events",
            "forbidden",
            "its `channels` do not cover the requested jobs",
        ),
        (
            "/api/jobs",
            "forbidden",
            "its role is viewer, and worker is required",
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{log}");
    for (line, (route, code, reason)) in lines.iter().zip(expected) {
        let route = format!("route=\"{route}\"");
        let code = format!("code=\"{code}\"");
        for part in ["INFO", &route, "address=127.0.0.1", &code, reason] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    for secret in ["eyJ", "SECRET", SECRET] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}

#[test]
#[ignore = "slow: takes seconds"]
fn the_log_believes_only_trusted_proxies_of_where_a_refused_request_came_from() {
    for (trusted, address) in [
        ("[\"127.0.0.1\"]", "192.0.2.7"),
        ("127.0.0.1", "192.0.2.7"),
        ("[]", "127.0.0.1"),
    ] {
        let log = log_with(&[("TIDINGS_TRUSTED_PROXIES", trusted)], async |url| {
            let request = reqwest::Client::new().get(format!("{url}/api/jobs"));
            let request = request.header("X-Real-IP", "192.0.2.7").bearer_auth("x");
            assert_eq!(answer(request).await.0, 401);
        });
        assert!(log.contains(&format!("address={address} ")), "{log}");
    }
}

#[test]
fn so_many_refusals_are_logged_and_the_others_counted() {
    const REFUSALS: usize = 100;
    let log = log_of("info", async |url| {
        let http = reqwest::Client::new();
        for _ in 0..REFUSALS {
            let request = http.get(format!("{url}/api/jobs?token=BAD-TOKEN"));
            assert_eq!(request.send().await.unwrap().status(), 401);
        }
    });
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let told = count("a credential was rejected");
    // A busy machine may take more than one period for that.
    assert!((1..REFUSALS).contains(&told), "{told}");
    assert!(!log.contains("BAD-TOKEN"));
}

#[test]
fn each_stream_stands_in_the_log_at_debug_from_its_opening_to_its_end() {
    let log = log_of("debug", async |url| {
        let http = reqwest::Client::new();
        let report = http.post(format!("{url}/api/jobs")).bearer_auth(worker(1));
        let job = json!({"job_id": "a", "job_type": "t", "message": "SECRET-PAYLOAD"});
        assert_eq!(answer(report.json(&job)).await.0, 201);
        for transport in Transport::ALL {
            let mut token = claims(Some(1), Role::Viewer);
            token.sub = "ann\nINFO".into();
            let mut listener = Listener::open(transport, url, "/jobs", &sign(&token), None).await;
            listener.until_ready().await;
        }
        let mut soon = json!(claims(Some(1), Role::Viewer));
        soon["exp"] = json!(chrono::Utc::now().timestamp() - 3);
        let mut socket = listener::socket(url, "/ws", &sign(&soon)).await;
        let (_, code) = listener::until_closed(&mut socket).await;
        assert_eq!(code, Some(4401));
        let refused = socket_url(url, "/events/jobs/nobody", Some(&viewer(1)), None);
        assert_eq!(listener::refused(&refused).await, 404);
        let mut socket = listener::socket(url, "/progress/ws/nobody", &viewer(1)).await;
        listener::until_closed(&mut socket).await;
    });
    let find = |parts: &[&str]| {
        let fits = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(log.lines().any(|line| fits(&line)), "{parts:?}\n{log}");
    };
    for transport in ["SSE", "WebSocket", "long poll"] {
        let transport = format!("transport=\"{transport}\"");
        let who = r#"address=127.0.0.1 user="ann\nINFO""#;
        find(&["DEBUG", "opened channels=1", &transport, "school.id=1", who]);
        find(&["DEBUG", "ended reason=", &transport, "events=1", who]);
    }
    find(&["ended reason=\"the poll has been answered\""]);
    find(&["ended reason=\"the token has expired\"", "events=0"]);
    find(&[
        "rejected",
        "route=\"/events/jobs/nobody\"",
        "code=\"not-found\"",
    ]);
    find(&[
        "rejected",
        "route=\"/progress/ws/nobody\"",
        "code=\"not_found\"",
    ]);
    for secret in ["eyJ", "SECRET-PAYLOAD", SECRET] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}

/// Whatever the level: no token, ticket or payload in what the server writes.
#[test]
fn credentials_in_a_log() {
    let folder = tempfile::tempdir().unwrap();
    log_of_everything(process::command(folder.path()));
}

/// The client of a database logs what it writes, at some level.
#[test]
fn credentials_and_payloads_in_a_log_over_postgres() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(url) = store::postgres_of(folder.path()) {
        let mut command = process::command(folder.path());
        // The tests' server asks for no password.
        let url = url.replace("tidings@", "tidings:SECRET-PASSWORD@");
        command.env("TIDINGS_DATABASE_URL", url);
        log_of_everything(command);
    }
}

/// Runs a server that logs everything, and checks that no secret stands in its log.
fn log_of_everything(mut command: std::process::Command) {
    let mut server = process::Process::start(
        command
            .arg("serve")
            .env("TIDINGS_LOG", "trace")
            .env("RUST_LOG", "trace"),
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::new();
        let url = |path: &str| format!("{}{path}", server.url);
        http.post(url("/api/jobs"))
            .bearer_auth(worker(1))
            .json(&json!({"job_type": "t", "job_id": "a", "message": "SECRET-PAYLOAD"}))
            .send()
            .await
            .unwrap();
        http.get(url(&format!("/api/jobs?token={}", worker(1))))
            .send()
            .await
            .unwrap();
        http.get(url("/api/jobs?token=BAD-TOKEN"))
            .header("Cookie", "tidings_token=BAD-TOKEN")
            .send()
            .await
            .unwrap();
        http.get(url("/nowhere?token=BAD-TOKEN"))
            .bearer_auth("BAD-TOKEN")
            .send()
            .await
            .unwrap();
        let ticket: Value = http
            .post(url("/api/tickets"))
            .bearer_auth(worker(1))
            .json(&json!({"channels": ["jobs"]}))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        http.get(url(ticket["url"].as_str().unwrap()))
            .header("Accept", "application/json")
            .send()
            .await
            .unwrap();
        let mut ws = listener::socket(&server.url, "/ws", &worker(1)).await;
        listener::send(
            &mut ws,
            &json!({"type": "auth", "token": worker(1)}).to_string(),
        )
        .await;
        listener::receive(&mut ws).await.unwrap();
    });
    server.terminate();
    let mut log = String::new();
    std::io::Read::read_to_string(&mut server.stderr(), &mut log).unwrap();
    std::io::Read::read_to_string(&mut server.stdout, &mut log).unwrap();
    // The head of every HS256 token; what follows differs.
    for secret in [
        "eyJ",
        "BAD-TOKEN",
        "SECRET-PAYLOAD",
        "SECRET-PASSWORD",
        SECRET,
    ] {
        assert!(!log.contains(secret), "{secret} stands in the log:\n{log}");
    }
}

/// Returns what is opened with a ticket of a few seconds. On a slow machine, a ticket can expire before it is used: the next
/// one may not.
async fn opened_in_time<T>(mut open: impl AsyncFnMut() -> Option<T>) -> T {
    let mut opened = None;
    until("a ticket is used in time", async || {
        opened = open().await;
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

/// An `EventSource` reconnects with the same URL, and ends for good if that is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_ticket_reconnects_for_a_while_with_a_cursor() {
    let settings = json!({"ticket_ttl_secs": 1, "ticket_grace_secs": 3_600});
    let server = server_with(settings).await;
    let before = server.running_job("a").await["cursor"].clone();
    server
        .report("/api/jobs/a/progress", json!({"progress": 1}))
        .await;
    let made = json!({"channels": ["jobs"]});
    let open_at = async |url: &str, cursor: Option<&Value>| {
        let request = server.http.get(format!("{}{url}", server.url));
        let request = request.header("Accept", "application/json");
        answer(match cursor {
            Some(cursor) => request.header("Last-Event-ID", cursor.as_str().unwrap()),
            None => request,
        })
        .await
    };
    let (url, first) = opened_in_time(async || {
        let (_, ticket) = server.post("/api/tickets", &viewer(1), made.clone()).await;
        let url = format!("{}&wait=0", ticket["url"].as_str().unwrap());
        let (status, first) = open_at(&url, None).await;
        (status == 200).then_some((url, first))
    })
    .await;
    let open = async |cursor| open_at(&url, cursor).await;
    until("the ticket expires", async || open(None).await.0 == 401).await;
    let read = &first["cursor"];
    server
        .report("/api/jobs/a/progress", json!({"progress": 2}))
        .await;
    let (status, told) = open(Some(read)).await;
    assert_eq!(
        (status, &told["messages"][1]["progress"]),
        (200, &json!(2.0))
    );
    // Any cursor that a client was sent will do; a text that is not a cursor proves nothing.
    assert_eq!(open(Some(&before)).await.0, 200);
    for cursor in [&json!("0"), &json!("00000000-99")] {
        let (status, problem) = open(Some(cursor)).await;
        let refused = (status, &problem["code"]);
        assert_eq!(refused, (401, &json!("unauthorized")), "{cursor}");
    }
    // A ticket of another school's token opens that school only, expired or not.
    let (_, theirs) = server.post("/api/tickets", &viewer(2), made).await;
    let url = format!("{}{}&wait=0", server.url, theirs["url"].as_str().unwrap());
    until("theirs expires", async || {
        server.http.get(&url).send().await.unwrap().status() == 401
    })
    .await;
    let request = server.http.get(&url).header("Accept", "application/json");
    let (status, told) = answer(request.header("Last-Event-ID", read.as_str().unwrap())).await;
    assert_eq!(
        (status, &told["messages"][0]["school_id"]),
        (200, &json!(2))
    );
    assert!(
        told["messages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|own| own.get("job_id").is_none())
    );
}

/// A `closing` that says `reconnect` must not lead to an address that cannot be opened again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: takes seconds"]
async fn a_closing_promises_a_reconnection_only_where_the_credential_allows_one() {
    for (grace, returns) in [(3_600, true), (0, false)] {
        let settings = json!({
            "ticket_ttl_secs": 3, "ticket_grace_secs": grace, "reconnect_spread_ms": 0, "heartbeat_secs": 1,
        });
        let server = server_with(settings).await;
        let (url, mut stream) = opened_in_time(async || {
            let made = json!({"channels": ["jobs"]});
            let (_, ticket) = server.post("/api/tickets", &viewer(1), made).await;
            let ticket = ticket["ticket"].as_str().unwrap();
            let url = format!("{}/events/jobs?ticket={ticket}", server.url);
            let stream = server.http.get(&url).send().await.unwrap();
            (stream.status() == 200).then_some((url, stream))
        })
        .await;
        let by_token = server.listen(Transport::EventSource, "/jobs").await;
        until("the ticket expires", async || {
            server.http.get(&url).send().await.unwrap().status() == 401
        })
        .await;
        let stopping = tokio::spawn(server.stop());
        let mut text = String::new();
        while let Some(part) = stream.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&part).unwrap());
        }
        let promise = format!("\"reconnect\":{returns}");
        assert!(
            text.contains("\"code\":1001") && text.contains(&promise),
            "{text}"
        );
        let mut by_token = by_token;
        let closing = by_token.take_until(|told| told["type"] == "closing").await;
        assert_eq!(closing.last().unwrap()["reconnect"], true);
        stopping.await.unwrap();
    }
}

/// A token that will have ended by the time of the reconnection cannot be what it is done with.
#[tokio::test(flavor = "multi_thread")]
async fn a_closing_promises_no_reconnection_beyond_the_end_of_the_token() {
    let settings = json!({"reconnect_spread_ms": 3_600_000, "jwt_leeway_secs": 0});
    let server = server_with(settings).await;
    let mut streams = Vec::new();
    for (lasts, returns) in [(30, false), (86_400, true)] {
        let mut claims = claims(Some(1), Role::Viewer);
        claims.exp = (chrono::Utc::now().timestamp() + lasts) as f64;
        let token = sign(&claims);
        let stream =
            Listener::open(Transport::EventSource, &server.url, "/jobs", &token, None).await;
        streams.push((stream, returns));
    }
    let stopping = tokio::spawn(server.stop());
    for (stream, returns) in &mut streams {
        let told = stream.take_until(|told| told["type"] == "closing").await;
        let closing = told.last().unwrap();
        // The delay is drawn at random: one in a hundred falls within the half minute.
        let is_soon = closing["retry_ms"].as_u64().unwrap() < 30_000;
        assert_eq!(closing["reconnect"], *returns || is_soon, "{closing}");
    }
    drop(streams);
    stopping.await.unwrap();
}

/// A token that somebody forgot to fill in is a bad token, and not none.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_bearer_does_not_fall_back_to_a_weaker_credential() {
    let server = server_with(json!({"anonymous_school_id": 1})).await;
    let ask = async |authorization: &str| {
        let request = server.http.get(format!("{}/api/jobs", server.url));
        let request = request.header("Cookie", format!("tidings_token={}", viewer(1)));
        let response = request.header("Authorization", authorization).send().await;
        response.unwrap().status().as_u16()
    };
    for authorization in ["Bearer", "Bearer ", "bearer\t", "BEARER x"] {
        assert_eq!(ask(authorization).await, 401, "{authorization:?}");
    }
    assert_eq!(ask(&format!("Bearer\t{}", viewer(1))).await, 200);
    assert_eq!(
        ask("Basic eDp5").await,
        200,
        "another's login, in front of us"
    );
}
