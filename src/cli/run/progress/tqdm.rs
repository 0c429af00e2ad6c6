//! tqdm: ` 45%|████▌     | 45/100 [00:01<00:01, 40.1it/s]`. The counts are more exact than the percentage.

use super::number::{leading_fraction, leading_percent, percent_of};
use super::{Family, Line, Reading};

/// Reads tqdm's bars.
pub(super) struct Tqdm;

impl Family for Tqdm {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let (before, rest) = line.text.split_once("%|")?;
        let (_, counts) = rest.split_once("| ")?;
        if !counts.contains(" [") {
            return None;
        }
        let digits = before.trim_end_matches(|c: char| c.is_ascii_digit());
        let (rounded, _) = leading_percent(&line.text[digits.len()..])?;
        let counted = leading_fraction(counts.trim_start());
        let exact = counted.and_then(|(part, whole, _)| percent_of(part, whole));
        Some(Reading::at(exact.unwrap_or(rounded)))
    }
}
