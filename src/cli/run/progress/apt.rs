//! apt and dpkg: the lines of `APT::Status-Fd`, such as `dlstatus:1:45.5:Retrieving file 1 of 2` and `pmstatus:bash:60.0:Unpacking`.

use super::{Family, Line, Reading};

/// Reads apt's status. Downloads come first, and installing them afterwards, each from 0 to 100.
#[derive(Default)]
pub(super) struct Apt {
    has_downloaded: bool,
}

impl Family for Apt {
    fn is_for_programs(&self) -> bool {
        true
    }

    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        if line.text.starts_with("(Reading database") {
            return Some(Reading::default());
        }
        let (kind, rest) = line.text.split_once(':')?;
        if !matches!(kind, "dlstatus" | "pmstatus") {
            return None;
        }
        // The name of a package can contain a colon (`bash:amd64`).
        let parts: Vec<&str> = rest.split(':').collect();
        let at = parts
            .iter()
            .skip(1)
            .position(|part| part.contains('.') && part.parse::<f64>().is_ok())?
            + 1;
        let percent: f64 = parts[at].parse().ok()?;
        let percent = percent.clamp(0.0, 100.0);
        let percent = match kind {
            "dlstatus" => {
                self.has_downloaded = true;
                percent / 2.0
            }
            _ if self.has_downloaded => 50.0 + percent / 2.0,
            _ => percent,
        };
        Some(Reading {
            percent: Some(percent),
            message: Some(parts[at + 1..].join(":")),
        })
    }
}
