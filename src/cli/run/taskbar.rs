//! Shows the progress in the taskbar or tab of this process's terminal: `OSC 9;4`.

use std::sync::Arc;

use super::reporter::Board;

/// Removes the progress.
pub(in crate::cli) const CLEAR: &str = "\u{1b}]9;4;0;\u{1b}\\";

/// Whether to show progress in the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Wanted {
    /// If the terminal is known to support it.
    Auto,
    Always,
    Never,
}

impl Wanted {
    /// Whether to show progress in this terminal. Terminals that do not know the sequence may show it as a notification, so `auto`
    /// includes only those that are known to support it.
    pub(in crate::cli) fn is_shown(self) -> bool {
        let is = |name: &str, values: &[&str]| {
            std::env::var(name).is_ok_and(|variable| values.iter().any(|value| variable == *value))
        };
        match self {
            Wanted::Always => true,
            Wanted::Never => false,
            Wanted::Auto => {
                std::env::var_os("WT_SESSION").is_some()
                    || is("ConEmuANSI", &["ON"])
                    || is("TERM_PROGRAM", &["WezTerm", "ghostty"])
            }
        }
    }
}

/// Returns the sequence that shows this percentage.
pub(in crate::cli) fn at(percent: f64) -> String {
    format!(
        "\u{1b}]9;4;1;{:.0}\u{1b}\\",
        percent.clamp(0.0, 100.0).floor()
    )
}

/// What the terminal shows.
pub(super) struct Taskbar {
    board: Arc<Board>,
    shown: Option<String>,
}

impl Taskbar {
    pub(super) fn new(board: Arc<Board>) -> Taskbar {
        Taskbar { board, shown: None }
    }

    /// Returns the sequence to write, if the terminal does not show the newest progress. If the command itself sends such sequences,
    /// nothing is added.
    pub(super) fn next(&mut self) -> Option<String> {
        let (percent, source) = self.board.latest().percent?;
        let sequence = at(percent);
        if source == super::progress::Source::Taskbar || self.shown.as_ref() == Some(&sequence) {
            return None;
        }
        self.shown = Some(sequence.clone());
        Some(sequence)
    }
}

impl Drop for Taskbar {
    /// Removes what was shown.
    fn drop(&mut self) {
        if self.shown.is_some() {
            let out = std::io::stdout();
            // Fails if the terminal is gone.
            let _ = super::relay::write_all(std::os::fd::AsFd::as_fd(&out), CLEAR.as_bytes());
        }
    }
}
