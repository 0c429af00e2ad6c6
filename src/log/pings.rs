//! The port *ping keys*: credentials for one job type each, which are part of a URL.
//!
//! A key is shown once, when it is created. The store has only its digest, so that a copy of the database contains no
//! usable keys. A key contains the id of its school, and is looked up among that school's keys by its digest. The time that
//! a lookup takes depends only on the digest, so it tells a client that guesses keys nothing.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::zeroize::Zeroizing;
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::config::Secret;
use crate::id::SchoolId;
use crate::kind::job::JobType;

/// The characters of keys and of their ids: 32 that cannot be mistaken for one another.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// The number of random characters of a key, of 5 bits each.
const KEY_CHARS: usize = 24;
/// The number of random characters of a key's id.
const ID_CHARS: usize = 10;

/// The id by which a key is listed and revoked. It is not secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PingKeyId(String);

impl PingKeyId {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PingKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not the id of a ping key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the id of a ping key has {ID_CHARS} lower-case letters and digits")]
pub struct NotAnId;

impl FromStr for PingKeyId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<PingKeyId, NotAnId> {
        match is_random(text, ID_CHARS) {
            true => Ok(PingKeyId(text.to_owned())),
            false => Err(NotAnId),
        }
    }
}

/// What a plain number at the end of a ping's URL means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numbers {
    /// The exit code of a command.
    #[default]
    ExitCode,
    /// Percent complete.
    Progress,
}

impl Numbers {
    /// Every meaning.
    pub const ALL: [Numbers; 2] = [Numbers::ExitCode, Numbers::Progress];

    /// Returns the name in requests and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Numbers::ExitCode => "exit",
            Numbers::Progress => "progress",
        }
    }

    /// Parses the text that [`Numbers::as_str`] returns.
    pub fn parse(text: &str) -> Option<Numbers> {
        Numbers::ALL
            .into_iter()
            .find(|numbers| numbers.as_str() == text)
    }
}

/// The digest of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDigest(String);

impl KeyDigest {
    /// Returns the digest of a key. Keys are random, so they need no salt.
    pub fn of(key: &str) -> KeyDigest {
        let digest = Sha256::digest(key.as_bytes());
        KeyDigest(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns a digest that was read from the database.
    pub(crate) fn stored(text: String) -> KeyDigest {
        KeyDigest(text)
    }

    /// Returns the digest in hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingKey {
    /// Its name.
    pub id: PingKeyId,
    /// The digest of the key itself.
    pub digest: KeyDigest,
    /// The type of the jobs on which it reports.
    pub job_type: JobType,
    /// What a plain number means.
    pub numbers: Numbers,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// The `sub` of the token with which it was created.
    pub created_by: String,
    /// The number of the last run that a ping without a `rid` began.
    pub run: u64,
}

impl PingKey {
    /// Returns a new key of a school, as it is stored, and the key itself.
    pub fn generate(
        school: SchoolId,
        job_type: JobType,
        numbers: Numbers,
        created_by: &str,
        now: DateTime<Utc>,
    ) -> (PingKey, Secret) {
        let secret = Zeroizing::new(random(KEY_CHARS));
        let key = Secret::from(format!("{school}-{}", *secret));
        let stored = PingKey {
            id: PingKeyId(random(ID_CHARS)),
            digest: KeyDigest::of(key.reveal()),
            job_type,
            numbers,
            created_at: now,
            created_by: created_by.to_owned(),
            run: 0,
        };
        (stored, key)
    }
}

/// Returns the school that a key contains. `None` if the text cannot be a key.
pub fn school_of(key: &str) -> Option<SchoolId> {
    let (school, random) = key.split_once('-')?;
    let school: SchoolId = school.parse().ok()?;
    // Only one spelling is accepted, because the digest is computed from the text.
    (is_random(random, KEY_CHARS) && key.starts_with(&format!("{school}-"))).then_some(school)
}

fn random(chars: usize) -> String {
    let mut bytes = Zeroizing::new(vec![0_u8; chars]);
    getrandom::fill(&mut bytes).expect("the operating system provides random numbers");
    let character = |byte: &u8| char::from(ALPHABET[usize::from(byte % 32)]);
    bytes.iter().map(character).collect()
}

fn is_random(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// Keys for pings.
#[async_trait]
pub trait PingKeys: Send + Sync + 'static {
    /// Stores a new key. Returns false if the school already has `limit` of them.
    async fn add_ping_key(
        &self,
        school: SchoolId,
        key: PingKey,
        limit: u64,
    ) -> Result<bool, StoreError>;

    /// Returns the keys of a school, the newest first.
    async fn ping_keys(&self, school: SchoolId) -> Result<Vec<PingKey>, StoreError>;

    /// Returns the key with this digest.
    async fn ping_key(
        &self,
        school: SchoolId,
        digest: KeyDigest,
    ) -> Result<Option<PingKey>, StoreError>;

    /// Removes a key. Returns whether the school had it.
    async fn remove_ping_key(&self, school: SchoolId, id: PingKeyId) -> Result<bool, StoreError>;

    /// Begins the run after `run`, which must be the last one. Returns false if another ping has begun one, or if the key
    /// was removed.
    async fn begin_ping_run(
        &self,
        school: SchoolId,
        id: PingKeyId,
        run: u64,
    ) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_contains_its_school_and_has_one_spelling() {
        let school: SchoolId = 7.try_into().unwrap();
        let job_type: JobType = "backup".parse().unwrap();
        let (stored, key) =
            PingKey::generate(school, job_type, Numbers::ExitCode, "ada", Utc::now());
        let key = key.reveal();
        assert_eq!(school_of(key), Some(school));
        assert_eq!(stored.digest, KeyDigest::of(key));
        assert_eq!(stored.id.as_str().parse(), Ok(stored.id.clone()));
        let random = key.split_once('-').unwrap().1;
        for text in [
            "",
            "7",
            "7-",
            random,
            &format!("07-{random}"),
            &format!("+7-{random}"),
            &format!("0-{random}"),
            &format!("7-{random}a"),
            &format!("7-{}", random.to_uppercase()),
        ] {
            assert_eq!(school_of(text), None, "{text}");
        }
    }
}
