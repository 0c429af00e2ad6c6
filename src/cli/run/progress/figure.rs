//! The numbers of a line that can be progress, each with the text around it: `Step 3/10: build`, `40 of 200 rows`, `Progress: 45%`.

use super::number::{leading_count_of, leading_fraction, leading_percent, percent_of};

/// The maximum number of words in a label before a number. A sentence has more.
const LABEL_WORDS_MAX: usize = 4;
/// From this total on, a fraction is a count. Smaller totals also occur in measures, scores and grades: `3/4 inch`, `9/10 points`.
const LARGE_TOTAL: f64 = 100.0;
const MONTHS: f64 = 12.0;
const DAYS: f64 = 31.0;

/// What programs count.
const UNITS: &[&str] = &[
    "batch",
    "block",
    "chunk",
    "document",
    "epoch",
    "file",
    "frame",
    "image",
    "item",
    "iteration",
    "job",
    "layer",
    "line",
    "message",
    "module",
    "object",
    "package",
    "page",
    "part",
    "partition",
    "pass",
    "phase",
    "progress",
    "record",
    "request",
    "round",
    "row",
    "sample",
    "segment",
    "shard",
    "stage",
    "step",
    "table",
    "task",
    "test",
];
/// Units whose counts can also be scores: lines that tests cover, tests that pass.
const SCORED: &[&str] = &["line", "test"];
/// Participles for work that is done.
const DONE: &[&str] = &[
    "complete",
    "completed",
    "converted",
    "copied",
    "done",
    "downloaded",
    "exported",
    "finished",
    "imported",
    "processed",
    "read",
    "restored",
    "scanned",
    "sent",
    "transferred",
    "uploaded",
    "verified",
    "written",
];
/// Words that end in `ing`, but do not name an activity that makes progress.
const NO_ACTIVITIES: &[&str] = &[
    "during",
    "failing",
    "missing",
    "nothing",
    "pending",
    "rating",
    "remaining",
    "something",
    "string",
    "using",
    "warning",
];

/// Words before a number that is a level or a number of tries.
const LEVELS: &[&str] = &[
    "attempt", "battery", "charging", "coverage", "cpu", "gpu", "load", "memory", "ram", "retry",
    "retrying", "try", "usage", "waiting",
];
/// Words directly before a number that is a rate or a target.
const AIMS: &[&str] = &["at", "to"];
/// Words directly after a number of things that are not done, or that have failed.
const LEFT_OVER: &[&str] = &[
    "available",
    "error",
    "errors",
    "failed",
    "free",
    "left",
    "remain",
    "remaining",
    "skipped",
    "used",
];
/// The same, but only if no other words follow: `2/8 running`, not `2/8 Running the tests`.
const STATES: &[&str] = &["allowed", "running"];
/// What is measured in fractions: `15/16 inch`.
const MEASURES: &[&str] = &[
    "cup", "cups", "feet", "foot", "hour", "hours", "inch", "inches", "mile", "miles", "point",
    "points", "pound", "pounds", "star", "stars",
];

/// A number in a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure<'a> {
    /// What is before it in the line.
    pub(super) before: &'a str,
    /// What is after it.
    pub(super) after: &'a str,
    pub(super) value: Value,
}

/// The value of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    Percent(f64),
    Count {
        part: f64,
        whole: f64,
        /// Whether it is written as `3 of 10`, not as `3/10`.
        is_in_words: bool,
    },
}

/// How certain it is that a figure is progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    Sure,
    /// Only if it grows.
    IfItGrows,
    No,
}

/// The kind of text after a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// The end of the line, a separator, or a word such as `done`.
    Apart,
    /// One word, and the end: `rows`.
    Word,
    /// A phrase.
    Phrase,
}

/// The kind of text before a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    None,
    /// The name of a unit that is counted: `Step`.
    Unit,
    /// The plural of a unit, as the name of a value: `Requests:`. The value can also be a rate limit, a score or a coverage.
    Units,
    /// The plural of a unit, with a word for all of them: `Total files:`.
    AllUnits,
    /// An activity: `Copying`.
    Activity,
    Other,
}

impl Value {
    pub(super) fn percent(self) -> Option<f64> {
        match self {
            Value::Percent(percent) => Some(percent),
            Value::Count { part, whole, .. } => percent_of(part, whole),
        }
    }

    /// Whether it can be a day of a year: `11/28`, `3/10`.
    fn is_date(self) -> bool {
        let Value::Count {
            part,
            whole,
            is_in_words: false,
        } = self
        else {
            return false;
        };
        let (less, more) = (part.min(whole), part.max(whole));
        (1.0..=MONTHS).contains(&less) && more <= DAYS
    }
}

impl Figure<'_> {
    /// Returns all figures of a text, in order.
    pub(super) fn all(text: &str) -> impl Iterator<Item = Figure<'_>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            loop {
                let at = from + text[from..].find(|c: char| c.is_ascii_digit())?;
                let is_of_number = |c: char| c.is_ascii_digit() || ".,_".contains(c);
                let number = text[at..].find(|c| !is_of_number(c));
                from = number.map_or(text.len(), |length| at + length);
                if continues(&text[..at]) {
                    continue;
                }
                if let Some(figure) = Figure::at(text, at) {
                    from = text.len() - figure.after.len();
                    return Some(figure);
                }
            }
        })
    }

    /// Returns the figure with which a text begins.
    pub(super) fn leading(text: &str) -> Option<Figure<'_>> {
        Figure::at(text, 0)
    }

    fn at(text: &str, at: usize) -> Option<Figure<'_>> {
        let rest = &text[at..];
        let count = |is_in_words| {
            move |(part, whole, after)| {
                let value = Value::Count {
                    part,
                    whole,
                    is_in_words,
                };
                (value, after)
            }
        };
        let percent =
            || leading_percent(rest).map(|(percent, after)| (Value::Percent(percent), after));
        let (value, after) = leading_fraction(rest)
            .map(count(false))
            .or_else(|| leading_count_of(rest).map(count(true)))
            .or_else(percent)?;
        value.percent()?;
        Some(Figure {
            before: &text[..at],
            after,
            value,
        })
    }

    /// Whether the words around it show that it is something else than progress.
    fn is_of_something_else(&self) -> bool {
        let mut before = self.before.split_whitespace().rev().take(LABEL_WORDS_MAX);
        let next = self
            .after
            .split_whitespace()
            .find(|word| word.contains(char::is_alphanumeric));
        before.clone().any(|word| is_one_of(word, LEVELS))
            || before.next().is_some_and(|word| is_one_of(word, AIMS))
            || next.is_some_and(|word| is_one_of(word, LEFT_OVER))
            || is_one_of(self.after, STATES) && !self.after.starts_with([':', ']'])
    }

    /// Whether it is progress if a script begins a reported text with it: `40/200 Reading rows`, `20% Reading rows`.
    ///
    /// A script reports on purpose, so less evidence is required than for a line of output. But a text can also begin with a date, a
    /// measure or a statement: `11/28 backup started`, `15/16 inch`, `100% of users agree`.
    pub(super) fn is_reported(&self) -> bool {
        if self.is_alone() || self.certainty() == Certainty::Sure {
            return true;
        }
        if self.is_of_something_else() || self.is_of_a_group() {
            return false;
        }
        let next = self.after.split_whitespace().next().unwrap_or_default();
        match self.value {
            Value::Percent(_) => true,
            Value::Count { is_in_words, .. } => {
                !is_in_words && !self.value.is_date() && !is_one_of(next, MEASURES)
            }
        }
    }

    /// Whether the text after it makes it the share of a group: `of users agree`. A size does not: `of 10.00MiB`.
    fn is_of_a_group(&self) -> bool {
        let next = self.after.split_whitespace().next();
        next.is_some_and(|word| is_one_of(word, &["of"])) && Tail::of(self.after) != Tail::Apart
    }

    /// Whether no words follow it.
    pub(super) fn is_alone(&self) -> bool {
        !self.after.contains(char::is_alphanumeric)
    }

    /// Returns how certain it is that this is progress.
    ///
    /// Any text can contain any number. So a percentage counts only if the line says nothing else: if it stands by itself, in brackets
    /// at either end of the line, or after a label that names progress. A count that could also be a date, a measure or a score counts
    /// only if it grows.
    pub(super) fn certainty(&self) -> Certainty {
        if self.is_of_something_else() {
            return Certainty::No;
        }
        if self.is_bracketed('[', ']') {
            return Certainty::Sure;
        }
        let is_in_parentheses = self.is_bracketed('(', ')');
        let (before, after) = match is_in_parentheses {
            true => (
                self.before.trim_end().trim_end_matches('('),
                self.after.trim_start().trim_start_matches(')'),
            ),
            false => (self.before, self.after),
        };
        let (label, tail) = (Label::of(before), Tail::of(after));
        let Value::Count {
            whole, is_in_words, ..
        } = self.value
        else {
            return match (label, tail) {
                (Label::Other | Label::Units | Label::AllUnits, _)
                | (_, Tail::Word | Tail::Phrase) => Certainty::No,
                _ => Certainty::Sure,
            };
        };
        let is_date = self.value.is_date();
        let is_sure = match (label, tail) {
            (Label::Other | Label::Units, _) => false,
            (Label::Unit | Label::AllUnits, Tail::Apart) => true,
            (Label::AllUnits, _) => false,
            (Label::None, _) if is_in_parentheses => true,
            (Label::None | Label::Activity, Tail::Apart) => !is_date,
            (_, Tail::Word) => is_in_words || whole >= LARGE_TOTAL,
            (Label::None, Tail::Phrase) => {
                !is_in_words && whole >= LARGE_TOTAL && !self.is_of_a_group()
            }
            (_, Tail::Phrase) => false,
        };
        match is_sure {
            true => Certainty::Sure,
            false => Certainty::IfItGrows,
        }
    }

    /// Whether it is in brackets by itself, at the beginning or the end of the line.
    fn is_bracketed(&self, open: char, close: char) -> bool {
        let before = self.before.trim_end().strip_suffix(open);
        let after = self.after.trim_start().strip_prefix(close);
        match (before, after) {
            (Some(before), Some(after)) => before.is_empty() || after.is_empty(),
            _ => false,
        }
    }

    /// Whether it is part of a sentence, because words follow.
    pub(super) fn is_in_sentence(&self) -> bool {
        let rest = self.after.trim_start();
        let is_time_left = rest.starts_with("eta") || rest.starts_with("ETA");
        let begins_word = rest.starts_with(char::is_alphabetic);
        begins_word && !is_time_left && Tail::of(self.after) != Tail::Apart
    }
}

/// Whether the text before a number shows that the number is part of a word, path, clock time or signed number.
fn continues(before: &str) -> bool {
    let mut before = before.chars().rev();
    match before.next() {
        Some(':') => before.next().is_some_and(|c| c.is_ascii_digit()),
        Some(c) => c.is_alphanumeric() || "./+-_".contains(c),
        None => false,
    }
}

impl Tail {
    fn of(text: &str) -> Tail {
        let rest = text.trim_start();
        let end = rest.find(|c: char| !c.is_alphanumeric());
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        let after = after.trim_start();
        let is_apart = |rest: &str| rest.is_empty() || rest.starts_with(is_separator);
        match word {
            "" if is_apart(rest) => Tail::Apart,
            "" => Tail::Phrase,
            word if is_one_of(word, DONE) && is_apart(after) => Tail::Apart,
            "of" if is_size(after) => Tail::Apart,
            word if word.starts_with(char::is_alphabetic) && after.trim_matches('.').is_empty() => {
                Tail::Word
            }
            _ => Tail::Phrase,
        }
    }
}

impl Label {
    fn of(text: &str) -> Label {
        let is_name = text.trim_end().ends_with([':', '=']);
        let text = text.trim_end_matches(|c: char| !c.is_alphanumeric());
        let text = text.trim_start_matches(|c: char| !c.is_alphanumeric());
        let words = || text.split_whitespace();
        let (Some(first), Some(last)) = (words().next(), words().next_back()) else {
            return Label::None;
        };
        // Only a few words are read, because a line can have thousands of figures.
        if words().nth(LABEL_WORDS_MAX).is_some() {
            return Label::Other;
        }
        if is_one_of(last, UNITS) || words().any(|word| is_one_of(word, &["progress"])) {
            return Label::Unit;
        }
        if is_name && let Some(label) = Label::of_units(text) {
            return label;
        }
        let first = first.trim_end_matches(|c: char| !c.is_alphanumeric());
        let is_activity = first.len() > "ing".len() + 1
            && first.chars().all(char::is_alphabetic)
            && first.ends_with("ing")
            && !is_one_of(first, NO_ACTIVITIES);
        match is_activity || is_one_of(last, DONE) || is_one_of(first, DONE) {
            true => Label::Activity,
            false => Label::Other,
        }
    }

    /// Returns the label if the name of a value is the plural of a unit: `Files`, `Total files`, `Files processed`. `Failed files` is
    /// something else.
    fn of_units(name: &str) -> Option<Label> {
        let words = || name.split_whitespace();
        let of =
            |units: &[&str]| words().any(|word| units.iter().any(|unit| is_plural_of(word, unit)));
        let is_done = words().any(|word| is_one_of(word, DONE));
        let is_total = words().any(|word| is_one_of(word, &["total"]));
        let count = 1 + usize::from(is_done) + usize::from(is_total);
        if !of(UNITS) || words().count() != count {
            return None;
        }
        Some(match is_done {
            true => Label::Unit,
            false if is_total && !of(SCORED) => Label::AllUnits,
            false => Label::Units,
        })
    }
}

fn is_one_of(word: &str, words: &[&str]) -> bool {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric());
    words
        .iter()
        .any(|candidate| candidate.eq_ignore_ascii_case(word))
}

fn is_plural_of(word: &str, unit: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric());
    let ending = word.get(unit.len()..).unwrap_or_default();
    let begins = word.get(..unit.len());
    begins.is_some_and(|beginning| beginning.eq_ignore_ascii_case(unit))
        && ["s", "es"]
            .iter()
            .any(|plural| plural.eq_ignore_ascii_case(ending))
}

fn is_separator(c: char) -> bool {
    ":;,.|()[]<>…–—-".contains(c)
}

/// Whether a text begins with a size in bytes: `10.00MiB`, `3 GB`.
fn is_size(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || ".,~".contains(c));
    let is_unit = |unit: &str| {
        let unit = unit.split(|c: char| !c.is_alphanumeric()).next();
        let unit = unit.unwrap_or_default();
        unit.len() <= 3 && unit.ends_with(['B', 'b']) || matches!(unit, "bytes")
    };
    unit.len() < text.len() && is_unit(unit.trim_start())
}

/// Returns a line without the prefixes of a log: times, `[tags]`, levels and bullets.
pub(super) fn without_log_prefix(line: &str) -> &str {
    let mut text = line;
    loop {
        let rest = without_tag(text)
            .or_else(|| without_time(text))
            .or_else(|| without_level(text))
            .or_else(|| without_bullet(text));
        match rest.map(str::trim_start).filter(|rest| !rest.is_empty()) {
            Some(rest) => text = rest,
            None => return text,
        }
    }
}

fn without_tag(text: &str) -> Option<&str> {
    let (tag, rest) = text.strip_prefix('[')?.split_once(']')?;
    Figure::all(tag).next().is_none().then_some(rest)
}

/// `2026-11-27`, `10:00:01,123`, `2026-11-27T10:00:01Z`.
fn without_time(text: &str) -> Option<&str> {
    let (time, rest) = text.split_once(' ')?;
    let is_of_time = |c: char| c.is_ascii_digit() || "-:.,+/TZ".contains(c);
    let count = |mark| time.matches(mark).count();
    let is_time = time.starts_with(|c: char| c.is_ascii_digit()) && time.chars().all(is_of_time);
    (is_time && (count(':') >= 1 && !time.ends_with(':') || count('-') == 2 || count('/') == 2))
        .then_some(rest)
}

/// `INFO `, `INFO: `, `INFO:root:`.
fn without_level(text: &str) -> Option<&str> {
    let levels = ["TRACE", "DEBUG", "INFO", "NOTICE"];
    let rest = levels.iter().find_map(|level| text.strip_prefix(level))?;
    if let Some(named) = rest
        .strip_prefix(':')
        .filter(|named| !named.starts_with(' '))
    {
        return named.split_once(':').map(|(_, rest)| rest);
    }
    rest.starts_with([' ', ':'])
        .then(|| rest.trim_start_matches([' ', ':', '-', '|']))
}

fn without_bullet(text: &str) -> Option<&str> {
    let (mark, rest) = text.split_once(' ')?;
    (!mark.is_empty() && mark.chars().all(|c| "=>-*#•+".contains(c))).then_some(rest)
}
