//! Nobody let in with a forged token or with the cookie of another: each test is named after what it stops.

mod access_log;
mod expiry;
mod reach;
mod rejections;

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
#[ignore = "slow: real seconds pass"]
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
#[ignore = "slow: real seconds pass"]
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
