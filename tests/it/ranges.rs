//! The range of each setting that is a number, as errors state it.

use rocket::figment::Figment;
use rocket::figment::providers::Serialized;
use rocket::figment::value::Value;
use serde_json::json;
use tidings::config::Settings;

fn error(setting: &str, value: impl Into<Value>) -> Option<String> {
    let figment = Figment::new().merge((format!("tidings.{setting}"), value.into()));
    Settings::from_figment(&figment)
        .err()
        .map(|error| error.to_string())
}

/// Returns the range of a setting, such as `1 to 3600` or `at least 1`. Returns `None` if it is not a number.
pub(crate) fn range(setting: &str) -> Option<String> {
    let error = error(setting, "text")?;
    let (_, rest) = error.split_once("must be an integer ")?;
    let (range, _) = rest.split_once(", but is a string")?;
    Some(
        range
            .trim_start_matches("from ")
            .trim_start_matches("of ")
            .into(),
    )
}

#[test]
fn a_number_outside_of_its_range_is_rejected_with_its_setting_and_the_range() {
    let figment = Figment::from(Serialized::defaults(Settings::default()));
    let defaults: serde_json::Map<String, serde_json::Value> = figment.extract().unwrap();
    let mut rejected = 0;
    for name in defaults.keys() {
        let Some(range) = range(name) else { continue };
        let (least, max) = match range.split_once(" to ") {
            Some((least, max)) => (least, Some(max.parse::<u64>().unwrap())),
            None => (range.trim_start_matches("at least "), None),
        };
        let least: u64 = least.parse().unwrap();
        for outside in [least.checked_sub(1), max.map(|max| max + 1)] {
            let Some(outside) = outside else { continue };
            let error = error(name, outside).unwrap_or_else(|| panic!("{name} = {outside}"));
            assert!(error.contains(&format!("`{name}`")), "{error}");
            assert!(error.contains(&range), "{error}");
            assert!(error.contains("outside that range"), "{error}");
            rejected += 1;
        }
        for inside in [Some(least), max].into_iter().flatten() {
            let error = error(name, inside).unwrap_or_default();
            assert!(!error.contains("outside that range"), "{error}");
        }
    }
    assert!(rejected > 50, "{rejected} numbers are rejected");
}

#[test]
fn numbers_of_notifiers_have_ranges() {
    let email = json!({
        "host": "a.example", "port": 465, "security": "tls", "from": "a@a.example", "to": ["b@a.example"],
    });
    let webhook = json!({"url": "https://a.example/", "secret": "whsec_"});
    let mqtt = json!({"host": "a.example"});
    for (medium, settings, field, values, range) in [
        ("email", &email, "port", [0, 65_536], "from 1 to 65535"),
        ("email", &email, "timeout_secs", [0, 121], "from 1 to 120"),
        ("webhook", &webhook, "timeout_secs", [0, 61], "from 1 to 60"),
        ("mqtt", &mqtt, "port", [0, 65_536], "from 1 to 65535"),
        ("mqtt", &mqtt, "qos", [-1, 3], "from 0 to 2"),
        ("mqtt", &mqtt, "timeout_secs", [0, 61], "from 1 to 60"),
    ] {
        for value in values {
            let mut settings = settings.clone();
            settings[field] = json!(value);
            let notifiers = json!([{"name": "ops", medium: settings}]);
            let error = error("notifiers", Value::serialize(&notifiers).unwrap()).unwrap();
            assert!(
                error.contains(&format!("`notifiers.0.{medium}.{field}`")),
                "{error}"
            );
            assert!(error.contains(range), "{error}");
        }
    }
    for attempts in [0, 101] {
        let notifiers = json!([{"name": "ops", "attempts": attempts, "mqtt": &mqtt}]);
        let error = error("notifiers", Value::serialize(&notifiers).unwrap()).unwrap();
        assert!(error.contains("`notifiers.0.attempts`"), "{error}");
        assert!(error.contains("from 1 to 100"), "{error}");
    }
}
