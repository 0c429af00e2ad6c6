//! rclone: the statistics of `--use-json-log`, which come at the interval of `--stats`.

use serde::Deserialize;

use super::number::percent_of;
use super::{Family, Line, Reading};

/// Reads rclone's log.
pub(super) struct Rclone;

#[derive(Deserialize)]
struct Entry {
    level: String,
    msg: String,
    #[serde(rename = "time")]
    _time: String,
    stats: Option<Stats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    bytes: f64,
    total_bytes: f64,
    transfers: u64,
    total_transfers: u64,
}

impl Family for Rclone {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        if !line.text.starts_with('{') {
            return None;
        }
        let entry: Entry = serde_json::from_str(line.text).ok()?;
        let Some(stats) = entry.stats else {
            // Its other messages have a level as well.
            return (!entry.level.is_empty()).then_some(Reading {
                percent: None,
                message: Some(entry.msg),
            });
        };
        Some(Reading {
            percent: percent_of(stats.bytes, stats.total_bytes),
            message: Some(format!(
                "{} of {} files transferred",
                stats.transfers, stats.total_transfers
            )),
        })
    }
}
