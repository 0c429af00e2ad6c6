//! The answer to a client whose token is rejected.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::auth::Role;

use super::part;
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_token_is_answered_with_the_check_that_it_failed() {
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
            "`school_id` is neither a positive integer",
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
        let reason_shown = detail(&sign(&claims)).await;
        assert!(reason_shown.contains(reason), "{claims}: {reason_shown}");
    }
    let signed = |algorithm, secret: &[u8], claims: &Value| {
        let key = EncodingKey::from_secret(secret);
        encode(&Header::new(algorithm), claims, &key).unwrap()
    };
    let none = format!("{}.{}.", part(&json!({"alg": "none"})), part(&good));
    let odd = format!("{}.{}.", part(&json!({"alg": "X\nY"})), part(&good));
    let no_alg = format!("{}.{}.", part(&json!({"typ": "JWT"})), part(&good));
    // The answer contains nothing of a token without a valid signature.
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
        let reason_shown = detail(&token).await;
        assert!(reason_shown.contains(reason), "{reason_shown}");
    }
    let request = server.http.get(format!("{}/api/jobs", server.url));
    let (_, problem) = answer(request).await;
    let explanation = problem["detail"].as_str().unwrap();
    assert!(
        explanation.contains("Authorization: Bearer"),
        "{explanation}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_socket_or_renewal_gets_the_same_answer_as_a_rejected_request() {
    let server = server().await;
    server.running_job("a").await;
    let mut bad = json!(claims(Some(1), Role::Viewer));
    bad["role"] = json!("root");
    let bad = sign(&bad);
    let (_, problem) = server.get("/api/jobs", &bad).await;
    let reason = problem["detail"].clone();
    for path in ["/ws", "/ws/samples", "/progress/ws/a"] {
        let mut socket = listener::socket(&server.url, path, &bad).await;
        let (messages, _) = listener::until_closed(&mut socket).await;
        assert_eq!(
            (&messages[0]["type"], &messages[0]["message"]),
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
        "the token does not cover the school of this stream"
    );
    let fresh = renewed(&viewer(1)).await;
    assert_eq!(fresh["type"], "authenticated", "and it goes on");
    // The answer also names what a valid token may not do.
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
