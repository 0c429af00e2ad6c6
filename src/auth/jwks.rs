//! Several public keys in one file: a JSON Web Key Set (RFC 7517). The file is read again when it changes.
//!
//! A key that cannot verify signatures is skipped, as the RFC requires. A symmetric key is never used: a key set is meant
//! to be published, so anyone who can read the file could sign tokens with it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::token::{KeySet, VerifyingKey, algorithm};
use super::{KeyError, file_error};
use crate::config::{JWKS_FILE_MAX_BYTES, JWKS_KEYS_MAX};

const SETTING: &str = "jwt_jwks_file";

/// The accepted sizes of an RSA modulus in bytes. A smaller one is too weak (RFC 7518, 3.3); a larger one is unsupported.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
/// The size of an Ed25519 public key in bytes.
const ED25519_BYTES: usize = 32;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The file, and its keys when it was last read successfully.
pub(super) struct JwksFile {
    path: PathBuf,
    keys: RwLock<Arc<KeySet>>,
    /// The state of the file when it was last checked: a digest, or why it could not be read.
    seen: Mutex<Seen>,
}

type Seen = Result<Vec<u8>, std::io::ErrorKind>;

impl JwksFile {
    /// Reads the file. Fails unless it holds at least one usable key.
    pub(super) fn open(path: &Path) -> Result<JwksFile, KeyError> {
        let bytes = read(path).map_err(|source| file_error(SETTING, path, source))?;
        let not_a_set = |problem: String| KeyError::NotAKeySet {
            path: path.display().to_string(),
            problem,
        };
        let (keys, skipped) = parse(&bytes).map_err(not_a_set)?;
        if keys.0.is_empty() {
            let reasons = match skipped.is_empty() {
                true => String::new(),
                false => format!(" ({})", skipped.join("; ")),
            };
            let problem = format!("holds no public key that verifies signatures{reasons}");
            return Err(not_a_set(problem));
        }
        log_skipped(path, &skipped);
        Ok(JwksFile {
            path: path.to_owned(),
            keys: RwLock::new(Arc::new(keys)),
            seen: Mutex::new(Ok(digest(&bytes))),
        })
    }

    /// Returns the current keys.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Checks whether the file has changed, and if so, uses its keys from now on. Blocks while it reads.
    pub(super) fn reread(&self) {
        let bytes = read(&self.path);
        let seen = match &bytes {
            Ok(bytes) => Ok(digest(bytes)),
            Err(error) => Err(error.kind()),
        };
        {
            let mut last = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == seen {
                return;
            }
            *last = seen;
        }
        let path = self.path.display();
        let parsed = match &bytes {
            Ok(bytes) => parse(bytes),
            Err(error) => Err(error.to_string()),
        };
        match parsed {
            Ok((keys, skipped)) => {
                log_skipped(&self.path, &skipped);
                match keys.0.len() {
                    0 => {
                        tracing::warn!(%path, "`{SETTING}` no longer holds any usable key: every token is rejected")
                    }
                    count => tracing::info!(%path, keys = count, "`{SETTING}` has changed"),
                }
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(problem) => {
                tracing::warn!(%path, problem, "`{SETTING}` cannot be read: the previous keys stay in force");
            }
        }
    }
}

fn log_skipped(path: &Path, reasons: &[String]) {
    for reason in reasons {
        tracing::warn!(path = %path.display(), reason, "a key in `{SETTING}` is skipped");
    }
}

/// Reads a regular file up to the limit on its size. Reading a pipe could block forever.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("is not a file"));
    }
    let mut bytes = Vec::new();
    let max_bytes = JWKS_FILE_MAX_BYTES as u64;
    std::fs::File::open(path)?
        .take(max_bytes + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max_bytes {
        true => Err(std::io::Error::other(format!(
            "has more than {max_bytes} bytes"
        ))),
        false => Ok(bytes),
    }
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// Returns the usable keys, and the reasons why others are not usable. Fails if this is not a key set at all.
fn parse(bytes: &[u8]) -> Result<(KeySet, Vec<String>), String> {
    let set: Value = serde_json::from_slice(bytes).map_err(|_| "is not JSON")?;
    let Value::Array(entries) = &set["keys"] else {
        return Err("is not a JSON Web Key Set: an object with a list in `keys`".into());
    };
    if entries.len() > JWKS_KEYS_MAX {
        return Err(format!("holds more than {JWKS_KEYS_MAX} keys"));
    }
    let (mut keys, mut skipped) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        match key(entry) {
            Ok(key) => keys.push(key),
            Err(reason) => skipped.push(format!("key {}: {reason}", index + 1)),
        }
    }
    Ok((KeySet(keys), skipped))
}

fn key(entry: &Value) -> Result<VerifyingKey, &'static str> {
    let text = |name: &str| entry[name].as_str();
    let part = |name: &str| text(name).ok_or("a required member is missing");
    if !entry["use"].is_null() && entry["use"] != "sig" {
        return Err("its `use` is not sig");
    }
    let operations = entry["key_ops"].as_array();
    if operations.is_some_and(|all| !all.iter().any(|operation| operation == "verify")) {
        return Err("its `key_ops` do not include verify");
    }
    let (key, fitting) = match (text("kty"), text("crv")) {
        (Some("oct"), _) => {
            return Err(
                "symmetric keys (`oct`) are not accepted here; configure the secret as `jwt_secret`",
            );
        }
        (Some("RSA"), _) => {
            let (modulus, exponent) = (part("n")?, part("e")?);
            let bytes = URL_SAFE_NO_PAD.decode(modulus).unwrap_or_default();
            let size = bytes.iter().skip_while(|byte| **byte == 0).count();
            if !RSA_BYTES.contains(&size) {
                return Err("its modulus `n` does not have 2048 to 4096 bits");
            }
            (DecodingKey::from_rsa_components(modulus, exponent), RSA)
        }
        (Some("EC"), Some(curve @ ("P-256" | "P-384"))) => {
            let fitting: &[Algorithm] = match curve {
                "P-256" => &[Algorithm::ES256],
                _ => &[Algorithm::ES384],
            };
            let key = DecodingKey::from_ec_components(part("x")?, part("y")?);
            (key, fitting)
        }
        (Some("OKP"), Some("Ed25519")) => {
            let x = part("x")?;
            let bytes = URL_SAFE_NO_PAD.decode(x).unwrap_or_default();
            if bytes.len() != ED25519_BYTES {
                return Err("its `x` does not have 32 bytes");
            }
            let fitting: &[Algorithm] = &[Algorithm::EdDSA];
            (DecodingKey::from_ed_components(x), fitting)
        }
        _ => {
            return Err(
                "its `kty` and `crv` are not RSA, EC with P-256 or P-384, or OKP with Ed25519",
            );
        }
    };
    let key = key.map_err(|_| "one of its members is not base64url")?;
    let algorithms = match &entry["alg"] {
        Value::Null => fitting.to_vec(),
        named => {
            let named = named.as_str().and_then(algorithm);
            let named = named.filter(|alg| fitting.contains(alg));
            vec![named.ok_or("its `alg` is not for keys of its `kty`")?]
        }
    };
    // An invalid key, such as a point that is not on its curve, fails only when it is used. So verify an empty signature: that
    // is an error only if the key is invalid.
    let sound = |alg: &Algorithm| jsonwebtoken::crypto::verify("", b"", &key, *alg).is_ok();
    if !algorithms.iter().all(sound) {
        return Err("it is not a point on its curve");
    }
    Ok(VerifyingKey {
        kid: text("kid").map(str::to_owned),
        algorithms,
        key,
    })
}
