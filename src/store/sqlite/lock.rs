//! Locks a database for one process at a time, whatever path leads to it.
//!
//! Two locks are held as long as a connection is open. One is on `<database>.lock`, next to the database's resolved path.
//! The other, on Linux, is on the database's own inode: a process that comes through a hard link, or after the lock file
//! was removed, finds it locked. Both are `flock` locks, which do not affect SQLite's POSIX locks. (On other systems the
//! two types of locks exclude each other, so the second lock is omitted.)
//!
//! POSIX locks have a pitfall: a process loses all its locks on a file when it closes *any* descriptor of that file. So
//! the descriptor that is opened here stays open until every connection is closed: each owner of a connection holds the
//! [`DatabaseLock`], and drops it last. Nothing else in this program opens the file.
//!
//! The lock file also contains a [`Record`] of the database that was last opened here. With it, the next start recognises
//! an older copy, a different database, or a missing one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::error::OpenError;
use crate::id::Epoch;

/// The offset of the byte in an SQLite file that contains the journal mode, and its value outside WAL mode.
const JOURNAL_MODE_BYTE: u64 = 18;
const ROLLBACK_JOURNAL: u8 = 1;

/// The maximum number of bytes that are read from the lock file.
const RECORD_MAX_BYTES: usize = 512;

/// Identifies the database that was last opened here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) epoch: Epoch,
    /// Its generation: how often it had been opened and closed.
    pub(super) generation: u64,
    /// The file as it was after its last connection was closed. `None` while one is open, after the process was killed, and
    /// if a journal was left.
    pub(super) closed: Option<Footprint>,
}

/// A file's size and modification time, in seconds and nanoseconds. If they differ, the file has been written to.
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

/// Identifies a file, whatever its name.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Returns the path with a suffix appended to its last component.
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
    /// Which database this is, set before anything can be written to it.
    remembered: Mutex<Option<(Epoch, u64)>>,
}

impl DatabaseLock {
    /// Takes the locks, and creates the database's file if there has never been one. `path` is resolved.
    pub(super) fn take(path: &Path) -> Result<DatabaseLock, OpenError> {
        let in_use = || OpenError::InUse(path.into());
        let lock_path = next_to(path, ".lock");
        let file = options()
            .create(true)
            .open(&lock_path)
            .map_err(|source| OpenError::file(&lock_path, source))?;
        file.try_lock().map_err(|_| in_use())?;
        let record = read(&file).map_err(|source| OpenError::file(&lock_path, source))?;

        let journal = next_to(path, "-wal");
        let had_journal = has_bytes(&journal);
        if !has_bytes(path) {
            // SQLite would create a new database and delete the journal of the old one.
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
            remembered: Mutex::default(),
        })
    }

    /// Returns the database's file, for reads without SQLite. It must not be cloned: closing the clone would release
    /// SQLite's locks.
    pub(super) fn database(&self) -> &File {
        &self.database
    }

    /// Returns the record, as it was when the locks were taken, of the database that was last opened here.
    pub(super) fn found(&self) -> Option<Record> {
        self.found
    }

    /// Returns whether the file is as it was when this program closed it.
    pub(super) fn is_as_left(&self) -> bool {
        let left = self.found.and_then(|record| record.closed);
        left.is_some() && left == self.footprint()
    }

    /// Returns whether there was a journal when the locks were taken. An empty one does not count: SQLite creates it when
    /// it reads a database, and the journal of an open database does not stay empty.
    pub(super) fn had_journal(&self) -> bool {
        self.had_journal
    }

    /// Returns whether the database was complete in one file when the locks were taken, as `VACUUM INTO` creates it. This
    /// is the case if it was not in WAL mode, which a server always uses.
    pub(super) fn was_single_file(&self) -> bool {
        self.was_single_file
    }

    /// Records that the database is open, with its epoch and generation.
    pub(super) fn opened(&self, epoch: Epoch, generation: u64) -> io::Result<()> {
        if let Some(id) = file_id(&self.journal) {
            // The journal remains the same file until the last connection is closed.
            let _ = self.journal_id.set(id);
        }
        self.remember(epoch, generation);
        self.write(&Record {
            epoch,
            generation,
            closed: None,
        })
    }

    /// Records the database's current epoch and generation; they are written to the file when the locks are released.
    pub(super) fn remember(&self, epoch: Epoch, generation: u64) {
        *self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some((epoch, generation));
    }

    /// Returns whether database and journal are still where they were opened. Otherwise data written to them is lost.
    pub(super) fn is_in_place(&self) -> bool {
        let journal = self.journal_id.get();
        file_id(&self.path) == self.id
            && journal.is_none_or(|id| file_id(&self.journal) == Some(*id))
    }

    /// Returns the database's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Records that the database is closed, and how it was left. A rejected database is not recorded, because this program
    /// has not written that file.
    fn closed(&mut self) {
        let remembered = *self
            .remembered
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let Some((epoch, generation)) = remembered else {
            return;
        };
        // SQLite keeps the journal if it could not copy all of it, because the disk is full, for example, or if another process has
        // the database open. The file alone is then incomplete.
        let is_complete = !has_bytes(&self.journal);
        let record = Record {
            epoch,
            generation,
            closed: self.footprint().filter(|_| is_complete),
        };
        if let Err(error) = self.write(&record) {
            tracing::warn!(%error, "the lock file could not be written; the next start checks the database");
        }
    }

    fn footprint(&self) -> Option<Footprint> {
        let file = self.database.metadata().ok()?;
        Some(Footprint {
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }

    /// Writes in place: a new file would not be the locked one.
    fn write(&self, record: &Record) -> io::Result<()> {
        let text = record.text();
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_data()
    }
}

impl Drop for DatabaseLock {
    /// Updates the record and releases the locks; all connections are closed by now. Closing the files is not enough: a
    /// forked child process shares them, and the locks with them, until it executes its program.
    fn drop(&mut self) {
        self.closed();
        #[cfg(target_os = "linux")]
        let _ = self.database.unlock();
        let _ = self.file.unlock();
    }
}

fn has_bytes(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
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

/// Opens or creates the database's file. SQLite gives the journal and its index the same mode.
fn open_database(path: &Path) -> io::Result<File> {
    match options().create(true).truncate(false).open(path) {
        // SQLite reports what is wrong with it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    }
}

/// Reads the record. Invalid content, for example after a power loss, counts as none.
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
