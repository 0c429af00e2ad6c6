//! terraform and OpenTofu: the messages of `apply -json` and `destroy -json`. Progress is the number of changes that are done, of those planned.

use serde::Deserialize;

use super::number::percent_of;
use super::{Family, Line, Reading};

/// Reads terraform's messages.
#[derive(Default)]
pub(super) struct Terraform {
    planned: f64,
    done: f64,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "@message")]
    message: String,
    r#type: String,
    changes: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    #[serde(default)]
    add: f64,
    #[serde(default)]
    change: f64,
    #[serde(default)]
    remove: f64,
    operation: String,
}

impl Family for Terraform {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        if !line.text.starts_with("{\"@level\"") {
            return None;
        }
        let Message {
            message,
            r#type,
            changes,
        } = serde_json::from_str(line.text).ok()?;
        match (&*r#type, changes) {
            ("change_summary", Some(changes)) if changes.operation == "plan" => {
                self.planned = changes.add + changes.change + changes.remove;
            }
            ("apply_complete" | "apply_errored", _) => self.done += 1.0,
            _ => {}
        }
        Some(Reading {
            percent: percent_of(self.done, self.planned),
            message: Some(message),
        })
    }
}
