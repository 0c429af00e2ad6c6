//! Reads progress from the output of programs. Pure: lines in, readings out. Each family of programs has its own file.
//! `tests/data/progress` has recorded outputs of each, with the right values.

mod apt;
mod bar;
mod cargo;
#[cfg(test)]
mod corpus;
mod curl;
mod ffmpeg;
mod figure;
mod git;
mod number;
mod pip;
mod pv;
mod rclone;
mod report;
mod restic;
mod rsync;
mod terraform;
mod tqdm;
mod wget;

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use self::report::report;
pub(in crate::cli) use self::report::reported;
use super::lines::{Said, Taskbar};

/// Where a reading comes from, the least reliable first. Once a source has reported, less reliable ones are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Source {
    /// How far the largest input file has been read.
    Input,
    /// A bar or a fraction of an unknown program.
    Bar,
    /// The format of a known program.
    Program,
    /// `OSC 9;4`.
    Taskbar,
    /// `--fd` or `--progress-file`: a script that reports on purpose.
    Script,
}

impl Source {
    /// Returns its name in a job's metadata.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Source::Input => "input",
            Source::Bar => "bar",
            Source::Program => "program",
            Source::Taskbar => "taskbar",
            Source::Script => "script",
        }
    }
}

/// A line of output.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    /// Without colours and surrounding spaces.
    text: &'a str,
    /// Whether it is one state of a line that is redrawn in place, as bars are.
    is_redrawn: bool,
}

/// What a line says of a program's progress.
#[derive(Debug, Clone, PartialEq, Default)]
struct Reading {
    /// From 0 to 100.
    percent: Option<f64>,
    /// A better text for people than the line itself.
    message: Option<String>,
}

impl Reading {
    fn at(percent: f64) -> Reading {
        Reading {
            percent: Some(percent),
            message: None,
        }
    }
}

/// Programs that report their progress in the same way.
trait Family {
    /// Returns what the line says, if it is of this family.
    fn read(&mut self, line: Line<'_>) -> Option<Reading>;

    /// Whether the format is meant for programs, and can be written to a separate descriptor or file.
    fn is_for_programs(&self) -> bool {
        false
    }
}

/// What is new after a part of the output.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct News {
    pub(super) percent: Option<(f64, Source)>,
    pub(super) message: Option<String>,
}

/// Follows the progress of a command.
pub(super) struct Progress {
    programs: Vec<Box<dyn Family + Send>>,
    bar: bar::Bar,
    /// What a script has counted.
    script: bar::Bar,
    best: Option<Source>,
}

impl Progress {
    /// Creates a reader for the output of a command.
    pub(super) fn of(command: &[OsString]) -> Progress {
        let mut programs: Vec<Box<dyn Family + Send>> = vec![
            Box::new(ffmpeg::Ffmpeg::default()),
            Box::new(terraform::Terraform::default()),
            Box::new(cargo::Cargo),
            Box::new(restic::Restic),
            Box::new(rclone::Rclone),
            Box::new(pip::Pip),
            Box::new(apt::Apt::default()),
            Box::new(rsync::Rsync::of(command)),
            Box::new(curl::Curl::default()),
            Box::new(wget::Wget),
            Box::new(tqdm::Tqdm),
            Box::new(git::Git),
        ];
        if names(command, "pv") {
            programs.push(Box::new(pv::Pv));
        }
        Progress {
            programs,
            bar: bar::Bar::default(),
            script: bar::Bar::default(),
            best: None,
        }
    }

    /// Reads a part of the command's output.
    pub(super) fn said(&mut self, said: &Said) -> News {
        match said {
            Said::Taskbar(Taskbar::At(percent)) => self.heard(
                Source::Taskbar,
                Reading::at(f64::from(*percent)),
                String::new(),
            ),
            Said::Taskbar(Taskbar::Cleared | Taskbar::Indeterminate) => News::default(),
            Said::Line { text, is_redrawn } => {
                let line = Line {
                    text: text.trim(),
                    is_redrawn: *is_redrawn,
                };
                let (source, reading) = self.read(line);
                self.heard(source, reading, line.text.to_owned())
            }
        }
    }

    /// Reads a line by which a script reports: `40/200 Reading rows`, `20%`, `20`, `Step 3/10`, or only a message. A program can also
    /// report in its own format: `ffmpeg -progress pipe:3`, `apt-get -o APT::Status-Fd=3`.
    pub(super) fn reported(&mut self, text: &str) -> News {
        let line = Line {
            text: text.trim(),
            is_redrawn: false,
        };
        let mut programs = self
            .programs
            .iter_mut()
            .filter(|program| program.is_for_programs());
        if let Some(reading) = programs.find_map(|program| program.read(line)) {
            return self.heard(Source::Script, reading, String::new());
        }
        // Read every line, even if its number counts by itself: the next count is compared with it.
        let stated = self.script.read(line).and_then(|reading| reading.percent);
        let (percent, message) = report(text);
        let reading = Reading {
            percent: percent.or(stated),
            message: None,
        };
        self.heard(Source::Script, reading, message.to_owned())
    }

    /// Records how far the command has read its input.
    pub(super) fn has_read(&mut self, percent: f64) -> News {
        self.heard(Source::Input, Reading::at(percent), String::new())
    }

    /// Whether the command has not reported any progress yet.
    pub(super) fn is_silent(&self) -> bool {
        self.best.is_none_or(|best| best == Source::Input)
    }

    fn read(&mut self, line: Line<'_>) -> (Source, Reading) {
        let found = self
            .programs
            .iter_mut()
            .find_map(|program| program.read(line));
        match found {
            Some(reading) => (Source::Program, reading),
            None => (Source::Bar, self.bar.read(line).unwrap_or_default()),
        }
    }

    fn heard(&mut self, source: Source, reading: Reading, text: String) -> News {
        let is_heard = self.best.is_none_or(|best| source >= best);
        let percent = reading.percent.filter(|_| is_heard);
        if percent.is_some() {
            self.best = Some(source);
        }
        let message = reading.message.unwrap_or(text);
        News {
            percent: percent.map(|percent| (percent, source)),
            message: Some(message).filter(|message| !message.is_empty()),
        }
    }
}

/// Reads progress that is stated as in a line of output: `Step 3/10: build`, `Progress: 45%`. All of the text is the message.
fn stated(text: &str) -> Option<f64> {
    let line = Line {
        text: text.trim(),
        is_redrawn: false,
    };
    bar::Bar::default().read(line)?.percent
}

/// Whether a command runs a program of this name, by itself or in a shell.
fn names(command: &[OsString], program: &str) -> bool {
    command.iter().any(|word| {
        let word = word.to_string_lossy();
        word.split(|c: char| c.is_whitespace() || "|;&()".contains(c))
            .any(|part| part.rsplit('/').next() == Some(program))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(lines: &[&str]) -> Vec<News> {
        let mut progress = Progress::of(&[]);
        lines.iter().map(|line| progress.reported(line)).collect()
    }

    fn news(percent: Option<f64>, message: &str) -> News {
        News {
            percent: percent.map(|percent| (percent, Source::Script)),
            message: Some(message.to_owned()).filter(|message| !message.is_empty()),
        }
    }

    #[test]
    fn programs_report_in_their_own_way_on_a_descriptor_of_their_own() {
        assert_eq!(
            reported(&[
                "dlstatus:1:50.0:Retrieving file 1 of 2",
                "pmstatus:bash:50.0:Unpacking"
            ]),
            [
                news(Some(25.0), "Retrieving file 1 of 2"),
                news(Some(75.0), "Unpacking")
            ]
        );
        assert_eq!(
            reported(&[
                "out_time=00:00:05.000000",
                "speed=2x",
                "progress=continue",
                "frame=10",
                "progress=end"
            ]),
            [
                news(None, "at 00:00:05.000000"),
                news(None, ""),
                news(None, ""),
                news(None, ""),
                news(Some(100.0), ""),
            ]
        );
        assert_eq!(
            reported(&["40/200 Reading rows", "Step 3/10: build", "frame=10"]),
            [
                news(Some(20.0), "Reading rows"),
                news(Some(30.0), "Step 3/10: build"),
                news(None, "frame=10"),
            ]
        );
    }
    #[test]
    fn what_a_script_counts_counts_once_it_grows_even_if_it_can_be_a_date() {
        assert_eq!(
            reported(&["1/10 Reading a", "2/10 Reading b", "11/28 backup started"]),
            [
                news(None, "1/10 Reading a"),
                news(Some(20.0), "2/10 Reading b"),
                news(None, "11/28 backup started"),
            ]
        );
        assert_eq!(
            reported(&["0/10 Reading a", "1/10 Reading b"]),
            [
                news(Some(0.0), "Reading a"),
                news(Some(10.0), "1/10 Reading b")
            ]
        );
    }
}
