//! `tidings copy`: moves an installation from SQLite to Postgres.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::{Exit, Failure, terminal};
use crate::config::{COPY_REPORT_PERIOD, DISPATCH_QUEUE, Database, Secret, Settings};
use crate::log::{Committed, Journal};
use crate::store::copy::{Progress, copy};
use crate::store::postgres::Address;
use crate::store::sqlite::{OpenError, SqliteStore};

/// Copy a SQLite database into an empty Postgres database. Clients keep their cursors.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stop the server first. If the copy is interrupted, repeat it: it begins anew. Afterwards,
start the server with `database_url` set to the Postgres database, and with the same secret.")]
pub(super) struct Arguments {
    /// The database to copy, `sqlite:<path>`; by default, that of the settings.
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// The database to copy to, `postgres://user:password@host:5432/database`. Prefer the environment variable: other users
    /// can see the command line.
    #[arg(
        long,
        value_name = "URL",
        env = "TIDINGS_COPY_TO",
        hide_env_values = true
    )]
    to: Secret,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    super::serve::init_logging()?;
    let mut settings = Settings::from_figment(&super::figment()?)?;
    if let Some(from) = arguments.from {
        settings.database_url = Some(from.into());
    }
    let usage = |problem: String| Failure::new(Exit::Usage, problem);
    let Database::File(path) = settings.database().map_err(|_| {
        usage("--from must be a SQLite database: write `sqlite:<path>`, or the path alone".into())
    })?
    else {
        return Err(usage(
            "--from must be a SQLite database: write `sqlite:<path>`, or the path alone".into(),
        ));
    };
    let to = Settings {
        database_url: Some(arguments.to),
        ..Settings::default()
    };
    let url: Secret = match to.database() {
        Ok(Database::Postgres(url)) => url,
        _ => {
            return Err(usage(
                "--to must be a Postgres database: write `postgres://user:password@host:5432/database`"
                    .into(),
            ));
        }
    };
    let to = Address::parse(&url, settings.prepared_statements)
        .map_err(|error| usage(format!("--to {error}")))?;
    if !path.exists() {
        let shown = terminal::plain(&path.display().to_string());
        return Err(Failure::new(
            Exit::NotFound,
            format!("there is no database at {shown}"),
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(run_copy(&settings, &path, &to))
}

async fn run_copy(
    settings: &Settings,
    path: &std::path::Path,
    to: &Address,
) -> Result<(), Failure> {
    // The copy commits nothing to the source, so nothing reads this channel.
    let (committed, _batches) = Committed::channel(DISPATCH_QUEUE);
    let from = SqliteStore::open(settings, path, committed, &[]).map_err(|error| match error {
        OpenError::InUse(_) => Failure::new(
            Exit::Failed,
            format!("database {error}; stop the server before the copy"),
        ),
        error => Failure::new(Exit::Failed, format!("database {error}")),
    })?;
    let mut shown = Shown::default();
    let copied = copy(&from, to, |progress| shown.update(progress)).await;
    from.close().await?;
    let progress = copied?;
    shown.end();
    terminal::print_line(&format!(
        "Copied {} schools, {} events and {} subjects. Start the server with this database and the same secret.",
        progress.schools, progress.events, progress.subjects
    ))
}

/// Shows the progress: on a terminal in one line that is redrawn, elsewhere as a new line from time to time.
#[derive(Default)]
struct Shown {
    at: Option<Instant>,
}

impl Shown {
    fn update(&mut self, progress: &Progress) {
        let is_terminal = std::io::stderr().is_terminal();
        let period = match is_terminal {
            true => Duration::from_millis(100),
            false => COPY_REPORT_PERIOD,
        };
        if self.at.is_some_and(|at| at.elapsed() < period) {
            return;
        }
        self.at = Some(Instant::now());
        let line = format!(
            "{} of {} schools, {} events, {} subjects",
            progress.schools, progress.of_schools, progress.events, progress.subjects
        );
        match is_terminal {
            true => eprint!("\r\x1b[K{line}"),
            false => terminal::complain(&line),
        }
    }

    fn end(&self) {
        if self.at.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_of_the_arguments_shows_no_password() {
        let arguments = Arguments {
            from: None,
            to: "postgres://ann:hush@db/tidings".into(),
        };
        assert!(!format!("{arguments:?}").contains("hush"));
    }
}
