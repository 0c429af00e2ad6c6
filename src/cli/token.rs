//! `tidings token`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use serde_json::json;

use super::client::{Client, url};
use super::{Exit, Failure, terminal};
use crate::auth::{Claims, Keys, Role};
use crate::config::{ConfigError, SCHOOLS_PER_TOKEN_MAX, Secret, Settings};
use crate::id::{Channel, SchoolId};
use crate::kind;
use crate::kind::job::JobType;
use crate::log::pings::Numbers;

/// How long the token is valid with which the command itself asks the server.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(60);

/// Create a token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings token --school 1 --role viewer
  tidings token --school 1 --role worker --sub ocr-7 --ttl 30d --channel jobs
  tidings token --schools 1,2 --role worker
  tidings token --all-schools --role worker
  tidings token --role admin            (all schools)
  tidings token --school 1 --ping backup
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
    #[arg(long, value_parser = role, required_unless_present = "ping")]
    role: Option<Role>,
    /// Instead of a token, create a key with which a script reports on jobs of this type by `curl`. The server must be
    /// running. Prints the key, and a curl line.
    #[arg(long, value_name = "JOB_TYPE", value_parser = job_type, conflicts_with_all = ["schools", "all_schools", "role", "channels"])]
    ping: Option<JobType>,
    /// What a plain number in the URL of a ping means: the exit code of a command, or percent complete.
    #[arg(long, value_name = "MEANING", requires = "ping", value_parser = numbers, default_value = "exit")]
    numbers: Numbers,
    /// The URL of the server, for --ping; by default TIDINGS_URL, or http://127.0.0.1:8000.
    #[arg(long, requires = "ping", value_parser = url)]
    url: Option<String>,
    /// A token of role admin, for --ping. By default, it is issued with the server's secret.
    #[arg(long, requires = "ping")]
    token: Option<Secret>,
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

pub(super) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    if let Some(job_type) = arguments.ping.take() {
        return create_ping(&job_type, arguments);
    }
    // clap requires a role otherwise.
    let role = arguments.role.unwrap_or(Role::Viewer);
    let is_for_all = arguments.school.is_none() && arguments.schools.is_empty();
    if is_for_all && role == Role::Viewer {
        let problem = "--school or --schools is required for --role viewer";
        return Err(Failure::new(Exit::Usage, problem));
    }
    // If it was left out by mistake, the token would reach too far.
    if is_for_all && role == Role::Worker && !arguments.all_schools {
        let problem = "--school, --schools or --all-schools is required for --role worker";
        return Err(Failure::new(Exit::Usage, problem));
    }
    if arguments.schools.len() > SCHOOLS_PER_TOKEN_MAX {
        let problem = format!("--schools accepts at most {SCHOOLS_PER_TOKEN_MAX} schools");
        return Err(Failure::new(Exit::Usage, problem));
    }
    let keys = keys(arguments.data_dir)?;
    let channels = (!arguments.channels.is_empty()).then_some(arguments.channels);
    let claims = Claims {
        schools: (!arguments.schools.is_empty()).then_some(arguments.schools),
        channels: channels.map(|channels| channels.iter().map(Channel::to_string).collect()),
        ..claims(arguments.school, role, &arguments.sub, arguments.ttl)
    };
    terminal::print_line(&keys.mint(claims)?)
}

/// Returns the keys of the server whose settings are here, or whose data are in this folder.
fn keys(data_dir: Option<PathBuf>) -> Result<Keys, Failure> {
    let figment = super::figment()?;
    let mut settings = Settings::from_figment(&figment)?;
    if let Some(folder) = data_dir {
        settings.data_dir = folder;
    }
    Keys::of_server(&settings).map_err(|error| match error.setting() {
        Some(key) => ConfigError::led_to(&error, key, &figment).into(),
        None => Failure::from(error),
    })
}

/// Asks the server for a key for pings, and prints it and how to use it.
fn create_ping(job_type: &JobType, arguments: Arguments) -> Result<(), Failure> {
    let server = match arguments.url {
        Some(server) => server,
        None => {
            let set = std::env::var("TIDINGS_URL").unwrap_or_default();
            url(&set)
                .map_err(|problem| Failure::new(Exit::Usage, format!("TIDINGS_URL {problem}")))?
        }
    };
    let server = server.trim_end_matches('/');
    let token = match (arguments.token, arguments.school) {
        (Some(token), _) => token,
        (None, None) => {
            let problem = "--school is required for --ping";
            return Err(Failure::new(Exit::Usage, problem));
        }
        (None, Some(school)) => {
            let claims = claims(Some(school), Role::Admin, &arguments.sub, OWN_TOKEN_TTL);
            keys(arguments.data_dir)?.mint(claims)?.into()
        }
    };
    let path = match arguments.school {
        Some(school) => format!("/api/pings?school_id={school}"),
        None => "/api/pings".to_owned(),
    };
    let asked = json!({
        "job_type": job_type.as_str(),
        "numbers": arguments.numbers.as_str(),
    });
    let created = Client::new(server, Some(token)).post(&path, &asked)?;
    let key = created["key"].as_str().unwrap_or_default();
    terminal::print_line(key)?;
    terminal::print_line(&format!("curl -fsS -m 10 --retry 3 {server}/ping/{key}"))
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

pub(super) fn job_type(text: &str) -> Result<JobType, String> {
    text.parse()
        .map_err(|error: crate::kind::RuleError| error.to_string())
}

fn numbers(text: &str) -> Result<Numbers, String> {
    Numbers::parse(text).ok_or_else(|| "must be exit or progress".into())
}

fn channel(text: &str) -> Result<Channel, String> {
    kind::channel(text).map_err(|error| error.to_string())
}

/// Parses a number and a unit: `s`, `m`, `h` or `d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
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
