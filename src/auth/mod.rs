//! Authorization: verifies JSON Web Tokens and returns [`Access`]. Upholds invariant 7.
//!
//! A token names one school or several, a role and, optionally, the channels to which it is limited. A *ticket* is a
//! short-lived token that the server issues for `EventSource`, which cannot send a header. It is signed with a key that is
//! derived for tickets alone, so a ticket is never accepted as a token, nor a token as a ticket. The HTTP layer finds the
//! credential in a request.
//!
//! Tokens are verified with one source of keys: the secret, one public key, or a file of public keys. `token.rs` verifies
//! signatures, `claims.rs` interprets claims, `jwks.rs` reloads the file of keys, `cache.rs` caches verified tokens.
//! `links.rs` signs links, which show one scope to anyone who has them.

mod cache;
mod claims;
mod jwks;
mod links;
mod token;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use self::cache::VerifiedTokens;
use self::claims::ClaimRules;
pub use self::claims::Claims;
use self::jwks::JwksFile;
pub use self::links::{Link, View};
pub use self::token::TokenError;
use self::token::{KeySet, VerifyingKey, verified};
pub use crate::config::Role;
use crate::config::{JWKS_PERIOD, SECRET_MIN_BYTES, Secret, Settings, make_private_folder};
use crate::id::{Channel, Cursor, Epoch, SchoolId};
use crate::kind;

/// Why a credential is rejected. The texts are safe to show and to log: they name the check that failed and contain no
/// value of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credential was given.
    #[error("a token is required: `Authorization: Bearer <token>`, `?token=` or the cookie")]
    Missing,
    /// The token is not valid.
    #[error("the token is not valid: {0}")]
    Invalid(#[from] TokenError),
    /// The token has expired.
    #[error("the token has expired: `exp` was {ago_secs} s ago")]
    Expired {
        /// How long ago, in whole seconds.
        ago_secs: u64,
    },
    /// The ticket is not valid.
    #[error("the ticket is not valid: {0}")]
    InvalidTicket(TokenError),
    /// The ticket has expired.
    #[error(
        "the ticket has expired: a ticket can open streams only for a short time; request a new one"
    )]
    ExpiredTicket,
    /// The signature of a link does not match its URL.
    #[error(
        "the link is not valid: its signature does not match this URL, or the server's secret has changed"
    )]
    InvalidLink,
    /// The link has expired.
    #[error("the link has expired: ask the person who shared it for a new one")]
    ExpiredLink,
    /// The token is valid, but its role is not sufficient.
    #[error("the token does not allow this: its role is {has}, and {needed} is required", has = .has.name(), needed = .needed.name())]
    Role {
        /// The token's role.
        has: Role,
        /// The lowest role that is sufficient.
        needed: Role,
    },
    /// The token is valid, but limited to other channels. The text omits the subject's id, which can be any text, because
    /// this text is logged.
    #[error("the token does not allow this: its `channels` do not cover the requested {}", collection(.0))]
    Channel(Channel),
    /// Only an unrestricted admin is allowed to do this.
    #[error(
        "the token does not allow this: role admin for all schools and all channels is required"
    )]
    NotUnrestricted,
    /// The token covers several schools, and the request names none of them.
    #[error(
        "this token covers several schools: name one with `?school_id=`, or with `school_id` in a line of a batch"
    )]
    SchoolRequired,
    /// The credential does not cover the school, which is reported as not found.
    #[error("not found")]
    NotFound,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be read or written.
    #[error("setting `{setting}`: {path}: {source}")]
    File {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// No server was ever started with this data directory, so it holds no secret.
    #[error(
        "there is no server secret at {path}: run this in the server's working directory, or name the server's data directory with --data-dir \
         or `data_dir` (TIDINGS_DATA_DIR), or its secret with `jwt_secret` (TIDINGS_JWT_SECRET); `tidings serve` creates a secret at its first start"
    )]
    NoSecret {
        /// Where the secret would be.
        path: String,
    },
    /// The file does not hold a key for the configured algorithm.
    #[error("setting `jwt_public_key_file`: {path} holds no public key for {algorithm}")]
    NotAKey {
        /// The file.
        path: String,
        /// The configured algorithm.
        algorithm: &'static str,
    },
    /// The file does not hold a key set, or none of its keys is usable.
    #[error("setting `jwt_jwks_file`: {path} {problem}")]
    NotAKeySet {
        /// The file.
        path: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// Only public keys are configured, so tokens are issued elsewhere.
    #[error(
        "tokens are verified with public keys (`jwt_public_key_file` or `jwt_jwks_file`), so this server cannot issue any"
    )]
    VerifyOnly,
    /// No token can have this role: `jwt_roles` maps the role's own name to another role, and maps no name to this role.
    #[error("setting `jwt_roles` maps no name to role {}, so no token can have this role", .0.name())]
    NoName(Role),
    /// The server would reject the token.
    #[error("the token would be valid for too long: `max_token_secs` allows at most {0} s")]
    TooLong(u64),
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

impl KeyError {
    /// Returns the setting at fault, if one is.
    pub(crate) fn setting(&self) -> Option<&'static str> {
        match self {
            KeyError::File { setting, .. } => Some(setting),
            KeyError::NotAKey { .. } => Some("jwt_public_key_file"),
            KeyError::NotAKeySet { .. } => Some("jwt_jwks_file"),
            KeyError::NoName(_) => Some("jwt_roles"),
            KeyError::NoSecret { .. }
            | KeyError::VerifyOnly
            | KeyError::Sign(_)
            | KeyError::TooLong(_) => None,
        }
    }
}

/// The schools that a credential covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schools {
    /// One school. Requests need not name it.
    One(SchoolId),
    /// Several schools, in order. Each request names one of them.
    Listed(Arc<[SchoolId]>),
    /// All schools. Each request names one.
    All,
}

/// What a credential allows.
#[derive(Debug, Clone)]
pub struct Access {
    /// The user, for logs and limits.
    pub subject: Arc<str>,
    /// The schools.
    pub schools: Schools,
    /// The role.
    pub role: Role,
    /// The channels to which the credential is limited, if it is limited.
    pub channels: Option<Arc<[Channel]>>,
    /// When the credential expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when the credential can be used to reconnect. Only tickets have this limit; other credentials can be used
    /// until they expire.
    pub reconnects_until: Option<DateTime<Utc>>,
}

impl Access {
    /// Returns the school of a request. Reports a school that the credential does not cover as not found.
    pub fn school(&self, named: Option<SchoolId>) -> Result<SchoolId, AuthError> {
        let named = match (&self.schools, named) {
            (Schools::One(school), None) => return Ok(*school),
            (_, None) => return Err(AuthError::SchoolRequired),
            (_, Some(named)) => named,
        };
        let covers = match &self.schools {
            Schools::One(school) => *school == named,
            Schools::Listed(listed) => listed.contains(&named),
            Schools::All => true,
        };
        covers.then_some(named).ok_or(AuthError::NotFound)
    }

    /// Checks that the role is sufficient.
    pub fn require(&self, needed: Role) -> Result<(), AuthError> {
        let has = self.role;
        match has >= needed {
            true => Ok(()),
            false => Err(AuthError::Role { has, needed }),
        }
    }

    /// Whether this is an unrestricted admin: role admin for all schools and all channels, for operators of the server.
    pub fn is_unrestricted_admin(&self) -> bool {
        self.schools == Schools::All && self.channels.is_none() && self.role >= Role::Admin
    }

    /// Checks that the credential covers a channel of `school`.
    pub fn authorize(&self, school: SchoolId, channel: &Channel) -> Result<(), AuthError> {
        if matches!(channel, Channel::School(other) if *other != school) {
            return Err(AuthError::NotFound);
        }
        let Some(allowed) = &self.channels else {
            return Ok(());
        };
        // A credential that is limited to channels of another school covers nothing here.
        let of_school =
            |channel: &&Channel| !matches!(channel, Channel::School(other) if *other != school);
        if allowed
            .iter()
            .filter(of_school)
            .any(|entry| entry.covers(channel))
        {
            Ok(())
        } else {
            Err(AuthError::Channel(channel.clone()))
        }
    }
}

fn collection(channel: &Channel) -> &'static str {
    match channel {
        Channel::School(_) => "whole school",
        Channel::Collection(kind) | Channel::Subject(kind, _) => kind.collection(),
    }
}

/// The claims of a ticket.
#[derive(Serialize, Deserialize)]
struct TicketClaims {
    sub: String,
    school_id: SchoolId,
    channels: Vec<String>,
    /// Until when the ticket can open a stream.
    exp: i64,
    /// When the credential that requested the ticket expires. The streams opened with the ticket end then, too.
    session_exp: Option<i64>,
    /// The epoch of the database that the ticket is for.
    epoch: String,
}

/// A ticket for a client.
#[derive(Debug)]
pub struct Ticket {
    /// The value for `?ticket=`.
    pub ticket: Secret,
    /// Until when the ticket can open a stream.
    pub expires_at: DateTime<Utc>,
}

/// Verifies credentials and issues tickets. Also issues tokens, unless they are verified with public keys.
pub struct Keys {
    source: Source,
    rules: ClaimRules,
    verified: VerifiedTokens,
    sign: Option<EncodingKey>,
    ticket_verify: KeySet,
    ticket_sign: EncodingKey,
    link_verify: DecodingKey,
    link_sign: EncodingKey,
    ticket_ttl: TimeDelta,
    ticket_grace: TimeDelta,
    issuer: Option<String>,
    audience: Option<String>,
    secret_digest: [u8; 32],
}

/// The keys that verify tokens. There is only one source, so it is always clear who issued a token.
enum Source {
    /// The secret, or the public key.
    Fixed(Arc<KeySet>),
    /// The public keys in a file.
    File(JwksFile),
}

/// The keys that exist, before a secret is generated.
pub struct FoundKeys {
    secret: Option<Secret>,
    public: Option<Source>,
}

impl FoundKeys {
    /// Returns all keys. Generates and stores a secret if there is none.
    pub fn complete(self, settings: &Settings) -> Result<Keys, KeyError> {
        let secret = match self.secret {
            Some(secret) => secret,
            None => create_secret(&settings.data_dir)?,
        };
        Ok(Keys::new(settings, &secret, self.public))
    }
}

/// The file in the data directory with the generated secret, for a server without a configured key.
const SECRET_FILE: &str = "jwt_secret";

impl Keys {
    /// Returns the keys of a server that has been started before. Never generates a secret: no server would accept tokens that
    /// were signed with it.
    pub fn of_server(settings: &Settings) -> Result<Keys, KeyError> {
        if settings.jwt_jwks_file.is_some() || settings.jwt_public_key_file.is_some() {
            return Err(KeyError::VerifyOnly);
        }
        let path = Keys::kept_secret(settings);
        if settings.jwt_secret.is_none() && !path.exists() {
            let path = std::path::absolute(&path).unwrap_or(path);
            let path = path.display().to_string();
            return Err(KeyError::NoSecret { path });
        }
        Keys::from_settings(settings)
    }

    /// Returns the path of the file for the generated secret.
    pub fn kept_secret(settings: &Settings) -> PathBuf {
        settings.data_dir.join(SECRET_FILE)
    }

    /// Returns the keys for these settings. Generates and stores a secret if none is configured.
    pub fn from_settings(settings: &Settings) -> Result<Keys, KeyError> {
        Keys::find(settings)?.complete(settings)
    }

    /// Reads the keys for these settings, and changes nothing: a start that fails must not leave behind a secret, which would look
    /// as if there had been a database.
    pub fn find(settings: &Settings) -> Result<FoundKeys, KeyError> {
        let secret = match &settings.jwt_secret {
            Some(secret) => Some(secret.clone()),
            None => read_secret(&settings.data_dir.join(SECRET_FILE))?,
        };
        let public = match (&settings.jwt_jwks_file, &settings.jwt_public_key_file) {
            (Some(path), _) => Some(Source::File(JwksFile::open(path)?)),
            (None, Some(path)) => {
                let (algorithm, key) = public_key(path, &settings.jwt_algorithm)?;
                Some(Source::Fixed(Arc::new(single_key(algorithm, key))))
            }
            (None, None) => None,
        };
        Ok(FoundKeys { secret, public })
    }

    fn new(settings: &Settings, secret: &Secret, public: Option<Source>) -> Keys {
        let secret_digest = Sha256::new()
            .chain_update(b"tidings secret\0")
            .chain_update(secret.reveal().as_bytes())
            .finalize()
            .into();
        // If public keys are configured, the secret signs only tickets and links.
        let sign = public
            .is_none()
            .then(|| EncodingKey::from_secret(secret.reveal().as_bytes()));
        let by_secret = || {
            let key = DecodingKey::from_secret(secret.reveal().as_bytes());
            Source::Fixed(Arc::new(single_key(Algorithm::HS256, key)))
        };
        let derived = |purpose: &[u8]| -> SecretSlice<u8> {
            let digest = Sha256::new().chain_update(purpose);
            let digest = digest.chain_update(secret.reveal().as_bytes()).finalize();
            digest.to_vec().into()
        };
        let (ticket_key, link_key) = (derived(b"tidings ticket\0"), derived(b"tidings link\0"));
        let (ticket_key, link_key) = (ticket_key.expose_secret(), link_key.expose_secret());
        Keys {
            source: public.unwrap_or_else(by_secret),
            rules: ClaimRules::new(settings),
            verified: VerifiedTokens::default(),
            sign,
            ticket_verify: single_key(Algorithm::HS256, DecodingKey::from_secret(ticket_key)),
            ticket_sign: EncodingKey::from_secret(ticket_key),
            link_verify: DecodingKey::from_secret(link_key),
            link_sign: EncodingKey::from_secret(link_key),
            ticket_ttl: TimeDelta::seconds(settings.ticket_ttl_secs.get().into()),
            ticket_grace: TimeDelta::seconds(settings.ticket_grace_secs.get().into()),
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            secret_digest,
        }
    }

    /// Returns what a token allows.
    pub fn verify(&self, token: &str) -> Result<Access, AuthError> {
        let keys = match &self.source {
            Source::Fixed(keys) => Arc::clone(keys),
            Source::File(file) => file.keys(),
        };
        let now = Utc::now();
        let verify = || self.rules.read(&verified(token, &keys)?, now);
        self.verified.access(token, &keys, now, verify)
    }

    /// Returns what a ticket allows: to watch the channels that it was issued for.
    ///
    /// An `EventSource` reconnects with the same URL, and gives up if it is rejected. An expired ticket is therefore accepted
    /// for a while longer if the client presents a cursor of this server, which shows that it was connected before.
    pub fn verify_ticket(&self, ticket: &str, cursor: Option<Cursor>) -> Result<Access, AuthError> {
        let invalid = AuthError::InvalidTicket;
        let claims = verified(ticket, &self.ticket_verify).map_err(invalid)?;
        let claims = serde_json::from_value::<TicketClaims>(claims);
        let claims = claims.map_err(|_| invalid(TokenError::Payload))?;
        let session_end = claims.session_exp.and_then(DateTime::from_timestamp_millis);
        let is_own_cursor = cursor.is_some_and(|cursor| cursor.epoch.to_string() == claims.epoch);
        let now = Utc::now();
        let reconnects_until = DateTime::from_timestamp(claims.exp, 0)
            .map(|end| end + self.ticket_grace)
            .map(|end| session_end.map_or(end, |session| session.min(end)));
        let is_returning = is_own_cursor && reconnects_until.is_some_and(|until| now <= until);
        // The claim is in whole seconds, so the token can have ended first.
        let has_token_ended = session_end.is_some_and(|end| end <= now);
        if has_token_ended || (claims.exp < now.timestamp() && !is_returning) {
            return Err(AuthError::ExpiredTicket);
        }
        let channels = claims.channels.iter().map(|text| kind::channel(text));
        let channels = channels.collect::<Result<Arc<[Channel]>, _>>();
        Ok(Access {
            subject: claims.sub.into(),
            schools: Schools::One(claims.school_id),
            role: Role::Viewer,
            channels: Some(channels.map_err(|_| invalid(TokenError::Payload))?),
            expires_at: session_end,
            reconnects_until,
        })
    }

    /// Returns a digest of the secret. Nodes compare the digests to compare their secrets without revealing them.
    pub fn secret_digest(&self) -> [u8; 32] {
        self.secret_digest
    }

    /// Whether there is a file for [`Keys::watch`] to watch.
    pub fn is_watched(&self) -> bool {
        matches!(self.source, Source::File(_))
    }

    /// Reloads the keys whenever the file changes. Runs until the future is dropped.
    pub async fn watch(self: Arc<Keys>) {
        let mut rounds = interval(JWKS_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.is_watched() {
            rounds.tick().await;
            let keys = Arc::clone(&self);
            // The file may be on a slow disk: the read must not block other tasks.
            let read = tokio::task::spawn_blocking(move || {
                if let Source::File(file) = &keys.source {
                    file.reread();
                }
            });
            if let Err(error) = read.await {
                tracing::error!(%error, "`jwt_jwks_file` could not be checked for changes");
            }
        }
    }

    /// Returns a ticket for `channels`. The caller must have checked that `access` covers them.
    pub fn ticket(
        &self,
        access: &Access,
        school: SchoolId,
        channels: &[Channel],
        (epoch, now): (Epoch, DateTime<Utc>),
    ) -> Result<Ticket, KeyError> {
        let mut expires_at = now + self.ticket_ttl;
        if let Some(end) = access.expires_at {
            expires_at = expires_at.min(end);
        }
        // The ticket's claims have whole seconds, so report whole seconds.
        let expires_at = expires_at.trunc_subsecs(0);
        let claims = TicketClaims {
            sub: access.subject.to_string(),
            school_id: school,
            channels: channels.iter().map(Channel::to_string).collect(),
            exp: expires_at.timestamp(),
            session_exp: access.expires_at.map(|end| end.timestamp_millis()),
            epoch: epoch.to_string(),
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.ticket_sign)
            .map_err(KeyError::Sign)?;
        let ticket = ticket.into();
        Ok(Ticket { ticket, expires_at })
    }

    /// Issues a token with the configured issuer and audience, and with the configured names of claims and roles.
    pub fn mint(&self, mut claims: Claims) -> Result<Secret, KeyError> {
        let key = self.sign.as_ref().ok_or(KeyError::VerifyOnly)?;
        if self.rules.is_too_long(claims.exp, Utc::now()) {
            return Err(KeyError::TooLong(self.rules.max_token_secs));
        }
        claims.iss = self.issuer.clone();
        claims.aud = self.audience.clone();
        let no_name = KeyError::NoName(claims.role);
        let claims = self.rules.written(&claims).ok_or(no_name)?;
        let token = jsonwebtoken::encode(&Header::default(), &claims, key);
        token.map(Secret::from).map_err(KeyError::Sign)
    }
}

/// Returns a key set with one key for one algorithm.
fn single_key(algorithm: Algorithm, key: DecodingKey) -> KeySet {
    KeySet(vec![VerifyingKey {
        kid: None,
        algorithms: vec![algorithm],
        key,
    }])
}

/// Reads the public key in a PEM file.
fn public_key(path: &Path, algorithm: &str) -> Result<(Algorithm, DecodingKey), KeyError> {
    let setting = "jwt_public_key_file";
    let pem = std::fs::read(path).map_err(|source| file_error(setting, path, source))?;
    let (name, algorithm, key) = match algorithm {
        "ES256" => ("ES256", Algorithm::ES256, DecodingKey::from_ec_pem(&pem)),
        "EdDSA" => ("EdDSA", Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
        _ => ("RS256", Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
    };
    let not_a_key = |_| KeyError::NotAKey {
        path: path.display().to_string(),
        algorithm: name,
    };
    Ok((algorithm, key.map_err(not_a_key)?))
}

fn file_error(setting: &'static str, path: &Path, source: std::io::Error) -> KeyError {
    KeyError::File {
        setting,
        path: path.display().to_string(),
        source,
    }
}

/// Returns a new secret: 32 random bytes in hexadecimal digits.
fn generated_secret() -> Secret {
    let mut random = Zeroizing::new([0_u8; 32]);
    getrandom::fill(&mut *random).expect("the operating system provides random numbers");
    // Allocate the full capacity first: if the text were reallocated, it would leave a copy of the secret in memory.
    let mut text = String::with_capacity(random.len() * 2);
    for byte in random.iter() {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text.into()
}

/// Reads a stored secret, if there is one.
fn read_secret(path: &Path) -> Result<Option<Secret>, KeyError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("data_dir", path, error)),
    };
    let secret = Secret::from(text.trim());
    if secret.reveal().len() < SECRET_MIN_BYTES {
        let short = std::io::Error::other(format!("holds fewer than {SECRET_MIN_BYTES} bytes"));
        return Err(file_error("data_dir", path, short));
    }
    Ok(Some(secret))
}

/// Generates a secret and stores it in the data directory, with mode 0600. Returns the stored one, which is that of another
/// process if both started at once.
fn create_secret(data_dir: &Path) -> Result<Secret, KeyError> {
    let path = data_dir.join(SECRET_FILE);
    make_private_folder(data_dir).map_err(|source| file_error("data_dir", data_dir, source))?;
    let secret = generated_secret();

    // Write the secret under another name and link it into place. If two processes start at once, one wins, and both read
    // the winner's secret. A crash leaves no partial secret.
    let draft = data_dir.join(format!("{SECRET_FILE}.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || -> std::io::Result<()> {
        let mut file = options.open(&draft)?;
        std::io::Write::write_all(&mut file, secret.reveal().as_bytes())?;
        file.sync_all()?;
        match std::fs::hard_link(&draft, &path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                std::fs::rename(&draft, &path)
            }
            _ => std::fs::remove_file(&draft),
        }
    };
    write().map_err(|source| file_error("data_dir", &path, source))?;
    read_secret(&path)?.ok_or_else(|| {
        let gone = std::io::ErrorKind::NotFound.into();
        file_error("data_dir", &path, gone)
    })
}
