//! Who may: JSON Web Tokens in, [`Access`] out. Keeps invariant 7.
//!
//! A token names a school, a role and, if it likes, the only channels it may hear. A *ticket* is a
//! short-lived token of the server's own for `EventSource`, which cannot send a header: it is signed
//! with a key derived for tickets alone, so neither can ever pass for the other. Where in a request a
//! credential stands is the business of the HTTP layer.

use std::collections::HashSet;
use std::path::Path;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Settings;
use crate::id::{Channel, SchoolId};
use crate::kind;

/// What somebody may do. Each role may do what the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Watch.
    Viewer,
    /// Report.
    Worker,
    /// Everything, and all schools if the token names none.
    Admin,
}

/// A credential that does not let in, or not so far. The texts are safe to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No credential was given.
    #[error("a token is required")]
    Missing,
    /// Not a token of ours: form, algorithm, signature, issuer, audience or claims.
    #[error("the token is not valid")]
    Invalid,
    /// It was one.
    #[error("the token has expired")]
    Expired,
    /// It is sound, but its role or channels do not reach so far.
    #[error("the token does not allow this")]
    Forbidden,
    /// The token reaches all schools, and the request names none.
    #[error("this token reaches all schools: name one with ?school_id=")]
    SchoolRequired,
    /// Another school's: as good as not there.
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
    /// A file's contents are not a key of the configured algorithm.
    #[error("setting `jwt_public_key_file`: {path} holds no public key for {algorithm}")]
    NotAKey {
        /// Which file.
        path: String,
        /// The configured algorithm.
        algorithm: &'static str,
    },
    /// Tokens are made elsewhere: only their public key is configured.
    #[error(
        "tokens are verified with a public key here (`jwt_public_key_file`), so this server cannot make any"
    )]
    VerifyOnly,
    /// Signing failed.
    #[error("the token could not be signed: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

/// What a credential lets its bearer do.
#[derive(Debug, Clone)]
pub struct Access {
    /// Who, for logs.
    pub subject: String,
    /// The one school, or nothing for all of them.
    pub school: Option<SchoolId>,
    /// How much.
    pub role: Role,
    /// The only channels that may be heard and written, if limited.
    pub channels: Option<Vec<Channel>>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Access {
    /// The school that a request is about.
    pub fn school(&self, named: Option<SchoolId>) -> Result<SchoolId, AuthError> {
        match (self.school, named) {
            (Some(own), None) => Ok(own),
            (Some(own), Some(named)) if own == named => Ok(own),
            (Some(_), Some(_)) => Err(AuthError::NotFound),
            (None, Some(named)) => Ok(named),
            (None, None) => Err(AuthError::SchoolRequired),
        }
    }

    /// Checks that the role suffices.
    pub fn require(&self, role: Role) -> Result<(), AuthError> {
        if self.role >= role {
            Ok(())
        } else {
            Err(AuthError::Forbidden)
        }
    }

    /// Whether it is that of an administrator of all schools, of whom nothing is kept: he looks after the server.
    pub fn looks_after_all(&self) -> bool {
        self.school.is_none() && self.channels.is_none() && self.role >= Role::Admin
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
            Err(AuthError::Forbidden)
        }
    }
}

/// A token's claims. `exp` and `nbf` are seconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// Who.
    #[serde(default)]
    pub sub: String,
    /// Which school; null with role `admin` for all.
    #[serde(default)]
    pub school_id: Option<SchoolId>,
    /// How much.
    pub role: Role,
    /// Only these channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// Until when. A NumericDate may have a fraction; those made here have none.
    #[serde(serialize_with = "whole")]
    pub exp: f64,
    /// Made when.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// Made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// Made for. Verified in the raw token, which may hold a list; only written here.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

fn whole<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(*seconds as i64)
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
}

/// A ticket, as handed out.
#[derive(Debug, Serialize)]
pub struct Ticket {
    /// For `?ticket=`.
    pub ticket: String,
    /// The last moment to open a stream with it.
    pub expires_at: DateTime<Utc>,
}

/// Verifies credentials and makes tickets; makes tokens too where it holds the secret.
pub struct Keys {
    verify: DecodingKey,
    validation: Validation,
    leeway: TimeDelta,
    sign: Option<EncodingKey>,
    ticket_verify: DecodingKey,
    ticket_validation: Validation,
    ticket_sign: EncodingKey,
    ticket_ttl: TimeDelta,
    issuer: Option<String>,
    audience: Option<String>,
}

/// The file in the data directory that keeps a secret which nobody configured.
const SECRET_FILE: &str = "jwt_secret";
/// HS256 wants a key at least as long as its digest (RFC 7518, 3.2).
pub const SECRET_MIN_BYTES: usize = 32;

impl Keys {
    /// The keys that the settings name; makes and keeps a secret if they name none.
    pub fn from_settings(settings: &Settings) -> Result<Keys, KeyError> {
        let secret = match &settings.jwt_secret {
            Some(secret) => secret.clone(),
            None => kept_secret(&settings.data_dir)?,
        };
        let (verify, algorithm, sign) = match &settings.jwt_public_key_file {
            None => {
                let sign = EncodingKey::from_secret(secret.as_bytes());
                (
                    DecodingKey::from_secret(secret.as_bytes()),
                    Algorithm::HS256,
                    Some(sign),
                )
            }
            Some(path) => {
                let pem = std::fs::read(path)
                    .map_err(|source| file_error("jwt_public_key_file", path, source))?;
                let (algorithm, key) = match settings.jwt_algorithm.as_str() {
                    "ES256" => (Algorithm::ES256, DecodingKey::from_ec_pem(&pem)),
                    "EdDSA" => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
                    _ => (Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
                };
                let name = match algorithm {
                    Algorithm::ES256 => "ES256",
                    Algorithm::EdDSA => "EdDSA",
                    _ => "RS256",
                };
                let not_a_key = |_| KeyError::NotAKey {
                    path: path.display().to_string(),
                    algorithm: name,
                };
                (key.map_err(not_a_key)?, algorithm, None)
            }
        };
        // One algorithm only: a public key must never be tried as an HMAC secret.
        let mut validation = Validation::new(algorithm);
        validation.leeway = settings.jwt_leeway_secs;
        validation.validate_nbf = true;
        validation.validate_aud = settings.jwt_audience.is_some();
        let mut required = vec!["exp"];
        if let Some(audience) = &settings.jwt_audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &settings.jwt_issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.required_spec_claims = required
            .into_iter()
            .map(String::from)
            .collect::<HashSet<_>>();

        let ticket_key = Sha256::new()
            .chain_update(b"tidings ticket\0")
            .chain_update(secret.as_bytes())
            .finalize();
        let mut ticket_validation = Validation::new(Algorithm::HS256);
        ticket_validation.leeway = 0;
        Ok(Keys {
            verify,
            validation,
            leeway: TimeDelta::seconds(settings.jwt_leeway_secs as i64),
            sign,
            ticket_verify: DecodingKey::from_secret(&ticket_key),
            ticket_validation,
            ticket_sign: EncodingKey::from_secret(&ticket_key),
            ticket_ttl: TimeDelta::seconds(settings.ticket_ttl_secs.into()),
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
        })
    }

    /// What a token lets its bearer do.
    pub fn verify(&self, token: &str) -> Result<Access, AuthError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verify, &self.validation)
            .map_err(refusal)?
            .claims;
        if claims.school_id.is_none() && claims.role != Role::Admin {
            return Err(AuthError::Invalid);
        }
        Ok(Access {
            subject: claims.sub,
            school: claims.school_id,
            role: claims.role,
            channels: claims.channels.as_deref().map(limits).transpose()?,
            // Judged by the same clock as the token: a stream that may open may also last.
            expires_at: DateTime::from_timestamp_millis((claims.exp * 1000.0) as i64)
                .map(|end| end + self.leeway),
        })
    }

    /// What a ticket lets its bearer do: watch the channels that it was made for.
    pub fn verify_ticket(&self, ticket: &str) -> Result<Access, AuthError> {
        let claims = jsonwebtoken::decode::<TicketClaims>(
            ticket,
            &self.ticket_verify,
            &self.ticket_validation,
        )
        .map_err(refusal)?
        .claims;
        Ok(Access {
            subject: claims.sub,
            school: Some(claims.school_id),
            role: Role::Viewer,
            channels: Some(limits(&claims.channels)?),
            expires_at: claims.session_exp.and_then(DateTime::from_timestamp_millis),
        })
    }

    /// A ticket for `channels`, which the bearer of `access` must be allowed to hear.
    pub fn ticket(
        &self,
        access: &Access,
        school: SchoolId,
        channels: &[Channel],
        now: DateTime<Utc>,
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
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.ticket_sign)
            .map_err(KeyError::Sign)?;
        Ok(Ticket { ticket, expires_at })
    }

    /// Makes a token, with the configured issuer and audience.
    pub fn mint(&self, mut claims: Claims) -> Result<String, KeyError> {
        let key = self.sign.as_ref().ok_or(KeyError::VerifyOnly)?;
        claims.iss = self.issuer.clone();
        claims.aud = self.audience.clone();
        jsonwebtoken::encode(&Header::default(), &claims, key).map_err(KeyError::Sign)
    }
}

fn refusal(error: jsonwebtoken::errors::Error) -> AuthError {
    match error.kind() {
        jsonwebtoken::errors::ErrorKind::ExpiredSignature => AuthError::Expired,
        _ => AuthError::Invalid,
    }
}

/// A limit that cannot be read is no limit that could be kept, so the token is not valid.
fn limits(channels: &[String]) -> Result<Vec<Channel>, AuthError> {
    channels
        .iter()
        .map(|text| kind::channel(text).map_err(|_| AuthError::Invalid))
        .collect()
}

fn file_error(setting: &'static str, path: &Path, source: std::io::Error) -> KeyError {
    KeyError::File {
        setting,
        path: path.display().to_string(),
        source,
    }
}

/// The secret kept in the data directory, made there with mode 0600 at the first start.
fn kept_secret(data_dir: &Path) -> Result<String, KeyError> {
    let path = data_dir.join(SECRET_FILE);
    let read = || std::fs::read_to_string(&path).map(|text| text.trim().to_owned());
    match read() {
        Ok(secret) if secret.len() >= SECRET_MIN_BYTES => return Ok(secret),
        Ok(_) => {
            let short = std::io::Error::other(format!("holds fewer than {SECRET_MIN_BYTES} bytes"));
            return Err(file_error("data_dir", &path, short));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("data_dir", &path, error)),
    }
    std::fs::create_dir_all(data_dir).map_err(|source| file_error("data_dir", data_dir, source))?;
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).expect("the operating system gives random numbers");
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();

    // Written whole under another name and linked into place: of two processes that start at once,
    // one wins and both read the winner's secret; a crash leaves no half-written one.
    let draft = data_dir.join(format!("{SECRET_FILE}.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || -> std::io::Result<String> {
        let mut file = options.open(&draft)?;
        std::io::Write::write_all(&mut file, secret.as_bytes())?;
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
