//! What a ping reports, by the end of its URL.
//!
//! | end | report |
//! | --- | --- |
//! | none, `ok` | the run ended well |
//! | `start` | a run begins |
//! | `progress/40`, `40%`, `80/200` | percent complete |
//! | `fail` | the run failed |
//! | `exit/3` | the run ended with this exit code; 0 is `ok` |
//! | `3` | as `exit/3` or `progress/3`, as the key determines ([`Numbers`]) |
//!
//! A plain number is an exit code unless the key says otherwise. 1 to 100 can be either, and nothing in the request or in the
//! state of the run tells them apart: the first report of a run can be its only one. The default is the mistake that is
//! noticed: progress that is mistaken for an exit code fails the run at its first report, while a failure that is mistaken
//! for progress would be lost.

use crate::kind;
use crate::log::pings::Numbers;

/// What a ping reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Report {
    /// A run begins.
    Start,
    /// Percent complete.
    Progress(f64),
    /// The run ended.
    End(Ending),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Ok,
    /// It failed.
    Failed,
    /// Its command failed with this exit code.
    Exit(u8),
}

/// Why the end of a URL is not a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReport {
    /// The form is unknown.
    #[error(
        "a ping ends with nothing or `ok`, `start`, `fail`, `progress/<percent>`, `<percent>%`, `<done>/<total>`, \
         `exit/<exit code>` or a plain number"
    )]
    Unknown,
    /// Not a percentage.
    #[error("progress must be from 0 to 100 percent")]
    Percent,
    /// Not an exit code.
    #[error(
        "an exit code must be from 0 to 255; write progress as `progress/<percent>`, or create a key whose `numbers` are `progress`"
    )]
    ExitCode,
}

impl Report {
    /// Reads the segments of a path after the key.
    pub fn read(segments: &[&str], numbers: Numbers) -> Result<Report, NoReport> {
        match segments {
            [] | ["ok"] => Ok(Report::End(Ending::Ok)),
            ["start"] => Ok(Report::Start),
            ["fail"] => Ok(Report::End(Ending::Failed)),
            ["exit", code] => exit(code),
            ["progress", percent] => progress(percent.strip_suffix('%').unwrap_or(percent)),
            [done, total] => share(done, total),
            [one] => match one.strip_suffix('%') {
                Some(percent) => progress(percent),
                None if !is_number(one) => Err(NoReport::Unknown),
                None if numbers == Numbers::Progress => progress(one),
                // No exit code has a fraction.
                None => exit(one),
            },
            _ => Err(NoReport::Unknown),
        }
    }
}

/// Whether the text is digits, with or without a fraction: no sign, no exponent, and no name such as `inf`.
fn is_number(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(text),
    }
}

fn exit(code: &str) -> Result<Report, NoReport> {
    if !code.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NoReport::ExitCode);
    }
    match code.parse() {
        Ok(0) => Ok(Report::End(Ending::Ok)),
        Ok(code) => Ok(Report::End(Ending::Exit(code))),
        Err(_) => Err(NoReport::ExitCode),
    }
}

fn progress(percent: &str) -> Result<Report, NoReport> {
    let number = percent.parse().ok().filter(|_| is_number(percent));
    number
        .and_then(kind::percent)
        .map(Report::Progress)
        .ok_or(NoReport::Percent)
}

fn share(done: &str, total: &str) -> Result<Report, NoReport> {
    if !is_number(done) || !is_number(total) {
        return Err(NoReport::Unknown);
    }
    let (Ok(done), Ok(total)) = (done.parse::<f64>(), total.parse::<f64>()) else {
        return Err(NoReport::Unknown);
    };
    let percent = (total > 0.0).then_some(done * 100.0 / total);
    percent
        .and_then(kind::percent)
        .map(Report::Progress)
        .ok_or(NoReport::Percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, numbers: Numbers) -> Result<Report, NoReport> {
        let segments: Vec<&str> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        Report::read(&segments, numbers)
    }

    #[test]
    fn a_plain_number_is_an_exit_code_unless_the_key_says_that_it_is_progress() {
        for numbers in Numbers::ALL {
            for (path, report) in [
                ("", Report::End(Ending::Ok)),
                ("ok", Report::End(Ending::Ok)),
                ("start", Report::Start),
                ("fail", Report::End(Ending::Failed)),
                ("exit/0", Report::End(Ending::Ok)),
                ("exit/1", Report::End(Ending::Exit(1))),
                ("progress/40", Report::Progress(40.0)),
                ("progress/40%", Report::Progress(40.0)),
                ("40%", Report::Progress(40.0)),
                ("0%", Report::Progress(0.0)),
                ("12.5%", Report::Progress(12.5)),
                ("100.00000000000001%", Report::Progress(100.0)),
                ("200.0000000001/200", Report::Progress(100.0)),
                ("80/200", Report::Progress(40.0)),
                ("200/200", Report::Progress(100.0)),
            ] {
                assert_eq!(read(path, numbers), Ok(report), "{path}");
            }
            for path in [
                "Ok",
                "stop",
                "ok/ok",
                "1/2/3",
                "-1",
                "+1",
                "1e1",
                "inf",
                "NaN",
                "%",
                "101%",
                "progress/-1",
                "progress/inf",
                "201/200",
                "0/0",
                "exit/256",
                "exit/-1",
                "exit/x",
                "exit",
                "progress",
                ".5",
                "5.",
            ] {
                assert!(read(path, numbers).is_err(), "{path}");
            }
        }
        let exit = |code| Ok(Report::End(Ending::Exit(code)));
        let progress = |percent| Ok(Report::Progress(percent));
        assert_eq!(read("0", Numbers::ExitCode), Ok(Report::End(Ending::Ok)));
        assert_eq!(read("0", Numbers::Progress), progress(0.0));
        for number in 1..=100_u8 {
            let path = number.to_string();
            assert_eq!(read(&path, Numbers::ExitCode), exit(number));
            assert_eq!(read(&path, Numbers::Progress), progress(number.into()));
        }
        assert_eq!(read("255", Numbers::ExitCode), exit(255));
        assert_eq!(read("255", Numbers::Progress), Err(NoReport::Percent));
        assert_eq!(read("256", Numbers::ExitCode), Err(NoReport::ExitCode));
        assert_eq!(read("40.5", Numbers::ExitCode), Err(NoReport::ExitCode));
        assert_eq!(read("40.5", Numbers::Progress), progress(40.5));
    }
}
