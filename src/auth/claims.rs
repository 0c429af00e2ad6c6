//! What the claims of a token mean to this server, whichever login system issued it.
//!
//! An existing login system has its own names for claims and roles; settings map them to ours. For the user, the school and
//! the role, only the claims that the settings name count: a claim with one of our names may mean something else there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::token::TokenError;
use super::{Access, AuthError, Role, Schools};
use crate::config::{SCHOOL_CLAIM, SCHOOLS_PER_TOKEN_MAX, Settings};
use crate::id::{Channel, SchoolId};
use crate::kind;
use crate::number;

/// The claim that limits a token to several schools.
const SCHOOLS_CLAIM: &str = "schools";
/// The claims in which login systems write the purpose of a token.
const PURPOSE_CLAIMS: [&str; 4] = ["type", "typ", "token_type", "token_use"];
/// The purposes of tokens that can only be exchanged for other tokens.
const REFRESH: [&str; 2] = ["refresh", "refresh_token"];
/// The largest difference in time that an error text reports, in seconds. A claim can hold any number.
const REPORTED_MAX_SECS: f64 = 1e12;

/// The claims of a token that this server issues. `exp` is in seconds since 1970.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Claims {
    /// The user.
    pub sub: String,
    /// The school. Null stands for all schools, or for those in `schools`.
    pub school_id: Option<SchoolId>,
    /// The schools, if the token is limited to several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schools: Option<Vec<SchoolId>>,
    /// The role.
    pub role: Role,
    /// The channels to which the token is limited, if it is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// When the token expires. A NumericDate may have a fraction; ours have none.
    #[serde(serialize_with = "whole")]
    pub exp: f64,
    /// When the token was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

fn whole<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(number::whole(*seconds))
}

/// The location of a claim: its name, or a JSON pointer to it (RFC 6901).
#[derive(Debug, Clone)]
struct ClaimPath(String);

impl ClaimPath {
    fn of<'a>(&self, claims: &'a Value) -> Option<&'a Value> {
        match self.0.starts_with('/') {
            true => claims.pointer(&self.0),
            false => claims.get(&self.0),
        }
    }

    /// Writes a value at this location, and creates missing objects on the way.
    fn put(&self, claims: &mut Value, value: Value) {
        let Some(path) = self.0.strip_prefix('/') else {
            claims[&self.0] = value;
            return;
        };
        let mut place = claims;
        for step in path.split('/') {
            if !place.is_object() {
                *place = Map::new().into();
            }
            place = &mut place[step.replace("~1", "/").replace("~0", "~")];
        }
        *place = value;
    }

    fn wrong(&self, problem: impl Into<Cow<'static, str>>) -> TokenError {
        TokenError::claim(self.0.clone(), problem)
    }
}

/// Where a role comes from. This decides whether a null school means all schools.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The token names one of our roles.
    Own,
    /// The token names a role that `jwt_roles` maps to ours.
    Mapped,
    /// The token names no role, and `jwt_default_role` applies.
    Default,
}

/// How to read claims, according to the settings.
pub(super) struct ClaimRules {
    subject: ClaimPath,
    school: ClaimPath,
    role: ClaimPath,
    roles: BTreeMap<String, Role>,
    default_role: Option<Role>,
    default_school: Option<SchoolId>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: TimeDelta,
    pub(super) max_token_secs: u64,
}

impl ClaimRules {
    pub(super) fn new(settings: &Settings) -> ClaimRules {
        ClaimRules {
            subject: ClaimPath(settings.jwt_subject_claim.clone()),
            school: ClaimPath(settings.jwt_school_claim.clone()),
            role: ClaimPath(settings.jwt_role_claim.clone()),
            roles: settings.jwt_roles.clone(),
            default_role: settings.jwt_default_role,
            default_school: settings.jwt_default_school_id,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            leeway: TimeDelta::seconds(
                settings
                    .jwt_leeway_secs
                    .get()
                    .try_into()
                    .unwrap_or(i64::MAX),
            ),
            max_token_secs: settings.max_token_secs.get(),
        }
    }

    /// Returns what a token with these claims allows now.
    pub(super) fn read(&self, claims: &Value, now: DateTime<Utc>) -> Result<Access, AuthError> {
        let expires_at = self.times(claims, now)?;
        if let Some(issuer) = &self.issuer {
            require_value(claims, "iss", issuer, "jwt_issuer")?;
        }
        if let Some(audience) = &self.audience {
            require_value(claims, "aud", audience, "jwt_audience")?;
        }
        for name in PURPOSE_CLAIMS {
            let purpose = claims[name].as_str().unwrap_or_default();
            if REFRESH
                .iter()
                .any(|word| word.eq_ignore_ascii_case(purpose))
            {
                let problem = "says that this is a refresh token; an access token is required";
                return Err(TokenError::claim(name, problem).into());
            }
        }
        let (role, origin) = self.role(claims)?;
        Ok(Access {
            subject: self.subject(claims)?.into(),
            schools: self.schools(claims, role, origin)?,
            role,
            channels: channels(claims)?.map(Arc::from),
            expires_at,
            reconnects_until: None,
        })
    }

    /// Checks that the token is valid now, and returns when it expires.
    fn times(
        &self,
        claims: &Value,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, AuthError> {
        let now = now.timestamp_micros() as f64 / 1e6;
        let leeway = self.leeway.num_seconds();
        let exp = seconds(claims, "exp")?.ok_or(TokenError::claim("exp", "is missing"))?;
        if now >= exp + leeway as f64 {
            let ago_secs = number::whole_unsigned((now - exp).clamp(0.0, REPORTED_MAX_SECS));
            return Err(AuthError::Expired { ago_secs });
        }
        // A JSON number can be too large for a date. An `exp` that passes this check is not.
        let max_secs = self.max_token_secs;
        if exp - now > max_secs as f64 {
            let problem = format!(
                "is more than {max_secs} s in the future (`max_token_secs`); it must be in seconds since 1970, not in milliseconds"
            );
            return Err(TokenError::claim("exp", problem).into());
        }
        for name in ["nbf", "iat"] {
            let ahead = seconds(claims, name)?.unwrap_or(now) - now;
            if ahead > leeway as f64 {
                let ahead = ahead.ceil().min(REPORTED_MAX_SECS);
                let problem = format!(
                    "is {ahead} s in the future; clocks may differ by at most {leeway} s (`jwt_leeway_secs`)"
                );
                return Err(TokenError::claim(name, problem).into());
            }
        }
        // Include the leeway, as the check above does. Otherwise, a stream that was just accepted could end at once.
        let exp = DateTime::from_timestamp_millis(number::whole(exp * 1000.0));
        Ok(exp.map(|exp| exp + self.leeway))
    }

    fn subject(&self, claims: &Value) -> Result<String, TokenError> {
        match self.subject.of(claims) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(subject)) => Ok(subject.clone()),
            Some(Value::Number(subject)) => Ok(subject.to_string()),
            Some(_) => Err(self.subject.wrong("is neither a string nor a number")),
        }
    }

    fn role(&self, claims: &Value) -> Result<(Role, Origin), TokenError> {
        let named = match self.role.of(claims) {
            None | Some(Value::Null) => {
                let missing = || {
                    self.role
                        .wrong("is missing, and no `jwt_default_role` is set")
                };
                let role = self.default_role.ok_or_else(missing)?;
                return Ok((role, Origin::Default));
            }
            Some(Value::String(named)) => named,
            Some(Value::Array(_)) => {
                let problem = "is a list, not a string; set `jwt_role_claim` to one of its entries, such as /roles/0";
                return Err(self.role.wrong(problem));
            }
            Some(_) => return Err(self.role.wrong("is not a string")),
        };
        // The map takes precedence: it decides what the `admin` of another login system means.
        if let Some(role) = self.roles.get(named) {
            return Ok((*role, Origin::Mapped));
        }
        let unknown = || {
            let names = Role::ALL.map(Role::name).into_iter();
            let mapped = self.roles.keys().map(String::as_str);
            let mut accepted: Vec<&str> = names.chain(mapped).collect();
            let mut seen = std::collections::HashSet::new();
            accepted.retain(|name| seen.insert(*name));
            let accepted = accepted.join(", ");
            self.role.wrong(format!("is not one of {accepted}"))
        };
        let role = Role::by_name(named).ok_or_else(unknown)?;
        Ok((role, Origin::Own))
    }

    /// Returns the schools that the token covers. docs/http-api.md has these rules as a table.
    fn schools(&self, claims: &Value, role: Role, origin: Origin) -> Result<Schools, TokenError> {
        let listed = listed(claims)?;
        let named = self.school.of(claims);
        if let Some(value) = named.filter(|value| !value.is_null()) {
            let claimed = school(value).ok_or_else(|| {
                let problem = "is neither a positive integer nor a string of its digits";
                self.school.wrong(problem)
            })?;
            if listed.is_some_and(|listed| !listed.contains(&claimed)) {
                return Err(self.school.wrong("is not one of `schools`"));
            }
            return Ok(Schools::One(claimed));
        }
        if let Some(listed) = listed {
            return Ok(match *listed {
                [only] => Schools::One(only),
                _ => Schools::Listed(listed),
            });
        }
        // In a claim of another login system, null is more likely to mean no school than all schools. A user whose role is
        // only a default must not get access to all schools either.
        let means_all = match origin {
            Origin::Own => true,
            Origin::Mapped => self.school.0 == SCHOOL_CLAIM && self.default_school.is_none(),
            Origin::Default => false,
        };
        if named.is_some() && means_all {
            let problem = "is null, which stands for all schools and requires role worker or admin";
            return match role {
                Role::Viewer => Err(self.school.wrong(problem)),
                Role::Worker | Role::Admin => Ok(Schools::All),
            };
        }
        match self.default_school {
            Some(default_school) => Ok(Schools::One(default_school)),
            None if (origin, role) == (Origin::Own, Role::Admin) => Ok(Schools::All),
            None => {
                let problem = "is missing, and no `jwt_default_school_id` is set";
                Err(self.school.wrong(problem))
            }
        }
    }

    /// Whether a token that expires at `exp` is rejected because it is valid for too long.
    pub(super) fn is_too_long(&self, exp: f64, now: DateTime<Utc>) -> bool {
        exp - now.timestamp() as f64 > self.max_token_secs as f64
    }

    /// Returns the claims under the names that the settings give them. `None` if `jwt_roles` maps no name to their role.
    pub(super) fn written(&self, claims: &Claims) -> Option<Value> {
        let role_name = claims.role.name();
        let by_map = |(name, role): (&String, &Role)| (*role == claims.role).then(|| name.clone());
        let role = match self.roles.contains_key(role_name) {
            false => role_name.to_owned(),
            true => self.roles.iter().find_map(by_map)?,
        };
        let mut written = serde_json::to_value(claims).expect("claims are JSON");
        let object = written.as_object_mut().expect("claims are an object");
        let [subject, school, _] =
            ["sub", SCHOOL_CLAIM, "role"].map(|name| object.shift_remove(name).unwrap_or_default());
        self.subject.put(&mut written, subject);
        self.school.put(&mut written, school);
        self.role.put(&mut written, role.into());
        Some(written)
    }
}

/// Reads a NumericDate.
fn seconds(claims: &Value, name: &'static str) -> Result<Option<f64>, TokenError> {
    match &claims[name] {
        Value::Null => Ok(None),
        value => {
            let wrong = || TokenError::claim(name, "is not a number of seconds since 1970");
            value.as_f64().map(Some).ok_or_else(wrong)
        }
    }
}

/// Checks that a claim is a given string, or a list that contains it.
fn require_value(
    claims: &Value,
    name: &'static str,
    wanted: &str,
    setting: &str,
) -> Result<(), TokenError> {
    let problem = match &claims[name] {
        Value::Null => "is missing".into(),
        Value::String(value) if value == wanted => return Ok(()),
        Value::Array(all) if all.iter().any(|value| value == wanted) => return Ok(()),
        _ => format!("does not match `{setting}`"),
    };
    Err(TokenError::claim(name, problem))
}

fn school(value: &Value) -> Option<SchoolId> {
    match value {
        Value::Number(number) => number.as_i64()?.try_into().ok(),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

/// Returns the schools that the token is limited to, without duplicates and in order.
fn listed(claims: &Value) -> Result<Option<Arc<[SchoolId]>>, TokenError> {
    let wrong = |problem: String| TokenError::claim(SCHOOLS_CLAIM, problem);
    let entries = match &claims[SCHOOLS_CLAIM] {
        Value::Null => return Ok(None),
        Value::String(all) if all == "all" => return Ok(None),
        Value::Array(entries) if !entries.is_empty() => entries,
        Value::Array(_) => {
            return Err(wrong(
                "is an empty list; it must name at least one school".into(),
            ));
        }
        _ => return Err(wrong("is neither a list of school ids nor \"all\"".into())),
    };
    if entries.len() > SCHOOLS_PER_TOKEN_MAX {
        return Err(wrong(format!(
            "names more than {SCHOOLS_PER_TOKEN_MAX} schools"
        )));
    }
    let schools: Option<Vec<SchoolId>> = entries.iter().map(school).collect();
    let mut schools = schools.ok_or_else(|| {
        wrong("has an entry that is neither a positive integer nor a string of its digits".into())
    })?;
    schools.sort_unstable();
    schools.dedup();
    Ok(Some(schools.into()))
}

/// Reads the channels that the token is limited to. A limit that cannot be read cannot be enforced, so such a token is not
/// valid.
fn channels(claims: &Value) -> Result<Option<Vec<Channel>>, TokenError> {
    let wrong = || {
        let problem = "is not a list of channels, such as `jobs`, `jobs/import-7` or `schools/7`";
        TokenError::claim("channels", problem)
    };
    let entries = match &claims["channels"] {
        Value::Null => return Ok(None),
        Value::Array(entries) => entries,
        _ => return Err(wrong()),
    };
    let channel = |entry: &Value| kind::channel(entry.as_str()?).ok();
    let channels: Option<Vec<Channel>> = entries.iter().map(channel).collect();
    channels.map(Some).ok_or_else(wrong)
}
