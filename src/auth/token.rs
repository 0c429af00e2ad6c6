//! The compact form of a signed token (RFC 7515): header, payload and signature. `claims.rs` interprets the claims.
//!
//! Claims are read only after the signature is verified, so that the rejection of a forged token reveals nothing.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use crate::config::{JWKS_TRIES_MAX, TOKEN_MAX_BYTES};

/// Why a token is not valid. The texts are safe to show and to log: they name a check, a claim or a setting, and contain no
/// value of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token is too long.
    #[error("it has {0} bytes; at most {TOKEN_MAX_BYTES} are accepted")]
    TooLong(usize),
    /// The token does not have the compact form.
    #[error("it is not three parts in base64url, separated by dots")]
    Form,
    /// The header is not that of a signed token.
    #[error("its header is not a JSON object with the algorithm in `alg`")]
    Header,
    /// No configured key is for this algorithm.
    #[error("its algorithm (`alg`), {named}, is not accepted here; accepted: {accepted}")]
    Algorithm {
        /// The algorithm, if it is a known one.
        named: &'static str,
        /// The accepted algorithms.
        accepted: String,
    },
    /// The issuer demands rejection by servers that do not know an extension (RFC 7515, 4.1.11).
    #[error("its `crit` header requires an extension that this server does not support")]
    Critical,
    /// The token names a key that is not configured.
    #[error("its `kid` matches none of the keys in `jwt_jwks_file`")]
    UnknownKey,
    /// The token names a key that is configured for another algorithm.
    #[error("the key that its `kid` names in `jwt_jwks_file` is not for its `alg`")]
    KeyOfOtherAlgorithm,
    /// The token names no key, and too many configured keys may have signed it.
    #[error(
        "{0} keys in `jwt_jwks_file` may have signed it, and at most {JWKS_TRIES_MAX} are tried: its header must name a key in `kid`"
    )]
    TooManyKeys(usize),
    /// No configured key signed the token, or it was changed afterwards.
    #[error("its signature does not match a configured key")]
    Signature,
    /// The payload is not a JSON object.
    #[error("its claims are not a JSON object")]
    Payload,
    /// A claim is missing, malformed, or forbids the use of the token.
    #[error("`{claim}` {problem}")]
    Claim {
        /// The claim's name, or the JSON pointer to it.
        claim: Cow<'static, str>,
        /// What is wrong with the claim.
        problem: Cow<'static, str>,
    },
}

impl TokenError {
    pub(super) fn claim(
        claim: impl Into<Cow<'static, str>>,
        problem: impl Into<Cow<'static, str>>,
    ) -> TokenError {
        TokenError::Claim {
            claim: claim.into(),
            problem: problem.into(),
        }
    }
}

/// All algorithms, by their names in `alg`.
const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// A key that verifies signatures.
pub(super) struct VerifyingKey {
    /// The key's `kid`, if it has one.
    pub(super) kid: Option<String>,
    /// The algorithms that the key is for. It is used for no other: a public key must never be tried as an HMAC secret.
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// The keys, one of which must have signed a token.
pub(super) struct KeySet(pub(super) Vec<VerifyingKey>);

impl KeySet {
    /// Returns the names of the algorithms that the keys are for.
    fn accepted(&self) -> String {
        let used = |alg: &Algorithm| self.0.iter().any(|key| key.algorithms.contains(alg));
        let names: Vec<&str> = ALGORITHMS
            .iter()
            .filter(|(_, alg)| used(alg))
            .map(|(name, _)| *name)
            .collect();
        match names.is_empty() {
            true => "none, because no key is configured".into(),
            false => names.join(", "),
        }
    }

    /// Returns the keys that may have signed a token: those with its `kid`, or if there are none, those without a `kid`. A
    /// token without a `kid` may have been signed by any key.
    fn candidates(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> impl Iterator<Item = &VerifyingKey> {
        let fits = move |key: &&VerifyingKey| key.algorithms.contains(&algorithm);
        let named = kid.filter(|kid| self.0.iter().any(|key| key.kid.as_deref() == Some(kid)));
        self.0
            .iter()
            .filter(fits)
            .filter(move |key| match (named, kid) {
                (Some(named), _) => key.kid.as_deref() == Some(named),
                (None, Some(_)) => key.kid.is_none(),
                (None, None) => true,
            })
    }
}

/// Returns an algorithm by its name in `alg`.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    let known = ALGORITHMS
        .iter()
        .find(|(known_name, _)| *known_name == name);
    known.map(|(_, algorithm)| *algorithm)
}

/// Verifies that one of `keys` signed a token, and returns its claims.
pub(super) fn verified(token: &str, keys: &KeySet) -> Result<Value, TokenError> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(TokenError::TooLong(token.len()));
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Form)?;
    if payload.contains('.') {
        return Err(TokenError::Form);
    }
    let header = decoded(header).ok_or(TokenError::Form)?;
    let header = object(&header).ok_or(TokenError::Header)?;
    let alg = header["alg"].as_str().ok_or(TokenError::Header)?;
    let algorithm =
        algorithm(alg).filter(|found| keys.0.iter().any(|key| key.algorithms.contains(found)));
    let Some(algorithm) = algorithm else {
        let known = ALGORITHMS.iter().find(|(name, _)| *name == alg);
        return Err(TokenError::Algorithm {
            named: match (known, alg) {
                (Some((name, _)), _) => name,
                (None, "none") => "none",
                (None, _) => "which is not a known algorithm",
            },
            accepted: keys.accepted(),
        });
    };
    // No extension is supported, and RFC 7515 does not allow an empty list.
    if header.get("crit").is_some() {
        return Err(TokenError::Critical);
    }
    let kid = match &header["kid"] {
        Value::Null => None,
        Value::String(kid) => Some(kid.as_str()),
        _ => return Err(TokenError::Header),
    };
    let candidates: Vec<&VerifyingKey> = keys.candidates(algorithm, kid).collect();
    if candidates.is_empty() {
        let is_there = keys.0.iter().any(|key| key.kid.as_deref() == kid);
        return Err(match is_there {
            true => TokenError::KeyOfOtherAlgorithm,
            false => TokenError::UnknownKey,
        });
    }
    if candidates.len() > JWKS_TRIES_MAX {
        return Err(TokenError::TooManyKeys(candidates.len()));
    }
    let fits = |candidate: &&VerifyingKey| {
        let message = message.as_bytes();
        jsonwebtoken::crypto::verify(signature, message, &candidate.key, algorithm).unwrap_or(false)
    };
    if !candidates.iter().any(fits) {
        return Err(TokenError::Signature);
    }
    let claims = decoded(payload).ok_or(TokenError::Payload)?;
    object(&claims).ok_or(TokenError::Payload)
}

fn decoded(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn object(json: &[u8]) -> Option<Value> {
    let value = serde_json::from_slice::<Value>(json).ok();
    value.filter(Value::is_object)
}
