//! `tidings new-epoch`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, terminal};
use crate::config::Settings;
use crate::store::sqlite::{self, OpenError};

/// Make all readers begin anew, after a backup was restored.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tidings new-epoch
  tidings new-epoch --yes --data-dir /var/lib/tidings

Run it after a backup was put in the database's place, before the server starts: in its folder, with its settings, or with --data-dir.
Nothing else changes in the database. While a server has it open, the command fails.")]
pub(super) struct Arguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// The server's `data_dir`, in which its database is; as the settings say if absent.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    super::serve::init_logging()?;
    let mut settings = Settings::from_figment(&super::figment()?)?;
    if let Some(folder) = arguments.data_dir {
        settings.data_dir = folder;
        // The folder that is named has the database.
        settings.database_url = None;
    }
    let path = settings.database_path()?;
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
        "{shown}: the epoch is {now}, and was {before}. All readers begin anew when the server starts."
    ))
}

/// Asks on a terminal. Without one nobody could answer.
fn is_confirmed(path: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let problem = "--yes is required where standard input is not a terminal";
        return Err(Failure::new(Exit::Usage, problem));
    }
    let mut error = std::io::stderr();
    write!(
        error,
        "{path} gets a new epoch. Every cursor that a client holds is answered with a `reset` and a snapshot of what is there now. \
         This cannot be undone. Go on? [y/N] "
    )?;
    error.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
