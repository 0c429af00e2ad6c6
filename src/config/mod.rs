//! Every setting and every bound, named with its unit.
//!
//! Settings stand in `[default.tidings]` of `Rocket.toml` and can each be overridden by the environment
//! as `TIDINGS_<NAME>`. An unknown or invalid one stops the start with a message that names it. Bounds
//! that nobody needs to set are constants in `bounds.rs`.

mod bounds;
mod error;
mod folder;
mod login;
mod memory;
pub mod notifiers;
pub mod origin;
pub mod proxy;
pub(crate) mod ranges;
mod secret;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use figment::providers::{Env, Serialized};
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use self::bounds::*;
pub use self::error::ConfigError;
pub(crate) use self::error::{nearest, place};
pub use self::folder::make_private_folder;
pub(crate) use self::login::SCHOOL_CLAIM;
use self::login::check_place;
pub use self::login::{Role, SECRET_MIN_BYTES};
use self::notifiers::NotifierSettings;
use self::origin::AllowedOrigins;
use self::proxy::{Network, PathPrefix};
pub use self::secret::Secret;
use crate::id::{Kind, SchoolId};
use crate::kind::{self, characteristic, device, enrollment, job};

/// Environment variables that begin with `TIDINGS_` but are not settings of the server: the command
/// line's own, and the test suite's.
const NOT_SETTINGS: &[&str] = &["url", "token", "require_all", "log", "seed"];

/// Settings that are texts. In the environment they are taken as they stand, also where they look like a number: `0123`.
const TEXTS: &[&str] = &[
    "data_dir",
    "database_url",
    "jwt_secret",
    "jwt_public_key_file",
    "jwt_jwks_file",
    "jwt_algorithm",
    "jwt_issuer",
    "jwt_audience",
    "jwt_subject_claim",
    "jwt_school_claim",
    "jwt_role_claim",
    "cookie_name",
];

/// When a commit must have reached the disk before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// A commit that holds a milestone. Every commit survives `kill -9`; this one a power loss too.
    Milestone,
    /// Every commit.
    Full,
    /// None: a power loss may take the last commits, `kill -9` none.
    Normal,
}

/// How `status` is written in messages, unless a request says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusCase {
    /// `in_progress`
    Lower,
    /// `IN_PROGRESS`
    Upper,
}

/// How many streams may be open at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// In all.
    pub server: usize,
    /// Of a school.
    pub school: usize,
    /// Of a user in a school.
    pub user: usize,
    /// From an address.
    pub address: usize,
}

/// The settings, with their defaults in [`Settings::default`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the database and the generated secret live, unless they are named elsewhere.
    pub data_dir: PathBuf,
    /// `sqlite:<path>`, or the path alone; `<data_dir>/tidings.db` if absent.
    pub database_url: Option<String>,
    /// When a commit must be on the disk.
    pub synchronous: Synchronous,
    /// Whether the database is looked through at the start, so that a damaged one is not served.
    pub check_database: bool,
    /// Database connections for reading, and so the most reads at a time.
    pub reader_connections: u32,
    /// How long, in milliseconds, a request may read: one that searches answers with what it has found, one that is still
    /// waiting for its turn is refused.
    pub read_timeout_ms: u64,
    /// Most rows that a request may look at in search of those that fit.
    pub read_rows_max: u64,
    /// Requests that may wait for their turn to read, in all.
    pub max_waiting_reads: usize,
    /// Requests about a school that may wait for their turn to read.
    pub max_waiting_reads_per_school: usize,

    /// The HS256 secret, at least 32 bytes; made at the first start if absent.
    pub jwt_secret: Option<Secret>,
    /// A PEM file with the public key that tokens are verified with, instead of the secret.
    pub jwt_public_key_file: Option<PathBuf>,
    /// A JSON Web Key Set with the public keys that tokens are verified with, instead of either; reread when it changes.
    pub jwt_jwks_file: Option<PathBuf>,
    /// `HS256`, or `RS256`, `ES256` or `EdDSA` with a public key.
    pub jwt_algorithm: String,
    /// The `iss` that a token must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that a token must have.
    pub jwt_audience: Option<String>,
    /// The claim that says who it is: its name, or a JSON pointer to it.
    pub jwt_subject_claim: String,
    /// The claim that says which school, in the same way.
    pub jwt_school_claim: String,
    /// The claim that says which role, in the same way.
    pub jwt_role_claim: String,
    /// What roles of an existing login are called here, as in `{school_admin = "admin"}`.
    pub jwt_roles: BTreeMap<String, Role>,
    /// The role of tokens that name none. None: they are refused.
    pub jwt_default_role: Option<Role>,
    /// The school of tokens that name none. None: they are refused.
    pub jwt_default_school_id: Option<SchoolId>,
    /// How far, in seconds, clocks may differ when `exp`, `nbf` and `iat` are judged.
    pub jwt_leeway_secs: u64,
    /// How far ahead, in seconds, `exp` may be: a token that is valid for longer is refused.
    pub max_token_secs: u64,
    /// How long, in seconds, a ticket opens streams.
    pub ticket_ttl_secs: u32,
    /// How long, in seconds, an expired ticket is good for reconnecting with a cursor.
    pub ticket_grace_secs: u32,
    /// The cookie that may carry a token.
    pub cookie_name: String,
    /// Web origins, in addition to the server's own, whose pages may read answers and use a cookie.
    pub allowed_origins: AllowedOrigins,
    /// Addresses and networks of proxies whose `X-Forwarded-*` and `X-Real-IP` are believed.
    #[serde(deserialize_with = "one_or_many")]
    pub trusted_proxies: Vec<Network>,
    /// The path below which a proxy serves Tidings.
    pub base_path: Option<PathPrefix>,
    /// The school that callers without a token may watch. None: a token is required.
    pub anonymous_school_id: Option<SchoolId>,

    /// At most this many seconds between signs of life on a stream.
    pub heartbeat_secs: u64,
    /// Silence of a reader's machine, in seconds, after which its connection is closed: it acknowledges nothing that it is
    /// sent. Two heartbeats if absent; 0 is never.
    pub dead_peer_timeout_secs: Option<u64>,
    /// On the endpoints that have it: silence from a client, in seconds, before a `heartbeat` message.
    pub idle_heartbeat_secs: u64,
    /// Least time in milliseconds between two ticks of a subject on a stream, unless a request says otherwise.
    pub tick_ms: u64,
    /// How `status` is written.
    pub status_case: StatusCase,
    /// Events that may wait for one slow connection.
    pub mailbox_capacity: usize,
    /// Newest events of a school kept in memory for short gaps.
    pub window_events: usize,
    /// Most events that a replay may carry before it is answered with a `reset`.
    pub replay_max_events: u64,
    /// Streams open at a time, in all.
    pub max_streams: usize,
    /// Streams of a school open at a time.
    pub max_streams_per_school: usize,
    /// Streams open at a time with tokens of one `sub` in a school; those without one are of one user.
    pub max_streams_per_user: usize,
    /// Streams open at a time from one address (of IPv6, one /64): that of the connection, or what a trusted proxy says.
    pub max_streams_per_address: usize,
    /// Over this many milliseconds returning clients are spread when the server stops.
    pub reconnect_spread_ms: u64,

    /// How long, in seconds, events are kept.
    pub retention_secs: u64,
    /// How many events of a school are kept.
    pub retention_events: u64,
    /// How many bytes of events of a school are kept.
    pub retention_bytes: u64,
    /// How long, in seconds, a finished job or enrollment session and an acknowledged violation are kept; at least
    /// until their events are gone.
    pub job_retention_secs: u64,
    /// How long, in seconds, an `Idempotency-Key` is remembered.
    pub idempotency_ttl_secs: u64,
    /// How many bytes of answers to requests with an `Idempotency-Key` a school keeps in addition to its events.
    pub idempotency_answer_bytes: u64,
    /// How long, in seconds of uptime, a wall clock that was set has to stand before anything is removed for its age.
    pub clock_settle_secs: u64,

    /// Silent seconds after which a running job is `stalled`, unless it says otherwise; 0 is never.
    pub stall_after_secs: u32,
    /// Silent seconds after which a running job fails with `timeout`, unless it says otherwise; 0 is never.
    pub timeout_secs: u32,

    /// Silent seconds after which an enrollment session ends with `timeout`, unless it says otherwise.
    pub enrollment_lease_secs: u32,
    /// Silent seconds after which a device is offline, unless it says otherwise.
    pub device_lease_secs: u32,

    /// Largest body of a single command, in bytes.
    pub body_limit_bytes: u64,
    /// Largest body of a batch, in bytes.
    pub batch_limit_bytes: u64,
    /// How long, in seconds, the body of a request that writes may take to arrive, since memory is reserved for it.
    pub body_timeout_secs: u64,
    /// Most commands in a batch.
    pub batch_limit_commands: usize,
    /// Bytes of the events that the lines of a batch may lead to, or be answered with; later lines are refused.
    pub batch_event_bytes: u64,
    /// Bytes of events a second that a school may produce, and as many at once; after more it waits; 0 means no limit.
    pub event_bytes_per_sec: u32,
    /// Memory, in bytes, for bodies, commands, events and answers of writes under way; a school may hold as much as it
    /// leaves free.
    pub write_memory_bytes: u64,
    /// Largest `metadata` of a subject, in bytes.
    pub metadata_limit_bytes: usize,
    /// Longest `message`, in bytes.
    pub message_limit_bytes: usize,
    /// Largest WebSocket message from a client, in bytes.
    pub client_message_limit_bytes: usize,
    /// Messages a second that a WebSocket client may send, and twice as many at once; 0 means no limit.
    pub client_messages_per_sec: u32,
    /// Most channels on one connection.
    pub channels_per_connection: usize,
    /// Commands and beats a second with tokens of one `sub` in a school, and at least a whole batch at once; 0 means no limit.
    pub publishes_per_sec: u32,
    /// Most jobs of a school that are kept.
    pub jobs_per_school: u64,
    /// Most enrollment sessions of a school that are kept.
    pub enrollments_per_school: u64,
    /// Most devices of a school.
    pub devices_per_school: u64,
    /// Most characteristics of a school.
    pub characteristics_per_school: u64,

    /// Who is told of what happens: webhooks, e-mail, MQTT.
    pub notifiers: Vec<NotifierSettings>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            data_dir: "data".into(),
            database_url: None,
            synchronous: Synchronous::Milestone,
            check_database: true,
            reader_connections: 4,
            read_timeout_ms: 5_000,
            read_rows_max: 200_000,
            max_waiting_reads: 10_000,
            max_waiting_reads_per_school: 1_000,
            jwt_secret: None,
            jwt_public_key_file: None,
            jwt_jwks_file: None,
            jwt_algorithm: "HS256".into(),
            jwt_issuer: None,
            jwt_audience: None,
            jwt_subject_claim: "sub".into(),
            jwt_school_claim: SCHOOL_CLAIM.into(),
            jwt_role_claim: "role".into(),
            jwt_roles: BTreeMap::new(),
            jwt_default_role: None,
            jwt_default_school_id: None,
            jwt_leeway_secs: 5,
            max_token_secs: 315_576_000,
            ticket_ttl_secs: 30,
            ticket_grace_secs: 600,
            cookie_name: "tidings_token".into(),
            allowed_origins: AllowedOrigins::default(),
            trusted_proxies: Network::loopback(),
            base_path: None,
            anonymous_school_id: None,
            heartbeat_secs: 15,
            dead_peer_timeout_secs: None,
            idle_heartbeat_secs: 30,
            tick_ms: 100,
            status_case: StatusCase::Lower,
            mailbox_capacity: 256,
            window_events: 1_024,
            replay_max_events: 1_000_000,
            max_streams: 50_000,
            max_streams_per_school: 20_000,
            max_streams_per_user: 1_000,
            max_streams_per_address: 20_000,
            reconnect_spread_ms: 5_000,
            retention_secs: 7 * 86_400,
            retention_events: 1_000_000,
            retention_bytes: 1024 * 1024 * 1024,
            job_retention_secs: 30 * 86_400,
            idempotency_ttl_secs: 86_400,
            idempotency_answer_bytes: 16 * 1024 * 1024,
            clock_settle_secs: 3_600,
            stall_after_secs: 60,
            timeout_secs: 86_400,
            enrollment_lease_secs: 60,
            device_lease_secs: 40,
            body_limit_bytes: 256 * 1024,
            batch_limit_bytes: 16 * 1024 * 1024,
            body_timeout_secs: 60,
            batch_limit_commands: 10_000,
            batch_event_bytes: 16 * 1024 * 1024,
            event_bytes_per_sec: 16 * 1024 * 1024,
            write_memory_bytes: 256 * 1024 * 1024,
            metadata_limit_bytes: 16 * 1024,
            message_limit_bytes: 4 * 1024,
            client_message_limit_bytes: 16 * 1024,
            client_messages_per_sec: 100,
            channels_per_connection: 100,
            publishes_per_sec: 20_000,
            jobs_per_school: 10_000_000,
            enrollments_per_school: 10_000_000,
            devices_per_school: 100_000,
            characteristics_per_school: 10_000,
            notifiers: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads `tidings` in `figment` (Rocket's own), overridden by `TIDINGS_*`.
    pub fn from_figment(figment: &Figment) -> Result<Settings, ConfigError> {
        if figment
            .find_value("tidings")
            .is_ok_and(|table| table.as_dict().is_none())
        {
            return Err(ConfigError::Unreadable(
                "setting `tidings` is not a table".into(),
            ));
        }
        let merged = merged(figment);
        let settings: Settings = merged
            .extract()
            .map_err(|error| ConfigError::read(&error, &merged))?;
        settings.check().map_err(|error| error.found_in(&merged))?;
        Ok(settings)
    }

    /// A setting by its name and where it is set: the variable, or the file.
    pub(crate) fn place(figment: &Figment, key: &str) -> String {
        place(merged(figment).find_metadata(key), &[key])
    }

    /// The setting that says where the database is.
    pub(crate) fn of_database(figment: &Figment) -> &'static str {
        let url = merged(figment).extract_inner::<String>("database_url");
        if url.is_ok() {
            "database_url"
        } else {
            "data_dir"
        }
    }

    /// The SQLite file.
    pub fn database_path(&self) -> Result<PathBuf, ConfigError> {
        let Some(url) = &self.database_url else {
            return Ok(self.data_dir.join("tidings.db"));
        };
        let invalid = |problem: &str| {
            Err(ConfigError::Invalid {
                key: "database_url",
                problem: problem.into(),
            })
        };
        let path = match url.split_once(':') {
            // `sqlite:///a/b` is `/a/b`; `sqlite://a/b` and `sqlite:a/b` are both relative.
            Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
            Some((scheme, _)) if is_scheme(scheme) => {
                return invalid(
                    "names another database than SQLite; write `sqlite:<path>`, or the path alone",
                );
            }
            _ => url,
        };
        match path {
            "" => invalid("has no path; write `sqlite:<path>`, or the path alone"),
            // To SQLite these are no files.
            _ if path == ":memory:" || path.starts_with("file:") => {
                invalid("is not the path of a file; write `sqlite:<path>`, or the path alone")
            }
            path => Ok(path.into()),
        }
    }

    /// The bounds that the kinds' rules enforce.
    pub fn limits(&self) -> kind::Limits {
        kind::Limits {
            message_bytes: self.message_limit_bytes,
            metadata_bytes: self.metadata_limit_bytes,
            stall_after_secs: self.stall_after_secs,
            timeout_secs: self.timeout_secs,
            enrollment_lease_secs: self.enrollment_lease_secs,
            device_lease_secs: self.device_lease_secs,
        }
    }

    /// The largest body of a single command in bytes, and the setting that says so.
    pub fn body_limit(&self) -> (u64, &'static str) {
        (self.body_limit_bytes, "body_limit_bytes")
    }

    /// How many subjects of each kind a school may have, and the setting that says so: [`SUBJECTS_PER_SCHOOL`] of a kind
    /// that has no setting.
    pub fn most_subjects(&self) -> Vec<(Kind, u64, Option<&'static str>)> {
        let settings = [
            (job::KIND, self.jobs_per_school, "jobs_per_school"),
            (
                enrollment::KIND,
                self.enrollments_per_school,
                "enrollments_per_school",
            ),
            (device::KIND, self.devices_per_school, "devices_per_school"),
            (
                characteristic::KIND,
                self.characteristics_per_school,
                "characteristics_per_school",
            ),
        ];
        let most = |kind: &Kind| {
            let own = settings.iter().find(|(own, ..)| own == kind);
            own.map_or((*kind, SUBJECTS_PER_SCHOOL, None), |(_, most, name)| {
                (*kind, *most, Some(*name))
            })
        };
        kind::KINDS.iter().map(most).collect()
    }

    /// How many streams may be open.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings {
            server: self.max_streams,
            school: self.max_streams_per_school,
            user: self.max_streams_per_user,
            address: self.max_streams_per_address,
        }
    }

    /// Time between signs of life.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_secs)
    }

    /// How long a connection's peer may acknowledge nothing before the connection is closed; none if it may for ever.
    pub fn dead_peer_timeout(&self) -> Option<Duration> {
        let secs = self
            .dead_peer_timeout_secs
            .unwrap_or(self.heartbeat_secs * 2);
        (secs > 0).then(|| Duration::from_secs(secs))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key, problem: &str| {
            Err(ConfigError::Invalid {
                key,
                problem: problem.into(),
            })
        };
        if self
            .jwt_secret
            .as_ref()
            .is_some_and(|secret| secret.reveal().len() < SECRET_MIN_BYTES)
        {
            return invalid("jwt_secret", "has fewer than 32 bytes");
        }
        for (key, place) in [
            ("jwt_subject_claim", &self.jwt_subject_claim),
            ("jwt_school_claim", &self.jwt_school_claim),
            ("jwt_role_claim", &self.jwt_role_claim),
        ] {
            if let Err(problem) = check_place(place) {
                return invalid(key, problem);
            }
        }
        if self.jwt_roles.contains_key("") {
            return invalid("jwt_roles", "holds a role without a name");
        }
        if self.jwt_jwks_file.is_some() {
            if self.jwt_public_key_file.is_some() {
                return invalid(
                    "jwt_jwks_file",
                    "is set together with `jwt_public_key_file`: tokens have one source",
                );
            }
            if self.jwt_algorithm != "HS256" {
                return invalid(
                    "jwt_algorithm",
                    "is set together with `jwt_jwks_file`, whose keys name their algorithms themselves",
                );
            }
        }
        match (self.jwt_algorithm.as_str(), &self.jwt_public_key_file) {
            ("HS256", None) | ("RS256" | "ES256" | "EdDSA", Some(_)) => {}
            ("HS256", Some(_)) => {
                return invalid(
                    "jwt_algorithm",
                    "is HS256, which has no public key: name RS256, ES256 or EdDSA",
                );
            }
            ("RS256" | "ES256" | "EdDSA", None) => {
                return invalid("jwt_public_key_file", "is missing for this `jwt_algorithm`");
            }
            _ => return invalid("jwt_algorithm", "is not one of HS256, RS256, ES256, EdDSA"),
        }
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "is empty; write the path of a folder");
        }
        if !is_cookie_name(&self.cookie_name) {
            let problem = "is not a cookie's name; write letters, digits, `-`, `_` and `.`";
            return invalid("cookie_name", problem);
        }
        self.database_path()?;
        notifiers::check(&self.notifiers)?;
        let values = serde_json::to_value(self).expect("settings are plain data");
        for (key, ..) in ranges::RANGES {
            if let Some(problem) = values[key]
                .as_u64()
                .and_then(|own| ranges::problem(key, own))
            {
                return invalid(key, &problem);
            }
        }
        for (memory, what) in [
            (
                self.unread_batch_memory(self.batch_limit_bytes),
                "a batch of `batch_limit_bytes` that leads to `batch_event_bytes`",
            ),
            (
                self.command_memory(self.body_limit_bytes),
                "a command of `body_limit_bytes` whose subject has `metadata_limit_bytes` and `message_limit_bytes`",
            ),
        ] {
            // A school that is alone may hold half of it.
            let least = memory.saturating_mul(2);
            if self.write_memory_bytes < least {
                let problem = format!("is below {least}: {what} would never find room");
                return invalid("write_memory_bytes", &problem);
            }
        }
        Ok(())
    }
}

/// The settings of `figment`, with those of the environment above them.
fn merged(figment: &Figment) -> Figment {
    let mut environment = Env::prefixed("TIDINGS_").ignore(NOT_SETTINGS);
    let mut read = Dict::new();
    // In the environment a table, or a list of them, is JSON to most people.
    for name in ["notifiers", "jwt_roles"] {
        let Ok(text) = std::env::var(format!("TIDINGS_{}", name.to_uppercase())) else {
            continue;
        };
        let is_empty = text.trim().is_empty();
        let json = serde_json::from_str::<serde_json::Value>(&text).ok();
        let value = json.and_then(|json| Value::serialize(json).ok());
        if is_empty || value.is_some() {
            environment = environment.ignore(&[name]);
        }
        read.extend(value.map(|value| (name.to_owned(), value)));
    }
    for name in TEXTS {
        let Ok(text) = std::env::var(format!("TIDINGS_{}", name.to_uppercase())) else {
            continue;
        };
        if let Ok(Value::Num(..) | Value::Bool(..)) = text.parse() {
            environment = environment.ignore(&[name]);
            read.insert((*name).to_owned(), text.into());
        }
    }
    Figment::from(Serialized::defaults(Settings::default()))
        .merge(figment.focus("tidings"))
        .merge(FromEnvironment(read))
        .merge(environment)
}

/// Settings whose variables are read here and not by figment. Errors name them like any other variable.
struct FromEnvironment(Dict);

impl Provider for FromEnvironment {
    fn metadata(&self) -> Metadata {
        Env::prefixed("TIDINGS_").metadata()
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        // As that of figment's own: above what a file says, whatever the profile.
        Ok(Profile::Global.collect(self.0.clone()))
    }
}

/// Whether this is the scheme of a URL (RFC 3986, 3.1), and not the beginning of a path. One letter is a drive.
fn is_scheme(text: &str) -> bool {
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.len() > 1
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(is_of_scheme)
}

/// Whether this is a token (RFC 6265, 4.1.1).
fn is_cookie_name(name: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_of_token)
}

/// Reads a list, or its only item: in the environment one value needs no brackets.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of texts, as in `[\"…\"]`, or one text")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(text.into_deserializer()).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}
