//! Reads a copy of the command's output, and passes new progress to the reporter. To slow the command down only by a bounded amount, it
//! reads only samples of an output that is faster than any person or progress bar.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lines::{Lines, Said};
use super::progress::{News, Progress};
use super::reporter::Board;
use super::tail::Tail;

/// For how long a stream is read in each [`PERIOD`].
const SHARE: Duration = Duration::from_millis(10);
const PERIOD: Duration = Duration::from_millis(100);
/// How much is read between two looks at the clock, in bytes.
const PART_BYTES: usize = 4 * 1024;
/// How much of the end of a skipped part is read afterwards, in bytes.
const SAMPLE_BYTES: usize = 8 * 1024;
/// Maximum length of a message, in bytes.
const MESSAGE_MAX_BYTES: usize = 512;

/// One of the command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Output,
    Errors,
}

/// Follows a command's outputs and its other signs of progress.
pub(super) struct Observer {
    tail: Tail,
    output: Follower,
    errors: Follower,
    progress: Progress,
    board: Arc<Board>,
}

impl Observer {
    pub(super) fn new(progress: Progress, board: Arc<Board>) -> Observer {
        Observer {
            tail: Tail::default(),
            output: Follower::new(),
            errors: Follower::new(),
            progress,
            board,
        }
    }

    /// Reads a part of an output. Returns whether other output can be inserted after it.
    pub(super) fn see(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        self.tail.push(bytes);
        let (progress, board) = (&mut self.progress, &self.board);
        let follower = match stream {
            Stream::Output => &mut self.output,
            Stream::Errors => &mut self.errors,
        };
        let mut latest = News::default();
        follower.read(bytes, |said| merge(&mut latest, progress.said(&said)));
        post(board, latest);
        follower.lines.is_complete() && follower.skipped.is_none()
    }

    /// Records that an output has paused, so the line that has not ended yet counts as well.
    pub(super) fn pause(&mut self, stream: Stream) {
        let follower = match stream {
            Stream::Output => &mut self.output,
            Stream::Errors => &mut self.errors,
        };
        let mut latest = News::default();
        let progress = &mut self.progress;
        follower.catch_up(|said| merge(&mut latest, progress.said(&said)));
        if let Some(pending) = follower.lines.pending() {
            merge(&mut latest, progress.said(&pending));
        }
        post(&self.board, latest);
    }

    /// Reads a line that the command has reported on purpose.
    pub(super) fn reported(&mut self, line: &str) {
        post(&self.board, self.progress.reported(line));
    }

    /// Records how far the command has read its input, in percent.
    pub(super) fn has_read(&mut self, percent: f64) {
        post(&self.board, self.progress.has_read(percent));
    }

    /// Whether the command has not reported any progress yet.
    pub(super) fn is_silent(&self) -> bool {
        self.progress.is_silent()
    }

    /// Returns the last part of both outputs.
    pub(super) fn tail(&self) -> String {
        self.tail.text()
    }
}

fn merge(latest: &mut News, news: News) {
    latest.percent = news.percent.or(latest.percent);
    latest.message = news.message.or(latest.message.take());
}

fn post(board: &Board, mut news: News) {
    if let Some(message) = &mut news.message {
        shorten(message, MESSAGE_MAX_BYTES);
    }
    if news != News::default() {
        board.post(news);
    }
}

/// Cuts a text to a length in bytes, at a character.
pub(in crate::cli) fn shorten(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let mut end = max_bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// Reads one output.
struct Follower {
    lines: Lines,
    since: Instant,
    /// How long reading has taken since then.
    spent: Duration,
    /// The end of what was skipped.
    skipped: Option<Vec<u8>>,
}

impl Follower {
    fn new() -> Follower {
        Follower {
            lines: Lines::default(),
            since: Instant::now(),
            spent: Duration::ZERO,
            skipped: None,
        }
    }

    fn read(&mut self, bytes: &[u8], mut each: impl FnMut(Said)) {
        let mut now = Instant::now();
        if now.duration_since(self.since) >= PERIOD {
            (self.since, self.spent) = (now, Duration::ZERO);
            self.catch_up(&mut each);
        }
        for (at, part) in bytes.chunks(PART_BYTES).enumerate() {
            if self.spent >= SHARE {
                self.skip(&bytes[at * PART_BYTES..]);
                return;
            }
            self.lines.read(part, &mut each);
            let before = std::mem::replace(&mut now, Instant::now());
            self.spent += now.duration_since(before);
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        let skipped = self.skipped.get_or_insert_default();
        let sample = &bytes[bytes.len().saturating_sub(SAMPLE_BYTES)..];
        let excess = (skipped.len() + sample.len()).saturating_sub(SAMPLE_BYTES);
        skipped.drain(..excess.min(skipped.len()));
        skipped.extend_from_slice(sample);
    }

    /// Reads the end of what was skipped, from the first line that is complete.
    fn catch_up(&mut self, each: impl FnMut(Said)) {
        let Some(skipped) = self.skipped.take() else {
            return;
        };
        self.lines = Lines::default();
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let from = skipped.iter().position(is_end).unwrap_or(0);
        self.lines.read(&skipped[from..], each);
    }
}
