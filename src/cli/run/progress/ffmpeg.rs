//! ffmpeg: `-progress` (`out_time=00:00:05.000000`) and its line of statistics (`time=00:00:05.00`), as a part of the longest input's
//! `Duration`.

use super::number::{clock, percent_of};
use super::{Family, Line, Reading};

/// Reads ffmpeg's progress.
#[derive(Default)]
pub(super) struct Ffmpeg {
    duration_secs: f64,
    is_output: bool,
}

impl Family for Ffmpeg {
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
        if text == "progress=end" {
            return Some(Reading::at(100.0));
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
            message: None,
        })
    }
}
