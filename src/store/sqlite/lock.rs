//! Who may open a database: one process at a time, whatever path leads to it.
//!
//! Two locks are held as long as a connection is open. One is on `<database>.lock`, next to the database's resolved path.
//! The other, on Linux, is on the database's own inode: a process that comes through a hard link, or after
//! the lock file was removed, finds it taken. Both are `flock`, which does not affect the POSIX locks of SQLite. (On other
//! systems the two kinds exclude one another, so there the second one is left out.)
//!
//! POSIX locks have a trap: a process loses all that it has on a file when it closes *any* descriptor of that file. So the
//! descriptor that is opened here stays open until every connection is closed: each owner of a connection holds the lock,
//! and drops it last. Nothing else in this program opens the file.
//!
//! The lock file also holds a [`Record`] of the database that was opened here last. By it an older copy, another database, or
//! one that is gone, is recognised at the next start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::opening::OpenError;
use crate::id::Epoch;

/// Where an SQLite file says that it is not in WAL mode, and what it says there.
const JOURNAL_MODE_BYTE: u64 = 18;
const ROLLBACK_JOURNAL: u8 = 1;

/// Largest lock file that is read.
const RECORD_MAX_BYTES: usize = 512;

/// What is known of the database that was opened here last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: Epoch,
    /// How often it had been opened and closed.
    pub(super) generation: u64,
    /// The file as it was after its last connection was closed. None while one is open, and after a kill.
    pub(super) closed: Option<Footprint>,
}

/// A file's size and the time of its last change, in seconds and nanoseconds: another one means that somebody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footprint {
    size: u64,
    modified: (i64, i64),
}

impl Record {
    fn parse(text: &str) -> Option<Record> {
        let mut lines = text.strip_suffix('\n')?.lines();
        let epoch = lines.next()?.strip_prefix("epoch ")?.parse().ok()?;
        let generation = lines.next()?.strip_prefix("generation ")?.parse().ok()?;
        let closed = match lines.next()? {
            "open" => None,
            state => {
                let mut numbers = state.strip_prefix("closed ")?.split(' ');
                let size = numbers.next()?.parse().ok()?;
                let mut time = || numbers.next()?.parse::<i64>().ok();
                Some(Footprint {
                    size,
                    modified: (time()?, time()?),
                })
            }
        };
        Some(Record {
            epoch,
            generation,
            closed,
        })
    }

    fn text(&self) -> String {
        let state = match self.closed {
            None => "open".to_owned(),
            Some(Footprint { size, modified }) => {
                format!("closed {size} {} {}", modified.0, modified.1)
            }
        };
        format!(
            "epoch {}\ngeneration {}\n{state}\n",
            self.epoch, self.generation
        )
    }
}

/// Which file it is, whatever its name.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// The path with something appended to its last part.
pub(super) fn next_to(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The locks of an open database.
pub(super) struct DatabaseLock {
    path: PathBuf,
    journal: PathBuf,
    had_journal: bool,
    was_single_file: bool,
    database: File,
    file: File,
    id: Option<FileId>,
    journal_id: OnceLock<FileId>,
    found: Option<Record>,
    /// Which database this is, from the moment at which something may be written to it.
    own: Mutex<Option<(Epoch, u64)>>,
}

impl DatabaseLock {
    /// Takes the locks, and makes the database's file if there is none and never was one. `path` is resolved.
    pub(super) fn take(path: &Path) -> Result<DatabaseLock, OpenError> {
        let in_use = || OpenError::InUse(path.into());
        let lock_path = next_to(path, ".lock");
        let file = options()
            .create(true)
            .open(&lock_path)
            .map_err(|source| OpenError::file(&lock_path, source))?;
        file.try_lock().map_err(|_| in_use())?;
        let record = read(&file).map_err(|source| OpenError::file(&lock_path, source))?;

        let has_bytes = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
        let journal = next_to(path, "-wal");
        let had_journal = has_bytes(&journal);
        if !has_bytes(path) {
            // SQLite would begin a new database, and throw the journal of the old one away.
            if had_journal {
                let problem = "it is missing or empty, but its journal (-wal) is there";
                return Err(OpenError::database(path, problem));
            }
            if record.is_some() {
                return Err(OpenError::Gone {
                    path: path.into(),
                    trace: lock_path,
                });
            }
        }
        let database = open_database(path).map_err(|source| OpenError::file(path, source))?;
        #[cfg(target_os = "linux")]
        database.try_lock().map_err(|_| in_use())?;
        Ok(DatabaseLock {
            id: file_id(path),
            path: path.into(),
            journal,
            had_journal,
            was_single_file: is_single_file(&database),
            database,
            file,
            journal_id: OnceLock::new(),
            found: record,
            own: Mutex::default(),
        })
    }

    /// The database, to be read without SQLite. Never to be cloned: closing the clone would end SQLite's locks.
    pub(super) fn database(&self) -> &File {
        &self.database
    }

    /// What was known when the locks were taken of the database that was opened here last.
    pub(super) fn found(&self) -> Option<Record> {
        self.found
    }

    /// Whether the file is as it was when this program closed it.
    pub(super) fn is_as_left(&self) -> bool {
        let left = self.found.and_then(|record| record.closed);
        left.is_some() && left == self.footprint()
    }

    /// Whether there was a journal when the locks were taken. SQLite makes an empty one when it reads a database, and none of
    /// an open database stays empty.
    pub(super) fn had_journal(&self) -> bool {
        self.had_journal
    }

    /// Whether all of the database was in its one file when the locks were taken, as `VACUUM INTO` makes it: it was not in WAL
    /// mode, in which a server keeps it.
    pub(super) fn was_single_file(&self) -> bool {
        self.was_single_file
    }

    /// Notes that the database is open, and in which of its lives.
    pub(super) fn opened(&self, epoch: Epoch, generation: u64) -> io::Result<()> {
        if let Some(id) = file_id(&self.journal) {
            // It stays the same file until the last connection is closed.
            let _ = self.journal_id.set(id);
        }
        self.remember(epoch, generation);
        self.write(&Record {
            epoch,
            generation,
            closed: None,
        })
    }

    /// Notes what stands in the database now; the file learns of it when the locks are let go.
    pub(super) fn remember(&self, epoch: Epoch, generation: u64) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, generation));
    }

    /// Whether database and journal are still where they were opened. What is written to files that are not is lost.
    pub(super) fn is_in_place(&self) -> bool {
        let journal = self.journal_id.get();
        file_id(&self.path) == self.id
            && journal.is_none_or(|id| file_id(&self.journal) == Some(*id))
    }

    /// The database's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn footprint(&self) -> Option<Footprint> {
        let file = self.database.metadata().ok()?;
        Some(Footprint {
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }

    /// In place: a new file would not be the one that is locked.
    fn write(&self, record: &Record) -> io::Result<()> {
        let text = record.text();
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_data()
    }
}

impl Drop for DatabaseLock {
    /// All connections are closed. A database that was refused is not noted: its file is not as this program would leave it.
    fn drop(&mut self) {
        let own = *self.own.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some((epoch, generation)) = own else {
            return;
        };
        let record = Record {
            epoch,
            generation,
            closed: self.footprint(),
        };
        if let Err(error) = self.write(&record) {
            tracing::warn!(%error, "the lock file could not be written; the next start checks the database");
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn is_single_file(database: &File) -> bool {
    let mut mode = [0];
    let read = database.read_at(&mut mode, JOURNAL_MODE_BYTE);
    read.is_ok() && mode == [ROLLBACK_JOURNAL]
}

/// SQLite gives the journal and its index the mode of the database.
fn open_database(path: &Path) -> io::Result<File> {
    match options().create(true).truncate(false).open(path) {
        // SQLite says what is wrong with it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    }
}

/// What does not make sense, as after a power loss, says nothing.
fn read(file: &File) -> io::Result<Option<Record>> {
    let mut bytes = [0; RECORD_MAX_BYTES];
    let count = file.read_at(&mut bytes, 0)?;
    let text = std::str::from_utf8(&bytes[..count]).ok();
    Ok(text.and_then(Record::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_half_of_one_says_nothing() {
        for closed in [
            None,
            Some(Footprint {
                size: 4_096,
                modified: (1_700_000_000, 5),
            }),
        ] {
            let record = Record {
                epoch: "1a2b3c4d".parse().unwrap(),
                generation: 12,
                closed,
            };
            let text = record.text();
            assert_eq!(Record::parse(&text), Some(record));
            for cut in 0..text.len() {
                assert_eq!(Record::parse(&text[..cut]), None, "{cut}");
            }
        }
    }
}
