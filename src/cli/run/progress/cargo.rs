//! cargo: `Building [====>      ] 12/340: serde, tokio`. Its other bars (fetching, unpacking) are phases before that one.

use super::number::{leading_fraction, percent_of};
use super::{Family, Line, Reading};

/// Reads cargo's bars.
pub(super) struct Cargo;

impl Family for Cargo {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let (word, rest) = line.text.split_once(" [")?;
        match word.trim() {
            "Building" => {
                let (_, counts) = rest.split_once(']')?;
                let (part, whole, _) = leading_fraction(counts.trim_start())?;
                Some(Reading::at(percent_of(part, whole)?))
            }
            "Fetch" | "Downloading" | "Updating" | "Unpacking" if line.is_redrawn => {
                Some(Reading::default())
            }
            _ => None,
        }
    }
}
