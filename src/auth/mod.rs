//! Who may: JSON Web Tokens in, [`Access`] out. Keeps invariant 7.
//!
//! A token names a school or several, a role and, if it likes, the only channels it may hear. A *ticket* is a
//! short-lived token of the server's own for `EventSource`, which cannot send a header: it is signed
//! with a key derived for tickets alone, so neither can ever pass for the other. Where in a request a
//! credential stands is the business of the HTTP layer.
//!
//! Tokens have one source: the secret, or one public key, or a file of public keys. `token.rs` verifies signatures,
//! `claims.rs` says what claims mean, `jwks.rs` keeps the file of keys.

mod claims;
mod jwks;
mod token;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use self::claims::ClaimRules;
pub use self::claims::Claims;
use self::jwks::JwksFile;
pub use self::token::TokenError;
use self::token::{KeySet, VerifyingKey, verified};
pub use crate::config::Role;
use crate::config::{JWKS_PERIOD, SECRET_MIN_BYTES, Secret, Settings, make_private_folder};
use crate::id::{Channel, Cursor, Epoch, SchoolId};
use crate::kind;

/// A credential that does not let in, or not so far. The texts are safe to show and to log: they name what failed, and
/// hold no value of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credential was given.
    #[error("a token is required: `Authorization: Bearer <token>`, `?token=` or the cookie")]
    Missing,
    /// Not a token that is accepted here.
    #[error("the token is not valid: {0}")]
    Invalid(#[from] TokenError),
    /// It was one.
    #[error("the token has expired: `exp` was {ago_secs} s ago")]
    Expired {
        /// How long ago, in whole seconds.
        ago_secs: u64,
    },
    /// Not a ticket of this server.
    #[error("the ticket is not valid: {0}")]
    InvalidTicket(TokenError),
    /// It was one.
    #[error("the ticket has expired: it opens streams for a short while only")]
    ExpiredTicket,
    /// The token is sound, but its role may not do this.
    #[error("the token does not allow this: its role is {has}, and {needed} is needed", has = .has.name(), needed = .needed.name())]
    Role {
        /// The token's.
        has: Role,
        /// The least that would do.
        needed: Role,
    },
    /// The token is sound, but limited to other channels. An id is not repeated: it may be any text, and the log has it.
    #[error("the token does not allow this: its `channels` do not cover the {} asked for", collection(.0))]
    Channel(Channel),
    /// Only who looks after the whole server may do this.
    #[error("the token does not allow this: role admin, all schools and all channels are needed")]
    NotForAll,
    /// The token reaches several schools, and the request names none.
    #[error(
        "this token reaches several schools: name one with `?school_id=`, or with `school_id` in a line of a batch"
    )]
    SchoolRequired,
    /// Another school's: reported as not found.
    #[error("not found")]
    NotFound,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be read or written.
    #[error("setting `{setting}`: {path}: {source}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A server that has never been started here has no secret yet.
    #[error(
        "there is no secret of a server at {path}: run this in the folder of the server, name the server's data folder with --data-dir \
         or `data_dir` (TIDINGS_DATA_DIR), or its secret with `jwt_secret` (TIDINGS_JWT_SECRET); `tidings serve` makes a secret at its first start"
    )]
    NoSecret {
        /// Where it would be.
        path: String,
    },
    /// A file's contents are not a key of the configured algorithm.
    #[error("setting `jwt_public_key_file`: {path} holds no public key for {algorithm}")]
    NotAKey {
        /// Which file.
        path: String,
        /// The configured algorithm.
        algorithm: &'static str,
    },
    /// A file's contents are not a set of keys, or none of them can be used.
    #[error("setting `jwt_jwks_file`: {path} {problem}")]
    NotAKeySet {
        /// Which file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Tokens are made elsewhere: only public keys are configured.
    #[error(
        "tokens are verified with public keys here (`jwt_public_key_file` or `jwt_jwks_file`), so this server cannot make any"
    )]
    VerifyOnly,
    /// The settings give the role's name another meaning, and no name to the role.
    #[error("setting `jwt_roles` leaves no name for role {}, so no token can have it", .0.name())]
    NoName(Role),
    /// The server would refuse it.
    #[error("the token would be valid for too long: setting `max_token_secs` allows {0} s")]
    TooLong(u64),
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

impl KeyError {
    /// The setting that its text names, if it is one that led to it.
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

/// The schools that a credential reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schools {
    /// This one: a request need not name it.
    One(SchoolId),
    /// These, in order; a request names one of them.
    Listed(Arc<[SchoolId]>),
    /// All; a request names one.
    All,
}

/// What a credential lets its bearer do.
#[derive(Debug, Clone)]
pub struct Access {
    /// Who, for logs.
    pub subject: String,
    /// Where.
    pub schools: Schools,
    /// How much.
    pub role: Role,
    /// The only channels that may be heard and written, if limited.
    pub channels: Option<Vec<Channel>>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until when its bearer can come back with it, if that is not as long as it lasts: that of a ticket.
    pub returns_until: Option<DateTime<Utc>>,
}

impl Access {
    /// The school that a request is about. One that is out of reach is not there.
    pub fn school(&self, named: Option<SchoolId>) -> Result<SchoolId, AuthError> {
        let named = match (&self.schools, named) {
            (Schools::One(own), None) => return Ok(*own),
            (_, None) => return Err(AuthError::SchoolRequired),
            (_, Some(named)) => named,
        };
        let reaches = match &self.schools {
            Schools::One(own) => *own == named,
            Schools::Listed(listed) => listed.contains(&named),
            Schools::All => true,
        };
        reaches.then_some(named).ok_or(AuthError::NotFound)
    }

    /// Checks that the role suffices.
    pub fn require(&self, needed: Role) -> Result<(), AuthError> {
        let has = self.role;
        match has >= needed {
            true => Ok(()),
            false => Err(AuthError::Role { has, needed }),
        }
    }

    /// Whether it is that of an administrator of all schools, of whom nothing is kept: he looks after the server.
    pub fn looks_after_all(&self) -> bool {
        self.schools == Schools::All && self.channels.is_none() && self.role >= Role::Admin
    }

    /// Checks that a channel of `school` is within reach.
    pub fn reach(&self, school: SchoolId, channel: &Channel) -> Result<(), AuthError> {
        if matches!(channel, Channel::School(other) if *other != school) {
            return Err(AuthError::NotFound);
        }
        let Some(allowed) = &self.channels else {
            return Ok(());
        };
        // A limit to another school's channels allows nothing here.
        let own =
            |channel: &&Channel| !matches!(channel, Channel::School(other) if *other != school);
        if allowed.iter().filter(own).any(|own| own.covers(channel)) {
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

/// A ticket's claims.
#[derive(Serialize, Deserialize)]
struct TicketClaims {
    sub: String,
    school_id: SchoolId,
    channels: Vec<String>,
    /// The last moment to open a stream with it.
    exp: i64,
    /// The end of the token that it was made with, and so of the streams opened with it.
    session_exp: Option<i64>,
    /// The life of the database that it is for.
    epoch: String,
}

/// A ticket, as handed out.
#[derive(Debug)]
pub struct Ticket {
    /// For `?ticket=`.
    pub ticket: Secret,
    /// The last moment to open a stream with it.
    pub expires_at: DateTime<Utc>,
}

/// Verifies credentials and makes tickets; makes tokens too where it holds the secret.
pub struct Keys {
    source: Source,
    rules: ClaimRules,
    sign: Option<EncodingKey>,
    ticket_verify: KeySet,
    ticket_sign: EncodingKey,
    ticket_ttl: TimeDelta,
    ticket_grace: TimeDelta,
    issuer: Option<String>,
    audience: Option<String>,
}

/// What tokens are verified with. There is one, so that a token can be traced to who made it.
enum Source {
    /// The secret, or the public key.
    Fixed(Arc<KeySet>),
    /// The public keys in a file.
    File(JwksFile),
}

/// The file in the data directory that keeps a secret which nobody configured.
const SECRET_FILE: &str = "jwt_secret";

impl Keys {
    /// The keys of a server that has been started before. Makes no secret: one that no server has signs nothing that any accepts.
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

    /// Where a server keeps the secret that it made.
    pub fn kept_secret(settings: &Settings) -> PathBuf {
        settings.data_dir.join(SECRET_FILE)
    }

    /// The keys that the settings name; makes and keeps a secret if they name none.
    pub fn from_settings(settings: &Settings) -> Result<Keys, KeyError> {
        let secret = match &settings.jwt_secret {
            Some(secret) => secret.clone(),
            None => kept_secret(&settings.data_dir)?,
        };
        let public = match (&settings.jwt_jwks_file, &settings.jwt_public_key_file) {
            (Some(path), _) => Some(Source::File(JwksFile::open(path)?)),
            (None, Some(path)) => {
                let (algorithm, key) = public_key(path, &settings.jwt_algorithm)?;
                Some(Source::Fixed(Arc::new(only(algorithm, key))))
            }
            (None, None) => None,
        };
        // The secret is for tickets alone where there are public keys.
        let sign = public
            .is_none()
            .then(|| EncodingKey::from_secret(secret.reveal().as_bytes()));
        let by_secret = || {
            let key = DecodingKey::from_secret(secret.reveal().as_bytes());
            Source::Fixed(Arc::new(only(Algorithm::HS256, key)))
        };
        let ticket_key: SecretSlice<u8> = Sha256::new()
            .chain_update(b"tidings ticket\0")
            .chain_update(secret.reveal().as_bytes())
            .finalize()
            .to_vec()
            .into();
        let ticket_key = ticket_key.expose_secret();
        Ok(Keys {
            source: public.unwrap_or_else(by_secret),
            rules: ClaimRules::new(settings),
            sign,
            ticket_verify: only(Algorithm::HS256, DecodingKey::from_secret(ticket_key)),
            ticket_sign: EncodingKey::from_secret(ticket_key),
            ticket_ttl: TimeDelta::seconds(settings.ticket_ttl_secs.into()),
            ticket_grace: TimeDelta::seconds(settings.ticket_grace_secs.into()),
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
        })
    }

    /// What a token lets its bearer do.
    pub fn verify(&self, token: &str) -> Result<Access, AuthError> {
        let keys = match &self.source {
            Source::Fixed(keys) => Arc::clone(keys),
            Source::File(file) => file.keys(),
        };
        self.rules.read(&verified(token, &keys)?, Utc::now())
    }

    /// What a ticket lets its bearer do: watch the channels that it was made for.
    ///
    /// An `EventSource` reconnects with the same URL, and ends for good if that is refused. So a ticket that has expired is
    /// good for a while longer, together with a cursor: that of somebody who has been here.
    pub fn verify_ticket(&self, ticket: &str, cursor: Option<Cursor>) -> Result<Access, AuthError> {
        let invalid = AuthError::InvalidTicket;
        let claims = verified(ticket, &self.ticket_verify).map_err(invalid)?;
        let claims = serde_json::from_value::<TicketClaims>(claims);
        let claims = claims.map_err(|_| invalid(TokenError::Payload))?;
        let session_end = claims.session_exp.and_then(DateTime::from_timestamp_millis);
        let is_of_ours = cursor.is_some_and(|cursor| cursor.epoch.to_string() == claims.epoch);
        let now = Utc::now();
        let returns_until = DateTime::from_timestamp(claims.exp, 0)
            .map(|end| end + self.ticket_grace)
            .map(|end| session_end.map_or(end, |session| session.min(end)));
        let is_returning = is_of_ours && returns_until.is_some_and(|until| now <= until);
        if claims.exp < now.timestamp() && !is_returning {
            return Err(AuthError::ExpiredTicket);
        }
        let channels = claims.channels.iter().map(|text| kind::channel(text));
        let channels = channels.collect::<Result<Vec<Channel>, _>>();
        Ok(Access {
            subject: claims.sub,
            schools: Schools::One(claims.school_id),
            role: Role::Viewer,
            channels: Some(channels.map_err(|_| invalid(TokenError::Payload))?),
            expires_at: session_end,
            returns_until,
        })
    }

    /// Whether [`Keys::watch`] has anything to watch.
    pub fn is_watched(&self) -> bool {
        matches!(self.source, Source::File(_))
    }

    /// Takes over the keys in the file whenever it changes, until it is dropped.
    pub async fn watch(self: Arc<Keys>) {
        let mut rounds = interval(JWKS_PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.is_watched() {
            rounds.tick().await;
            let keys = Arc::clone(&self);
            // A file may lie on a disk that is slow to answer: nobody else is to wait for it.
            let read = tokio::task::spawn_blocking(move || {
                if let Source::File(file) = &keys.source {
                    file.reread();
                }
            });
            if let Err(error) = read.await {
                tracing::error!(%error, "`jwt_jwks_file` could not be looked at");
            }
        }
    }

    /// A ticket for `channels`, which the bearer of `access` must be allowed to hear.
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
        // What is promised is what the ticket says, in whole seconds.
        let expires_at = expires_at.trunc_subsecs(0);
        let claims = TicketClaims {
            sub: access.subject.clone(),
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

    /// Makes a token, with the configured issuer and audience, and claims and roles named as they are read here.
    pub fn mint(&self, mut claims: Claims) -> Result<String, KeyError> {
        let key = self.sign.as_ref().ok_or(KeyError::VerifyOnly)?;
        if self.rules.is_too_long(claims.exp, Utc::now()) {
            return Err(KeyError::TooLong(self.rules.max_token_secs));
        }
        claims.iss = self.issuer.clone();
        claims.aud = self.audience.clone();
        let no_name = KeyError::NoName(claims.role);
        let claims = self.rules.written(&claims).ok_or(no_name)?;
        jsonwebtoken::encode(&Header::default(), &claims, key).map_err(KeyError::Sign)
    }
}

/// The one key that there is, for one algorithm.
fn only(algorithm: Algorithm, key: DecodingKey) -> KeySet {
    KeySet(vec![VerifyingKey {
        kid: None,
        algorithms: vec![algorithm],
        key,
    }])
}

/// The public key in a PEM file.
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

/// The secret kept in the data directory, made there with mode 0600 at the first start.
fn kept_secret(data_dir: &Path) -> Result<Secret, KeyError> {
    let path = data_dir.join(SECRET_FILE);
    let read = || std::fs::read_to_string(&path).map(|text| Secret::from(text.trim()));
    match read() {
        Ok(secret) if secret.reveal().len() >= SECRET_MIN_BYTES => return Ok(secret),
        Ok(_) => {
            let short = std::io::Error::other(format!("holds fewer than {SECRET_MIN_BYTES} bytes"));
            return Err(file_error("data_dir", &path, short));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("data_dir", &path, error)),
    }
    make_private_folder(data_dir).map_err(|source| file_error("data_dir", data_dir, source))?;
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).expect("the operating system gives random numbers");
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = Secret::from(secret);

    // Written whole under another name and linked into place: of two processes that start at once,
    // one wins and both read the winner's secret; a crash leaves no half-written one.
    let draft = data_dir.join(format!("{SECRET_FILE}.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || -> std::io::Result<Secret> {
        let mut file = options.open(&draft)?;
        std::io::Write::write_all(&mut file, secret.reveal().as_bytes())?;
        file.sync_all()?;
        match std::fs::hard_link(&draft, &path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                std::fs::rename(&draft, &path)?
            }
            _ => std::fs::remove_file(&draft)?,
        }
        read()
    };
    write().map_err(|source| file_error("data_dir", &path, source))
}
