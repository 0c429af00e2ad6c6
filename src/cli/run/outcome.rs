//! How a command ended, and what it used.

use std::borrow::Cow;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use signal_hook::low_level::signal_name;

/// The exit codes by which shells say that a program was not found, or cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Shells add this to the number of a signal that has ended a command.
pub(super) const SIGNALLED: i32 = 128;

/// How the job ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Ending {
    Completed,
    Failed {
        code: Cow<'static, str>,
        message: String,
    },
    /// Cancelled, for this reason.
    Cancelled(String),
}

/// How a command ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Outcome {
    pub(super) ending: Ending,
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// By the clock of this machine. The report may be sent much later.
    pub(super) ended_at: DateTime<Utc>,
    wall: Duration,
    used: Used,
    output: String,
}

/// What a command and its children used.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Used {
    user_secs: f64,
    system_secs: f64,
    /// The kernel's value also counts the memory of the forked process before `exec`. So if it does not exceed the peak of this
    /// process, the highest value seen in `/proc` is used instead, if there is one.
    peak_memory_bytes: Option<u64>,
}

/// A command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The reason why it was told to stop, if it was.
    pub(super) cancelled: Option<String>,
    /// The peak memory of this process when the command was started, in bytes.
    pub(super) own_memory_bytes: u64,
    /// The highest memory usage of the command or one of its children that was seen in `/proc`, in bytes.
    pub(super) memory_bytes: Option<u64>,
}

impl Outcome {
    /// Creates the outcome of a command that ran for `wall` and whose last output is `output`.
    pub(super) fn of(ended: Ended, wall: Duration, output: String) -> Outcome {
        let used = used(&ended);
        let status = ended.status;
        let ending = match (ended.cancelled, status.code(), status.signal()) {
            (Some(reason), _, _) => Ending::Cancelled(reason),
            (None, Some(0), _) => Ending::Completed,
            (None, Some(code), _) => Ending::Failed {
                code: "exit".into(),
                message: format!("exited with code {code}"),
            },
            (None, None, signal) => Ending::Failed {
                code: "signal".into(),
                message: match signal {
                    Some(signal) => format!("ended by {}", name(signal)),
                    None => "ended by a signal".into(),
                },
            },
        };
        Outcome {
            ending,
            exit_code: status.code(),
            signal: status.signal(),
            ended_at: Utc::now(),
            wall,
            used,
            output,
        }
    }

    /// Creates the outcome of a command that could not be started.
    pub(super) fn not_started(message: String, wall: Duration) -> Outcome {
        Outcome {
            ending: Ending::Failed {
                code: "not_started".into(),
                message,
            },
            exit_code: None,
            signal: None,
            ended_at: Utc::now(),
            wall,
            used: Used::default(),
            output: String::new(),
        }
    }

    /// Returns the job's metadata about the run.
    pub(super) fn metadata(&self) -> Value {
        let mut metadata = json!({
            "ended_at": self.ended_at.to_rfc3339_opts(SecondsFormat::Millis, true),
            "wall_secs": rounded(self.wall.as_secs_f64()),
            "cpu_user_secs": rounded(self.used.user_secs),
            "cpu_system_secs": rounded(self.used.system_secs),
            "peak_memory_bytes": self.used.peak_memory_bytes,
        });
        if let Ending::Cancelled(_) = self.ending {
            metadata["exit_code"] = self.exit_code.into();
            metadata["signal"] = self.signal.map(name).into();
        }
        metadata
    }

    /// Returns the metadata of a run that has not ended: nulls, which remove the values of an earlier attempt.
    pub(super) fn no_metadata() -> Value {
        json!({
            "wall_secs": null, "cpu_user_secs": null, "cpu_system_secs": null, "peak_memory_bytes": null,
            "ended_at": null, "ended_attempt": null, "exit_code": null, "signal": null, "progress_source": null,
        })
    }

    /// Returns how the command ended, for people.
    pub(in crate::cli) fn text(&self) -> String {
        match &self.ending {
            Ending::Completed => "completed".into(),
            Ending::Failed { message, .. } => format!("failed: {message}"),
            Ending::Cancelled(reason) => format!("cancelled: {reason}"),
        }
    }

    pub(super) fn forget_output(&mut self) {
        self.output.clear();
    }

    /// Returns the details of a failure.
    pub(super) fn details(&self) -> Value {
        json!({"exit_code": self.exit_code, "signal": self.signal.map(name), "output": self.output})
    }
}

/// Returns the exit code for a command that could not be started, as shells do.
pub(super) fn code_of(error: &std::io::Error) -> u8 {
    match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}

/// Returns the name of a signal: `SIGTERM`.
pub(super) fn name(signal: i32) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

/// Returns what the command has used. `RUSAGE_CHILDREN` covers all children that have been waited for; the command is the only
/// one.
fn used(ended: &Ended) -> Used {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return Used::default();
    };
    let secs = |time: nix::sys::time::TimeVal| {
        let micros = u32::try_from(time.tv_usec()).unwrap_or(0);
        time.tv_sec() as f64 + f64::from(micros) / 1e6
    };
    // `ru_maxrss` is in kilobytes, except on Apple's systems.
    let unit = if cfg!(target_vendor = "apple") {
        1
    } else {
        1024
    };
    let peak = u64::try_from(usage.max_rss()).unwrap_or(0) * unit;
    Used {
        user_secs: secs(usage.user_time()),
        system_secs: secs(usage.system_time()),
        peak_memory_bytes: match peak > ended.own_memory_bytes {
            true => Some(peak),
            false => ended.memory_bytes,
        },
    }
}

/// Rounds to milliseconds.
fn rounded(secs: f64) -> f64 {
    (secs * 1000.0).round() / 1000.0
}
