//! `tidings token`.

use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use serde_json::json;

use super::client::{Client, url};
use super::{Exit, Failure, credential, terminal};
use crate::auth::{Claims, Keys, Role, View};
use crate::config::{ConfigError, SCHOOLS_PER_TOKEN_MAX, Secret, Settings};
use crate::id::{Channel, SchoolId};
use crate::kind;
use crate::kind::job::JobType;
use crate::log::pings::Numbers;

/// The lifetime of the token that the command itself uses.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(60);

/// How long a token is valid by default.
const DEFAULT_TTL: Duration = Duration::from_secs(3_600);

/// Create a token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings token --school 1 --role viewer
  tidings token --school 1 --role worker --sub ocr-7 --ttl 30d --channel jobs
  tidings token --schools 1,2 --role worker
  tidings token --all-schools --role worker
  tidings token --role admin            (all schools)
  tidings token --school 1 --ping backup
  tidings token --school 1 --badge jobs/42 --ttl 90d
  tidings token --school 1 --role worker --data-dir /var/lib/tidings

The server's secret is required: run this in the server's directory, with its settings, or with --data-dir.")]
pub(super) struct Arguments {
    /// The school. An admin token without a school covers all schools.
    /// For --ping, --badge and --embed, by default that of TIDINGS_SCHOOL_ID.
    #[arg(long)]
    school: Option<SchoolId>,
    /// Several schools, separated by commas. Each request names one of them.
    #[arg(long, value_delimiter = ',', conflicts_with = "school")]
    schools: Vec<SchoolId>,
    /// All schools, for a worker. Each request names one.
    #[arg(long, conflicts_with_all = ["school", "schools"])]
    all_schools: bool,
    /// viewer, worker or admin.
    #[arg(long, value_parser = role, required_unless_present_any = ["ping", "badge", "embed"])]
    role: Option<Role>,
    /// Instead of a token, create a key with which a script reports on jobs of this type by `curl`. The server must be
    /// running. Prints the key, and a curl line.
    #[arg(long, value_name = "JOB_TYPE", value_parser = job_type, conflicts_with_all = ["schools", "all_schools", "role", "channels"])]
    ping: Option<JobType>,
    /// What a plain number in the URL of a ping means: the exit code of a command, or percent complete.
    #[arg(long, value_name = "MEANING", requires = "ping", value_parser = numbers, default_value = "exit")]
    numbers: Numbers,
    /// Instead of a token, create a signed link to an image of this channel's state: jobs, jobs/42, schools/1. The server
    /// must be running. Prints its URL. Without --ttl, the link never
    /// expires; with a --token of another role than admin, it expires with that token at the latest.
    #[arg(long, value_name = "CHANNEL", value_parser = channel, conflicts_with_all = ["ping", "embed", "schools", "all_schools", "role", "channels"])]
    badge: Option<Channel>,
    /// The same for a live page that another page can show in a frame: jobs or jobs/42.
    #[arg(long, value_name = "CHANNEL", value_parser = channel, conflicts_with_all = ["ping", "schools", "all_schools", "role", "channels"])]
    embed: Option<Channel>,
    /// The URL of the server, for --ping, --badge and --embed; by default TIDINGS_URL, or http://127.0.0.1:8000.
    #[arg(long, conflicts_with = "role", value_parser = url)]
    url: Option<String>,
    /// A token for --ping (role admin), or for --badge and --embed (any token for the channel). By default, one of role admin
    /// for --school is issued with the server's secret; without --school, TIDINGS_TOKEN is used.
    #[arg(long, conflicts_with = "role")]
    token: Option<Secret>,
    /// The user of the token, which appears in logs.
    #[arg(long, default_value = "cli")]
    sub: String,
    /// How long the token is valid: 90s, 30m, 1h (the default), 7d.
    #[arg(long, value_parser = duration, conflicts_with = "ping")]
    ttl: Option<Duration>,
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
    let badge = arguments.badge.take().map(|channel| (channel, View::Badge));
    let embed = arguments.embed.take().map(|channel| (channel, View::Embed));
    if let Some((channel, view)) = badge.or(embed) {
        return create_link(&channel, view, arguments);
    }
    // clap requires a role otherwise.
    let role = arguments.role.unwrap_or(Role::Viewer);
    let is_for_all = arguments.school.is_none() && arguments.schools.is_empty();
    if is_for_all && role == Role::Viewer {
        let problem = "--school or --schools is required for --role viewer";
        return Err(Failure::new(Exit::Usage, problem));
    }
    // Require an explicit option: if the school was left out by mistake, the token would cover too many.
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
        ..claims(
            arguments.school,
            role,
            &arguments.sub,
            arguments.ttl.unwrap_or(DEFAULT_TTL),
        )
    };
    terminal::print_line(keys.mint(claims)?.reveal())
}

/// Returns the keys of the server whose settings are here, or whose data are in this folder.
fn keys(data_dir: Option<PathBuf>) -> Result<Keys, Failure> {
    let figment = super::figment()?;
    let mut settings = Settings::from_figment(&figment)?;
    if let Some(folder) = data_dir {
        settings.data_dir = folder;
    }
    Keys::of_server(&settings).map_err(|error| match error.setting() {
        Some(key) => ConfigError::caused_by_setting(&error, key, &figment).into(),
        None => Failure::from(error),
    })
}

/// Asks the server for a key for pings, and prints it and how to use it.
fn create_ping(job_type: &JobType, arguments: Arguments) -> Result<(), Failure> {
    let (server, client) = own_client(&arguments, "--ping")?;
    let asked = json!({
        "job_type": job_type.as_str(),
        "numbers": arguments.numbers.as_str(),
    });
    let created = client.post("/api/pings", &asked)?;
    let key = created["key"].as_str().unwrap_or_default();
    terminal::print_line(key)?;
    terminal::print_line(&format!("curl -fsS -m 10 --retry 3 {server}/ping/{key}"))
}

/// Asks the server for a signed link, and prints its URL.
fn create_link(channel: &Channel, view: View, arguments: Arguments) -> Result<(), Failure> {
    let (server, client) = own_client(&arguments, &format!("--{}", view.as_str()))?;
    let mut asked = json!({ "channel": channel.to_string(), "view": view.as_str() });
    if let Some(ttl) = arguments.ttl {
        asked["expires_in_secs"] = ttl.as_secs().into();
    }
    let created = client.post("/api/links", &asked)?;
    let url = created["url"].as_str().unwrap_or_default().to_owned();
    // If a proxy serves Tidings below a path, both the returned path and the server's URL may contain it: do not repeat it.
    let host = server.find("://").map_or(0, |at| at + 3);
    let path = server[host..]
        .find('/')
        .map_or(server.len(), |at| host + at);
    let start = match url.starts_with(&format!("{}/", &server[path..])) {
        true => &server[..path],
        false => &server,
    };
    terminal::print_line(&format!("{start}{url}"))
}

/// Returns the server's URL and a client for it, for the option that needs them. Uses `--token` or `TIDINGS_TOKEN`, or else
/// issues a token of role admin.
fn own_client(arguments: &Arguments, option: &str) -> Result<(String, Client), Failure> {
    let server = match &arguments.url {
        Some(server) => server.clone(),
        None => {
            let set = std::env::var("TIDINGS_URL").unwrap_or_default();
            url(&set)
                .map_err(|problem| Failure::new(Exit::Usage, format!("TIDINGS_URL {problem}")))?
        }
    };
    let server = server.trim_end_matches('/').to_owned();
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let set_school = credential::school(variable(credential::SCHOOL_VARIABLE).as_deref())?;
    let school = arguments.school.or(set_school);
    let token = match (
        &arguments.token,
        arguments.school,
        variable("TIDINGS_TOKEN"),
    ) {
        (Some(token), _, _) => token.clone(),
        (None, None, Some(token)) => token.into(),
        (None, _, _) => {
            let Some(school) = school else {
                let problem = format!(
                    "{option} requires a school, because the server's secret is valid for all of them: \
                     --school 1, or TIDINGS_SCHOOL_ID; or a token for one school in --token or TIDINGS_TOKEN"
                );
                return Err(Failure::new(Exit::Usage, problem));
            };
            let claims = claims(Some(school), Role::Admin, &arguments.sub, OWN_TOKEN_TTL);
            keys(arguments.data_dir.clone())?.mint(claims)?
        }
    };
    let client = Client::new(&server, credential::token(Some(token))?)?.of_school(school);
    Ok((server, client))
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
