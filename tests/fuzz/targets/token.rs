//! Tokens: some inputs are parts of a token and get a valid signature, so that the code behind the signature check is
//! covered. An issued token must verify.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use tidings::auth::{Claims, Keys};
use tidings::config::Settings;
use tidings_fuzz::bounds::check_parser;
use tidings_fuzz::server::{SECRET, claims};

#[derive(Debug, Arbitrary)]
enum Token<'a> {
    Raw(&'a str),
    Signed {
        header: &'a str,
        claims: &'a str,
    },
    /// With a valid header.
    Claimed(&'a str),
    Minted {
        sub: String,
        exp: f64,
        school: Option<i64>,
        channels: Option<Vec<String>>,
    },
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let figment = rocket::Config::figment().merge(("tidings.jwt_secret", SECRET));
    let settings = Settings::from_figment(&figment).expect("the settings are sound");
    Keys::from_settings(&settings).expect("the secret is long enough")
});

fn signed(header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
}

/// Whether a token is valid. The reason for a rejection is sent to the client, so it must not grow with the token.
fn is_good(token: &str) -> bool {
    match check_parser(token.len(), || KEYS.verify(token)) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.to_string().len() < 1_024, "{error}");
            false
        }
    }
}

fuzz_target!(|token: Token<'_>| {
    LazyLock::force(&KEYS);
    match token {
        Token::Raw(text) => assert!(!is_good(text), "no random signature is valid"),
        Token::Signed { header, claims } => drop(is_good(&signed(header, claims))),
        Token::Claimed(claims) => drop(is_good(&signed(r#"{"alg":"HS256"}"#, claims))),
        Token::Minted {
            sub,
            exp,
            school,
            channels,
        } => {
            let school_id = school.and_then(|school| school.try_into().ok());
            let soon = claims().exp + exp.abs().fract() * 3_600.0;
            let claims = Claims {
                sub,
                school_id,
                channels,
                exp: if exp > 0.0 { soon } else { exp },
                ..claims()
            };
            let names_channels = claims.channels.is_some();
            if let Ok(minted) = KEYS.mint(claims) {
                let minted = minted.reveal();
                assert!(
                    is_good(minted) || exp <= 0.0 || !exp.is_finite() || names_channels,
                    "{minted}"
                );
            }
        }
    }
});
