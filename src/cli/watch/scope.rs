//! The scopes that are watched, as they are written on the command line.

use std::borrow::Cow;

use rocket::http::RawStr;
use serde_json::Value;

use super::changes::subject;
use crate::cli::credential::is_visible;
use crate::id::{Channel, Kind, NameError, SchoolId, SubjectId};
use crate::kind::{self, KINDS};

/// A scope: the part of the URL after `/events/`.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// As it is written on the command line.
    pub(super) text: String,
    /// Its path and query below `/events`.
    pub(super) address: String,
    /// The subject that is watched, if it is only one.
    pub(super) single: Option<Single>,
    /// The kinds whose events it has.
    pub(super) kinds: Vec<Kind>,
    /// Whether it names its school.
    has_school: bool,
}

/// The only subject of a scope.
#[derive(Debug, Clone)]
pub(super) struct Single {
    pub(super) kind: Kind,
    id: SubjectId,
    /// The school that the scope names.
    school: Option<SchoolId>,
}

impl Scope {
    /// Parses a scope. An id in it may or may not be percent-encoded.
    pub(super) fn parse(text: &str) -> Result<Scope, String> {
        let trimmed = text.trim_start_matches('/');
        let (path, query) = trimmed.split_at(trimmed.find('?').unwrap_or(trimmed.len()));
        if !is_visible(query) || query.contains('#') {
            return Err("has a query with characters that must be percent-encoded".into());
        }
        let named = |error: NameError| error.to_string();
        let mut channels = Vec::new();
        if !path.is_empty() {
            channels.push(kind::channel(path).map_err(named)?);
        }
        let path_channel = channels.first().cloned();
        let mut school = None;
        for (name, value) in fields(query) {
            match &*name {
                "channel" => channels.push(kind::channel(&value).map_err(named)?),
                "ids" if kind::known_kind(path).is_none() => {
                    return Err(
                        "has `ids`, which require a collection: characteristics?ids=1,2".into(),
                    );
                }
                "ids" => value
                    .split(',')
                    .try_for_each(|id| id.parse::<SubjectId>().map(drop))
                    .map_err(named)?,
                "school_id" => school = Some(value.parse::<SchoolId>().map_err(named)?),
                _ => {}
            }
        }
        if channels.is_empty() {
            return Err(
                "is empty; it must be a scope such as jobs, jobs/42, devices or schools/1".into(),
            );
        }
        Ok(Scope {
            text: text.to_owned(),
            address: match &path_channel {
                Some(channel) => format!("/{channel}{query}"),
                None => query.to_owned(),
            },
            single: match path_channel {
                Some(Channel::Subject(kind, id)) if channels.len() == 1 => {
                    Some(Single { kind, id, school })
                }
                _ => None,
            },
            kinds: kinds(&channels),
            has_school: school.is_some()
                || channels
                    .iter()
                    .any(|channel| matches!(channel, Channel::School(_))),
        })
    }

    /// Sets the school, for a token that covers several. A school in the scope itself takes precedence.
    pub(super) fn of_school(&mut self, school: SchoolId) {
        if std::mem::replace(&mut self.has_school, true) {
            return;
        }
        let separator = if self.address.contains('?') { '&' } else { '?' };
        self.address += &format!("{separator}school_id={school}");
        if let Some(single) = &mut self.single {
            single.school = Some(school);
        }
    }
}

impl Single {
    /// Whether a message is about the subject. An acknowledgement of another characteristic's violation is not.
    pub(super) fn is_subject_of(&self, message: &Value) -> bool {
        subject(message).is_some_and(|(kind, id)| kind == self.kind && id == self.id.as_str())
    }

    /// Returns the path of its state.
    pub(super) fn path(&self) -> String {
        let path = format!("/api/{}/{}", self.kind.collection(), self.id.encoded());
        match self.school {
            Some(school) => format!("{path}?school_id={school}"),
            None => path,
        }
    }
}

/// Returns the id of the subject of this kind in a message, as text.
pub(super) fn id(message: &Value, kind: Kind) -> Option<String> {
    let field = kind::description(kind).id_field;
    match [&message[field], &message["payload"][field]] {
        [Value::String(id), _] | [_, Value::String(id)] => Some(id.clone()),
        [Value::Number(id), _] | [_, Value::Number(id)] => Some(id.to_string()),
        _ => None,
    }
}

fn kinds(channels: &[Channel]) -> Vec<Kind> {
    let has = |kind: &Kind| {
        channels.iter().any(|channel| match channel {
            Channel::School(_) => true,
            Channel::Collection(channel_kind) | Channel::Subject(channel_kind, _) => {
                channel_kind == kind
            }
        })
    };
    KINDS.iter().copied().filter(has).collect()
}

/// Returns the names and values of a query, as the server reads them.
fn fields(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let decoded = |text| RawStr::new(text).url_decode_lossy();
    let fields = query.trim_start_matches('?').split('&');
    fields.map(move |field| {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        (decoded(name), decoded(value))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_school_of_the_command_line_is_that_of_scopes_which_name_none() {
        for (text, address) in [
            ("jobs", "/jobs?school_id=2"),
            ("jobs?status=failed", "/jobs?status=failed&school_id=2"),
            ("?channel=jobs", "?channel=jobs&school_id=2"),
            ("jobs/42?school_id=7", "/jobs/42?school_id=7"),
            ("schools/7", "/schools/7"),
            (
                "?channel=devices&channel=schools%2F7",
                "?channel=devices&channel=schools%2F7",
            ),
        ] {
            let mut scope = Scope::parse(text).unwrap();
            scope.of_school("2".parse().unwrap());
            assert_eq!(scope.address, address);
        }
        let mut job = Scope::parse("jobs/42").unwrap();
        job.of_school("2".parse().unwrap());
        let path = job.single.unwrap().path();
        assert_eq!(path, "/api/jobs/42?school_id=2");
    }

    #[test]
    fn only_a_scope_of_one_channel_can_be_one_subject() {
        let single = |text: &str| Scope::parse(text).unwrap().single;
        assert!(single("jobs/42?channel=devices").is_none());
        let device = single("devices/d7").unwrap();
        let session = json!({"type": "enrollment_complete", "session_id": "s", "device_id": "d7"});
        assert!(!device.is_subject_of(&session));
        let status = json!({"type": "device_status_update", "device_id": "d7"});
        assert!(device.is_subject_of(&status));
    }
}
