//! Checks Rocket's own settings. A setting that this build ignores, or that is in a place where nothing reads it, is
//! rejected by name. Rocket itself ignores settings that it does not know.
//!
//! Only the standalone server checks them. An application that mounts Tidings owns its settings, of which only the table
//! `tidings` is checked, by [`Settings::from_figment`](crate::config::Settings::from_figment).
//!
//! No message contains the value of a setting: the value may be a secret.

use figment::value::{Dict, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use rocket::Config;

use crate::config::{ConfigError, MaxBlocking, Settings, Workers, nearest, place};

/// The table of Tidings within a profile.
const TIDINGS: &str = "tidings";
/// The variable `ROCKET_CONFIG`, which Rocket reads before its settings. It then appears among the settings.
const CONFIG: &str = "config";
/// Rocket's tables, each with the settings that have an effect.
const TABLES: [(&str, &[&str]); 3] = [
    (
        Config::SHUTDOWN,
        &["ctrlc", "signals", "grace", "mercy", "force"],
    ),
    (
        Config::TLS,
        &["certs", "key", "ciphers", "prefer_server_cipher_order"],
    ),
    // The limits on the monitor's forms.
    (Config::LIMITS, &["form", "data-form", "string"]),
];
/// Rocket's other settings that have an effect.
const EFFECTIVE: &[&str] = &[
    Config::ADDRESS,
    Config::PORT,
    Config::WORKERS,
    Config::MAX_BLOCKING,
    Config::IDENT,
    Config::IP_HEADER,
    Config::KEEP_ALIVE,
    Config::LOG_LEVEL,
    Config::CLI_COLORS,
];

/// Fails on the first setting that has no effect, and on one of Rocket's settings that has the wrong type.
pub(crate) fn check(figment: &Figment) -> Result<(), ConfigError> {
    let data = figment
        .data()
        .map_err(|error| ConfigError::read(&error, figment))?;
    let check = Check {
        figment,
        of_tidings: names_of_tidings(),
    };
    for (profile, table) in &data {
        check.profile(profile, data.contains_key(figment.profile()))?;
        for (key, value) in table {
            check.key(profile, key, value)?;
        }
    }
    let config = Config::try_from(figment).map_err(|error| ConfigError::read(&error, figment))?;
    let out_of_range = [
        (Config::WORKERS, Workers::problem(config.workers)),
        (
            Config::MAX_BLOCKING,
            MaxBlocking::problem(config.max_blocking),
        ),
    ];
    for (key, problem) in out_of_range {
        if let Some(problem) = problem {
            return Err(ConfigError::Invalid { key, problem }.found_in(figment));
        }
    }
    Ok(())
}

/// Fails if one of these settings is present. The error says what to do instead.
pub(crate) fn reject(figment: &Figment, settings: &[(&str, &str)]) -> Result<(), ConfigError> {
    let data = figment
        .data()
        .map_err(|error| ConfigError::read(&error, figment))?;
    let check = Check {
        figment,
        of_tidings: Vec::new(),
    };
    for (profile, table) in &data {
        for (key, instead) in settings {
            if let Some(value) = table.get(*key)
                && check.is_given(value.tag())
            {
                return check.reject(profile, &[key], value.tag(), instead);
            }
        }
    }
    Ok(())
}

fn names_of_tidings() -> Vec<String> {
    let defaults = serde_json::to_value(Settings::default()).expect("settings are plain data");
    let names = defaults.as_object().expect("settings are a table").keys();
    names.cloned().collect()
}

struct Check<'a> {
    figment: &'a Figment,
    of_tidings: Vec<String>,
}

impl Check<'_> {
    /// Checks a table at the top level of a file, which is a profile. Profiles that are not selected are accepted only if
    /// profiles are in use.
    fn profile(&self, profile: &Profile, selected_exists: bool) -> Result<(), ConfigError> {
        let built_in = [
            Profile::Default,
            Profile::Global,
            Config::DEBUG_PROFILE,
            Config::RELEASE_PROFILE,
        ];
        let selected = self.figment.profile();
        if built_in.contains(profile) || profile == selected {
            return Ok(());
        }
        let name = profile.as_str().as_str();
        let problem = if self.is_name(name) {
            format!("is at the top level, which is for profiles; write it as `[default.{name}]`")
        } else if built_in.contains(selected) && std::env::var_os("ROCKET_PROFILE").is_none() {
            format!(
                "is a profile that is not selected: ROCKET_PROFILE={name} selects it, and `[default]` needs no selection. To keep \
                 tables of other profiles in the file, set ROCKET_PROFILE to the one in use, which is `{selected}`"
            )
        } else if !built_in.contains(selected) && !selected_exists {
            format!("is not selected, and there is no `[{selected}]`, which ROCKET_PROFILE selects")
        } else {
            return Ok(());
        };
        Err(ConfigError::Unreadable(format!(
            "table `[{name}]` {problem}"
        )))
    }

    fn is_name(&self, name: &str) -> bool {
        name == TIDINGS
            || Config::PARAMETERS.contains(&name)
            || self.of_tidings.iter().any(|setting| setting == name)
    }

    fn key(&self, profile: &Profile, key: &str, value: &Value) -> Result<(), ConfigError> {
        if !self.is_given(value.tag()) && value.as_dict().is_none() {
            return Ok(());
        }
        let reject = |problem: &str| self.reject(profile, &[key], value.tag(), problem);
        if key == TIDINGS {
            return match value.as_dict() {
                Some(table) => self.tidings_table(profile, table),
                None => reject("must be a table"),
            };
        }
        if let Some((_, effective)) = TABLES.iter().find(|(name, _)| *name == key) {
            let Some(table) = value.as_dict() else {
                return reject("must be a table");
            };
            return self.framework_table(profile, key, table, effective);
        }
        match key {
            Config::KEEP_ALIVE if value.to_i128() != Some(0) => reject(
                "has no effect unless it is 0, which closes each connection after its request; \
                 any other value keeps connections open, however long they are idle",
            ),
            _ if EFFECTIVE.contains(&key) => Ok(()),
            CONFIG if self.is_of_environment(value.tag()) => Ok(()),
            Config::SECRET_KEY => reject(
                "has no effect: there are no private cookies. Tokens are signed with `jwt_secret` of Tidings",
            ),
            Config::TEMP_DIR => reject("has no effect: Tidings writes no temporary files"),
            _ if self.of_tidings.iter().any(|setting| setting == key) => {
                let variable = key.to_uppercase();
                reject(&format!(
                    "is a setting of Tidings: write it in `[default.tidings]`, or as TIDINGS_{variable}"
                ))
            }
            _ => {
                let known = [EFFECTIVE, &TABLES.map(|(name, _)| name), &[TIDINGS]].concat();
                reject(&format!("is not known to Rocket{}", nearest(key, &known)))
            }
        }
    }

    /// Checks the table of Tidings. The values are checked when they are read, which happens only in the selected profile.
    fn tidings_table(&self, profile: &Profile, table: &Dict) -> Result<(), ConfigError> {
        for (key, value) in table {
            if self.of_tidings.iter().any(|setting| setting == key) {
                continue;
            }
            let problem = if Config::PARAMETERS.contains(&key.as_str()) {
                let variable = key.to_uppercase();
                format!("is a setting of Rocket: write it in `[default]`, or as ROCKET_{variable}")
            } else {
                format!("is not known{}", nearest(key, &self.of_tidings))
            };
            return self.reject(profile, &[TIDINGS, key], value.tag(), &problem);
        }
        Ok(())
    }

    fn framework_table(
        &self,
        profile: &Profile,
        name: &str,
        table: &Dict,
        effective: &[&str],
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            let reject = |problem: &str| self.reject(profile, &[name, key], value.tag(), problem);
            if !self.is_given(value.tag()) {
                continue;
            }
            if !effective.contains(&key.as_str()) {
                return reject(match (name, key.as_str()) {
                    (Config::TLS, "mutual") => {
                        "is not supported: this server does not request client certificates. A proxy in front of it can do so"
                    }
                    (Config::LIMITS, _) => {
                        "has no effect: bodies are limited by `body_limit_bytes` and similar settings of Tidings"
                    }
                    _ => "is not known",
                });
            }
            // Rocket treats a negative limit as absent.
            if name == Config::LIMITS && value.to_i128().is_some_and(|size| size < 0) {
                return reject("must be a size such as `64KiB`, and not negative");
            }
            let is_empty = value.as_array().is_some_and(<[Value]>::is_empty);
            if (name, key.as_str()) == (Config::TLS, "ciphers") && is_empty {
                return reject("must not be empty: that would switch TLS off");
            }
        }
        Ok(())
    }

    /// Whether the user has set the value, rather than Rocket by default.
    fn is_given(&self, tag: Tag) -> bool {
        let metadata = self.figment.get_metadata(tag);
        !metadata.is_some_and(|metadata| metadata.name.starts_with("rocket::Config"))
    }

    fn is_of_environment(&self, tag: Tag) -> bool {
        self.figment.get_metadata(tag).is_some_and(is_environment)
    }

    fn reject(
        &self,
        profile: &Profile,
        path: &[&str],
        tag: Tag,
        problem: &str,
    ) -> Result<(), ConfigError> {
        let metadata = self.figment.get_metadata(tag);
        let is_of_profile = metadata.is_some_and(|metadata| !is_environment(metadata));
        let in_profile = [&[profile.as_str().as_str()], path].concat();
        let path = if is_of_profile { &in_profile } else { path };
        let place = place(metadata, path);
        Err(ConfigError::Unreadable(format!(
            "setting {place} {problem}"
        )))
    }
}

fn is_environment(metadata: &Metadata) -> bool {
    metadata.source.is_none() && metadata.name.contains("environment variable")
}
