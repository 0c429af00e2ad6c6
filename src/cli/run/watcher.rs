//! Watches what is not in the command's output: its progress file, how far it has read its input, and how much memory it takes.

use std::io::PipeReader;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::input::{self, Inputs};
use super::observer::Observer;
use super::script::ProgressFile;

/// How often a progress file is read.
const PERIOD: Duration = Duration::from_millis(200);
/// The command's files and memory are inspected once in this many periods.
const PERIODS_PER_LOOK: u32 = 5;

/// Watches a command until it has ended.
pub(super) struct Watcher {
    pub(super) file: Option<ProgressFile>,
    pub(super) process: u32,
    pub(super) observer: Arc<Mutex<Observer>>,
    /// Closed by the other side when the command has ended.
    pub(super) ended: Arc<PipeReader>,
}

impl Watcher {
    /// Returns the highest memory usage of the command that was seen, in bytes.
    pub(super) fn run(mut self) -> Option<u64> {
        let period = Timespec::try_from(PERIOD).ok()?;
        let mut memory_bytes = None;
        let mut inputs = Inputs::default();
        for tick in 0.. {
            if tick % PERIODS_PER_LOOK == 0 {
                self.look_at(&mut inputs);
            }
            // Not in the first period: the program is still being loaded.
            if tick % PERIODS_PER_LOOK == 1 {
                memory_bytes = memory_bytes.max(input::peak_memory(self.process));
            }
            let mut ended = [PollFd::new(&*self.ended, PollFlags::IN)];
            // An interruption counts as a timeout.
            let has_ended = poll(&mut ended, Some(&period)).is_ok_and(|count| count > 0);
            if let Some(line) = self.file.as_mut().and_then(ProgressFile::new_line) {
                self.observe(|observer| observer.reported(&line));
            }
            if has_ended {
                break;
            }
        }
        memory_bytes
    }

    fn look_at(&self, inputs: &mut Inputs) {
        if self.observe(|observer| observer.is_silent())
            && let Some(percent) = inputs.look(self.process)
        {
            self.observe(|observer| observer.has_read(percent));
        }
    }

    fn observe<T>(&self, observe: impl FnOnce(&mut Observer) -> T) -> T {
        observe(&mut self.observer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
