//! pip: the lines of `--progress-bar raw`, such as `Progress 1024 of 4096`. Its drawn bars are read like any bar.

use super::number::percent_of;
use super::{Family, Line, Reading};

/// Reads pip's raw progress.
pub(super) struct Pip;

impl Family for Pip {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let (part, whole) = line.text.strip_prefix("Progress ")?.split_once(" of ")?;
        Some(Reading::at(percent_of(
            part.parse().ok()?,
            whole.parse().ok()?,
        )?))
    }
}
