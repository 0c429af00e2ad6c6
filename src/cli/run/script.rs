//! What a command reports on purpose: lines on a file descriptor (`echo 40/200 >&3`) or in a file.

use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::lines::{Lines, Said};
use super::observer::Observer;

/// The ends of pipes that take the number that the command wants are moved above this number.
const OTHER_NUMBERS: i32 = 10;
/// How much of the end of a file is read, in bytes.
const FILE_END_BYTES: i64 = 4 * 1024;
/// How much is read from the descriptor at a time, in bytes.
const PART_BYTES: usize = 4 * 1024;

/// A pipe whose writing end has a certain number in the command.
pub(super) struct Descriptor {
    reader: OwnedFd,
    /// Inherited by every process that is started while it exists.
    writer: OwnedFd,
}

impl Descriptor {
    /// Opens it. Fails if the number is in use, because the parent process has then given it a meaning.
    pub(super) fn open(number: i32) -> io::Result<Descriptor> {
        let elsewhere = |end: OwnedFd| match end.as_raw_fd() == number {
            true => fcntl_dupfd_cloexec(&end, number.max(OTHER_NUMBERS) + 1),
            false => Ok(end),
        };
        let (reader, writer) = io::pipe()?;
        let (reader, writer) = (elsewhere(reader.into())?, elsewhere(writer.into())?);
        // This returns the lowest free number that is not below `number`.
        let writer = fcntl_dupfd_cloexec(&writer, number)?;
        if writer.as_raw_fd() != number {
            return Err(io::Error::other(format!(
                "file descriptor {number} is in use"
            )));
        }
        fcntl_setfd(&writer, FdFlags::empty())?;
        Ok(Descriptor { reader, writer })
    }

    /// Closes this process's copy of the writing end, once the command has been started.
    pub(super) fn into_reader(self) -> OwnedFd {
        drop(self.writer);
        self.reader
    }
}

/// Reads the command's lines from the descriptor until it is closed, or the command has ended.
pub(super) fn follow(reader: &OwnedFd, observer: &Mutex<Observer>, ended: &Arc<PipeReader>) {
    let mut buffer = [0; PART_BYTES];
    let mut lines = Lines::default();
    loop {
        let mut waited = [
            PollFd::new(reader, PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        if poll(&mut waited, None).is_err() {
            continue;
        }
        if waited[0].revents().is_empty() {
            // The command has ended, and all that it wrote has been read.
            return;
        }
        match rustix::io::read(reader, &mut buffer) {
            Ok(count @ 1..) => {
                let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
                lines.read(&buffer[..count], |said| {
                    if let Said::Line { text, .. } = said {
                        observer.reported(&text);
                    }
                });
            }
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// A file to which the command writes its progress.
pub(super) struct ProgressFile {
    path: PathBuf,
    /// The line that was read last.
    last: String,
}

impl ProgressFile {
    /// Ignores what the file contains now: it is from an earlier run.
    pub(super) fn new(path: PathBuf) -> ProgressFile {
        let mut file = ProgressFile {
            path,
            last: String::new(),
        };
        file.last = file.read().unwrap_or_default();
        file
    }

    /// Returns its last complete line, if that is new.
    pub(super) fn new_line(&mut self) -> Option<String> {
        let line = self.read()?;
        if line == self.last {
            return None;
        }
        self.last.clone_from(&line);
        Some(line)
    }

    fn read(&self) -> Option<String> {
        // Opening a FIFO would wait for its writer.
        let metadata = std::fs::metadata(&self.path).ok()?;
        if !metadata.is_file() {
            return None;
        }
        let mut file = File::open(&self.path).ok()?;
        if i64::try_from(metadata.len()).unwrap_or(i64::MAX) > FILE_END_BYTES {
            file.seek(SeekFrom::End(-FILE_END_BYTES)).ok()?;
        }
        let mut end = Vec::new();
        let max_bytes = u64::try_from(FILE_END_BYTES).unwrap_or(0);
        file.take(max_bytes).read_to_end(&mut end).ok()?;
        let text = String::from_utf8_lossy(&end);
        // A script may write it without a line feed, in one go.
        let complete = match text.rfind('\n') {
            Some(at) => &text[..at],
            None => &text,
        };
        let line = complete.lines().next_back()?.trim();
        (!line.is_empty()).then(|| line.to_owned())
    }
}
