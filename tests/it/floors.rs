//! The floors of the crate docs: imports go strictly down. Read from the `use` lines and paths themselves.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sources::rust_files;

/// Each module's floor. A module knows only those on floors below its own.
const FLOORS: &[(&str, u8)] = &[
    ("id", 0),
    ("mismatch", 0),
    ("number", 0),
    ("sync", 0),
    ("unverified", 0),
    ("uptime", 0),
    ("event", 1),
    ("kind", 2),
    ("scope", 2),
    ("config", 3),
    ("alarm", 4),
    ("auth", 4),
    ("failures", 4),
    ("reserve", 4),
    ("tasks", 4),
    ("throttle", 4),
    ("wall_clock", 4),
    ("wire", 4),
    ("log", 5),
    ("hub", 5),
    ("bus", 6),
    ("crowd", 6),
    ("store", 6),
    ("cluster", 7),
    ("feed", 7),
    ("lease", 7),
    ("publish", 7),
    ("schedules", 7),
    ("dispatch", 8),
    ("notify", 8),
    ("presence", 8),
    ("relay", 8),
    ("rejections", 8),
    ("subscribe", 8),
    ("metrics", 8),
    ("watchdog", 8),
    ("app", 9),
    ("service", 10),
    ("session", 10),
    ("http", 11),
    ("lib", 12),
    ("client", 4),
    ("cli", 13),
    ("main", 14),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let module = |path: &Path| {
        path.strip_prefix(&root)
            .unwrap()
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned()
    };
    rust_files(&root)
        .into_iter()
        .map(|path| {
            (
                module(&path),
                path.clone(),
                fs::read_to_string(&path).unwrap(),
            )
        })
        .collect()
}

fn floor(module: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, floor)| *floor)
}

#[test]
fn imports_go_strictly_down() {
    let mut seen = 0;
    for (module, path, text) in sources() {
        let ours =
            floor(&module).unwrap_or_else(|| panic!("{} stands on no floor", path.display()));
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            for (at, _) in line.match_indices("crate::") {
                let other: String = line[at + 7..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let Some(theirs) = floor(&other).filter(|_| other != module) else {
                    continue;
                };
                seen += 1;
                assert!(
                    theirs < ours,
                    "{}: floor {ours} knows {other} on floor {theirs}: {line}",
                    path.display()
                );
            }
        }
    }
    assert!(seen > 50, "the imports were found");
}

#[test]
fn only_the_http_floor_and_those_above_know_rocket() {
    for (module, path, text) in sources() {
        let knows = text
            .lines()
            .any(|line| !line.trim_start().starts_with("//") && line.contains("rocket"));
        assert!(
            !knows || floor(&module) >= floor("http"),
            "{}",
            path.display()
        );
    }
}

#[test]
fn only_the_store_knows_the_database() {
    for (module, path, text) in sources() {
        let knows = text.contains("diesel::") || text.contains("r2d2");
        assert!(!knows || module == "store", "{}", path.display());
    }
}

#[test]
fn only_the_wire_frames_messages() {
    for (module, path, text) in sources() {
        let code = text.split("#[cfg(test)]").next().unwrap();
        let frames = code.contains("\"data: ") || code.contains("FINAL_TEXT");
        assert!(!frames || module == "wire", "{}", path.display());
    }
}
