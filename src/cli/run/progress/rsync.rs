//! rsync: the line of `--info=progress2`, such as `1,234,567  45%   12.34MB/s    0:00:01 (xfr#3, to-chk=2/5)`. With `--progress`, the
//! percentage is that of one file, so the number of files left to check is used.

use std::ffi::OsString;

use super::number::percent_of;
use super::{Family, Line, Reading};

/// Reads rsync's progress.
pub(super) struct Rsync {
    /// Whether the percentages are those of the whole transfer.
    is_total: bool,
    /// Whether rsync is still looking for files, so that its percentages refer only to the files found so far.
    is_looking: bool,
}

impl Rsync {
    pub(super) fn of(command: &[OsString]) -> Rsync {
        let is_total = |word: &OsString| word.to_string_lossy().contains("progress2");
        Rsync {
            is_total: command.iter().any(is_total),
            is_looking: false,
        }
    }
}

impl Family for Rsync {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let mut words = line.text.split_whitespace();
        let bytes = words.next()?;
        let percent = words.next()?.strip_suffix('%')?;
        let (rate, _time) = (words.next()?, words.next()?);
        let is_size = bytes.starts_with(|c: char| c.is_ascii_digit());
        if !is_size || !rate.ends_with("B/s") {
            return None;
        }
        let percent: f64 = percent.parse().ok()?;
        let count = |name: &str| -> Option<(f64, f64)> {
            let (_, counts) = line.text.split_once(name)?;
            let (left, total) = counts.trim_end_matches(')').split_once('/')?;
            Some((left.parse().ok()?, total.parse().ok()?))
        };
        let checked = count("to-chk=");
        if count("ir-chk=").is_some() {
            self.is_looking = true;
        } else if checked.is_some() {
            self.is_looking = false;
        }
        let percent = match (self.is_total, checked) {
            _ if self.is_looking => None,
            (true, _) => Some(percent).filter(|percent| *percent <= 100.0),
            (false, Some((left, total))) => percent_of(total - left, total),
            (false, None) => None,
        };
        Some(Reading {
            percent,
            message: None,
        })
    }
}
