//! Which tokens of an existing login are refused whatever their claims say: by their times, their kind or an extension.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings::auth::Role;
use tidings::config::TOKEN_MAX_SECS;

use super::{keys, now, read};
use crate::support::*;

#[test]
fn a_refresh_token_is_no_access_token() {
    let claims = |name: &str, value: &str| {
        let mut claims = json!({"school_id": 1, "role": "viewer"});
        claims[name] = json!(value);
        claims
    };
    for name in ["type", "typ", "token_type", "token_use"] {
        for value in ["refresh", "Refresh", "refresh_token"] {
            let rejected = read(&json!({}), claims(name, value)).unwrap_err();
            assert!(rejected.contains(&format!("`{name}`")), "{rejected}");
        }
        assert!(read(&json!({}), claims(name, "access")).is_ok());
    }
}

#[test]
fn clocks_may_differ_by_five_seconds_unless_the_settings_say_otherwise() {
    let judged = |settings: &Value, claims: Value| {
        let mut all = json!({"school_id": 1, "role": "viewer", "exp": now() + 60});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let access = keys(settings).verify(&sign(&all));
        access.map(|_| ()).map_err(|error| error.to_string())
    };
    let default = json!({});
    assert_eq!(judged(&default, json!({"nbf": now() + 4})), Ok(()));
    assert_eq!(
        judged(&default, json!({"iat": now() + 4, "nbf": null})),
        Ok(())
    );
    assert_eq!(judged(&default, json!({"exp": now() - 2})), Ok(()));
    let none = json!({"jwt_leeway_secs": 0});
    for (settings, claims, word) in [
        (&none, json!({"nbf": now() + 30}), "`nbf` is "),
        (&none, json!({"iat": now() + 30}), "`iat` is "),
        (&none, json!({"exp": now() - 1}), "`exp` was "),
        (
            &default,
            json!({"nbf": now() + 90}),
            " s in the future; clocks may differ by at most 5 s (`jwt_leeway_secs`)",
        ),
        (&default, json!({"iat": now() + 90}), " s in the future"),
        (
            &default,
            json!({"exp": now() - 90}),
            "the token has expired: `exp` was 9",
        ),
        (&default, json!({"exp": null}), "`exp` is missing"),
        (&default, json!({"exp": "soon"}), "`exp` is not a number"),
        (&default, json!({"iat": "now"}), "`iat` is not a number"),
    ] {
        let rejected = judged(settings, claims.clone()).unwrap_err();
        assert!(rejected.contains(word), "{claims}: {rejected}");
    }
}

#[test]
fn a_token_of_any_times_is_judged_and_none_lasts_longer_than_the_setting() {
    // As text, so that every form of a number reaches the server as it is.
    let judged = |settings: &Value, times: &str| {
        let claims = format!(r#"{{"school_id":1,"role":"viewer",{times}}}"#);
        let part = |text: &[u8]| URL_SAFE_NO_PAD.encode(text);
        let message = format!(
            "{}.{}",
            part(br#"{"alg":"HS256"}"#),
            part(claims.as_bytes())
        );
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let algorithm = jsonwebtoken::Algorithm::HS256;
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        let access = keys(settings).verify(&format!("{message}.{signature}"));
        access.map_err(|error| error.to_string())
    };
    let soon = now() + 60;
    for leeway in [0, 86_400] {
        let settings = json!({"jwt_leeway_secs": leeway, "max_token_secs": TOKEN_MAX_SECS});
        for exp in ["9999999999", "4102444800.5", "4.1e9", &format!("{soon}.25")] {
            let access = judged(&settings, &format!(r#""exp":{exp}"#)).unwrap();
            let ends = access.expires_at.unwrap().timestamp_millis() as f64 / 1e3;
            assert_eq!(
                ends,
                exp.parse::<f64>().unwrap() + f64::from(leeway),
                "{exp}"
            );
        }
        for (exp, word) in [
            ("1e300", "(`max_token_secs`)"),
            ("9223372036854775808", "(`max_token_secs`)"),
            ("18446744073709551616", "(`max_token_secs`)"),
            ("253402300799", "(`max_token_secs`)"),
            (&*format!("{}000", soon), "(`max_token_secs`)"),
            ("-1e300", "has expired: `exp` was 1000000000000 s ago"),
            ("-9223372036854775808", "has expired"),
            ("0", "has expired"),
            ("-0.0", "has expired"),
            ("1e400", "its claims are not a JSON object"),
            ("\"1e300\"", "is not a number of seconds"),
            ("\"4102444800\"", "is not a number of seconds"),
            ("[4102444800]", "is not a number of seconds"),
            ("true", "is not a number of seconds"),
        ] {
            let rejected = judged(&settings, &format!(r#""exp":{exp}"#)).unwrap_err();
            assert!(rejected.contains(word), "{exp}: {rejected}");
        }
        for name in ["nbf", "iat"] {
            for (value, is_sound) in [
                ("1e300", false),
                ("9223372036854775808", false),
                ("-1e300", true),
                ("-9223372036854775808", true),
                ("1.5", true),
                ("\"1\"", false),
                ("{}", false),
            ] {
                let times = format!(r#""exp":{soon},"{name}":{value}"#);
                let judged = judged(&settings, &times);
                assert_eq!(judged.is_ok(), is_sound, "{name} {value}: {judged:?}");
                assert!(judged.err().is_none_or(|error| error.len() < 200));
            }
        }
    }
    let (default, years) = (json!({}), 10 * 31_557_600);
    assert!(judged(&default, &format!(r#""exp":{}"#, now() + years - 60)).is_ok());
    for exp in [now() + years + 60, 9_999_999_999] {
        let rejected = judged(&default, &format!(r#""exp":{exp}"#)).unwrap_err();
        let expected = "is more than 315576000 s in the future (`max_token_secs`)";
        assert!(rejected.contains(expected), "{rejected}");
    }
    let day = json!({"max_token_secs": 86_400});
    assert!(judged(&day, &format!(r#""exp":{}"#, now() + 86_000)).is_ok());
    assert!(judged(&day, &format!(r#""exp":{}"#, now() + 86_500)).is_err());
    let mut long = claims(Some(1), Role::Viewer);
    long.exp = (now() + 90_000) as f64;
    let rejected = keys(&day).mint(long).unwrap_err().to_string();
    assert!(
        rejected.contains("`max_token_secs` allows at most 86400 s"),
        "{rejected}"
    );
}

/// RFC 7515, 4.1.11.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_critical_extension_is_rejected() {
    let server = server().await;
    let signed = |crit: Option<Vec<String>>| {
        let header = Header {
            crit,
            ..Header::default()
        };
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        encode(&header, &claims(Some(1), Role::Viewer), &key).unwrap()
    };
    assert_eq!(server.get("/api/jobs", &signed(None)).await.0, 200);
    for crit in [vec!["b64".to_owned()], vec!["exp".into()], vec![]] {
        let (status, problem) = server.get("/api/jobs", &signed(Some(crit))).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 401 && detail.contains("`crit`"), "{problem}");
    }
}
