//! The terminal: bars for the open jobs, as many as fit, and lines above them. If the output goes to a file or another
//! program: only lines.

use std::io::{IsTerminal, stderr, stdout};
use std::time::Duration;

use console::{Alignment, Term, pad_str, truncate_str};
use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::goal::outcome;
use super::lines::{self, job_percent, marks};
use super::notice::Notices;
use crate::cli::Failure;
use crate::cli::terminal::{json_line, plain, print_line};
use crate::number::whole_unsigned;

/// The maximum number of bars, on a screen of any height.
const BARS_MAX: usize = 40;
/// The rows above the bars that are reserved for lines.
const LINES_MIN: usize = 4;
/// The maximum number of jobs that are tracked. Further jobs are shown as lines.
const JOBS_MAX: usize = 10_000;
/// How often the bars are redrawn, so that changes appear that arrived too fast to be drawn immediately.
const REDRAW: Duration = Duration::from_millis(250);

/// The terminal, or a pipe.
pub(super) struct Screen {
    json: bool,
    bars: Option<Bars>,
}

impl Screen {
    pub(super) fn new(json: bool) -> Screen {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let has_bars = !json && !is_dumb && stdout().is_terminal() && stderr().is_terminal();
        Screen {
            json,
            bars: has_bars.then(Bars::new),
        }
    }

    /// Returns the printer for messages that are not events.
    pub(super) fn notices(&self) -> Notices {
        Notices {
            bars: self.bars.as_ref().map(|bars| bars.bars.clone()),
        }
    }

    pub(super) fn show(&mut self, message: &Value) -> Result<(), Failure> {
        if self.json {
            return print_line(&json_line(message));
        }
        let (Some(bars), Some(id)) = (&mut self.bars, message["job_id"].as_str()) else {
            return lines::line(message).map_or(Ok(()), |line| self.print(&line));
        };
        // Ids are unique only within a school.
        let id = format!("{} {id}", message["school_id"]);
        if let Some(line) = bars.show(&id, message) {
            bars.print_truncated(&line);
        }
        Ok(())
    }

    /// Prints a line above the bars, or on standard output for scripts.
    fn print(&self, line: &str) -> Result<(), Failure> {
        match &self.bars {
            Some(bars) => {
                bars.print_truncated(line);
                Ok(())
            }
            None => print_line(line),
        }
    }

    /// Leaves the bars on the screen.
    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.slots
                .iter()
                .chain(&bars.others)
                .for_each(ProgressBar::abandon);
        }
    }
}

/// An open job.
struct Job {
    name: String,
    progress: f64,
    /// The text after the bar.
    text: String,
}

/// The widths of the columns, and the number of rows for jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Layout {
    columns: usize,
    rows: usize,
}

impl Layout {
    fn of_terminal() -> Layout {
        let (rows, columns) = Term::stderr().size();
        Layout {
            columns: usize::from(columns),
            rows: usize::from(rows)
                .saturating_sub(LINES_MIN)
                .clamp(1, BARS_MAX),
        }
    }

    fn name(self) -> usize {
        (self.columns * 2 / 5).clamp(8, 32)
    }

    fn bar(self) -> usize {
        (self.columns / 5).clamp(4, 24)
    }

    /// The rest of the row, except for two spaces and the last column: a full row might wrap to a second one.
    fn text(self) -> usize {
        self.columns.saturating_sub(self.name() + self.bar() + 3)
    }

    fn style(self) -> ProgressStyle {
        let template = format!("{{prefix}} {{bar:{}}} {{msg}}", self.bar());
        ProgressStyle::with_template(&template).expect("the template is well-formed")
    }
}

/// A group of jobs, in the order of the screen: running jobs are always visible.
#[derive(Clone, Copy)]
enum Group {
    Running,
    Stalled,
    Waiting,
}

const GROUPS: [(Group, &str); 3] = [
    (Group::Running, "running"),
    (Group::Stalled, "stalled"),
    (Group::Waiting, "waiting"),
];

/// The open jobs, in each group in order of arrival.
#[derive(Default)]
struct Jobs {
    groups: [IndexMap<String, Job>; GROUPS.len()],
}

impl Jobs {
    fn len(&self) -> usize {
        self.groups.iter().map(IndexMap::len).sum()
    }

    fn contains(&self, id: &str) -> bool {
        self.groups.iter().any(|jobs| jobs.contains_key(id))
    }

    fn all(&self) -> impl Iterator<Item = &Job> {
        self.groups.iter().flat_map(IndexMap::values)
    }

    fn remove(&mut self, id: &str) {
        for jobs in &mut self.groups {
            jobs.shift_remove(id);
        }
    }

    /// Adds a job, or updates it in its place unless its group changes.
    fn put(&mut self, group: Group, id: &str, job: Job) {
        for (index, jobs) in self.groups.iter_mut().enumerate() {
            if index != group as usize {
                jobs.shift_remove(id);
            }
        }
        self.groups[group as usize].insert(id.to_owned(), job);
    }

    /// Returns the number of jobs in each group, without the `first` jobs on the screen.
    fn counts_beyond(&self, mut first: usize) -> String {
        let mut counts = Vec::new();
        for (group, name) in GROUPS {
            let count = self.groups[group as usize].len();
            let beyond = count.saturating_sub(first);
            first = first.saturating_sub(count);
            if beyond > 0 {
                counts.push(format!("{beyond} {name}"));
            }
        }
        counts.join(", ")
    }
}

/// The bars. At each change, the rows show the first jobs in the order of the groups.
struct Bars {
    bars: MultiProgress,
    layout: Layout,
    /// The rows of jobs on the screen.
    slots: Vec<ProgressBar>,
    /// The last row, if not all jobs have one.
    others: Option<ProgressBar>,
    jobs: Jobs,
}

impl Bars {
    fn new() -> Bars {
        Bars {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            layout: Layout::of_terminal(),
            slots: Vec::new(),
            others: None,
            jobs: Jobs::default(),
        }
    }

    fn print_truncated(&self, line: &str) {
        self.print(&truncate_str(line, self.layout.columns, "…"));
    }

    fn print(&self, rows: &str) {
        // If the terminal cannot be written to, there is nowhere to report it.
        let _ = self.bars.println(rows);
    }

    /// Applies a message of a job. Returns a line to print if the job has no bar.
    fn show(&mut self, id: &str, message: &Value) -> Option<String> {
        let is_over = outcome(message).is_some();
        let is_full = self.jobs.len() >= JOBS_MAX;
        let mut line = None;
        if is_over || (is_full && !self.jobs.contains(id)) {
            line = Some(lines::job(message, Some(self.layout.name())));
            self.jobs.remove(id);
        } else {
            let job = Job {
                name: lines::name(message),
                progress: message["progress"].as_f64().unwrap_or(0.0),
                text: text(message),
            };
            let status = message["status"].as_str().unwrap_or_default();
            let is_running = status.eq_ignore_ascii_case("in_progress");
            let group = match is_running {
                true if message["stalled"] == true => Group::Stalled,
                true => Group::Running,
                false => Group::Waiting,
            };
            self.jobs.put(group, id, job);
        }
        self.draw();
        line
    }

    /// Fills the rows with the first jobs. If there are more, the last row counts the others.
    fn draw(&mut self) {
        let layout = Layout::of_terminal();
        if layout != self.layout {
            self.layout = layout;
            self.slots
                .iter()
                .for_each(|slot| slot.set_style(layout.style()));
        }
        let jobs = self.jobs.len();
        let has_more = jobs > layout.rows;
        let shown = if has_more { layout.rows - 1 } else { jobs };
        self.slots
            .drain(shown.min(self.slots.len())..)
            .for_each(|slot| remove(&self.bars, &slot));
        for (index, job) in self.jobs.all().take(shown).enumerate() {
            let name = pad_str(&job.name, layout.name(), Alignment::Left, Some("…"));
            let text = truncate_str(&job.text, layout.text(), "…");
            let position = whole_unsigned(job.progress);
            if let Some(slot) = self.slots.get(index) {
                update(slot, &name, &text, position);
                continue;
            }
            // A row is drawn as soon as it is inserted, so set its content first.
            let slot = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::hidden())
                .with_style(layout.style())
                .with_prefix(name.into_owned())
                .with_message(text.into_owned())
                .with_position(position);
            let slot = self.bars.insert(index, slot);
            slot.tick();
            if index == 0 {
                slot.enable_steady_tick(REDRAW);
            }
            self.slots.push(slot);
        }
        self.count_others(has_more.then_some(jobs - shown), shown);
    }

    /// Shows the number of jobs without a row, in the last row.
    fn count_others(&mut self, more: Option<usize>, shown: usize) {
        let Some(more) = more else {
            if let Some(slot) = self.others.take() {
                remove(&self.bars, &slot);
            }
            return;
        };
        let text = format!("and {more} more ({})", self.jobs.counts_beyond(shown));
        let max_columns = self.layout.columns.saturating_sub(1);
        let text = truncate_str(&text, max_columns, "…").into_owned();
        if let Some(slot) = &self.others {
            update(slot, "", &text, 0);
            return;
        }
        let style = ProgressStyle::with_template("{msg}").expect("the template is well-formed");
        let slot = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
            .with_style(style)
            .with_message(text);
        let slot = self.bars.add(slot);
        slot.tick();
        self.others = Some(slot);
    }
}

/// Sets only values that have changed, because the bar is redrawn each time a value is set.
fn update(slot: &ProgressBar, prefix: &str, message: &str, position: u64) {
    if slot.prefix() != prefix {
        slot.set_prefix(prefix.to_owned());
    }
    if slot.message() != message {
        slot.set_message(message.to_owned());
    }
    if slot.position() != position {
        slot.set_position(position);
    }
}

fn remove(bars: &MultiProgress, slot: &ProgressBar) {
    slot.finish_and_clear();
    bars.remove(slot);
}

/// Returns the text after the bar of a job.
fn text(message: &Value) -> String {
    let marks = marks(message);
    let message_text = plain(message["message"].as_str().unwrap_or_default());
    let left = time_left(message);
    format!("{} {marks}{left}{message_text}", job_percent(message))
}

fn time_left(message: &Value) -> String {
    let at = message["eta_at"]
        .as_str()
        .and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
    let left = at.map(|at| (at.to_utc() - chrono::Utc::now()).num_seconds().max(0));
    left.map_or(String::new(), |secs| {
        format!("{}:{:02} left ", secs / 60, secs % 60)
    })
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;
    use serde_json::json;

    use super::*;

    fn bars(rows: usize) -> Bars {
        Bars {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            layout: Layout { columns: 60, rows },
            ..Bars::new()
        }
    }

    #[test]
    fn running_jobs_stand_above_stalled_and_waiting_ones_and_those_that_do_not_fit_are_counted() {
        let mut bars = bars(Layout::of_terminal().rows);
        let rows = bars.layout.rows;
        for number in 0..rows {
            let message = json!({"status": "in_progress", "progress": 0.0, "stalled": true});
            assert_eq!(bars.show(&format!("stalled {number}"), &message), None);
        }
        for number in 0..rows + 11 {
            let message = json!({"job_id": number.to_string(), "status": "queued", "metadata": {"title": format!("Waiting {number}")}});
            assert_eq!(bars.show(&number.to_string(), &message), None);
        }
        let message =
            json!({"status": "in_progress", "progress": 40, "metadata": {"title": "At work"}});
        bars.show("x", &message);
        assert_eq!(bars.slots.len(), rows - 1);
        assert_eq!(bars.slots[0].prefix().trim(), "At work");
        assert_eq!(bars.slots[0].position(), 40);
        let last = bars.others.as_ref().unwrap().message();
        let expected = format!("and {} more (2 stalled, {} waiting)", rows + 13, rows + 11);
        assert_eq!(last, expected);
        assert_eq!(bars.slots[1].message().trim(), "– STALLED");
        let line = bars.show(
            "x",
            &json!({"status": "completed", "metadata": {"title": "At work"}}),
        );
        assert!(line.unwrap().starts_with("completed"));
        assert!(bars.slots[0].message().contains("STALLED"));
    }

    #[test]
    fn a_long_name_is_cut_by_its_width() {
        let layout = Layout {
            columns: 60,
            rows: 20,
        };
        for name in ["名".repeat(100), "e\u{301}".repeat(100), "a".to_owned()] {
            let shown = pad_str(&name, layout.name(), Alignment::Left, Some("…"));
            assert!(
                measure_text_width(&shown).abs_diff(layout.name()) <= 1,
                "{shown}"
            );
        }
        assert!(layout.name() + layout.bar() + 12 < layout.columns);
    }
}
