//! `tidings schedules`: the real command, against a real server.

use std::process::{Command, Output};

use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::process::{blocking, command, run};
use crate::support::*;

fn schedules(server: &Server, arguments: &[&str]) -> Command {
    let mut schedules = command(server.folder.path());
    schedules
        .arg("schedules")
        .args(arguments)
        .env("TZ", "UTC")
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", worker(1));
    schedules
}

async fn ended(mut command: Command) -> Output {
    blocking(move || run(&mut command)).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed without a message. Returns its lines.
async fn lines(command: Command) -> Vec<String> {
    let output = ended(command).await;
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_set_listed_and_removed_from_the_command_line() {
    let server = server().await;
    let set =
        "set nightly:backup --cron @yearly --time-zone Europe/Berlin --grace 15m --max-run 90s";
    let set: Vec<_> = set.split(' ').collect();
    let printed = lines(schedules(&server, &set)).await;
    let start = "nightly:backup is on_time; the next run is expected at 2";
    assert!(
        printed.len() == 1 && printed[0].starts_with(start),
        "{printed:?}"
    );
    let kept = server
        .get("/api/schedules/nightly:backup", &viewer(1))
        .await;
    for (field, value) in [
        ("cron", json!("0 0 1 1 *")),
        ("time_zone", json!("Europe/Berlin")),
        ("grace_secs", json!(900)),
        ("max_run_secs", json!(90)),
    ] {
        let actual = &kept.1[field];
        assert!(
            *actual == value || (field == "cron" && *actual == "@yearly"),
            "{field}: {actual}"
        );
    }
    let set = ["set", "import", "--every", "1d", "--grace", "1h", "--json"];
    let printed = lines(schedules(&server, &set)).await;
    let rule: Value = serde_json::from_str(&printed[0]).unwrap();
    assert_eq!(
        (&rule["period_secs"], &rule["grace_secs"]),
        (&json!(86_400), &json!(3_600))
    );
    server
        .report(
            "/api/jobs",
            json!({"job_id": "i", "job_type": "import", "status": "in_progress"}),
        )
        .await;
    server.report("/api/jobs/i/complete", json!({})).await;
    until("the run is seen", async || {
        let schedule = server.get("/api/schedules/import", &viewer(1)).await.1;
        schedule["last_run"]["status"] == "completed"
    })
    .await;
    let table = lines(schedules(&server, &["list"])).await;
    assert!(
        table[0].starts_with("JOB TYPE        STATUS   NEXT RUN"),
        "{table:#?}"
    );
    assert!(
        table[1].starts_with("import          on_time  2"),
        "{table:#?}"
    );
    assert!(table[1].contains("  completed 2"), "{table:#?}");
    assert!(
        table[1].ends_with("  every 1d, grace 1h, at most 1h"),
        "{table:#?}"
    );
    assert!(
        table[2].starts_with("nightly:backup  on_time  2"),
        "{table:#?}"
    );
    let rule = "Europe/Berlin, grace 15m, at most 90s";
    assert!(
        table[2].contains("  -  ") && table[2].ends_with(rule),
        "{table:#?}"
    );
    assert_eq!(table.len(), 3);

    let printed = lines(schedules(&server, &["remove", "import"])).await;
    assert_eq!(printed, ["import was removed"]);
    let left = lines(schedules(&server, &["list", "--json"])).await;
    let left: Vec<Value> = left
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(field(&left, "schedule_id"), [&json!("nightly:backup")]);
    let removed = lines(schedules(&server, &["list", "--status", "removed"])).await;
    assert!(
        removed[1].starts_with("import    removed  -"),
        "{removed:?}"
    );
    let none = ended(schedules(&server, &["list", "--status", "missed"])).await;
    assert_eq!(text(&none.stderr), "no schedules\n");
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_schedule_is_named() {
    let server = server().await;
    for (arguments, code, word) in [
        (&["set", "a"][..], 2, "--cron"),
        (&["set", "a", "--cron", "0 3 * *"], 2, "cron"),
        (
            &["set", "a", "--cron", "@daily", "--time-zone", "Mars/Base"],
            2,
            "time_zone",
        ),
        (
            &["set", "a", "--cron", "@daily", "--every", "1d"],
            2,
            "--every",
        ),
        (&["set", "a", "--every", "1s"], 2, "period_secs"),
        (
            &["set", "a", "--every", "1d", "--grace", "31d"],
            2,
            "grace_secs",
        ),
        (&["set", "a", "--every", "soon"], 2, "30m"),
        (
            &["set", "a", "--every", "1d", "--time-zone", "UTC"],
            2,
            "--every",
        ),
        (&["set", "", "--every", "1d"], 2, "job_type"),
        (
            &["list", "--status", "lost"],
            2,
            "on_time, late, missed, removed",
        ),
        (&["remove", ".."], 2, ".."),
        (&["remove", "a"], 4, "Schedule a not found"),
        (&["list", "--school", "2"], 4, "not found"),
    ] {
        let output = ended(schedules(&server, arguments)).await;
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(
            stderr.to_lowercase().contains(&word.to_lowercase()),
            "{arguments:?}: {stderr}"
        );
        assert_eq!(text(&output.stdout), "");
    }
    let set = ["set", "a", "--every", "1d"];
    let mut rejected = schedules(&server, &set);
    rejected.env("TIDINGS_TOKEN", viewer(1));
    assert_eq!(ended(rejected).await.status.code(), Some(3));
    let mut nowhere = schedules(&server, &["list"]);
    nowhere.env("TIDINGS_URL", "http://127.0.0.1:1");
    assert_eq!(ended(nowhere).await.status.code(), Some(5));
    let (_, list) = server.get("/api/schedules", &viewer(1)).await;
    assert_eq!(list["schedules"], json!([]));

    // A token for several schools selects one.
    let both = for_schools(&[1, 2], Role::Worker);
    for (school, code) in [(&["--school", "2"][..], 0), (&[], 2)] {
        let mut command = schedules(&server, &[&set, school].concat());
        command.env("TIDINGS_TOKEN", &both);
        let output = ended(command).await;
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
    let (_, theirs) = server.get("/api/schedules", &viewer(2)).await;
    assert_eq!(theirs["schedules"][0]["schedule_id"], "a");
}
