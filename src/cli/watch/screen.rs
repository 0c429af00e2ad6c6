//! The terminal: a bar for each job that is not over, and lines above them.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::lines::{self, percent, plain};
use super::outcome;
use crate::cli::{Exit, Failure};

/// Bars on the screen at a time; more jobs are told in lines.
const BARS_MAX: usize = 40;

/// The terminal, or a pipe.
pub(super) struct Screen {
    json: bool,
    bars: MultiProgress,
    /// The bars of jobs that are not over, and whether they run: those stand above the waiting ones.
    jobs: HashMap<String, (ProgressBar, bool)>,
}

impl Screen {
    pub(super) fn new(json: bool) -> Screen {
        Screen {
            json,
            bars: MultiProgress::new(),
            jobs: HashMap::new(),
        }
    }

    pub(super) fn say(&self, text: &str) {
        if self.json || self.bars.is_hidden() {
            eprintln!("{text}");
        } else {
            // A terminal that cannot be written to has nobody to complain to.
            let _ = self.bars.println(text);
        }
    }

    pub(super) fn show(&mut self, message: &Value) -> Result<(), Failure> {
        if self.json {
            print_line(&message.to_string())
        } else if message["job_id"].is_string() {
            self.show_job(message)
        } else if let Some(line) = lines::line(message) {
            self.tell(&line)
        } else {
            Ok(())
        }
    }

    /// Tells a line of news: above the bars, or where a script reads it.
    fn tell(&self, line: &str) -> Result<(), Failure> {
        if self.bars.is_hidden() {
            return print_line(line);
        }
        self.say(line);
        Ok(())
    }

    fn show_job(&mut self, message: &Value) -> Result<(), Failure> {
        let text = |field: &str| plain(message[field].as_str().unwrap_or_default());
        let (id, status) = (text("job_id"), text("status"));
        let name = plain(message["metadata"]["path"].as_str().unwrap_or(&id));
        let line = format!(
            "{status:<11} {:>4} {name}  {}",
            percent(message),
            text("message")
        );
        let ended = outcome(message).is_some();
        if self.bars.is_hidden() {
            return self.tell(&line);
        }
        // A line each for jobs that were over before we looked, and where the screen is full of bars.
        let known = self.jobs.contains_key(&id);
        let told_only = ended && message["snapshot"] == true;
        if !known && (told_only || self.jobs.len() >= BARS_MAX) {
            self.say(&line);
            return Ok(());
        }
        let runs = status.eq_ignore_ascii_case("in_progress");
        let bars = &self.bars;
        let (bar, above) = self.jobs.entry(id.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(100));
            let style = ProgressStyle::with_template("{prefix:<32!} {bar:24} {pos:>3}% {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            (bar, false)
        });
        if runs && !*above {
            bars.remove(bar);
            *bar = bars.insert(0, bar.clone());
            *above = true;
        }
        let stalled = if message["stalled"] == true {
            "STALLED "
        } else {
            ""
        };
        bar.set_prefix(name);
        bar.set_position(message["progress"].as_f64().unwrap_or(0.0) as u64);
        bar.set_message(format!(
            "{stalled}{}{}",
            text("message"),
            time_left(message)
        ));
        if ended {
            bar.finish_and_clear();
            self.jobs.remove(&id);
            self.say(&line);
        }
        Ok(())
    }

    pub(super) fn finish(&self) {
        self.jobs.values().for_each(|(bar, _)| bar.abandon());
    }
}

/// Prints a line; nobody there to read it any more is a quiet end.
fn print_line(line: &str) -> Result<(), Failure> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::new(Exit::Failed, ""),
        _ => error.into(),
    })
}

fn time_left(message: &Value) -> String {
    let at = message["eta_at"]
        .as_str()
        .and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    let left = at.map(|at| (at.to_utc() - chrono::Utc::now()).num_seconds().max(0));
    left.map_or(String::new(), |secs| {
        format!(" ({}:{:02} left)", secs / 60, secs % 60)
    })
}
