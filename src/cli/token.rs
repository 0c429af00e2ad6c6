//! `tidings token`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use clap::Args;

use super::{Exit, Failure, terminal};
use crate::auth::{Claims, Keys, Role};
use crate::config::{ConfigError, SCHOOLS_PER_TOKEN_MAX, Settings};
use crate::id::{Channel, SchoolId};
use crate::kind;

/// Create a token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings token --school 1 --role viewer
  tidings token --school 1 --role worker --sub ocr-7 --ttl 30d --channel jobs
  tidings token --schools 1,2 --role worker
  tidings token --all-schools --role worker
  tidings token --role admin            (all schools)
  tidings token --school 1 --role worker --data-dir /var/lib/tidings

The server's secret is required: run this in the server's directory, with its settings, or with --data-dir.")]
pub(super) struct Arguments {
    /// The school. An admin token without a school reaches all schools.
    #[arg(long)]
    school: Option<SchoolId>,
    /// Several schools, separated by commas. Each request names one of them.
    #[arg(long, value_delimiter = ',', conflicts_with = "school")]
    schools: Vec<SchoolId>,
    /// All schools, for a worker. Each request names one.
    #[arg(long, conflicts_with_all = ["school", "schools"])]
    all_schools: bool,
    /// viewer, worker or admin.
    #[arg(long, value_parser = role)]
    role: Role,
    /// The user of the token, which appears in logs.
    #[arg(long, default_value = "cli")]
    sub: String,
    /// How long the token is valid: 90s, 30m, 1h, 7d.
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// Limit the token to this channel (repeatable): jobs, jobs/42, schools/1.
    #[arg(long = "channel", value_parser = channel)]
    channels: Vec<Channel>,
    /// The server's `data_dir`, which contains its secret; by default, that of the settings.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let is_for_all = arguments.school.is_none() && arguments.schools.is_empty();
    if is_for_all && arguments.role == Role::Viewer {
        let problem = "--school or --schools is required for --role viewer";
        return Err(Failure::new(Exit::Usage, problem));
    }
    // If it was left out by mistake, the token would reach too far.
    if is_for_all && arguments.role == Role::Worker && !arguments.all_schools {
        let problem = "--school, --schools or --all-schools is required for --role worker";
        return Err(Failure::new(Exit::Usage, problem));
    }
    if arguments.schools.len() > SCHOOLS_PER_TOKEN_MAX {
        let problem = format!("--schools accepts at most {SCHOOLS_PER_TOKEN_MAX} schools");
        return Err(Failure::new(Exit::Usage, problem));
    }
    let figment = super::figment()?;
    let mut settings = Settings::from_figment(&figment)?;
    if let Some(folder) = arguments.data_dir {
        settings.data_dir = folder;
    }
    let keys = Keys::of_server(&settings).map_err(|error| match error.setting() {
        Some(key) => ConfigError::led_to(&error, key, &figment).into(),
        None => Failure::from(error),
    })?;
    let channels = (!arguments.channels.is_empty()).then_some(arguments.channels);
    let claims = Claims {
        schools: (!arguments.schools.is_empty()).then_some(arguments.schools),
        channels: channels.map(|channels| channels.iter().map(Channel::to_string).collect()),
        ..claims(
            arguments.school,
            arguments.role,
            &arguments.sub,
            arguments.ttl,
        )
    };
    terminal::print_line(&keys.mint(claims)?)
}

/// Returns claims that are valid from now on, for all channels.
pub(super) fn claims(school: Option<SchoolId>, role: Role, sub: &str, ttl: Duration) -> Claims {
    let now = Utc::now().timestamp();
    Claims {
        sub: sub.to_owned(),
        school_id: school,
        schools: None,
        role,
        channels: None,
        exp: now as f64 + ttl.as_secs_f64(),
        iat: Some(now),
        iss: None,
        aud: None,
    }
}

fn role(text: &str) -> Result<Role, String> {
    Role::by_name(text).ok_or_else(|| "must be viewer, worker or admin".into())
}

fn channel(text: &str) -> Result<Channel, String> {
    kind::channel(text).map_err(|error| error.to_string())
}

/// Parses a number and a unit: `s`, `m`, `h` or `d`.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "must be a number and s, m, h or d, for example 30m".to_owned();
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(expected)?;
    let unit_secs = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    // A century: longer durations could overflow a date.
    let secs = number
        .checked_mul(unit_secs)
        .filter(|secs| (1..=3_155_760_000).contains(secs));
    secs.map(Duration::from_secs)
        .ok_or_else(|| "must be from 1s to 36525d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for text in [
            "",
            "h",
            "1",
            "-1h",
            "1.5h",
            "0s",
            "é",
            "99999999999999999999d",
            "40000d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
