//! The floors of the crate docs: imports go strictly down. Read from the `use` lines and paths themselves.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module's floor. Those of one floor do not know one another, but for those named in [`NEIGHBOURS`].
const FLOORS: &[(&str, u8)] = &[
    ("id", 0),
    ("sync", 0),
    ("event", 0),
    ("uptime", 0),
    ("scope", 1),
    ("kind", 1),
    ("auth", 1),
    ("wire", 1),
    ("config", 1),
    ("throttle", 1),
    ("reserve", 1),
    ("wall_clock", 1),
    ("failures", 1),
    ("log", 1),
    ("tasks", 1),
    ("store", 2),
    ("hub", 2),
    ("publish", 3),
    ("feed", 3),
    ("subscribe", 3),
    ("presence", 3),
    ("notify", 3),
    ("vitals", 3),
    ("refusals", 3),
    ("watchdog", 3),
    ("dispatch", 3),
    ("service", 3),
    ("http", 4),
    ("cli", 5),
    ("lib", 5),
    ("main", 5),
];

/// Who may know whom on the same floor.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("event", "id"),
    ("auth", "config"),
    ("auth", "kind"),
    ("config", "auth"),
    ("config", "kind"),
    ("config", "throttle"),
    ("tasks", "config"),
    ("throttle", "config"),
    ("wall_clock", "config"),
    ("failures", "config"),
    ("wire", "kind"),
    ("log", "kind"),
    ("log", "config"),
    ("log", "failures"),
    ("log", "scope"),
    ("log", "throttle"),
    ("log", "reserve"),
    ("log", "wall_clock"),
    ("presence", "publish"),
    ("subscribe", "feed"),
    ("service", "feed"),
    ("service", "dispatch"),
    ("dispatch", "feed"),
    ("service", "notify"),
    ("service", "presence"),
    ("service", "publish"),
    ("service", "refusals"),
    ("service", "subscribe"),
    ("service", "vitals"),
    ("service", "watchdog"),
    ("main", "cli"),
    ("cli", "lib"),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if entry.is_dir() {
            files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
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
    found
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
        let own = floor(&module).unwrap_or_else(|| panic!("{} stands on no floor", path.display()));
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
                let neighbours = NEIGHBOURS.contains(&(&module, &other));
                assert!(
                    theirs < own || neighbours,
                    "{}: floor {own} knows {other} on floor {theirs}: {line}",
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
        assert!(!knows || floor(&module).unwrap() >= 4, "{}", path.display());
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
