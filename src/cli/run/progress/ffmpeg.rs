//! ffmpeg: `-progress` (`out_time=00:00:05.000000`) and its line of statistics (`time=00:00:05.00`), as a part of the longest input's
//! `Duration`.

use super::number::{clock, percent_of};
use super::{Family, Line, Reading};

/// The fields of `-progress`, except those that begin with `stream_`.
const FIELDS: [&str; 11] = [
    "frame",
    "fps",
    "bitrate",
    "total_size",
    "out_time",
    "out_time_us",
    "out_time_ms",
    "dup_frames",
    "drop_frames",
    "speed",
    "progress",
];

/// Reads ffmpeg's progress.
#[derive(Default)]
pub(super) struct Ffmpeg {
    duration_secs: f64,
    is_output: bool,
    /// Whether there were lines of `-progress`.
    has_fields: bool,
}

impl Family for Ffmpeg {
    fn is_for_programs(&self) -> bool {
        true
    }

    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let text = line.text;
        if text.starts_with("Input #") || text.starts_with("Output #") {
            self.is_output = text.starts_with("Output #");
            return Some(Reading::default());
        }
        if let Some(rest) = text.strip_prefix("Duration: ") {
            let secs = rest.split(',').next().and_then(clock);
            if let Some(secs) = secs.filter(|_| !self.is_output) {
                self.duration_secs = self.duration_secs.max(secs);
            }
            return Some(Reading::default());
        }
        let field = text.split_once('=').map_or("", |(name, _)| name);
        let is_field = FIELDS.contains(&field) || field.starts_with("stream_");
        self.has_fields |= field == "out_time" || text == "progress=continue";
        // The line itself is of no use to people.
        let silent = |percent| {
            Some(Reading {
                percent,
                message: Some(String::new()),
            })
        };
        if text == "progress=end" {
            return silent(Some(100.0));
        }
        if self.has_fields && is_field && field != "out_time" {
            return silent(None);
        }
        let is_statistics = text.contains("bitrate=") && text.contains("speed=");
        let time = match text.strip_prefix("out_time=") {
            Some(time) => time,
            None if is_statistics => text.split_once("time=")?.1,
            None => return None,
        };
        let secs = time.split_whitespace().next().and_then(clock)?;
        let percent = percent_of(secs.min(self.duration_secs), self.duration_secs);
        Some(Reading {
            percent,
            message: (field == "out_time").then(|| format!("at {}", time.trim())),
        })
    }
}
