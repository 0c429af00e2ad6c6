//! What a badge says: a label, a text, how good it is, and a percentage.

use rocket::http::Status;

use super::super::problem::Problem;
use crate::app::{Caller, Rejected};
use crate::config::BADGE_TEXT_CHARS;
use crate::id::{Channel, Kind, SchoolId, is_visible};
use crate::kind::{self, Cell, KINDS, RuleError, State, job};
use crate::log::{CommandError, StoredSubject, Tally, TallyQuery};
use crate::number::whole_unsigned;
use crate::service::Tidings;

/// How good a state is. A badge of several subjects has the worst tone of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    /// Nothing is in progress.
    Idle,
    /// It is as it should be, or has ended well.
    Good,
    /// It is in progress.
    Active,
    /// It may need attention.
    Late,
    /// It has failed.
    Bad,
}

/// What a badge says.
#[derive(Debug, Clone)]
pub(super) struct Face {
    pub(super) status: Status,
    pub(super) label: String,
    pub(super) text: String,
    pub(super) tone: Tone,
    /// Percent complete, while it is in progress.
    pub(super) percent: Option<u8>,
}

/// Statuses that a badge of several subjects does not count: those of subjects that have ended, and `unknown`, which says
/// nothing about a device.
const NOT_COUNTED: [&str; 7] = [
    "completed",
    "complete",
    "failed",
    "error",
    "cancelled",
    "removed",
    "unknown",
];

impl Face {
    /// Reads the state of a channel, as the bearer of a link sees it.
    pub(super) async fn read(
        tidings: &Tidings,
        caller: &Caller,
        channel: &Channel,
    ) -> Result<Face, Problem> {
        let reads = tidings.reads();
        let count = async |kinds: &[Kind]| {
            let query = |kind: &Kind| TallyQuery {
                stalled: *kind == job::KIND,
                ..TallyQuery::of(*kind)
            };
            let (schools, queries) = (vec![caller.school()], kinds.iter().map(query).collect());
            let tallies = reads.tallies(caller.access(), schools, queries).await?;
            Ok::<_, Problem>(tallies.into_iter().flatten())
        };
        match channel {
            Channel::Subject(kind, id) => match reads.subject(caller, *kind, id.clone()).await {
                Ok(stored) => Ok(Face::of_subject(id.as_str(), &stored)),
                Err(Rejected::Command(CommandError::Rule(RuleError::NotFound { .. }))) => {
                    Ok(Face {
                        status: Status::NotFound,
                        ..Face::new(id.as_str(), "not found", Tone::Idle)
                    })
                }
                Err(error) => Err(error.into()),
            },
            Channel::Collection(kind) => {
                let tally = count(&[*kind]).await?.next();
                let (_, tally) = tally.unwrap_or((*kind, Tally::default()));
                Ok(Face::of_kind(*kind, &tally))
            }
            Channel::School(school) => Ok(Face::of_school(*school, count(KINDS).await?)),
        }
    }

    /// Returns the badge of a request that is rejected.
    pub(super) fn of_rejection(status: Status, text: &str) -> Face {
        Face {
            status,
            ..Face::new("status", text, Tone::Idle)
        }
    }

    fn new(label: &str, text: &str, tone: Tone) -> Face {
        Face {
            status: Status::Ok,
            label: shown(label),
            text: shown(text),
            tone,
            percent: None,
        }
    }

    fn of_subject(id: &str, stored: &StoredSubject) -> Face {
        let subject = stored.state.subject();
        let status = subject.status();
        let title = subject.title().filter(|title| is_visible(title));
        let label = title.as_deref().unwrap_or(id);
        let percent = percent(&stored.state);
        let words = status.replace('_', " ");
        let (text, tone) = match percent {
            _ if subject.is_stalled() => {
                let percent = percent.map(|percent| format!(" at {percent} %"));
                let percent = percent.unwrap_or_default();
                (format!("stalled{percent}"), Tone::Late)
            }
            Some(percent) if tone(status) == Tone::Active => (format!("{percent} %"), Tone::Active),
            _ => (words, tone(status)),
        };
        let percent = percent.filter(|_| matches!(tone, Tone::Active | Tone::Late));
        Face {
            percent,
            ..Face::new(label, &text, tone)
        }
    }

    fn of_kind(kind: Kind, tally: &Tally) -> Face {
        let description = kind::description(kind);
        let active = active(tally);
        let mut parts = Vec::new();
        for status in description.statuses {
            let mut count = active.iter().filter(|(name, _)| name == status);
            let Some((_, mut count)) = count.next().copied() else {
                continue;
            };
            if *status == "in_progress" && tally.stalled > 0 {
                parts.push(format!("{} stalled", tally.stalled));
                count = count.saturating_sub(tally.stalled);
            }
            if count > 0 {
                parts.push(format!("{count} {}", status.replace('_', " ")));
            }
        }
        let text = match parts.is_empty() {
            true => "none active".to_owned(),
            false => parts.join(", "),
        };
        Face::new(description.title, &text, worst(tally))
    }

    fn of_school(school: SchoolId, tallies: impl Iterator<Item = (Kind, Tally)>) -> Face {
        let (mut parts, mut tone) = (Vec::new(), Tone::Idle);
        for (kind, tally) in tallies {
            let count: u64 = active(&tally).iter().map(|(_, count)| count).sum();
            if count > 0 {
                parts.push(format!("{count} {}", kind.collection()));
            }
            tone = tone.max(worst(&tally));
        }
        let text = match parts.is_empty() {
            true => "none active".to_owned(),
            false => parts.join(", "),
        };
        Face::new(&format!("School {school}"), &text, tone)
    }
}

/// Returns the number of subjects that a badge counts, by status.
fn active(tally: &Tally) -> Vec<(&'static str, u64)> {
    let counts = tally.by_status.iter().copied();
    counts
        .filter(|(status, count)| *count > 0 && !NOT_COUNTED.contains(status))
        .collect()
}

/// Returns the worst tone of the subjects that a badge counts.
fn worst(tally: &Tally) -> Tone {
    let tones = active(tally).into_iter().map(|(status, _)| tone(status));
    let stalled = (tally.stalled > 0).then_some(Tone::Late);
    tones.chain(stalled).max().unwrap_or(Tone::Idle)
}

/// Returns the tone of a status of any kind.
fn tone(status: &str) -> Tone {
    match status {
        "completed" | "complete" | "online" | "in_control" | "on_time" => Tone::Good,
        "in_progress" | "ready" | "placing" | "capturing" | "processing" => Tone::Active,
        "late" => Tone::Late,
        "failed" | "error" | "offline" | "out_of_control" | "missed" => Tone::Bad,
        _ => Tone::Idle,
    }
}

/// Returns the percentage that was reported for a subject.
fn percent(state: &State) -> Option<u8> {
    if let Some(job) = state.job() {
        let reported = job.progress.filter(|_| job.has_reported_progress())?;
        return u8::try_from(whole_unsigned(reported.floor())).ok();
    }
    let mut cells = state.cells().into_iter().flatten();
    cells.find_map(|cell| match cell {
        Cell::Percent(percent) => Some(percent),
        _ => None,
    })
}

/// Returns a text as a badge shows it: on one line, and not too long.
fn shown(text: &str) -> String {
    // Leave out marks that change the direction of text: they could also affect the other half of the badge.
    let is_shown = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}')
    };
    let mut characters = text.chars().filter(is_shown);
    let mut shown: String = characters.by_ref().take(BADGE_TEXT_CHARS).collect();
    if characters.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}
