//! Keeps outcomes that could not be reported, in files, until a later `tidings run`, `tidings report` or `tidings spool send` sends
//! them.
//!
//! A file holds what one run has not reported yet (its job, its last progress and its outcome), or the report with which a script has
//! ended its job. A repeated request has the same idempotency key, so it takes effect only once. A file never contains a token. An
//! outcome is sent only with a token for the same user, schools and role as the original one. Files are bounded in number, size and
//! age, and only one is read at a time.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::delivery::{self, Job};
use super::outcome::Outcome;
use super::reporter::Latest;
use crate::cli::client::Client;
use crate::cli::credential::Account;
use crate::cli::{Exit, Failure, report, terminal};

/// Maximum number of files. A new one replaces the oldest.
pub(in crate::cli) const FILES_MAX: usize = 100;
/// Maximum size of a file, in bytes. A larger outcome is kept without the command's output.
const FILE_MAX_BYTES: u64 = 256 * 1024;
/// How long an outcome is kept.
const KEEP: TimeDelta = TimeDelta::days(7);
/// The minimum time that must be left to start sending an outcome. Otherwise it stays in the spool.
const SEND_TIME_MIN: Duration = Duration::from_millis(100);
/// How long sending earlier outcomes may delay the report of a command.
const EARLIER_WAIT: Duration = Duration::from_secs(3);

/// The claims that change when a token is renewed, by this server or by common login services. All other claims are compared: any of
/// them may identify the user, the school or the role, because the server's settings choose the names of those claims.
const RENEWED_CLAIMS: &[&str] = &[
    "exp",
    "iat",
    "nbf",
    "jti",
    "auth_time",
    "nonce",
    "at_hash",
    "c_hash",
    "updated_at",
    // Keycloak, and OpenID Connect sessions.
    "sid",
    "session_state",
    // Entra ID.
    "aio",
    "rh",
    "uti",
];

/// The server and school to which a run reports, and the user on whose behalf it reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Recipient {
    pub(in crate::cli) server: String,
    school: Option<i64>,
    /// The claims that identify the user of the token. The token itself is not stored.
    holder: Value,
}

/// What has not been reported yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::cli) struct Unreported {
    pub(in crate::cli) recipient: Recipient,
    pub(in crate::cli) ended_at: DateTime<Utc>,
    #[serde(flatten)]
    pub(super) what: What,
}

/// What has not been reported: the run of a command, or the end of a script.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum What {
    /// The command of a `tidings run`.
    Run(Box<Run>),
    /// The report of a `tidings report` that ends a script's job.
    Report(Box<report::Delivery>),
}

/// A command that has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) job: Job,
    /// The attempt that has been started. Without one, the start is reported first.
    pub(super) attempt: Option<u64>,
    pub(super) started_at: DateTime<Utc>,
    pub(super) outcome: Outcome,
    pub(super) latest: Latest,
    /// Whether `latest` is not known to have arrived.
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

/// The result of sending the outcomes for a server.
#[derive(Default)]
pub(in crate::cli) struct Sent {
    pub(in crate::cli) count: usize,
    /// Why the server rejected some outcomes, for example because the job has a newer attempt. They are dropped.
    pub(in crate::cli) rejected: Vec<String>,
    /// The number of outcomes that must not be sent with this token.
    pub(in crate::cli) foreign: usize,
    /// The claims in which this token differs from the tokens of these outcomes.
    pub(in crate::cli) differences: BTreeSet<String>,
    /// Why the remaining outcomes could not be sent.
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

    /// Returns the differences between two accounts of a server: `school`, or the names of claims. Empty if they are for the same
    /// user, schools and role.
    pub(in crate::cli) fn differences(&self, other: &Recipient) -> BTreeSet<String> {
        let claims =
            |recipient: &Recipient| recipient.holder.as_object().cloned().unwrap_or_default();
        let (ours, theirs) = (claims(self), claims(other));
        let names = ours.keys().chain(theirs.keys());
        let sorted = |claims: &Map<String, Value>, name: &str| claims.get(name).map(without_order);
        let differs = |name: &&String| sorted(&ours, name) != sorted(&theirs, name);
        let mut differing: BTreeSet<String> = names
            .filter(|name| is_of_holder(name))
            .filter(differs)
            .cloned()
            .collect();
        if self.school() != other.school() {
            differing.insert("school".into());
        }
        differing
    }

    /// Returns the school that was named, or else the token's school if it covers only one.
    fn school(&self) -> Option<i64> {
        self.school.or(self.holder["school_id"].as_i64())
    }
}

/// Returns the claims of a token that stay the same when it is renewed. They are not verified here, but by the server.
fn holder(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    let claims: Map<String, Value> = serde_json::from_slice(&payload).unwrap_or_default();
    let claims = claims.into_iter().filter(|(name, _)| is_of_holder(name));
    Value::Object(claims.collect())
}

fn is_of_holder(claim: &str) -> bool {
    !RENEWED_CLAIMS.contains(&claim)
}

/// Returns a claim for comparison. Lists are sorted, because the order of roles or groups has no meaning.
fn without_order(claim: &Value) -> Value {
    match claim.clone() {
        Value::Array(mut items) => {
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        other => other,
    }
}

impl Spool {
    /// Returns the user's folder: `$XDG_STATE_HOME/tidings/spool`. `None` if neither this variable nor `HOME` is set.
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
    fn keep(&self, unreported: &Unreported) -> io::Result<()> {
        let mut text = serde_json::to_vec(unreported)?;
        if text.len() as u64 > FILE_MAX_BYTES {
            let mut short = unreported.clone();
            if let What::Run(run) = &mut short.what {
                run.outcome.forget_output();
            }
            text = serde_json::to_vec(&short)?;
        }
        if text.len() as u64 > FILE_MAX_BYTES {
            let problem = format!("it is larger than {FILE_MAX_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let names = self.names()?;
        if let What::Report(report) = &unreported.what {
            // A script can report `ok`, and its trap can then report `exit 0`. Only the first one takes effect.
            let is_same = |kept: &Entry| {
                let What::Report(kept_report) = &kept.unreported.what else {
                    return false;
                };
                let recipient = &kept.unreported.recipient;
                kept_report.is_of_same_attempt(report)
                    && recipient.server == unreported.recipient.server
                    && recipient.differences(&unreported.recipient).is_empty()
            };
            if entries(names.clone()).any(|kept| is_same(&kept)) {
                return Ok(());
            }
        }
        let path = self.folder.join(format!("{}.json", unreported.what.key()));
        let partial = path.with_extension("partial");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&partial)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&partial, path)) {
            let _ = fs::remove_file(partial);
            return Err(error);
        }
        let excess = (names.len() + 1).saturating_sub(FILES_MAX);
        for oldest in &names[..excess] {
            let _ = fs::remove_file(oldest);
        }
        Ok(())
    }

    /// Returns the outcomes, the oldest first. Removes outcomes that are too old.
    pub(in crate::cli) fn entries(&self) -> Result<impl Iterator<Item = Entry>, Failure> {
        let names = self.names().map_err(|error| self.unreadable(&error))?;
        Ok(entries(names))
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        let problem = format!("cannot read {}: {error}", self.folder.display());
        Failure::new(Exit::Failed, problem)
    }

    /// Locks the folder, if it exists, until the returned file is dropped. Fails if another process has locked it.
    fn lock(&self) -> Result<Option<File>, Failure> {
        let folder = match File::open(&self.folder) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unreadable(&error)),
        };
        match folder.try_lock() {
            Ok(()) => Ok(Some(folder)),
            Err(TryLockError::WouldBlock) => {
                let problem = "another process is sending the kept outcomes";
                Err(Failure::new(Exit::Failed, problem))
            }
            Err(TryLockError::Error(error)) => Err(self.unreadable(&error)),
        }
    }

    /// Returns the files, the oldest first. Removes partial files of processes that were killed while writing.
    fn names(&self) -> io::Result<Vec<PathBuf>> {
        let files = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files?,
        };
        let mut names = Vec::new();
        for file in files {
            let path = file?.path();
            let extension = path.extension().unwrap_or_default();
            if extension == "json" {
                names.push(path);
            } else if extension == "partial" && is_left_behind(&path) {
                let _ = fs::remove_file(&path);
            }
        }
        // Keys sort by time.
        names.sort();
        Ok(names)
    }

    /// Sends the outcomes for this recipient, the oldest first, until this time. Stops if the server does not answer or does not accept
    /// the token. After any other temporary failure, such as an error of a proxy, only later outcomes of the same job wait.
    pub(in crate::cli) fn send(
        &self,
        client: &Client,
        recipient: &Recipient,
        until: Instant,
    ) -> Sent {
        let mut sent = Sent::default();
        // Only one process sends at a time: a second one would mistake this one's changes to a job for newer activity.
        let (_lock, entries) = match self.lock().and_then(|lock| Ok((lock, self.entries()?))) {
            Ok(locked) => locked,
            Err(problem) => {
                sent.problem = Some(problem);
                return sent;
            }
        };
        let client = client.clone().until(until);
        let mut held_up = HashSet::new();
        let server_entries =
            entries.filter(|entry| entry.unreported.recipient.server == recipient.server);
        for entry in server_entries {
            let differences = entry.unreported.recipient.differences(recipient);
            if !differences.is_empty() {
                sent.foreign += 1;
                sent.differences.extend(differences);
                continue;
            }
            if held_up.contains(entry.unreported.job_id()) {
                continue;
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest < SEND_TIME_MIN {
                let problem =
                    "the server is too slow; the remaining outcomes will be sent next time";
                sent.problem = Some(Failure::new(Exit::Unreachable, problem));
                break;
            }
            match entry.unreported.send(&client) {
                Ok(()) => sent.count += 1,
                Err(failure) if is_worth_another_try(&failure) => {
                    // These failures affect all outcomes, not only this one.
                    let is_about_all = matches!(failure.http_status, None | Some(401 | 429 | 503));
                    sent.problem = Some(failure);
                    if is_about_all {
                        break;
                    }
                    held_up.insert(entry.unreported.job_id().to_owned());
                    continue;
                }
                Err(failure) => sent.rejected.push(format!(
                    "the outcome of the job {} could not be reported: {}",
                    entry.unreported.job_id(),
                    failure.message
                )),
            }
            let _ = fs::remove_file(&entry.path);
        }
        sent
    }
}

/// Reads the outcomes in these files, one after the other. Removes outcomes that are too old.
fn entries(names: Vec<PathBuf>) -> impl Iterator<Item = Entry> {
    let now = Utc::now();
    names.into_iter().filter_map(move |path| {
        // An unreadable file is from another version. It is removed when there are too many files.
        let unreported = read(&path)?;
        if now - unreported.ended_at > KEEP {
            let _ = fs::remove_file(&path);
            return None;
        }
        Some(Entry { path, unreported })
    })
}

fn read(path: &Path) -> Option<Unreported> {
    let mut text = Vec::new();
    let file = File::open(path).ok()?;
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text).ok()?;
    let is_small = text.len() as u64 <= FILE_MAX_BYTES;
    is_small.then(|| serde_json::from_slice(&text).ok())?
}

fn is_left_behind(partial: &Path) -> bool {
    let changed = fs::metadata(partial).and_then(|metadata| metadata.modified());
    // After this time, no process is still writing it, even if the clock of the file system differs.
    changed.is_ok_and(|changed| Utc::now() - DateTime::<Utc>::from(changed) > KEEP)
}

/// Sends the earlier outcomes for this recipient, and prints a message for each one that the server rejects.
pub(in crate::cli) fn send_earlier(client: &Client, recipient: &Recipient) {
    let Some(spool) = Spool::of_user() else {
        return;
    };
    let sent = spool.send(client, recipient, Instant::now() + EARLIER_WAIT);
    for rejected in sent.rejected {
        terminal::complain(&format!("tidings: from an earlier run: {rejected}"));
    }
}

/// Whether the server may accept the same report later: it was unreachable, a proxy answered in its place, or the token was not
/// valid.
pub(in crate::cli) fn is_worth_another_try(failure: &Failure) -> bool {
    let is_answer = failure.code.is_some();
    !is_answer || failure.is_transient() || matches!(failure.http_status, Some(401 | 403))
}

impl Unreported {
    /// Returns the report by which a script has just ended its job.
    pub(in crate::cli) fn report(recipient: Recipient, report: report::Delivery) -> Unreported {
        Unreported {
            recipient,
            ended_at: Utc::now(),
            what: What::Report(Box::new(report)),
        }
    }

    /// Stores it in the user's spool. Returns the result as the end of a sentence.
    pub(in crate::cli) fn keep(&self) -> String {
        match Spool::of_user().map(|spool| spool.keep(self)) {
            Some(Ok(())) => {
                "; it is kept for the next `tidings run` or `report`, or for `tidings spool send`"
                    .to_owned()
            }
            Some(Err(error)) => format!("; it could not be saved for later: {error}"),
            None => "; it could not be saved for later: set XDG_STATE_HOME or HOME".to_owned(),
        }
    }

    pub(in crate::cli) fn job_id(&self) -> &str {
        match &self.what {
            What::Run(run) => &run.job.id,
            What::Report(report) => &report.job_id,
        }
    }

    /// Returns how it ended, for people.
    pub(in crate::cli) fn text(&self) -> String {
        match &self.what {
            What::Run(run) => run.outcome.text(),
            What::Report(report) => report.text(),
        }
    }

    fn send(&self, client: &Client) -> Result<(), Failure> {
        match &self.what {
            What::Run(run) => run.send(client),
            What::Report(report) => report.send_later(client, self.ended_at),
        }
    }
}

impl What {
    /// Returns a unique key. Keys sort in the order of time.
    fn key(&self) -> &str {
        match self {
            What::Run(run) => &run.job.run,
            What::Report(report) => &report.key,
        }
    }
}

impl Run {
    fn send(&self, client: &Client) -> Result<(), Failure> {
        let job = self.job.clone();
        let mut delivery = delivery::Delivery::again(client.clone(), job, self.attempt);
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
            ended_at,
            what: What::Run(Box::new(Run {
                job,
                attempt: None,
                started_at: ended_at,
                outcome: Outcome::not_started("x".repeat(1000), Duration::ZERO),
                latest: Latest::default(),
                is_unsent: false,
            })),
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
        let entries: Vec<_> = spool.entries().unwrap().collect();
        assert_eq!(entries.len(), FILES_MAX);
        assert_eq!(entries[0].unreported.what.key(), "00003", "the newest stay");
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&spool.folder), mode(&entries[0].path)),
            (0o700, 0o600)
        );
        let old = now - KEEP - TimeDelta::seconds(1);
        spool.keep(&unreported(999, old)).unwrap();
        let count = || spool.names().unwrap().len();
        assert_eq!(count(), FILES_MAX);
        assert_eq!(spool.entries().unwrap().count(), FILES_MAX - 1);
        assert_eq!(count(), FILES_MAX - 1, "what is too old is gone");
        let mut large = unreported(1000, now);
        large.recipient.server = "x".repeat(300_000);
        let problem = spool.keep(&large).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(count(), FILES_MAX - 1);
    }

    #[test]
    fn a_renewed_token_is_of_the_same_holder_and_another_is_not() {
        let token = |claims: &str| {
            let payload = URL_SAFE_NO_PAD.encode(claims);
            Secret::from(format!("e30.{payload}.signature"))
        };
        let of = |claims| recipient("http://a", Some(token(claims)));
        let first = of(r#"{"iss":"i","sub":"a","school_id":1,"role":"worker","exp":1}"#);
        for (claims, differing) in [
            (
                r#"{"iss":"i","sub":"a","school_id":1,"role":"worker","exp":2}"#,
                &[][..],
            ),
            (
                r#"{"iss":"i","sub":"a","school_id":1,"role":"worker","iat":1,"nbf":1,"jti":"x","auth_time":1,
                "session_state":"x","sid":"x","uti":"x","aio":"x","rh":"x"}"#,
                &[],
            ),
            (
                r#"{"iss":"i","sub":"a","school_id":2,"role":"worker","exp":1}"#,
                &["school", "school_id"],
            ),
            (
                r#"{"iss":"i","sub":"b","school_id":1,"role":"viewer"}"#,
                &["role", "sub"],
            ),
            (
                r#"{"iss":"i","sub":"a","school_id":1,"role":"worker","org_id":7}"#,
                &["org_id"],
            ),
        ] {
            let differences = Vec::from_iter(first.differences(&of(claims)));
            assert_eq!(differences, differing, "{claims}");
        }
        let groups = of(r#"{"sub":"a","groups":["a","b"]}"#);
        let same = of(r#"{"groups":["b","a"],"sub":"a"}"#);
        assert!(groups.differences(&same).is_empty());
        assert!(!first.differences(&recipient("http://a", None)).is_empty());
        let named = Recipient {
            school: Some(1),
            ..first.clone()
        };
        assert!(
            first.differences(&named).is_empty(),
            "it is its only school"
        );
    }

    #[test]
    fn what_a_killed_process_has_left_is_removed_once_it_is_old() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool {
            folder: home.path().to_owned(),
        };
        for (name, age) in [("old", KEEP * 2), ("new", TimeDelta::zero())] {
            let file = File::create(home.path().join(name).with_extension("partial")).unwrap();
            file.set_modified((Utc::now() - age).into()).unwrap();
        }
        assert_eq!(spool.entries().unwrap().count(), 0);
        let left: Vec<_> = fs::read_dir(home.path())
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(left, ["new.partial"]);
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool {
            folder: home.path().to_owned(),
        };
        let account = recipient("http://127.0.0.1:1", None);
        let id: SubjectId = "j".parse().unwrap();
        let fail = serde_json::json!({"error": {"code": "exit", "message": "No space"}});
        let report = |verb, body| {
            let report = report::Delivery::new(&id, Some("t"), Some(1), verb, body);
            Unreported::report(account.clone(), report)
        };
        spool.keep(&unreported(1, Utc::now())).unwrap();
        spool.keep(&report("fail", fail)).unwrap();
        // The first end counts.
        spool
            .keep(&report("complete", serde_json::json!({})))
            .unwrap();
        let entries = spool.entries().unwrap();
        let mut kept: Vec<_> = entries
            .map(|entry| {
                (
                    entry.unreported.job_id().to_owned(),
                    entry.unreported.text(),
                )
            })
            .collect();
        kept.sort();
        assert_eq!(kept[0], ("j".into(), "failed: No space".into()));
        assert!(kept[1].1.starts_with("failed: xxx"));
        assert_eq!(kept.len(), 2);
    }
}
