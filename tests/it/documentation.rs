//! The documentation says what the code does: names, defaults, messages.

use figment::providers::Serialized;
use rocket::figment;
use serde_json::Value;
use tidings::config::Settings;
use tidings::wire::Close;

const STREAMS: &str = include_str!("../../docs/streams.md");
const SETTINGS: &str = include_str!("../../docs/configuration.md");

#[test]
fn every_setting_is_documented_with_its_default() {
    let defaults: Value = figment::Figment::from(Serialized::defaults(Settings::default()))
        .extract()
        .unwrap();
    for (name, value) in defaults.as_object().unwrap() {
        let shown = match value {
            Value::Null => "none".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        assert!(
            SETTINGS.contains(&format!("| `{name}` | {shown} |")),
            "{name} = {shown}"
        );
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
fn every_message_and_close_code_is_documented() {
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
    let closes = [
        Close::Done,
        Close::ShuttingDown { retry_ms: 0 },
        Close::TokenExpired,
        Close::ProtocolError,
        Close::MessageTooBig,
        Close::Refused,
        Close::RefusedUnauthorized,
        Close::InternalError,
        Close::InvalidText,
        Close::TryAgainLater,
        Close::Silent,
    ];
    for close in closes {
        let row = STREAMS
            .lines()
            .find(|line| line.starts_with(&format!("| {} |", close.code())))
            .unwrap();
        let back = row.rsplit('|').nth(1).unwrap().trim();
        assert_eq!(
            close.retry_ms().is_some(),
            back != "no" && !back.contains("another token"),
            "{row}"
        );
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
        ("invariants", include_str!("invariants.rs")),
        ("proxies", include_str!("proxies.rs")),
        ("reconnecting", include_str!("reconnecting.rs")),
        ("simulation", include_str!("simulation.rs")),
        ("disk", include_str!("disk.rs")),
        ("limits", include_str!("limits.rs")),
        ("pressure", include_str!("pressure.rs")),
        ("isolation", include_str!("isolation.rs")),
        ("dependencies", include_str!("dependencies.rs")),
        ("switches", include_str!("switches.rs")),
        ("attacks", include_str!("attacks.rs")),
        ("access", include_str!("access.rs")),
        ("characteristics", include_str!("characteristics.rs")),
        ("sources", include_str!("store_contract/sources.rs")),
        ("echo", include_str!("../../src/http/stream/echo.rs")),
        ("runner", include_str!("notify/runner.rs")),
        ("exact_input", include_str!("exact_input.rs")),
        ("methods", include_str!("methods.rs")),
        ("set_aside", include_str!("notify/set_aside.rs")),
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
