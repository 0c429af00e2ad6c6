//! Every setting and every bound, named with its unit.
//!
//! Settings are in `[default.tidings]` of `Rocket.toml`. The environment variable `TIDINGS_<NAME>` overrides each of
//! them. If a setting is unknown or invalid, the server does not start, and the error names the setting. Bounds that
//! nobody needs to change are constants in `bounds.rs`.

mod bounded;
mod bounds;
pub mod bus;
mod error;
mod folder;
mod login;
mod memory;
pub mod notifiers;
pub mod origin;
pub mod proxy;
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

pub use self::bounded::{Bounded, Whole};
pub(crate) use self::bounded::{MaxBlocking, Workers};
pub use self::bounds::*;
use self::bus::BusUrl;
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
use crate::kind::{self, characteristic, device, enrollment, job, schedule};

/// The maximum of settings such as retention times. Calculations with dates would overflow with much longer ones.
const CENTURY_SECS: u64 = 100 * 366 * 86_400;
/// The maximum of settings that databases store or compare as signed numbers.
const STORED_MAX: u64 = i64::MAX as u64;

/// Environment variables that begin with `TIDINGS_` but are not settings of the server. The command line and the test
/// suite use them.
const NOT_SETTINGS: &[&str] = &[
    "attempt",
    "copy_to",
    "event",
    "job",
    "job_type",
    "log",
    "message",
    "progress",
    "require_all",
    "school_id",
    "scope",
    "seed",
    "status",
    "subject",
    "timestamp",
    "title",
    "token",
    "type",
    "url",
];

/// Settings that are strings. Their environment variables are used verbatim, even if they look like a number: `0123`.
const TEXTS: &[&str] = &[
    "data_dir",
    "database_url",
    "direct_url",
    "bus_url",
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

/// Which commits must be on the disk before they are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Commits that contain a milestone. Every commit survives `kill -9`; these survive a power loss too.
    Milestone,
    /// Every commit.
    Full,
    /// No commit: a power loss may lose the last commits, `kill -9` loses none.
    Normal,
}

/// How `status` is written in messages, unless a request overrides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusCase {
    /// `in_progress`
    Lower,
    /// `IN_PROGRESS`
    Upper,
}

/// Maximum numbers of concurrent streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// On the whole server.
    pub server: usize,
    /// In a school.
    pub school: usize,
    /// Of a user in a school.
    pub user: usize,
    /// From an address.
    pub address: usize,
}

/// Where the database is.
#[derive(Debug, Clone)]
pub enum Database {
    /// A SQLite file.
    File(PathBuf),
    /// A Postgres database, by its URL.
    Postgres(Secret),
}

/// The settings, with their defaults in [`Settings::default`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder of the database and the generated secret, unless other settings override it.
    pub data_dir: PathBuf,
    /// `sqlite:<path>`, or the path alone; or `postgres://user:password@host:5432/database`. Defaults to
    /// `<data_dir>/tidings.db`.
    pub database_url: Option<Secret>,
    /// The URL of the same Postgres database without the pooler that `database_url` names, for the connection on which
    /// notifications arrive. Defaults to `database_url`.
    pub direct_url: Option<Secret>,
    /// Whether statements are prepared once per connection to Postgres. Poolers in transaction mode that do not support
    /// this need `false`.
    pub prepared_statements: bool,
    /// The server that carries messages between the nodes that share a database: `redis://…`. Its forms are described in
    /// [`bus`].
    pub bus_url: Option<Secret>,
    /// Which commits must be on the disk before they are acknowledged.
    pub synchronous: Synchronous,
    /// Whether the database is checked at startup, so that a damaged one is not served.
    pub check_database: bool,
    /// Number of database connections for reading, and therefore of concurrent reads.
    pub reader_connections: Bounded<u32, 1, READER_CONNECTIONS_MAX>,
    /// How long the reads of a request may take, in milliseconds. After this time, a search returns what it has found,
    /// and a request that is still waiting for its turn is rejected.
    pub read_timeout_ms: Bounded<u64, 1, READ_TIMEOUT_MAX_MS>,
    /// Maximum number of rows that a request may scan for matching ones.
    pub read_rows_max: Bounded<u64, 1>,
    /// Maximum number of requests, over all schools, that wait for their turn to read.
    pub max_waiting_reads: Bounded<usize, 1>,
    /// Maximum number of requests about one school that wait for their turn to read.
    pub max_waiting_reads_per_school: Bounded<usize, 1>,

    /// The HS256 secret, at least 32 bytes. If absent, it is generated at the first start.
    pub jwt_secret: Option<Secret>,
    /// A PEM file with the public key that verifies tokens, instead of the secret.
    pub jwt_public_key_file: Option<PathBuf>,
    /// A JSON Web Key Set with the public keys that verify tokens, instead of the secret or the PEM file. It is reread
    /// when it changes.
    pub jwt_jwks_file: Option<PathBuf>,
    /// `HS256`, or, with a public key, `RS256`, `ES256` or `EdDSA`.
    pub jwt_algorithm: String,
    /// The `iss` that a token must have.
    pub jwt_issuer: Option<String>,
    /// The `aud` that a token must have.
    pub jwt_audience: Option<String>,
    /// The claim that holds the user: its name, or a JSON pointer to it.
    pub jwt_subject_claim: String,
    /// The claim that holds the school: its name, or a JSON pointer to it.
    pub jwt_school_claim: String,
    /// The claim that holds the role: its name, or a JSON pointer to it.
    pub jwt_role_claim: String,
    /// Maps the roles of an existing login system to Tidings' roles, as in `{school_admin = "admin"}`.
    pub jwt_roles: BTreeMap<String, Role>,
    /// The role of tokens that name none. If absent, such tokens are rejected.
    pub jwt_default_role: Option<Role>,
    /// The school of tokens that name none. If absent, such tokens are rejected, unless their role is literally `admin`:
    /// those cover all schools.
    pub jwt_default_school_id: Option<SchoolId>,
    /// Allowed clock difference when `exp`, `nbf` and `iat` are checked, in seconds.
    pub jwt_leeway_secs: Bounded<u64, 0, 86_400>,
    /// Maximum time until a token's `exp`, in seconds. Tokens that are valid for longer are rejected.
    pub max_token_secs: Bounded<u64, 1, TOKEN_MAX_SECS>,
    /// How long a ticket can open streams, in seconds.
    pub ticket_ttl_secs: Bounded<u32, 1>,
    /// How long an expired ticket can still reconnect with a cursor, in seconds.
    pub ticket_grace_secs: Bounded<u32, 0, 86_400>,
    /// The cookie that can carry a token.
    pub cookie_name: String,
    /// Web origins, in addition to the server's own, whose pages can read answers and use a cookie.
    pub allowed_origins: AllowedOrigins,
    /// Web origins whose pages can show embedded pages in a frame.
    pub frame_ancestors: AllowedOrigins,
    /// Addresses and networks of proxies whose `X-Forwarded-*` and `X-Real-IP` headers are trusted.
    #[serde(deserialize_with = "one_or_many")]
    pub trusted_proxies: Vec<Network>,
    /// The path below which a proxy serves Tidings.
    pub base_path: Option<PathPrefix>,
    /// The school that clients without a token can watch. If absent, a token is required.
    pub anonymous_school_id: Option<SchoolId>,

    /// Maximum time between two heartbeats on a stream, in seconds.
    pub heartbeat_secs: Bounded<u64, 1, 3_600>,
    /// How long a client's machine may go without acknowledging data before its connection is closed, in seconds.
    /// Defaults to two heartbeats; 0 means never.
    pub dead_peer_timeout_secs: Option<Bounded<u64, 0, 7_200>>,
    /// How long the first request of a connection may take to arrive, in seconds; 0 means no limit.
    pub request_timeout_secs: Bounded<u64, 0, 3_600>,
    /// How long a connection may be idle after a request before it is closed, in seconds; 0 means no limit.
    pub keep_alive_timeout_secs: Bounded<u64, 0, 86_400>,
    /// How long a client may take to receive an answer, in seconds, in addition to a second for each 8 KiB; 0 means no
    /// limit.
    pub response_timeout_secs: Bounded<u64, 0, 86_400>,
    /// How long a client may be silent before the server sends a `heartbeat` message, in seconds, on endpoints that
    /// have this message.
    pub idle_heartbeat_secs: Bounded<u64, 1, 86_400>,
    /// Minimum time between two ticks of a subject on a stream, in milliseconds, unless a request overrides it.
    pub tick_ms: Bounded<u64, 0, TICK_MAX_MS>,
    /// How `status` is written in messages, unless a request overrides it.
    pub status_case: StatusCase,
    /// Maximum number of events that wait for one slow connection.
    pub mailbox_capacity: Bounded<usize, 1, MAILBOX_CAPACITY_MAX>,
    /// Number of a school's newest events that are kept in memory, for readers that are only a little behind.
    pub window_events: Bounded<usize, 1, WINDOW_EVENTS_MAX>,
    /// Maximum number of events in a replay. A longer replay is answered with a `reset`.
    pub replay_max_events: Bounded<u64, 1>,
    /// Maximum number of concurrent streams on the server.
    pub max_streams: Bounded<usize, 1>,
    /// Maximum number of concurrent streams of a school.
    pub max_streams_per_school: Bounded<usize, 1>,
    /// Maximum number of concurrent streams with tokens of one `sub` in a school. Tokens without a `sub` count as one
    /// user.
    pub max_streams_per_user: Bounded<usize, 1>,
    /// Maximum number of concurrent streams from one address (for IPv6, from one /64). A trusted proxy can report the
    /// address.
    pub max_streams_per_address: Bounded<usize, 1>,
    /// When the server stops, clients reconnect at times that are spread over this many milliseconds.
    pub reconnect_spread_ms: Bounded<u64, 0, 3_600_000>,

    /// How long events are kept, in seconds.
    pub retention_secs: Bounded<u64, 1, CENTURY_SECS>,
    /// Maximum number of events that are kept for a school.
    pub retention_events: Bounded<u64, 1, STORED_MAX>,
    /// Maximum size of the events that are kept for a school, in bytes.
    pub retention_bytes: Bounded<u64, 1, STORED_MAX>,
    /// How long finished jobs, finished enrollment sessions and acknowledged violations are kept, in seconds. They are
    /// kept at least until their events are deleted.
    pub job_retention_secs: Bounded<u64, 0, CENTURY_SECS>,
    /// How long an `Idempotency-Key` is remembered, in seconds.
    pub idempotency_ttl_secs: Bounded<u64, 0, CENTURY_SECS>,
    /// Maximum size of the answers to requests with an `Idempotency-Key` that a school keeps in addition to its events,
    /// in bytes.
    pub idempotency_answer_bytes: Bounded<u64, 0, STORED_MAX>,
    /// How long the wall clock must be stable after an adjustment before anything is deleted because of its age, in
    /// seconds of uptime.
    pub clock_settle_secs: Bounded<u64, 0, CENTURY_SECS>,

    /// Seconds of silence after which a running job is `stalled`, unless the job overrides it; 0 means never.
    pub stall_after_secs: u32,
    /// Seconds of silence after which a running job fails with `timeout`, unless the job overrides it; 0 means never.
    pub timeout_secs: u32,

    /// Seconds of silence after which an enrollment session ends with `timeout`, unless the session overrides it.
    pub enrollment_lease_secs: Bounded<u32, 1, { enrollment::LEASE_MAX_SECS as u64 }>,
    /// Seconds of silence after which a device is offline, unless the device overrides it.
    pub device_lease_secs: Bounded<u32, 1, { device::LEASE_MAX_SECS as u64 }>,

    /// Maximum size of a single command's body, in bytes.
    pub body_limit_bytes: Bounded<u64, 1, BATCH_BYTES_MAX>,
    /// Maximum size of a batch's body, in bytes.
    pub batch_limit_bytes: Bounded<u64, 1, BATCH_BYTES_MAX>,
    /// How long the body of a request that writes may take to arrive, in seconds. Memory is reserved for it meanwhile.
    pub body_timeout_secs: Bounded<u64, 1, 3_600>,
    /// Maximum number of commands in a batch.
    pub batch_limit_commands: Bounded<usize, 1>,
    /// Maximum size of the events that a batch produces or is answered with, in bytes. Later lines are rejected.
    pub batch_event_bytes: Bounded<u64, 1, BATCH_BYTES_MAX>,
    /// Rate limit and burst size of the events that a school produces, in bytes per second and bytes. Beyond it, the
    /// school's writes are rejected for a while. 0 means no limit.
    pub event_bytes_per_sec: u32,
    /// Rate limit, in bytes of events per second, at which the batches of all schools together are carried out while several
    /// schools publish. 0 means no limit.
    pub batch_bytes_per_sec: u32,
    /// Memory for the bodies, commands, events and answers of concurrent writes, in bytes. A school can hold at most as
    /// much as remains free: at most half of it if no other school writes.
    pub write_memory_bytes: u64,
    /// Maximum size of a subject's `metadata`, in bytes. An empty object has two.
    pub metadata_limit_bytes: Bounded<usize, 2>,
    /// Maximum length of `message`, in bytes.
    pub message_limit_bytes: usize,
    /// Maximum size of a WebSocket message from a client, in bytes.
    pub client_message_limit_bytes: Bounded<usize, 1>,
    /// Rate limit for messages from a WebSocket client, per second, with bursts of twice as many. 0 means no limit.
    pub client_messages_per_sec: u32,
    /// Maximum number of channels on one connection.
    pub channels_per_connection: Bounded<usize, 1>,
    /// Rate limit for commands and heartbeats, per second, with tokens of one `sub` in a school. A burst can always
    /// hold a whole batch. 0 means no limit.
    pub publishes_per_sec: u32,
    /// Rate limit for pings with one key, per second, with bursts of [`PING_BURST`]. 0 means no limit.
    pub pings_per_sec: u32,
    /// Maximum number of ping keys of a school.
    pub ping_keys_per_school: Bounded<u64, 0, PING_KEYS_MAX>,
    /// Maximum number of jobs that are kept for a school.
    pub jobs_per_school: Bounded<u64, 1>,
    /// Maximum number of enrollment sessions that are kept for a school.
    pub enrollments_per_school: Bounded<u64, 1>,
    /// Maximum number of devices of a school.
    pub devices_per_school: Bounded<u64, 1>,
    /// Maximum number of characteristics of a school.
    pub characteristics_per_school: Bounded<u64, 1>,
    /// Maximum number of schedules of a school.
    pub schedules_per_school: Bounded<u64, 1>,

    /// Notifiers, which deliver events by webhook, e-mail, MQTT, ntfy or Home Assistant.
    pub notifiers: Vec<NotifierSettings>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            data_dir: "data".into(),
            database_url: None,
            direct_url: None,
            prepared_statements: true,
            bus_url: None,
            synchronous: Synchronous::Milestone,
            check_database: true,
            reader_connections: Bounded::of::<4>(),
            read_timeout_ms: Bounded::of::<5_000>(),
            read_rows_max: Bounded::of::<200_000>(),
            max_waiting_reads: Bounded::of::<10_000>(),
            max_waiting_reads_per_school: Bounded::of::<1_000>(),
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
            jwt_leeway_secs: Bounded::of::<5>(),
            max_token_secs: Bounded::of::<315_576_000>(),
            ticket_ttl_secs: Bounded::of::<30>(),
            ticket_grace_secs: Bounded::of::<600>(),
            cookie_name: "tidings_token".into(),
            allowed_origins: AllowedOrigins::default(),
            frame_ancestors: AllowedOrigins::default(),
            trusted_proxies: Network::loopback(),
            base_path: None,
            anonymous_school_id: None,
            heartbeat_secs: Bounded::of::<15>(),
            dead_peer_timeout_secs: None,
            request_timeout_secs: Bounded::of::<60>(),
            keep_alive_timeout_secs: Bounded::of::<180>(),
            response_timeout_secs: Bounded::of::<60>(),
            idle_heartbeat_secs: Bounded::of::<30>(),
            tick_ms: Bounded::of::<100>(),
            status_case: StatusCase::Lower,
            mailbox_capacity: Bounded::of::<256>(),
            window_events: Bounded::of::<1_024>(),
            replay_max_events: Bounded::of::<1_000_000>(),
            max_streams: Bounded::of::<50_000>(),
            max_streams_per_school: Bounded::of::<20_000>(),
            max_streams_per_user: Bounded::of::<1_000>(),
            max_streams_per_address: Bounded::of::<20_000>(),
            reconnect_spread_ms: Bounded::of::<5_000>(),
            retention_secs: Bounded::of::<{ 7 * 86_400 }>(),
            retention_events: Bounded::of::<1_000_000>(),
            retention_bytes: Bounded::of::<{ 1024 * 1024 * 1024 }>(),
            job_retention_secs: Bounded::of::<{ 30 * 86_400 }>(),
            idempotency_ttl_secs: Bounded::of::<86_400>(),
            idempotency_answer_bytes: Bounded::of::<{ 16 * 1024 * 1024 }>(),
            clock_settle_secs: Bounded::of::<3_600>(),
            stall_after_secs: 60,
            timeout_secs: 86_400,
            enrollment_lease_secs: Bounded::of::<60>(),
            device_lease_secs: Bounded::of::<40>(),
            body_limit_bytes: Bounded::of::<{ 256 * 1024 }>(),
            batch_limit_bytes: Bounded::of::<{ 16 * 1024 * 1024 }>(),
            body_timeout_secs: Bounded::of::<60>(),
            batch_limit_commands: Bounded::of::<10_000>(),
            batch_event_bytes: Bounded::of::<{ 16 * 1024 * 1024 }>(),
            event_bytes_per_sec: 16 * 1024 * 1024,
            batch_bytes_per_sec: 32 * 1024 * 1024,
            write_memory_bytes: 256 * 1024 * 1024,
            metadata_limit_bytes: Bounded::of::<{ 16 * 1024 }>(),
            message_limit_bytes: 4 * 1024,
            client_message_limit_bytes: Bounded::of::<{ 16 * 1024 }>(),
            client_messages_per_sec: 100,
            channels_per_connection: Bounded::of::<100>(),
            publishes_per_sec: 20_000,
            pings_per_sec: 10,
            ping_keys_per_school: Bounded::of::<1_000>(),
            jobs_per_school: Bounded::of::<10_000_000>(),
            enrollments_per_school: Bounded::of::<10_000_000>(),
            devices_per_school: Bounded::of::<100_000>(),
            characteristics_per_school: Bounded::of::<10_000>(),
            schedules_per_school: Bounded::of::<1_000>(),
            notifiers: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the table `tidings` of `figment`, which is Rocket's own. Environment variables `TIDINGS_*` override it.
    pub fn from_figment(figment: &Figment) -> Result<Settings, ConfigError> {
        if figment
            .find_value("tidings")
            .is_ok_and(|table| table.as_dict().is_none())
        {
            return Err(ConfigError::Unreadable(
                "setting `tidings` must be a table, such as `[default.tidings]`".into(),
            ));
        }
        let merged = merged(figment);
        let settings: Settings = merged
            .extract()
            .map_err(|error| ConfigError::read(&error, &merged))?;
        settings.check().map_err(|error| error.found_in(&merged))?;
        Ok(settings)
    }

    /// Describes a setting: its name and where it is set, which is a variable or a file.
    pub(crate) fn place(figment: &Figment, key: &str) -> String {
        place(merged(figment).find_metadata(key), &[key])
    }

    /// Returns the name of the setting that determines where the database is.
    pub(crate) fn of_database(figment: &Figment) -> &'static str {
        let url = merged(figment).extract_inner::<String>("database_url");
        if url.is_ok() {
            "database_url"
        } else {
            "data_dir"
        }
    }

    /// Returns where the database is.
    pub fn database(&self) -> Result<Database, ConfigError> {
        let Some(database_url) = &self.database_url else {
            return Ok(Database::File(self.data_dir.join("tidings.db")));
        };
        let url = database_url.reveal();
        let invalid = |problem: &str| {
            Err(ConfigError::Invalid {
                key: "database_url",
                problem: problem.into(),
            })
        };
        let path = match url.split_once(':') {
            // `sqlite:///a/b` is `/a/b`; `sqlite://a/b` and `sqlite:a/b` are both relative.
            Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
            Some(("postgres" | "postgresql", _)) => {
                return Ok(Database::Postgres(database_url.clone()));
            }
            Some((scheme, _)) if is_scheme(scheme) => {
                return invalid(
                    "names neither a SQLite nor a Postgres database; write `sqlite:<path>`, the path alone, or `postgres://user:password@host:5432/database`",
                );
            }
            _ => url,
        };
        let path: &str = path;
        match path {
            "" => invalid("has no path; write `sqlite:<path>`, or the path alone"),
            // SQLite does not treat these as paths of files.
            _ if path == ":memory:" || path.starts_with("file:") => {
                invalid("is not the path of a file; write `sqlite:<path>`, or the path alone")
            }
            path => Ok(Database::File(path.into())),
        }
    }

    /// Returns the server that carries messages between nodes, if one is set.
    pub fn bus(&self) -> Result<Option<BusUrl>, ConfigError> {
        let Some(url) = &self.bus_url else {
            return Ok(None);
        };
        let url = BusUrl::parse(url.reveal()).map_err(|problem| ConfigError::Invalid {
            key: "bus_url",
            problem,
        })?;
        Ok(Some(url))
    }

    /// Returns the bounds that the rules of the kinds enforce.
    pub fn limits(&self) -> kind::Limits {
        kind::Limits {
            message_bytes: self.message_limit_bytes,
            metadata_bytes: self.metadata_limit_bytes.get(),
            stall_after_secs: self.stall_after_secs,
            timeout_secs: self.timeout_secs,
            enrollment_lease_secs: self.enrollment_lease_secs.get(),
            device_lease_secs: self.device_lease_secs.get(),
        }
    }

    /// Returns the maximum size of a single command's body, in bytes, and the name of the setting.
    pub fn body_limit(&self) -> (u64, &'static str) {
        (self.body_limit_bytes.get(), "body_limit_bytes")
    }

    /// Returns the maximum number of subjects of each kind in a school, and the name of the setting. Kinds without a
    /// setting have [`SUBJECTS_PER_SCHOOL`].
    pub fn max_subjects(&self) -> Vec<(Kind, u64, Option<&'static str>)> {
        let settings = [
            (job::KIND, self.jobs_per_school.get(), "jobs_per_school"),
            (
                enrollment::KIND,
                self.enrollments_per_school.get(),
                "enrollments_per_school",
            ),
            (
                device::KIND,
                self.devices_per_school.get(),
                "devices_per_school",
            ),
            (
                characteristic::KIND,
                self.characteristics_per_school.get(),
                "characteristics_per_school",
            ),
            (
                schedule::KIND,
                self.schedules_per_school.get(),
                "schedules_per_school",
            ),
        ];
        let limit = |kind: &Kind| {
            let setting = settings.iter().find(|(limited, ..)| limited == kind);
            setting.map_or((*kind, SUBJECTS_PER_SCHOOL, None), |(_, max, name)| {
                (*kind, *max, Some(*name))
            })
        };
        kind::KINDS.iter().map(limit).collect()
    }

    /// Returns the maximum numbers of concurrent streams.
    pub fn stream_limits(&self) -> StreamLimits {
        StreamLimits {
            server: self.max_streams.get(),
            school: self.max_streams_per_school.get(),
            user: self.max_streams_per_user.get(),
            address: self.max_streams_per_address.get(),
        }
    }

    /// Returns the time between two heartbeats.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_secs.get())
    }

    /// Returns how long a peer may go without acknowledging data before its connection is closed. `None` means no
    /// limit.
    pub fn dead_peer_timeout(&self) -> Option<Duration> {
        let secs = self
            .dead_peer_timeout_secs
            .map_or(self.heartbeat_secs.get() * 2, Bounded::get);
        (secs > 0).then(|| Duration::from_secs(secs))
    }

    /// Returns how long the first request of a connection may take to arrive. `None` means no limit.
    pub fn request_timeout(&self) -> Option<Duration> {
        let secs = self.request_timeout_secs.get();
        (secs > 0).then(|| Duration::from_secs(secs))
    }

    /// Returns how long a connection may be idle after a request. `None` means no limit.
    pub fn keep_alive_timeout(&self) -> Option<Duration> {
        let secs = self.keep_alive_timeout_secs.get();
        (secs > 0).then(|| Duration::from_secs(secs))
    }

    /// Returns how long a client may take to receive an empty answer. `None` means no limit.
    pub fn response_timeout(&self) -> Option<Duration> {
        let secs = self.response_timeout_secs.get();
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
            return invalid("jwt_secret", "must have at least 32 bytes");
        }
        if (1..BATCH_BYTES_MIN).contains(&self.batch_bytes_per_sec) {
            let problem = format!("must be 0, for no limit, or at least {BATCH_BYTES_MIN}");
            return invalid("batch_bytes_per_sec", &problem);
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
            return invalid(
                "jwt_roles",
                "has an entry without a role name; write entries such as `{school_admin = \"admin\"}`",
            );
        }
        if self.jwt_jwks_file.is_some() {
            if self.jwt_public_key_file.is_some() {
                return invalid(
                    "jwt_jwks_file",
                    "cannot be combined with `jwt_public_key_file`; set only one of them",
                );
            }
            if self.jwt_algorithm != "HS256" {
                return invalid(
                    "jwt_algorithm",
                    "cannot be combined with `jwt_jwks_file`, whose keys name their own algorithms",
                );
            }
        }
        match (self.jwt_algorithm.as_str(), &self.jwt_public_key_file) {
            ("HS256", None) | ("RS256" | "ES256" | "EdDSA", Some(_)) => {}
            ("HS256", Some(_)) => {
                return invalid(
                    "jwt_algorithm",
                    "must be RS256, ES256 or EdDSA when `jwt_public_key_file` is set",
                );
            }
            ("RS256" | "ES256" | "EdDSA", None) => {
                return invalid(
                    "jwt_public_key_file",
                    "is missing; this `jwt_algorithm` needs a file with the public key",
                );
            }
            _ => {
                return invalid(
                    "jwt_algorithm",
                    "must be one of HS256, RS256, ES256 and EdDSA",
                );
            }
        }
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "must not be empty; write the path of a folder");
        }
        if !is_cookie_name(&self.cookie_name) {
            let problem = "is not a valid cookie name; write letters, digits, `-`, `_` and `.`";
            return invalid("cookie_name", problem);
        }
        self.database()?;
        self.bus()?;
        notifiers::check(&self.notifiers)?;
        for (memory, what) in [
            (
                self.unread_batch_memory(self.batch_limit_bytes.get()),
                "a batch of `batch_limit_bytes` that produces `batch_event_bytes`",
            ),
            (
                self.command_memory(self.body_limit_bytes.get()),
                "a command of `body_limit_bytes` whose subject has `metadata_limit_bytes` and `message_limit_bytes`",
            ),
        ] {
            // A single school can hold up to half of the memory.
            let least = memory.saturating_mul(2);
            if self.write_memory_bytes < least {
                let problem = format!("must be at least {least}, so that it can hold {what}");
                return invalid("write_memory_bytes", &problem);
            }
        }
        Ok(())
    }
}

/// Returns the settings of `figment`, overridden by those of the environment.
fn merged(figment: &Figment) -> Figment {
    let mut environment = Env::prefixed("TIDINGS_").ignore(NOT_SETTINGS);
    let mut read = Dict::new();
    // Users expect a table, or a list of tables, to be JSON in an environment variable.
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

/// Settings whose environment variables are read here instead of by figment. Errors name them like other variables.
struct FromEnvironment(Dict);

impl Provider for FromEnvironment {
    fn metadata(&self) -> Metadata {
        Env::prefixed("TIDINGS_").metadata()
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        // Like figment's own environment variables, these override the file in every profile.
        Ok(Profile::Global.collect(self.0.clone()))
    }
}

/// Whether this is the scheme of a URL (RFC 3986, 3.1) rather than the beginning of a path. A single letter is a drive.
fn is_scheme(text: &str) -> bool {
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.len() > 1
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(is_of_scheme)
}

/// Whether this is a valid cookie name, which is a token (RFC 6265, 4.1.1).
fn is_cookie_name(name: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_of_token)
}

/// Reads a list, or its only item: in the environment, one value needs no brackets.
fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings, as in `[\"…\"]`, or one string")
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
