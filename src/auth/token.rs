//! The compact form of a signed token (RFC 7515): three parts, a header, a signature. What the claims mean is the
//! business of `claims.rs`.
//!
//! A claim is looked at only after the signature is verified, so that the refusal of a
//! forged token reveals nothing.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use crate::config::{JWKS_TRIES_MAX, TOKEN_MAX_BYTES};

/// Why a token is not valid. Every text is safe to show and to log: it names a check, a claim or a setting, and no value
/// of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than any that is read.
    #[error("it has {0} bytes; at most {TOKEN_MAX_BYTES} are read")]
    TooLong(usize),
    /// Not the compact form of a signed token.
    #[error("it is not three parts in base64url, separated by dots")]
    Form,
    /// No header of a signed token.
    #[error("its header is not a JSON object with the algorithm in `alg`")]
    Header,
    /// None of the algorithms that the configured keys are for.
    #[error("its algorithm (`alg`), {named}, is not accepted here; accepted: {accepted}")]
    Algorithm {
        /// The algorithm, if it is one that is known.
        named: &'static str,
        /// Those that are accepted.
        accepted: String,
    },
    /// Its maker wants it refused by those who do not know an extension (RFC 7515, 4.1.11).
    #[error("its `crit` header demands an extension that this server does not know")]
    Critical,
    /// Signed with a key that is not configured, as it says itself.
    #[error("its `kid` names none of the keys in `jwt_jwks_file`")]
    UnknownKey,
    /// Signed with a key that is configured for something else.
    #[error("the key that its `kid` names in `jwt_jwks_file` is not for its `alg`")]
    KeyOfOtherAlgorithm,
    /// So many configured keys may have signed it, as it names none of them.
    #[error(
        "{0} keys in `jwt_jwks_file` may have signed it; at most {JWKS_TRIES_MAX} are tried: the header needs the `kid` of one"
    )]
    TooManyKeys(usize),
    /// Not signed with a configured key, or changed since.
    #[error("its signature does not fit")]
    Signature,
    /// The payload is something else than claims.
    #[error("its claims are not a JSON object")]
    Payload,
    /// A claim that is missing, of the wrong form, or says no.
    #[error("`{claim}` {problem}")]
    Claim {
        /// The claim's name, or where it is looked for.
        claim: Cow<'static, str>,
        /// What is wrong with it.
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

/// Every algorithm that there is, by its name in `alg`.
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
    /// Its name in `kid`, if it has one.
    pub(super) kid: Option<String>,
    /// What it may be used for, and nothing else: a public key must never be tried as an HMAC secret.
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) key: DecodingKey,
}

/// The keys of which one must have signed a token.
pub(super) struct KeySet(pub(super) Vec<VerifyingKey>);

impl KeySet {
    /// The names of the algorithms that its keys are for.
    fn accepted(&self) -> String {
        let used = |own: &Algorithm| self.0.iter().any(|key| key.algorithms.contains(own));
        let names: Vec<&str> = ALGORITHMS
            .iter()
            .filter(|(_, own)| used(own))
            .map(|(name, _)| *name)
            .collect();
        match names.is_empty() {
            true => "none, as there is no key".into(),
            false => names.join(", "),
        }
    }

    /// The keys that may have signed a token: those of its `kid`, or else those without a name of their own.
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

/// A key's algorithm by its name in `alg`.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    let known = ALGORITHMS.iter().find(|(own, _)| *own == name);
    known.map(|(_, algorithm)| *algorithm)
}

/// The claims of a token that one of `keys` has signed.
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
        algorithm(alg).filter(|own| keys.0.iter().any(|key| key.algorithms.contains(own)));
    let Some(algorithm) = algorithm else {
        let known = ALGORITHMS.iter().find(|(own, _)| *own == alg);
        return Err(TokenError::Algorithm {
            named: match (known, alg) {
                (Some((name, _)), _) => name,
                (None, "none") => "none",
                (None, _) => "which is not a known one",
            },
            accepted: keys.accepted(),
        });
    };
    // No extension is known here, and an empty list is not allowed.
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
    let fits = |own: &&VerifyingKey| {
        let message = message.as_bytes();
        jsonwebtoken::crypto::verify(signature, message, &own.key, algorithm).unwrap_or(false)
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
