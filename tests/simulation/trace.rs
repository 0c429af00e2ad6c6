//! A record of what happened in a run: printed if a single seed is run, and compared between two runs of a seed.

use std::fmt::{Arguments, Write};
use std::sync::{Mutex, MutexGuard};

use tidings::subscribe::Delivery;
use tidings::wire::Control;

/// What happened, one line each.
pub(super) struct Trace {
    lines: Mutex<Option<String>>,
    is_printed: bool,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            lines: Mutex::default(),
            is_printed: super::chosen_seeds().is_some_and(|seeds| seeds.end - seeds.start == 1),
        }
    }
}

impl Trace {
    fn lines(&self) -> MutexGuard<'_, Option<String>> {
        self.lines.lock().unwrap()
    }

    /// Keeps what happens from now on.
    pub(super) fn keep(&self) {
        self.lines().get_or_insert_default();
    }

    /// Takes what was kept.
    pub(super) fn take(&self) -> String {
        self.lines().take().unwrap_or_default()
    }

    pub(super) fn note(&self, what: Arguments<'_>) {
        if self.is_printed {
            println!("{what}");
        }
        if let Some(lines) = &mut *self.lines() {
            writeln!(lines, "{what}").unwrap();
        }
    }

    /// Records a delivery, without times of the wall clock.
    pub(super) fn delivered(&self, reader: Arguments<'_>, delivery: &Delivery) {
        match delivery {
            Delivery::Control(Control::Heartbeat { cursor, .. }) => {
                self.note(format_args!("{reader} receives a heartbeat at {cursor:?}"));
            }
            other => self.note(format_args!("{reader} receives {other:?}")),
        }
    }
}
