//! `tidings new-epoch`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, terminal};
use crate::config::{Database, Settings};
use crate::store::sqlite::{self, OpenError};

/// Reset the cursors of all clients, after restoring a backup.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings new-epoch
  tidings new-epoch --yes --data-dir /var/lib/tidings

Run it after the database is replaced by a backup and before the server starts: in the server's directory, with its settings, or with --data-dir.
Nothing else in the database changes. The command fails while a server has the database open.")]
pub(super) struct Arguments {
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// The server's `data_dir`, which contains its database; by default, that of the settings.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    super::serve::init_logging()?;
    let mut settings = Settings::from_figment(&super::figment()?)?;
    if let Some(folder) = arguments.data_dir {
        settings.data_dir = folder;
        // The database is in the directory that is named here.
        settings.database_url = None;
    }
    let Database::File(path) = settings.database()? else {
        let problem = "the cursors of a Postgres database name events, so that it needs no new epoch: after a failover or a restored backup, exactly the readers that have seen what was lost receive a reset";
        return Err(Failure::new(Exit::Failed, problem));
    };
    let shown = terminal::plain(&path.display().to_string());
    if !arguments.yes && !is_confirmed(&shown)? {
        return Err(Failure::new(Exit::Failed, "nothing was changed"));
    }
    let (before, now) = sqlite::new_epoch(&settings, &path).map_err(|error| match error {
        OpenError::Missing(_) => Failure::new(Exit::NotFound, format!("database {error}")),
        error => Failure::new(Exit::Failed, format!("database {error}")),
    })?;
    let before = before.map_or("none".to_owned(), |epoch| epoch.to_string());
    terminal::print_line(&format!(
        "{shown}: the epoch is {now}, and was {before}. All clients receive a reset when the server starts."
    ))
}

/// Asks for confirmation. Fails if standard input is not a terminal.
fn is_confirmed(path: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let problem = "--yes is required if standard input is not a terminal";
        return Err(Failure::new(Exit::Usage, problem));
    }
    let mut error = std::io::stderr();
    write!(
        error,
        "{path} gets a new epoch. Every client that resumes from an old cursor receives a `reset` and a snapshot of the current state. \
         This cannot be undone. Continue? [y/N] "
    )?;
    error.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
