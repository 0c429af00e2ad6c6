//! What a token's claims mean here, whatever login made it.
//!
//! An existing login has names of its own for claims and roles; settings say what they are here. Whether a token may do
//! something is decided by the settings' claim alone: a claim of the same name as ours may mean something else elsewhere.

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

/// The schools that a token for several of them is limited to.
const SCHOOLS_CLAIM: &str = "schools";
/// Where logins write what a token is for.
const PURPOSE_CLAIMS: [&str; 4] = ["type", "typ", "token_type", "token_use"];
/// What they write there in tokens that are only good for fetching others.
const REFRESH: [&str; 2] = ["refresh", "refresh_token"];
/// Differences of more seconds are told as this many. A claim may say anything.
const TOLD_MAX_SECS: f64 = 1e12;

/// What is to stand in a token that is made here. `exp` is in seconds since 1970.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Claims {
    /// Who.
    pub sub: String,
    /// Which school; null for all of them, or those in `schools`.
    pub school_id: Option<SchoolId>,
    /// Which schools, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schools: Option<Vec<SchoolId>>,
    /// How much.
    pub role: Role,
    /// Only these channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// Until when. A NumericDate may have a fraction; those made here have none.
    #[serde(serialize_with = "whole")]
    pub exp: f64,
    /// Made when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// Made by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// Made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

fn whole<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(number::whole(*seconds))
}

/// Where a claim stands: its name, or a JSON pointer to it (RFC 6901).
#[derive(Debug, Clone)]
struct Place(String);

impl Place {
    fn of<'a>(&self, claims: &'a Value) -> Option<&'a Value> {
        match self.0.starts_with('/') {
            true => claims.pointer(&self.0),
            false => claims.get(&self.0),
        }
    }

    /// Writes a value there, with whatever has to be around it.
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

/// Where a role comes from: it says how far null goes as a school.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The token names it as it is named here.
    Own,
    /// The token names one that the settings translate.
    Mapped,
    /// The token names none.
    Default,
}

/// How claims are read, as the settings say.
pub(super) struct ClaimRules {
    subject: Place,
    school: Place,
    role: Place,
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
            subject: Place(settings.jwt_subject_claim.clone()),
            school: Place(settings.jwt_school_claim.clone()),
            role: Place(settings.jwt_role_claim.clone()),
            roles: settings.jwt_roles.clone(),
            default_role: settings.jwt_default_role,
            default_school: settings.jwt_default_school_id,
            issuer: settings.jwt_issuer.clone(),
            audience: settings.jwt_audience.clone(),
            leeway: TimeDelta::seconds(settings.jwt_leeway_secs.try_into().unwrap_or(i64::MAX)),
            max_token_secs: settings.max_token_secs,
        }
    }

    /// What a token with these claims lets its bearer do now.
    pub(super) fn read(&self, claims: &Value, now: DateTime<Utc>) -> Result<Access, AuthError> {
        let expires_at = self.times(claims, now)?;
        if let Some(issuer) = &self.issuer {
            names(claims, "iss", issuer, "jwt_issuer")?;
        }
        if let Some(audience) = &self.audience {
            names(claims, "aud", audience, "jwt_audience")?;
        }
        for name in PURPOSE_CLAIMS {
            let purpose = claims[name].as_str().unwrap_or_default();
            if REFRESH.iter().any(|own| own.eq_ignore_ascii_case(purpose)) {
                let problem = "says that it is a refresh token; an access token is required";
                return Err(TokenError::claim(name, problem).into());
            }
        }
        let (role, origin) = self.role(claims)?;
        Ok(Access {
            subject: self.subject(claims)?,
            schools: self.schools(claims, role, origin)?,
            role,
            channels: channels(claims)?,
            expires_at,
            returns_until: None,
        })
    }

    /// Checks that the token is of now, and says when it ends.
    fn times(
        &self,
        claims: &Value,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, AuthError> {
        let now = now.timestamp_micros() as f64 / 1e6;
        let leeway = self.leeway.num_seconds();
        let exp = seconds(claims, "exp")?.ok_or(TokenError::claim("exp", "is missing"))?;
        if now >= exp + leeway as f64 {
            let ago_secs = number::whole_unsigned((now - exp).clamp(0.0, TOLD_MAX_SECS));
            return Err(AuthError::Expired { ago_secs });
        }
        // What passes is a date that can be written down, whatever form its number has.
        let most = self.max_token_secs;
        if exp - now > most as f64 {
            let problem = format!(
                "is more than {most} s ahead (`max_token_secs`); it is in seconds since 1970, not in milliseconds"
            );
            return Err(TokenError::claim("exp", problem).into());
        }
        for name in ["nbf", "iat"] {
            let ahead = seconds(claims, name)?.unwrap_or(now) - now;
            if ahead > leeway as f64 {
                let ahead = ahead.ceil().min(TOLD_MAX_SECS);
                let problem = format!(
                    "is {ahead} s ahead; clocks may differ by {leeway} s (`jwt_leeway_secs`)"
                );
                return Err(TokenError::claim(name, problem).into());
            }
        }
        // Judged by the same clock as the token: a stream that may open may also last.
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
                let problem = "is a list; `jwt_role_claim` can name an entry of it, as in /roles/0";
                return Err(self.role.wrong(problem));
            }
            Some(_) => return Err(self.role.wrong("is not a string")),
        };
        // The map goes first: what `admin` means in another login is for it to say.
        if let Some(role) = self.roles.get(named) {
            return Ok((*role, Origin::Mapped));
        }
        let unknown = || {
            let own = Role::ALL.map(Role::name).into_iter();
            let mapped = self.roles.keys().map(String::as_str);
            let mut accepted: Vec<&str> = own.chain(mapped).collect();
            let mut seen = std::collections::HashSet::new();
            accepted.retain(|name| seen.insert(*name));
            let accepted = accepted.join(", ");
            self.role.wrong(format!("is not one of {accepted}"))
        };
        let role = Role::by_name(named).ok_or_else(unknown)?;
        Ok((role, Origin::Own))
    }

    /// The schools that the token reaches; the page on tokens has this as a table.
    fn schools(&self, claims: &Value, role: Role, origin: Origin) -> Result<Schools, TokenError> {
        let listed = listed(claims)?;
        let named = self.school.of(claims);
        if let Some(value) = named.filter(|value| !value.is_null()) {
            let own = school(value).ok_or_else(|| {
                let problem = "is not a whole number of 1 or more, as a number or in digits";
                self.school.wrong(problem)
            })?;
            if listed.is_some_and(|listed| !listed.contains(&own)) {
                return Err(self.school.wrong("is not one of `schools`"));
            }
            return Ok(Schools::One(own));
        }
        if let Some(listed) = listed {
            return Ok(match *listed {
                [own] => Schools::One(own),
                _ => Schools::Listed(listed),
            });
        }
        // In another login's own claim, null more likely means none than all. Somebody to whom only a default gives a
        // role is not meant to reach all schools either.
        let means_all = match origin {
            Origin::Own => true,
            Origin::Mapped => self.school.0 == SCHOOL_CLAIM && self.default_school.is_none(),
            Origin::Default => false,
        };
        if named.is_some() && means_all {
            let problem = "is null, which stands for all schools and takes role worker or admin";
            return match role {
                Role::Viewer => Err(self.school.wrong(problem)),
                Role::Worker | Role::Admin => Ok(Schools::All),
            };
        }
        match self.default_school {
            Some(own) => Ok(Schools::One(own)),
            None if (origin, role) == (Origin::Own, Role::Admin) => Ok(Schools::All),
            None => {
                let problem = "is missing, and no `jwt_default_school_id` is set";
                Err(self.school.wrong(problem))
            }
        }
    }

    /// Whether a token that ends then is refused for its length.
    pub(super) fn is_too_long(&self, exp: f64, now: DateTime<Utc>) -> bool {
        exp - now.timestamp() as f64 > self.max_token_secs as f64
    }

    /// The claims with the names that are read here. Nothing if there is no name for their role.
    pub(super) fn written(&self, claims: &Claims) -> Option<Value> {
        let own = claims.role.name();
        let by_map = |(name, role): (&String, &Role)| (*role == claims.role).then(|| name.clone());
        let role = match self.roles.contains_key(own) {
            false => own.to_owned(),
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

/// A NumericDate.
fn seconds(claims: &Value, name: &'static str) -> Result<Option<f64>, TokenError> {
    match &claims[name] {
        Value::Null => Ok(None),
        value => {
            let wrong = || TokenError::claim(name, "is not a number of seconds since 1970");
            value.as_f64().map(Some).ok_or_else(wrong)
        }
    }
}

/// Checks that a claim is a text, or a list with it.
fn names(
    claims: &Value,
    name: &'static str,
    wanted: &str,
    setting: &str,
) -> Result<(), TokenError> {
    let problem = match &claims[name] {
        Value::Null => "is missing".into(),
        Value::String(own) if own == wanted => return Ok(()),
        Value::Array(all) if all.iter().any(|own| own == wanted) => return Ok(()),
        _ => format!("is not that of `{setting}`"),
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

/// The schools that the token is limited to, each once, in order.
fn listed(claims: &Value) -> Result<Option<Arc<[SchoolId]>>, TokenError> {
    let wrong = |problem: String| TokenError::claim(SCHOOLS_CLAIM, problem);
    let entries = match &claims[SCHOOLS_CLAIM] {
        Value::Null => return Ok(None),
        Value::String(all) if all == "all" => return Ok(None),
        Value::Array(entries) if !entries.is_empty() => entries,
        Value::Array(_) => return Err(wrong("names no school".into())),
        _ => return Err(wrong("is not a list of school ids".into())),
    };
    if entries.len() > SCHOOLS_PER_TOKEN_MAX {
        return Err(wrong(format!(
            "names more than {SCHOOLS_PER_TOKEN_MAX} schools"
        )));
    }
    let schools: Option<Vec<SchoolId>> = entries.iter().map(school).collect();
    let mut schools = schools.ok_or_else(|| {
        wrong("is not a list of whole numbers of 1 or more, as numbers or in digits".into())
    })?;
    schools.sort_unstable();
    schools.dedup();
    Ok(Some(schools.into()))
}

/// A limit that cannot be read cannot be enforced, so the token is not valid.
fn channels(claims: &Value) -> Result<Option<Vec<Channel>>, TokenError> {
    let wrong = || TokenError::claim("channels", "is not a list of channels that there are");
    let entries = match &claims["channels"] {
        Value::Null => return Ok(None),
        Value::Array(entries) => entries,
        _ => return Err(wrong()),
    };
    let channel = |entry: &Value| kind::channel(entry.as_str()?).ok();
    let channels: Option<Vec<Channel>> = entries.iter().map(channel).collect();
    channels.map(Some).ok_or_else(wrong)
}
