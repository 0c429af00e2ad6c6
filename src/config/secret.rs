//! Values that no log may show.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// What is written in the place of a secret.
const REDACTED: &str = "[REDACTED]";

/// A secret text. Neither `Debug` nor serialisation shows it, it has no `Display`, and its memory is zeroed when it is dropped.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// The text itself, for those who sign or log in with it.
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

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}
