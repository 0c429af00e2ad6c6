//! Secrets, which must not appear in logs.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// Replaces a secret in serialised settings.
const REDACTED: &str = "[REDACTED]";

/// A secret text. `Debug` and serialisation do not show it, it has no `Display`, and its memory is zeroed when it is
/// dropped.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// Returns the secret itself, for signing or logging in.
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Secret {
        Secret(secret.into())
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Secret {
        Secret(secret.into())
    }
}

impl From<Secret> for SecretString {
    fn from(secret: Secret) -> SecretString {
        secret.0
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}
