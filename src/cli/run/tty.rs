//! The user's terminal, while the command runs on its own pseudo-terminal: every key goes to the command, even Ctrl-C.

use std::io;
use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, kill_current_process_group};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcgetwinsize,
    tcsetattr, tcsetwinsize,
};

use super::process::Process;
use super::relay::write_all;

/// How much is read from the keyboard at a time, in bytes.
const PART_BYTES: usize = 4 * 1024;

/// How long to wait to be suspended. The kernel does not suspend an orphaned process group, such as one without a shell.
const SUSPENSION_WAIT: Duration = Duration::from_millis(500);

/// How often this process has been continued after it was suspended.
#[derive(Default)]
pub(super) struct Continuations {
    count: Mutex<u64>,
    change: Condvar,
}

impl Continuations {
    pub(super) fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.change.notify_all();
    }

    /// Suspends this process, and waits until it is continued.
    fn suspend(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *count;
        // The signal can arrive after this call has returned.
        let _ = kill_current_process_group(Signal::TSTP);
        let is_waiting = |count: &mut u64| *count == before;
        drop(
            self.change
                .wait_timeout_while(count, SUSPENSION_WAIT, is_waiting),
        );
    }
}

/// The terminal in raw mode. Its own mode is restored when this is dropped.
pub(super) struct Raw {
    original: Termios,
}

impl Raw {
    /// Returns `None` if standard input is not a terminal, or if another process group is in its foreground.
    pub(super) fn enter() -> Option<Raw> {
        let original = tcgetattr(io::stdin()).ok()?;
        if tcgetpgrp(io::stdin()).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let raw = Raw { original };
        raw.resume().ok()?;
        Some(raw)
    }

    /// Returns the mode that the user had, which the command gets.
    pub(super) fn original(&self) -> &Termios {
        &self.original
    }

    fn resume(&self) -> rustix::io::Result<()> {
        let mut mode = self.original.clone();
        mode.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &mode)
    }

    fn restore(&self) {
        // Fails if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.original);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Gives a pseudo-terminal the size of the user's terminal.
pub(super) fn resize(pseudo: impl AsFd) {
    let size = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stderr())];
    if let Some(size) = size.into_iter().flatten().next() {
        // Fails if the command has closed it.
        let _ = tcsetwinsize(pseudo, size);
    }
}

/// Passes the keyboard on to the command.
pub(super) struct Keyboard {
    pub(super) pseudo: OwnedFd,
    pub(super) raw: Arc<Raw>,
    pub(super) process: Process,
    /// Set when the user has interrupted the command.
    pub(super) interrupted: Arc<Mutex<bool>>,
    pub(super) continuations: Arc<Continuations>,
    pub(super) ended: Arc<PipeReader>,
}

impl Keyboard {
    /// Reads keys until the command ends. Reads none afterwards: they belong to the next program in the terminal.
    pub(super) fn run(self) {
        let mut buffer = [0; PART_BYTES];
        let stdin = io::stdin();
        loop {
            let mut waited = [
                PollFd::new(&stdin, PollFlags::IN),
                PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN),
            ];
            if poll(&mut waited, None).is_err() {
                continue;
            }
            if !waited[1].revents().is_empty() {
                return;
            }
            let Ok(count @ 1..) = rustix::io::read(&stdin, &mut buffer) else {
                return;
            };
            let keys = &buffer[..count];
            if write_all(self.pseudo.as_fd(), keys).is_err() {
                return;
            }
            self.obey(keys);
        }
    }

    /// Handles the keys that the kernel does not handle for a command in its own session.
    fn obey(&self, keys: &[u8]) {
        let Ok(mode) = tcgetattr(&self.pseudo) else {
            return;
        };
        let is_typed = |key: SpecialCodeIndex| {
            mode.special_codes[key] != 0 && keys.contains(&mode.special_codes[key])
        };
        if !mode.local_modes.contains(LocalModes::ISIG) {
            return;
        }
        if is_typed(SpecialCodeIndex::VINTR) || is_typed(SpecialCodeIndex::VQUIT) {
            *self
                .interrupted
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = true;
        }
        // The kernel does not suspend an orphaned process group (whose parents are all in other sessions). A program that
        // handles the key itself is left alone.
        if is_typed(SpecialCodeIndex::VSUSP) && self.process.is_suspended_by_default() {
            self.process.signal(Signal::STOP);
            self.raw.restore();
            self.continuations.suspend();
            let _ = self.raw.resume();
            resize(&self.pseudo);
            self.process.signal(Signal::CONT);
        }
    }
}
