//! Relays the command's outputs, byte for byte, and shows them to the observer.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::observer::{Observer, Stream};
use super::taskbar::Taskbar;

/// How much is read at a time, in bytes.
const PART_BYTES: usize = 64 * 1024;
/// The pause after which a line that has not ended is read as it is.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the taskbar is updated while the command is silent.
const TASKBAR_PERIOD: Duration = Duration::from_millis(200);
/// How long an output is read after the command has ended while other processes keep it open.
const DRAIN: Duration = Duration::from_millis(200);

/// An output of the command, and where it goes.
pub(super) struct Relay {
    /// A pipe, or a pseudo-terminal.
    pub(super) source: OwnedFd,
    pub(super) stream: Stream,
    pub(super) observer: Arc<Mutex<Observer>>,
    pub(super) taskbar: Option<Taskbar>,
    /// Closed by the other side when the command has ended.
    pub(super) ended: Arc<PipeReader>,
}

impl Relay {
    /// Relays the output until it is closed. Returns its source if other processes keep it open after the command has ended. If
    /// the target is closed, closes the source as well, so that the command notices.
    pub(super) fn run(mut self) -> Option<OwnedFd> {
        let mut buffer = vec![0; PART_BYTES];
        let mut until: Option<Instant> = None;
        let mut is_paused = true;
        let mut can_insert = true;
        loop {
            let timeout = match until {
                Some(until) => Some(until.saturating_duration_since(Instant::now())),
                None if !is_paused => Some(PAUSE),
                None => self.taskbar.as_ref().map(|_| TASKBAR_PERIOD),
            };
            let (is_readable, has_ended) = self.wait(timeout, until.is_none());
            if has_ended && until.is_none() {
                until = Some(Instant::now() + DRAIN);
            }
            if is_readable {
                let count = match rustix::io::read(&self.source, &mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(Errno::INTR | Errno::AGAIN) => continue,
                    // Every process that had the pseudo-terminal open has closed it.
                    Err(_) => break,
                };
                let bytes = &buffer[..count];
                if write_all(self.target().as_fd(), bytes).is_err() {
                    break;
                }
                can_insert = self.observe(|observer, stream| observer.see(stream, bytes));
                self.show(can_insert);
                is_paused = false;
            } else if !is_paused {
                self.observe(|observer, stream| observer.pause(stream));
                is_paused = true;
            } else {
                self.show(can_insert);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Some(self.source);
            }
        }
        self.observe(|observer, stream| observer.pause(stream));
        None
    }

    /// Waits for output, for the command's end if `is_running`, or for the timeout. Returns whether there is output, and
    /// whether the command has ended.
    fn wait(&self, timeout: Option<Duration>, is_running: bool) -> (bool, bool) {
        let mut waited = [
            PollFd::new(&self.source, PollFlags::IN),
            PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN),
        ];
        let waited = &mut waited[..if is_running { 2 } else { 1 }];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // After an interruption, the caller waits again.
        if poll(waited, timeout.as_ref()).is_err() {
            return (false, false);
        }
        let came = |at: usize| {
            waited
                .get(at)
                .is_some_and(|polled| !polled.revents().is_empty())
        };
        (came(0), came(1))
    }

    fn observe<T>(&self, observe: impl FnOnce(&mut Observer, Stream) -> T) -> T {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        observe(&mut observer, self.stream)
    }

    /// Updates the taskbar, unless its sequence would split a sequence or a character of the command.
    fn show(&mut self, can_insert: bool) {
        if let Some(sequence) = self
            .taskbar
            .as_mut()
            .filter(|_| can_insert)
            .and_then(Taskbar::next)
        {
            // Fails if the terminal is gone. The next write of output then fails, too.
            let _ = write_all(self.target().as_fd(), sequence.as_bytes());
        }
    }

    fn target(&self) -> Target {
        match self.stream {
            Stream::Output => Target::Output(io::stdout()),
            Stream::Errors => Target::Errors(io::stderr()),
        }
    }
}

enum Target {
    Output(io::Stdout),
    Errors(io::Stderr),
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Target::Output(output) => output.as_fd(),
            Target::Errors(errors) => errors.as_fd(),
        }
    }
}

/// Writes everything, even if another process has made the file non-blocking.
pub(super) fn write_all(target: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(target, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // If the file has an error, the next write returns it.
                let _ = poll(
                    &mut [PollFd::from_borrowed_fd(target, PollFlags::OUT)],
                    None,
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
