//! The signals that this process receives while the command runs.

use std::io;

use rustix::process::Signal;
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use super::process::is_in_mask;

/// The signals that are passed on to the command.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// A signal that this process received.
pub(super) enum Event {
    /// A child may have ended.
    Child,
    /// The terminal has another size.
    Resized,
    /// This process was suspended. The terminal may have been resized meanwhile.
    Continued,
    /// A signal to pass on to the command.
    ForCommand {
        signal: Signal,
        /// Whether the terminal sent it, to its whole foreground process group.
        is_from_terminal: bool,
    },
}

/// Receives signals from now on. Those that are ignored stay ignored, as under `nohup`.
pub(super) struct Signals(SignalsInfo<WithOrigin>);

impl Signals {
    pub(super) fn receive() -> io::Result<Signals> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let is_ignored = |signal: &i32| {
            Signal::from_named_raw(*signal)
                .is_some_and(|signal| is_in_mask(&status, "SigIgn:", signal))
        };
        let passed_on = PASSED_ON.into_iter().filter(|signal| !is_ignored(signal));
        let received = passed_on.chain([SIGCHLD, SIGCONT, SIGWINCH]);
        SignalsInfo::new(received).map(Signals)
    }

    /// Waits for signals.
    pub(super) fn wait(&mut self) -> impl Iterator<Item = Event> {
        self.0.wait().filter_map(event)
    }
}

fn event(origin: Origin) -> Option<Event> {
    match origin.signal {
        SIGCHLD => Some(Event::Child),
        SIGWINCH => Some(Event::Resized),
        SIGCONT => Some(Event::Continued),
        other => Some(Event::ForCommand {
            signal: Signal::from_named_raw(other)?,
            is_from_terminal: matches!(origin.cause, Cause::Kernel),
        }),
    }
}

/// Whether a signal ends a command, unless it handles it.
pub(super) fn ends(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::HUP | Signal::INT | Signal::QUIT | Signal::TERM
    )
}
