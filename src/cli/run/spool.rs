//! Outcomes that could not be reported, in files until a later `tidings run`, `tidings report` or `tidings spool send` reports them.
//!
//! A file holds what one run has not reported yet: its job, its last progress and its outcome. Requests repeat the idempotency keys
//! of the run, so the server carries out nothing twice. A file never contains a token. The sender's token must be for the same user
//! and schools. Files are bounded in number, size and age.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::delivery::{Delivery, Job};
use super::outcome::Outcome;
use super::reporter::Latest;
use crate::cli::client::Client;
use crate::cli::credential::Account;
use crate::cli::{Exit, Failure, terminal};

/// Maximum number of files. A new one takes the place of the oldest.
pub(in crate::cli) const FILES_MAX: usize = 100;
/// Maximum size of a file, in bytes. What is larger is kept without the command's output.
const FILE_MAX_BYTES: u64 = 256 * 1024;
/// How long an outcome is kept.
const KEEP: TimeDelta = TimeDelta::days(7);
/// How much time must be left to send an outcome. Later, it is sent again.
const SEND_TIME_MIN: Duration = Duration::from_millis(100);
/// How long earlier outcomes may hold up the report of a command.
const EARLIER_WAIT: Duration = Duration::from_secs(3);

/// The claims of a token that change when it is renewed.
const CHANGING_CLAIMS: &[&str] = &[
    "exp",
    "iat",
    "nbf",
    "jti",
    "auth_time",
    "sid",
    "nonce",
    "at_hash",
];

/// Whom a run reports to, and as whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::cli) struct Recipient {
    pub(in crate::cli) server: String,
    school: Option<i64>,
    /// The claims of the token, which say for whom it is. Not the token.
    holder: Value,
}

/// What a run has not reported yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Unreported {
    pub(in crate::cli) recipient: Recipient,
    pub(in crate::cli) job: Job,
    /// The attempt that has been started. Without one, the start is reported first.
    pub(super) attempt: Option<u64>,
    pub(super) started_at: DateTime<Utc>,
    pub(in crate::cli) ended_at: DateTime<Utc>,
    pub(in crate::cli) outcome: Outcome,
    pub(super) latest: Latest,
    pub(super) is_unsent: bool,
}

/// The folder with the files.
pub(in crate::cli) struct Spool {
    folder: PathBuf,
}

/// An outcome, and its file.
pub(in crate::cli) struct Entry {
    path: PathBuf,
    pub(in crate::cli) unreported: Unreported,
}

/// What has become of the outcomes for a server.
#[derive(Default)]
pub(in crate::cli) struct Sent {
    pub(in crate::cli) count: usize,
    /// Why some are no longer of use: the job has ended, or has a newer attempt.
    pub(in crate::cli) rejected: Vec<String>,
    /// Why the rest could not be sent.
    pub(in crate::cli) problem: Option<Failure>,
}

impl Recipient {
    /// Returns the recipient of what this account reports.
    pub(in crate::cli) fn of(account: &Account) -> Recipient {
        let token = account.token.as_ref();
        Recipient {
            server: account.url.trim_end_matches('/').to_owned(),
            school: account.school.map(i64::from),
            holder: token
                .map(|token| holder(token.reveal()))
                .unwrap_or_default(),
        }
    }
}

/// Returns the claims of a token that stay the same when it is renewed. The server verifies them, not this.
fn holder(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    let mut claims: Value = serde_json::from_slice(&payload).unwrap_or_default();
    if let Some(claims) = claims.as_object_mut() {
        claims.retain(|name, _| !CHANGING_CLAIMS.contains(&name.as_str()));
    }
    claims
}

impl Spool {
    /// Returns the user's folder: `$XDG_STATE_HOME/tidings/spool`. None if there is no home.
    pub(in crate::cli) fn of_user() -> Option<Spool> {
        let named = |name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let state = named("XDG_STATE_HOME")
            .or_else(|| named("HOME").map(|home| home.join(".local").join("state")))?;
        Some(Spool {
            folder: state.join("tidings").join("spool"),
        })
    }

    /// Keeps an outcome. Only this user can read it.
    pub(super) fn keep(&self, unreported: &Unreported) -> io::Result<()> {
        let mut text = serde_json::to_vec(unreported)?;
        if text.len() as u64 > FILE_MAX_BYTES {
            let mut short = unreported.clone();
            short.outcome.forget_output();
            text = serde_json::to_vec(&short)?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let names = self.names();
        let excess = (names.len() + 1).saturating_sub(FILES_MAX);
        for oldest in &names[..excess] {
            let _ = fs::remove_file(oldest);
        }
        // The names of runs are in the order of time.
        let path = self.folder.join(format!("{}.json", unreported.job.run));
        let partial = path.with_extension("partial");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(partial, path)
    }

    /// Returns the outcomes, the oldest first. Removes those that are too old.
    pub(in crate::cli) fn entries(&self) -> Vec<Entry> {
        let now = Utc::now();
        let mut entries = Vec::new();
        for path in self.names() {
            let is_small = fs::metadata(&path).is_ok_and(|own| own.len() <= FILE_MAX_BYTES);
            let text = if is_small { fs::read(&path).ok() } else { None };
            // What is not readable is of another version, and goes when there are too many.
            let Some(unreported) =
                text.and_then(|text| serde_json::from_slice::<Unreported>(&text).ok())
            else {
                continue;
            };
            if now - unreported.ended_at > KEEP {
                let _ = fs::remove_file(&path);
            } else {
                entries.push(Entry { path, unreported });
            }
        }
        entries
    }

    /// Locks the folder, if there is one, until the answer is dropped. Fails if another process has locked it.
    fn lock(&self) -> Result<Option<File>, TryLockError> {
        match File::open(&self.folder) {
            Ok(folder) => folder.try_lock().map(|()| Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TryLockError::Error(error)),
        }
    }

    fn names(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let paths = files.map(|file| file.path());
        let mut names: Vec<PathBuf> = paths
            .filter(|path| path.extension().is_some_and(|own| own == "json"))
            .collect();
        names.sort();
        names
    }

    /// Sends the outcomes for this recipient, the oldest first, until this time. Ends when the server does not answer or denies access.
    pub(in crate::cli) fn send(
        &self,
        client: &Client,
        recipient: &Recipient,
        until: Instant,
    ) -> Sent {
        let mut sent = Sent::default();
        // Of two at a time, one would find the work of the other, and take it for something newer.
        let Ok(_lock) = self.lock() else {
            let problem = "another process is sending them";
            sent.problem = Some(Failure::new(Exit::Failed, problem));
            return sent;
        };
        let client = client.clone().until(until);
        for entry in self.entries() {
            if entry.unreported.recipient != *recipient {
                continue;
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest < SEND_TIME_MIN {
                let problem = "the server is too slow; the rest is sent the next time";
                sent.problem = Some(Failure::new(Exit::Unreachable, problem));
                break;
            }
            match entry.unreported.send(&client) {
                Ok(()) => sent.count += 1,
                Err(failure) if is_worth_another_try(&failure) => {
                    // A fault of the server can be about this one only.
                    let is_about_all = failure.http_status != Some(500);
                    sent.problem = Some(failure);
                    if is_about_all {
                        break;
                    }
                    continue;
                }
                Err(failure) => sent.rejected.push(format!(
                    "how the job {} ended could not be reported: {}",
                    entry.unreported.job.id, failure.message
                )),
            }
            let _ = fs::remove_file(&entry.path);
        }
        sent
    }
}

/// Sends the earlier outcomes for this recipient, and says which the server rejects.
pub(in crate::cli) fn send_earlier(client: &Client, recipient: &Recipient) {
    let Some(spool) = Spool::of_user() else {
        return;
    };
    let sent = spool.send(client, recipient, Instant::now() + EARLIER_WAIT);
    for rejected in sent.rejected {
        terminal::complain(&format!("tidings: earlier: {rejected}"));
    }
}

/// Whether the server may take the same report later: it was away, something else answered in its place, or the token was not
/// valid.
pub(super) fn is_worth_another_try(failure: &Failure) -> bool {
    let is_answer = failure.code.is_some();
    !is_answer || failure.is_passing() || matches!(failure.http_status, Some(401 | 403))
}

impl Unreported {
    fn send(&self, client: &Client) -> Result<(), Failure> {
        let mut delivery = Delivery::again(client.clone(), self.job.clone(), self.attempt);
        if self.attempt.is_none() {
            delivery.start_unless_changed_since(self.started_at)?;
        }
        delivery.end_within_limits(&self.outcome, &self.latest, self.is_unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::id::SubjectId;

    fn recipient(url: &str, token: Option<Secret>) -> Recipient {
        Recipient::of(&Account {
            url: url.to_owned(),
            token,
            school: None,
        })
    }

    fn unreported(run: usize, ended_at: DateTime<Utc>) -> Unreported {
        let id: SubjectId = format!("j{run}").parse().unwrap();
        let mut job = Job::new(&id, "backup".into(), serde_json::json!({}));
        job.run = format!("{run:05}");
        Unreported {
            recipient: recipient("http://127.0.0.1:1/", None),
            job,
            attempt: None,
            started_at: ended_at,
            ended_at,
            outcome: Outcome::not_started("x".repeat(1000), Duration::ZERO),
            latest: Latest::default(),
            is_unsent: false,
        }
    }

    #[test]
    fn files_are_private_and_bounded_in_number_size_and_age() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let spool = Spool {
            folder: home.path().join("tidings").join("spool"),
        };
        let now = Utc::now();
        for run in 0..FILES_MAX + 3 {
            spool.keep(&unreported(run, now)).unwrap();
        }
        let entries = spool.entries();
        assert_eq!(entries.len(), FILES_MAX);
        assert_eq!(entries[0].unreported.job.run, "00003", "the newest stay");
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&spool.folder), mode(&entries[0].path)),
            (0o700, 0o600)
        );
        let old = now - KEEP - TimeDelta::seconds(1);
        spool.keep(&unreported(999, old)).unwrap();
        assert_eq!(spool.names().len(), FILES_MAX);
        assert_eq!(spool.entries().len(), FILES_MAX - 1);
        assert_eq!(
            spool.names().len(),
            FILES_MAX - 1,
            "what is too old is gone"
        );
    }

    #[test]
    fn a_renewed_token_is_of_the_same_holder_and_another_is_not() {
        let token = |claims: &str| {
            let payload = URL_SAFE_NO_PAD.encode(claims);
            Secret::from(format!("e30.{payload}.signature"))
        };
        let of = |claims| recipient("http://a", Some(token(claims)));
        let first = of(r#"{"sub":"a","school_id":1,"exp":1}"#);
        assert_eq!(first, of(r#"{"sub":"a","school_id":1,"exp":2}"#));
        assert_ne!(first, of(r#"{"sub":"a","school_id":2,"exp":1}"#));
        assert_ne!(first, recipient("http://a", None));
    }
}
