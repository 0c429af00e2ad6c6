//! The documentation says what the code does: names, defaults, messages.

use std::collections::BTreeSet;
use std::path::Path;

use figment::providers::Serialized;
use rocket::figment;
use serde_json::Value;
use tidings::config::Settings;

use crate::support::page::text;

const STREAMS: &str = include_str!("../../docs/streams.md");
const SETTINGS: &str = include_str!("../../docs/configuration.md");

#[test]
fn every_setting_is_documented_with_its_default_and_its_range() {
    let defaults: Value = figment::Figment::from(Serialized::defaults(Settings::default()))
        .extract()
        .unwrap();
    for (name, value) in defaults.as_object().unwrap() {
        let shown = match value {
            Value::Null => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let range = crate::ranges::range(name);
        // An absent number is JSON's null.
        let is_number = value.is_number() || name == "dead_peer_timeout_secs";
        assert_eq!(range.is_some(), is_number, "{name}");
        let range = range.map_or(String::new(), |range| format!("{range} "));
        let row = format!("| `{name}` | {shown} | {range}|");
        assert!(SETTINGS.contains(&row), "{row}");
    }
    let rows = SETTINGS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(
        rows,
        defaults.as_object().unwrap().len(),
        "and no setting that does not exist"
    );
}

#[test]
fn every_message_is_explained() {
    for name in [
        "connected",
        "ready",
        "reset",
        "heartbeat",
        "closing",
        "error",
        "pong",
        "subscribed",
        "unsubscribed",
        "authenticated",
    ] {
        assert!(STREAMS.contains(&format!("`{name}`")), "{name}");
    }
}

/// The tests that the README names exist.
#[test]
fn the_guarantees_name_tests_that_exist() {
    let readme = include_str!("../../README.md");
    let sources = [
        ("durability", include_str!("durability.rs")),
        ("dead_peers", include_str!("dead_peers.rs")),
        ("fencing", include_str!("fencing.rs")),
        ("silence", include_str!("silence.rs")),
        ("clocks", include_str!("clocks.rs")),
        ("invariants", include_str!("invariants.rs")),
        ("proxies", include_str!("proxies.rs")),
        ("reconnecting", include_str!("reconnecting.rs")),
        ("simulation", include_str!("../simulation/main.rs")),
        ("disk", include_str!("disk.rs")),
        ("locks", include_str!("locks.rs")),
        ("opening", include_str!("opening.rs")),
        ("restores", include_str!("restores.rs")),
        ("limits", include_str!("limits.rs")),
        ("pressure", include_str!("pressure.rs")),
        ("isolation", include_str!("isolation.rs")),
        ("dependencies", include_str!("dependencies.rs")),
        ("switches", include_str!("switches.rs")),
        ("attacks", include_str!("attacks.rs")),
        ("access_log", include_str!("access/access_log.rs")),
        ("listeners", include_str!("characteristics/listeners.rs")),
        ("sources", include_str!("store_contract/sources.rs")),
        ("echo", include_str!("../../src/http/stream/echo.rs")),
        ("runner", include_str!("notify/runner.rs")),
        ("exact_input", include_str!("exact_input.rs")),
        ("methods", include_str!("methods.rs")),
        ("reads", include_str!("reads.rs")),
        ("search", include_str!("search.rs")),
        ("set_aside", include_str!("notify/set_aside.rs")),
        ("pings", include_str!("pings.rs")),
        ("schedules", include_str!("schedules.rs")),
    ];
    let mut named = 0;
    for row in readme
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("::"))
    {
        let test = row.rsplit('`').nth(1).unwrap();
        let (module, function) = test.split_once("::").unwrap();
        let (_, source) = sources.iter().find(|(name, _)| *name == module).unwrap();
        assert!(source.contains(&format!("fn {function}(")), "{test}");
        named += 1;
    }
    assert!(named >= 26);
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_page_is_in_the_readme_and_every_link_leads_to_a_heading_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec!["README.md".to_owned()];
    for entry in root.join("docs").read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            let link = format!("](docs/{name})");
            assert!(
                text("README.md").contains(&link),
                "{name} is not in the README"
            );
            pages.push(format!("docs/{name}"));
        }
    }
    let mut links = 0;
    for page in &pages {
        let content = text(page);
        let targets = content.split("](").skip(1);
        let targets = targets.map(|rest| rest.split(')').next().unwrap());
        for target in targets.filter(|target| !target.contains("://") && !target.contains(' ')) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root.join(page),
                file => root.join(page).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{page}: {target}");
            if !heading.is_empty() {
                let target = std::fs::read_to_string(&path).unwrap();
                let mut headings = target.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|line| anchor(line) == heading),
                    "{page}: #{heading} in {file}"
                );
            }
            links += 1;
        }
    }
    assert!(links > 80, "{links}");
}

/// Modules that are visible only for the project's own tests are hidden, and the crate documentation lists all others.
#[test]
fn every_public_module_is_in_the_table_of_the_public_api() {
    let source = std::fs::read_to_string("src/lib.rs").unwrap();
    let (_, table) = source.split_once("//! # Public API").unwrap();
    let (table, code) = table.split_once("#![").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("//! | [`"));
    let listed: BTreeSet<&str> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split(", "))
        .map(|name| name.trim().trim_matches(['[', ']', '`']))
        .collect();
    let mut hidden = false;
    let mut public = BTreeSet::new();
    for line in code.lines() {
        match line.strip_prefix("pub mod ") {
            Some(name) if !std::mem::take(&mut hidden) => {
                public.insert(name.trim_end_matches(';'));
            }
            _ => hidden |= line == "#[doc(hidden)]",
        }
    }
    assert_eq!(public, listed);
}
