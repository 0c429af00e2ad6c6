//! restic: the messages of `--json`.

use serde::Deserialize;

use super::{Family, Line, Reading};

/// Reads restic's messages.
pub(super) struct Restic;

#[derive(Deserialize)]
#[serde(tag = "message_type", rename_all = "snake_case")]
enum Message {
    Status {
        percent_done: f64,
        #[serde(default)]
        total_files: u64,
        #[serde(default)]
        files_done: u64,
    },
    Summary {},
    #[serde(other)]
    Other,
}

impl Family for Restic {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        if !line.text.starts_with("{\"message_type\"") {
            return None;
        }
        match serde_json::from_str(line.text).ok()? {
            Message::Status {
                percent_done,
                total_files,
                files_done,
            } => Some(Reading {
                percent: Some((percent_done * 100.0).clamp(0.0, 100.0)),
                message: Some(format!("{files_done} of {total_files} files")),
            }),
            Message::Summary {} => Some(Reading {
                percent: Some(100.0),
                message: Some("finished".into()),
            }),
            Message::Other => Some(Reading::default()),
        }
    }
}
