//! `tidings spool`: lists or sends what `tidings run` and `tidings report` could not report, for people and for cron.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::client::Client;
use super::run::spool::{FILES_MAX, Recipient, Spool};
use super::{Exit, Failure, credential, terminal};

/// Why an outcome for this server is not sent. The differences follow in the message.
const NOT_FOR_TOKEN: &str = "not for this token, which differs in";

/// How long sending all outcomes may take.
const SEND_WAIT: Duration = Duration::from_secs(30);

/// List or send the outcomes of commands that could not be reported.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings spool list
  tidings spool send
  */10 * * * *  tidings spool send 2>/dev/null        (in a crontab, with TIDINGS_URL and TIDINGS_TOKEN)

`tidings run` keeps how its command ended, and `tidings report` how its script ended, in $XDG_STATE_HOME/tidings/spool if the server
could not be reached.

Exit codes: 0 nothing is left for this server and user, 2 the command line is not valid, 3 denied, 5 the server cannot be reached,
1 another error, such as an outcome that the server rejects because its job has a newer attempt.")]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the outcomes, the oldest start first: when the command ended, the server, the job, and how it ended. Those for this server
    /// that must not be sent with this token are marked.
    List(credential::Options),
    /// Send the outcomes for this server, and for the user and schools of this token.
    Send(credential::Options),
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Some(spool) = Spool::of_user() else {
        let problem = "there is no folder for outcomes: set XDG_STATE_HOME or HOME";
        return Err(Failure::new(Exit::Usage, problem));
    };
    match arguments.action {
        Action::List(options) => list(&spool, &Recipient::of(&options.account()?)),
        Action::Send(options) => {
            let account = options.account()?;
            send(&spool, &account.client()?, &Recipient::of(&account))
        }
    }
}

fn list(spool: &Spool, recipient: &Recipient) -> Result<(), Failure> {
    for entry in spool.entries()?.take(FILES_MAX) {
        let unreported = entry.unreported;
        let ended_at = unreported.ended_at.format("%Y-%m-%dT%H:%M:%SZ");
        let (server, job) = (&unreported.recipient.server, unreported.job_id());
        let mut text = format!("{ended_at} {server} {job} {}", unreported.text());
        let differences = unreported.recipient.differences(recipient);
        if *server == recipient.server && !differences.is_empty() {
            text += &format!(" ({}: {})", NOT_FOR_TOKEN, listed(&differences));
        }
        terminal::print_line(&terminal::plain(&text))?;
    }
    Ok(())
}

fn listed(differences: &BTreeSet<String>) -> String {
    let names: Vec<_> = differences.iter().map(String::as_str).collect();
    names.join(", ")
}

fn send(spool: &Spool, client: &Client, recipient: &Recipient) -> Result<(), Failure> {
    let sent = spool.send(client, recipient, Instant::now() + SEND_WAIT);
    if sent.count > 0 {
        terminal::print_line(&format!("{} reported", sent.count))?;
    }
    if sent.foreign > 0 {
        let differences = listed(&sent.differences);
        let remaining = match sent.foreign {
            1 => "1 is still kept".to_owned(),
            count => format!("{count} are still kept"),
        };
        terminal::complain(&format!(
            "tidings: {remaining}: {NOT_FOR_TOKEN}: {differences}"
        ));
    }
    for rejected in &sent.rejected {
        terminal::complain(&format!("tidings: {rejected}"));
    }
    match sent.problem {
        Some(problem) => Err(problem),
        None if sent.rejected.is_empty() => Ok(()),
        None => Err(Failure::new(Exit::Failed, "")),
    }
}
