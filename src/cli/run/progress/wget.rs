//! wget: the lines of dots that it writes where there is no terminal. Its bar is read like any bar.

use super::number::leading_percent;
use super::{Family, Line, Reading};

/// Reads wget's lines of dots.
pub(super) struct Wget;

impl Family for Wget {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let (size, rest) = line.text.split_once("K ")?;
        let is_size = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
        let rest = rest.trim_start_matches(['.', ' ', ',']);
        if !is_size || !line.text.contains("..........") {
            return None;
        }
        let (percent, _) = leading_percent(rest)?;
        Some(Reading::at(percent))
    }
}
