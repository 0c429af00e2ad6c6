//! Errors of settings. Each is one sentence: the setting, where it is set, what is wrong, and what would be accepted.
//! No error contains the value, which may be a secret.

use figment::error::{Actual, Kind};
use figment::{Figment, Metadata, Source};

use super::Settings;
use super::bounded::accepted_by_framework;

/// A name counts as a typo of another if at most one in this many characters differs.
const TYPO_SHARE: usize = 4;

/// A setting that cannot be used. The message names the setting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The setting is unknown, has the wrong type, or is in the wrong place.
    #[error("{0}")]
    Unreadable(String),
    /// The setting has the right type, but its value is not accepted.
    #[error("setting `{key}` {problem}")]
    Invalid {
        /// The name of the setting.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl ConfigError {
    /// Describes what could not be read from `figment`.
    pub(crate) fn read(error: &figment::Error, figment: &Figment) -> ConfigError {
        let texts: Vec<String> = error
            .clone()
            .into_iter()
            .map(|error| sentence(&error, figment))
            .collect();
        ConfigError::Unreadable(texts.join("; "))
    }

    /// Returns the error with the place where its setting is set.
    pub(crate) fn found_in(self, figment: &Figment) -> ConfigError {
        match self {
            ConfigError::Invalid { key, problem } => {
                let place = place(figment.find_metadata(key), &[key]);
                ConfigError::Unreadable(format!("setting {place} {problem}"))
            }
            other => other,
        }
    }
}

impl ConfigError {
    /// Describes an error that a setting caused, with the place where the setting is set.
    pub(crate) fn caused_by_setting(
        error: &impl std::fmt::Display,
        key: &str,
        figment: &Figment,
    ) -> ConfigError {
        let (text, place) = (error.to_string(), Settings::place(figment, key));
        let name = format!("`{key}`");
        ConfigError::Unreadable(match text.contains(&name) {
            true => text.replacen(&name, &place, 1),
            false => format!("setting {place}: {text}"),
        })
    }
}

/// Describes a setting: its name and where it is set, which is a variable or a file.
pub(crate) fn place(metadata: Option<&Metadata>, path: &[&str]) -> String {
    let name = path.join(".");
    let root = path.first().copied().unwrap_or_default().to_uppercase();
    let Some(metadata) = metadata else {
        return format!("`{name}`");
    };
    if let Some(Source::File(file)) = &metadata.source {
        return format!("`{name}` in {}", file.display());
    }
    match variable_prefix(metadata) {
        Some(prefix) => format!("`{name}` ({prefix}{root} in the environment)"),
        None => format!("`{name}`"),
    }
}

/// Returns the prefix of the environment variables that this metadata describes. Returns `None` for other sources.
fn variable_prefix(metadata: &Metadata) -> Option<&str> {
    let (prefix, _) = metadata
        .name
        .strip_prefix('`')?
        .split_once("` environment variable")?;
    Some(prefix)
}

fn sentence(error: &figment::Error, figment: &Figment) -> String {
    if error.path.is_empty()
        && let Kind::Message(text) = &error.kind
    {
        // The file cannot be read or parsed. Rocket has only one file.
        let of_file = |metadata: &Metadata| match &metadata.source {
            Some(Source::File(path)) => Some(path.display().to_string()),
            _ => None,
        };
        let file = figment.metadata().find_map(of_file);
        let file = file.map_or(String::new(), |file| format!("{file}: "));
        let problem = parse_problem(text).unwrap_or_else(|| text.trim().replace('\n', " "));
        return format!("{file}{problem}");
    }
    let path: Vec<&str> = error.path.iter().map(String::as_str).collect();
    let place = match path[..] {
        [] => "the settings".to_owned(),
        _ => format!("setting {}", place(error.metadata.as_ref(), &path)),
    };
    match &error.kind {
        Kind::Message(text) if text == "invalid IP address syntax" => {
            format!("{place} must be an IP address, such as `127.0.0.1` or `::`, not a host name")
        }
        Kind::Message(text) => format!("{place}: {text}"),
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            let range = path.first().filter(|_| path.len() == 1);
            let range = range.and_then(|key| accepted_by_framework(key));
            let accepted = range.as_deref().unwrap_or_else(|| accepted(expected));
            let is_whole = matches!(actual, Actual::Signed(_) | Actual::Unsigned(_));
            match is_whole && accepted.starts_with("an integer") {
                true => format!("{place} must be {accepted}, but is outside that range"),
                false => format!("{place} must be {accepted}, but is {}", type_name(actual)),
            }
        }
        Kind::InvalidLength(_, expected) => format!("{place} must be {}", accepted(expected)),
        Kind::UnknownVariant(_, known) => format!("{place} must be one of {}", listed(known)),
        // At the top level, the field is a setting. There are too many settings to list.
        Kind::UnknownField(name, known) if path.is_empty() || path[..] == [name] => {
            let place = self::place(error.metadata.as_ref(), &[name]);
            format!("setting {place} is unknown{}", nearest(name, known))
        }
        Kind::UnknownField(name, known) => {
            format!(
                "{place}: `{name}` is unknown; write one of {}",
                listed(known)
            )
        }
        Kind::MissingField(name) => format!("{place}: `{name}` is missing"),
        Kind::DuplicateField(name) => format!("{place}: `{name}` is set twice"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => format!("{place} is out of range"),
        Kind::Unsupported(actual) => format!("{place} must not be {}", type_name(actual)),
        Kind::UnsupportedKey(..) => format!("{place} has a key that is not a string"),
    }
}

/// Returns a hint for an unknown name: the most similar known name, or else the page that lists all settings.
pub(crate) fn nearest(name: &str, known: &[impl AsRef<str>]) -> String {
    let distance = |candidate: &str| strsim::osa_distance(&name.to_lowercase(), candidate);
    let nearest = known
        .iter()
        .map(AsRef::as_ref)
        .min_by_key(|candidate| distance(candidate));
    match nearest.filter(|candidate| distance(candidate) <= candidate.len().div_ceil(TYPO_SHARE)) {
        Some(nearest) => format!(": did you mean `{nearest}`?"),
        None => ": docs/configuration.md lists all of them".into(),
    }
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// Returns what is expected in plain words instead of Rust's type names.
fn accepted(expected: &str) -> &str {
    match expected {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer of at least 0",
        "i32" | "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a string" | "string" | "str" => "a string, in quotes",
        "path string" => "a path, in quotes",
        "sequence" | "a sequence" => "a list",
        "map" | "a map" => "a table",
        "a server ident string or `false`" => "a string without control characters, or `false`",
        "a valid header name or `false`" => "the name of a header, or `false`",
        "byte unit string" | "a byte unit as an integer or string" => "a size such as `64KiB`",
        "enum Synchronous" => "`milestone`, `full` or `normal`",
        "enum StatusCase" => "`lower` or `upper`",
        "enum Role" => "`viewer`, `worker` or `admin`",
        other => match other.starts_with("struct ") {
            true => "a table",
            false => other,
        },
    }
}

/// Describes where a file cannot be parsed, with the setting's name. The parser's own message shows the whole line,
/// which may contain a secret.
fn parse_problem(text: &str) -> Option<String> {
    let mut lines = text.lines();
    let place = lines
        .next()
        .filter(|line| line.starts_with("TOML parse error"))?;
    let shown = lines
        .filter_map(|line| line.split_once(" | "))
        .find(|(number, _)| number.trim().parse::<u32>().is_ok());
    let is_name = |c: char| c.is_alphanumeric() || "-_.[]".contains(c);
    let name: String = shown.map_or_else(String::new, |(_, line)| {
        line.trim().chars().take_while(|c| is_name(*c)).collect()
    });
    let is_misplaced = text.contains("expected a map");
    Some(match is_misplaced {
        true => {
            format!(
                "{place}: `{name}` is at the top level, where only tables such as `[default]` are allowed"
            )
        }
        false => format!("{place}, at `{name}`"),
    })
}

fn type_name(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) => "a character",
        Actual::Str(text) if text.is_empty() => "empty",
        Actual::Str(_) => "a string",
        Actual::Bytes(_) => "bytes",
        Actual::Unit => "no value",
        Actual::Option => "an optional value",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}
