//! `tidings schedules`: when the jobs of a type should run.

use std::time::Duration;

use chrono::{DateTime, Local};
use clap::{Args, Subcommand};
use console::{Alignment, measure_text_width, pad_str};
use serde_json::{Value, json};

use super::client::Client;
use super::terminal::{complain, json_line, plain, print_line};
use super::token::{duration, job_type};
use super::{Exit, Failure, credential};
use crate::config::PAGE_MAX;
use crate::id::{NameError, SubjectId};
use crate::kind::job::JobType;
use crate::kind::schedule::{DESCRIPTION, REMOVED};

/// Define when the jobs of a type should run, and see which have not run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings schedules set backup --cron '0 3 * * *' --time-zone Europe/Berlin --grace 15m --max-run 2h
  tidings schedules set import --every 1d --grace 1h
  tidings schedules list
  tidings schedules list --json
  tidings schedules remove import

Exit codes: 0 done, 2 the command line is not valid, or the server does not accept the schedule, 3 denied, 4 there is no such
schedule, 5 the server cannot be reached, 1 another error.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    options: credential::Options,
    /// Print every schedule as a line of JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the schedules, each with its status, its next and its last run.
    List {
        /// Only those with one of these statuses: on_time, late, missed, removed. By default, all but the removed ones.
        #[arg(long, value_delimiter = ',', value_parser = status)]
        status: Vec<&'static str>,
    },
    /// Create or replace the schedule of a job type.
    Set(Rule),
    /// Remove the schedule of a job type.
    Remove {
        /// The type of the jobs.
        #[arg(value_parser = job_type)]
        job_type: JobType,
    },
}

#[derive(Debug, Args)]
struct Rule {
    /// The type of the jobs.
    #[arg(value_parser = job_type)]
    job_type: JobType,
    /// A cron expression of five fields (minute, hour, day of the month, month, day of the week), or @daily and the like.
    #[arg(long, required_unless_present = "every", conflicts_with = "every")]
    cron: Option<String>,
    /// The time zone of --cron, by its IANA name, such as Europe/Berlin [default: UTC].
    #[arg(long, conflicts_with = "every", value_name = "NAME")]
    time_zone: Option<String>,
    /// Instead of --cron, the time from the start of a run to that of the next one: 90s, 30m, 1h, 7d.
    #[arg(long, value_name = "PERIOD", value_parser = duration)]
    every: Option<Duration>,
    /// How long after its expected time a run may start before it is missed [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// How long a run may last before it is late [default: as --grace].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_run: Option<Duration>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        action,
        options,
        json,
    } = arguments;
    let server = Server {
        client: options.account()?.client()?,
    };
    match action {
        Action::List { status } => list(&server, &status, json),
        Action::Set(rule) => {
            let schedule = server.put(&rule)?;
            let due = time(&schedule["due_at"]).unwrap_or_default();
            let done = format!(
                "is {}; the next run is expected at {due}",
                text(&schedule["status"])
            );
            print(&schedule, json, &done)
        }
        Action::Remove { job_type } => {
            let schedule = server.remove(&job_type)?;
            print(&schedule, json, "was removed")
        }
    }
}

/// Prints a schedule after a change.
fn print(schedule: &Value, json: bool, done: &str) -> Result<(), Failure> {
    match json {
        true => print_line(&json_line(schedule)),
        false => print_line(&format!("{} {done}", text(&schedule["schedule_id"]))),
    }
}

/// The schedules of a school on a server.
struct Server {
    client: Client,
}

impl Server {
    fn put(&self, rule: &Rule) -> Result<Value, Failure> {
        let secs = |time: Option<Duration>| time.map(|duration| duration.as_secs());
        let body = json!({
            "cron": rule.cron,
            "time_zone": rule.time_zone,
            "period_secs": secs(rule.every),
            "grace_secs": secs(rule.grace),
            "max_run_secs": secs(rule.max_run),
        });
        let answer = self.client.put(&self.path(&rule.job_type)?, &body);
        answer.map_err(|failure| match failure.http_status {
            // The server rejected a value that was in the command line.
            Some(422) => Failure {
                exit: Exit::Usage,
                ..failure
            },
            _ => failure,
        })
    }

    fn remove(&self, job_type: &JobType) -> Result<Value, Failure> {
        self.client.delete(&self.path(job_type)?)
    }

    /// Returns all schedules with these statuses, in the order of their types.
    fn all(&self, statuses: &[&str]) -> Result<Vec<Value>, Failure> {
        let mut query = format!("limit={PAGE_MAX}");
        for status in statuses {
            query += &format!("&status={status}");
        }
        let mut all = Vec::new();
        let mut page = String::new();
        // A school has at most `schedules_per_school` of them.
        loop {
            let mut answer = self.client.get(&format!("/api/schedules?{query}{page}"))?;
            if let Value::Array(schedules) = answer["schedules"].take() {
                all.extend(schedules);
            }
            match answer["next"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => break,
            }
        }
        all.sort_by_cached_key(|schedule| text(&schedule["schedule_id"]));
        Ok(all)
    }

    fn path(&self, job_type: &JobType) -> Result<String, Failure> {
        let id: SubjectId = job_type.as_str().parse().map_err(|error: NameError| {
            let problem = format!("{} cannot have a schedule: {error}", job_type.as_str());
            Failure::new(Exit::Usage, problem)
        })?;
        Ok(format!("/api/schedules/{}", id.encoded()))
    }
}

fn list(server: &Server, statuses: &[&str], json: bool) -> Result<(), Failure> {
    let watched = DESCRIPTION.statuses.iter().copied();
    let watched: Vec<_> = watched.filter(|status| *status != REMOVED).collect();
    let statuses = if statuses.is_empty() {
        &watched
    } else {
        statuses
    };
    let schedules = server.all(statuses)?;
    if json {
        let mut lines = schedules.iter().map(json_line);
        return lines.try_for_each(|line| print_line(&line));
    }
    if schedules.is_empty() {
        complain("no schedules");
        return Ok(());
    }
    let head = ["JOB TYPE", "STATUS", "NEXT RUN", "LAST RUN", "RULE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head)
        .chain(schedules.iter().map(row))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| measure_text_width(&row[column]))
            .max()
    };
    let widths: Vec<_> = (0..4).filter_map(width).collect();
    rows.iter().try_for_each(|row| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| pad_str(cell, *width, Alignment::Left, None))
            .collect();
        print_line(&format!("{}  {}", cells.join("  "), row[4]))
    })
}

/// Returns the row of a schedule.
fn row(schedule: &Value) -> [String; 5] {
    let none = || "-".to_owned();
    let last = &schedule["last_run"];
    let last_at = time(&last["finished_at"]).or_else(|| time(&last["started_at"]));
    let last = last_at.map(|at| format!("{} {at}", text(&last["status"])));
    [
        text(&schedule["schedule_id"]),
        text(&schedule["status"]),
        time(&schedule["due_at"]).unwrap_or_else(none),
        last.unwrap_or_else(none),
        rule(schedule),
    ]
}

fn rule(schedule: &Value) -> String {
    let mut rule = match schedule["period_secs"].as_u64() {
        Some(period) => format!("every {}", shortly(period)),
        None => text(&schedule["cron"]),
    };
    if schedule["cron"].is_string() {
        let zone = schedule["time_zone"].as_str().unwrap_or("UTC");
        rule += &format!(" {}", plain(zone));
    }
    for (field, name) in [("grace_secs", "grace"), ("max_run_secs", "at most")] {
        if let Some(secs) = schedule[field].as_u64() {
            rule += &format!(", {name} {}", shortly(secs));
        }
    }
    rule
}

/// Returns seconds in the largest unit that leaves no remainder, in the form that `set` accepts.
fn shortly(secs: u64) -> String {
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
    let unit = units
        .iter()
        .find(|(unit, _)| secs >= *unit && secs.is_multiple_of(*unit));
    unit.map_or(format!("{secs}s"), |(unit, name)| {
        format!("{}{name}", secs / unit)
    })
}

/// Returns a time of the server in the time zone of this machine.
fn time(value: &Value) -> Option<String> {
    let at = DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
    Some(at.with_timezone(&Local).format("%F %T %:z").to_string())
}

fn text(value: &Value) -> String {
    plain(value.as_str().unwrap_or_default())
}

fn status(text: &str) -> Result<&'static str, String> {
    let known = DESCRIPTION.statuses;
    let found = known.iter().copied().find(|status| *status == text);
    found.ok_or_else(|| format!("must be one of {}", known.join(", ")))
}
