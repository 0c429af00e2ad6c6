//! git: `Receiving objects:  45% (450/1000)`. A transfer has several phases, each from 0 to 100; most of the time goes into one.

use super::number::leading_percent;
use super::{Family, Line, Reading};

/// The share of a clone or fetch that receiving takes, in percent; resolving deltas takes the rest.
const RECEIVING: f64 = 90.0;

/// Reads git's progress.
pub(super) struct Git;

impl Family for Git {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let (phase, rest) = line.text.split_once(": ")?;
        let rest = match phase {
            // The server's messages about its own phases.
            "remote" => rest.split_once(": ")?.1,
            _ => rest,
        };
        let (percent, _) = leading_percent(rest.trim_start())?;
        let percent = match phase {
            "Receiving objects" => Some(percent * RECEIVING / 100.0),
            "Resolving deltas" => Some(RECEIVING + percent * (100.0 - RECEIVING) / 100.0),
            "Writing objects" => Some(percent),
            "remote" | "Counting objects" | "Compressing objects" | "Unpacking objects" => None,
            _ => return None,
        };
        Some(Reading {
            percent,
            message: None,
        })
    }
}
