//! pv: the lines of `pv -n`, which are only a whole number. Read only where the command runs pv, because other programs print numbers, too.

use super::{Family, Line, Reading};

/// Reads the numbers of `pv -n`.
pub(super) struct Pv;

impl Family for Pv {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let is_number =
            !line.text.is_empty() && line.text.bytes().all(|byte| byte.is_ascii_digit());
        let percent: f64 = line.text.parse().ok().filter(|_| is_number)?;
        (percent <= 100.0).then(|| Reading::at(percent))
    }
}
