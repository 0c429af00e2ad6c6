//! The recorded outputs of real programs, which must give the right values however they arrive.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Deserialize;

use super::Progress;
use crate::cli::run::lines::Lines;

#[derive(Deserialize)]
struct Case {
    output: String,
    command: Vec<String>,
    percents: Vec<f64>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/progress")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Returns the percentages that are read from an output which arrives in parts of this size.
fn percents(command: &[String], output: &[u8], part: usize) -> Vec<f64> {
    let command: Vec<OsString> = command.iter().map(OsString::from).collect();
    let mut progress = Progress::of(&command);
    let mut lines = Lines::default();
    let mut percents: Vec<f64> = Vec::new();
    let mut read = |said| {
        if let Some((percent, _)) = progress.said(&said).percent {
            let rounded = (percent * 100.0).round() / 100.0;
            if percents.last() != Some(&rounded) {
                percents.push(rounded);
            }
        }
    };
    for part in output.chunks(part) {
        lines.read(part, &mut read);
    }
    lines.pending().into_iter().for_each(read);
    percents
}

#[test]
fn recorded_outputs_have_the_right_values() {
    let cases = cases();
    assert!(cases.len() >= 20);
    for case in cases {
        let output = std::fs::read(folder().join(&case.output)).unwrap();
        for part in [1, 7, 4096] {
            let percents = percents(&case.command, &output, part);
            assert_eq!(
                percents, case.percents,
                "{} in parts of {part}",
                case.output
            );
        }
    }
}

#[test]
fn every_recording_is_a_case_and_names_its_program() {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let cases = cases();
    for file in std::fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if let Some(recording) = name.strip_suffix(".out") {
            assert!(cases.iter().any(|case| case.output == name), "{name}");
            assert!(readme.contains(&format!("`{recording}`")), "{name}");
        }
    }
}
