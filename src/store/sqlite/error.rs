//! Why a database cannot be opened.

use std::path::{Path, PathBuf};

/// A database that cannot be opened. The server does not start, and never creates a new one in its place.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder cannot be accessed.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The database's folder is missing. Only `data_dir` is created automatically: otherwise a mistyped path would create
    /// an empty database.
    #[error(
        "{path}: there is no folder {folder}; create it, or correct the setting `database_url`"
    )]
    NoFolder {
        /// The path of the database.
        path: PathBuf,
        /// The missing folder.
        folder: PathBuf,
    },
    /// There is a folder in its place.
    #[error("{0} is a folder; the setting `database_url` must be the path of a file")]
    IsFolder(PathBuf),
    /// A symbolic link has no target, for example because a disk is not mounted.
    #[error(
        "{0} is a symbolic link to a file that does not exist; mount or restore that file, or remove the link"
    )]
    Dangling(PathBuf),
    /// Another process has it open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// It is missing or empty, but something else shows that there was one.
    #[error(
        "{path} is missing or empty, but {trace} shows that a server has used a database here; put it back or restore a backup, and for a fresh start \
         remove {trace}"
    )]
    Gone {
        /// The path of the database.
        path: PathBuf,
        /// The file that shows it.
        trace: PathBuf,
    },
    /// There is no database.
    #[error("{0} is missing or empty")]
    Missing(PathBuf),
    /// It is marked as open, and its journal is missing.
    #[error(
        "{0} was not closed properly, and its journal (-wal) is missing: the last acknowledged events may be lost, or this is a copy of an open \
         database that was not made by `VACUUM INTO`. Put the journal back if you have it; otherwise `tidings new-epoch` makes all readers start over"
    )]
    NoJournal(PathBuf),
    /// It is neither the database that was last opened here, nor a copy of it.
    #[error(
        "{0} is not the database that was last open here, or is a copy from before a `tidings new-epoch`. Put the right one back, or run \
         `tidings new-epoch`, which accepts this one and makes all readers start over"
    )]
    Another(PathBuf),
    /// A newer program has changed its schema.
    #[error(
        "{path} has schema version {found}, and this program knows versions up to {known}: start the newer program, or restore a backup of before \
         the upgrade"
    )]
    Newer {
        /// The path of the database.
        path: PathBuf,
        /// Its newest migration.
        found: String,
        /// The newest migration of this program.
        known: String,
    },
    /// SQLite reports an error, or the database is unusable.
    #[error("{path}: {message}")]
    Database {
        /// The path of the database.
        path: PathBuf,
        /// The cause.
        message: String,
    },
}

impl OpenError {
    pub(super) fn file(path: &Path, source: std::io::Error) -> OpenError {
        OpenError::File {
            path: path.into(),
            source,
        }
    }

    pub(super) fn database(path: &Path, message: impl ToString) -> OpenError {
        OpenError::Database {
            path: path.into(),
            message: message.to_string(),
        }
    }
}
