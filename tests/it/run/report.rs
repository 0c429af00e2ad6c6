//! `tidings report`, in real shells.

use serde_json::json;

use super::*;

/// Those in which the output of `tidings report start` is a command. They are all installed by `.ci/run`, or always there.
const SHELLS: [&str; 5] = ["sh", "dash", "bash", "zsh", "fish"];

/// Runs a script in which `tidings` is this program.
async fn script(server: &Server, shell: &str, script: &str) -> Output {
    let binary = crate::support::process::binary();
    let prepared = tidings(server, &[]);
    let function = match shell {
        "fish" => "function tidings; 'BINARY' $argv; end",
        _ => "tidings() { 'BINARY' \"$@\"; }",
    };
    let mut command = Command::new(shell);
    command
        .args([
            "-c",
            &format!(
                "{}\n{script}",
                function.replace("BINARY", binary.to_str().unwrap())
            ),
        ])
        .current_dir(server.folder.path());
    for (name, value) in prepared.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    end_of(command, b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reports_from_its_start_to_its_end() {
    for shell in SHELLS.into_iter().filter(|shell| needs(shell)) {
        let server = server().await;
        let output = script(
            &server,
            shell,
            "eval \"$(tidings report start --type import --title \"It's mine\")\"
             tidings report 40/200 'Reading rows'
             tidings report 'Only a message'
             tidings report 55%
             tidings report ok 'All rows' --result '{\"rows\": 200}'",
        )
        .await;
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        assert_eq!(
            (text(&output.stdout), text(&output.stderr)),
            (String::new(), String::new()),
            "{shell}"
        );
        let job = only_job(&server).await;
        assert_eq!(
            (&job["status"], &job["result"]),
            (&json!("completed"), &json!({"rows": 200}))
        );
        assert_eq!(
            (&job["message"], &job["metadata"]["title"]),
            (&json!("All rows"), &json!("It's mine"))
        );
        assert_eq!(job["attempt"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_within_the_script_of_another_job_is_a_job_of_its_own() {
    let server = server().await;
    let output = script(
        &server,
        "sh",
        "set -e
         eval \"$(tidings report start --type outer)\"
         (eval \"$(tidings report start --type inner)\"; tidings report fail 'Inner')
         tidings report ok 'Outer'
         eval \"$(tidings report start --type outer)\"
         tidings report ok 'Again'",
    )
    .await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let mut ended: Vec<String> = jobs(&server)
        .await
        .iter()
        .map(|job| {
            let error = job["error"]["message"].as_str();
            let message = error.or(job["message"].as_str()).unwrap();
            format!(
                "{} {} {message}",
                job["job_type"].as_str().unwrap(),
                job["status"].as_str().unwrap()
            )
        })
        .collect();
    ended.sort();
    assert_eq!(
        ended,
        [
            "inner failed Inner",
            "outer completed Again",
            "outer completed Outer"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_a_fraction_a_percentage_or_a_message() {
    let server = server().await;
    server.running_job("j").await;
    for (what, progress, message) in [
        ("40/200", 20.0, "Reading"),
        ("25%", 25.0, "Reading"),
        ("Writing the index", 25.0, "Writing the index"),
        ("50/100 Half", 50.0, "Half"),
        ("60 of 100", 60.0, "Reading"),
        ("Progress: 70%", 70.0, "Progress: 70%"),
        ("Backup of 11/28", 70.0, "Backup of 11/28"),
        ("about 3/4 of all rows", 70.0, "about 3/4 of all rows"),
        ("Disk usage: 93%", 70.0, "Disk usage: 93%"),
        ("Step 8/10: build", 80.0, "Step 8/10: build"),
        ("Files: 90%", 80.0, "Files: 90%"),
        ("100% of users agree", 80.0, "100% of users agree"),
        ("3 of 3 people agree", 80.0, "3 of 3 people agree"),
        ("11/12 backup started", 80.0, "11/12 backup started"),
        ("85% Reading rows", 85.0, "Reading rows"),
    ] {
        server
            .report("/api/jobs/j/progress", json!({"message": "Reading"}))
            .await;
        let output = end_of(
            tidings(&server, &["report", "--id", "j", "--strict", what]),
            b"",
        )
        .await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let job = only_job(&server).await;
        assert_eq!(
            (&job["progress"], &job["message"]),
            (&json!(progress), &json!(message)),
            "{what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_says_so_by_its_trap() {
    let server = server().await;
    let output = script(
        &server,
        "sh",
        "eval \"$(tidings report start --type import)\"; trap 'tidings report exit $?' EXIT; exit 3",
    )
    .await;
    assert_eq!(output.status.code(), Some(3));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["error"]["message"]),
        (&json!("failed"), &json!("exited with code 3"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_job_is_to_be_cancelled_stops_under_set_e() {
    let server = server().await;
    server.running_job("j").await;
    server
        .post("/api/jobs/j/cancel", &worker(1), json!({}))
        .await;
    let output = script(
        &server,
        "sh",
        "set -e; tidings report --id j 10%; echo went on",
    )
    .await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(11), "")
    );
    assert!(text(&output.stderr).contains("to be cancelled"));
    let output = script(&server, "sh", "tidings report --id j cancel 'As asked'").await;
    assert!(output.status.success());
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["message"]),
        (&json!("cancelled"), &json!("As asked"))
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_server_that_is_away_fails_no_script_unless_it_is_strict() {
    let server = server().await;
    let down = "http://127.0.0.1:9";
    let output = script(
        &server,
        "sh",
        &format!("set -e; export TIDINGS_URL={down}; tidings report --id j 10%; echo went on; tidings report --id j --strict 20%"),
    )
    .await;
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(5), "went on\n")
    );
    assert!(
        text(&output.stderr).contains("not reported"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_job_whose_start_was_lost_is_started_by_a_later_report() {
    let server = server().await;
    let output = script(
        &server,
        "sh",
        "eval \"$(TIDINGS_URL=http://127.0.0.1:9 tidings report start --type import)\"; tidings report ok",
    )
    .await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["job_type"]),
        (&json!("completed"), &json!("import"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_id_is_one_word_in_every_shell() {
    for shell in SHELLS.into_iter().filter(|shell| needs(shell)) {
        let server = server().await;
        let id = r"It's \\ * \' (a) \";
        let start = r#"eval "$(tidings report start --type import --id "It's \\\\ * \\' (a) \\")"; tidings report ok"#;
        let output = script(&server, shell, start).await;
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        let job = only_job(&server).await;
        assert_eq!(
            (&job["job_id"], &job["status"]),
            (&json!(id), &json!("completed")),
            "{shell}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn a_start_that_is_lost_leaves_no_attempt_of_an_earlier_job_in_any_shell() {
    for shell in SHELLS.into_iter().filter(|shell| needs(shell)) {
        let server = server().await;
        let output = script(
            &server,
            shell,
            "export TIDINGS_ATTEMPT=7
             eval \"$(TIDINGS_URL=http://127.0.0.1:9 tidings report start --type import)\"
             echo \"<$TIDINGS_ATTEMPT>\"
             tidings report ok",
        )
        .await;
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "<>\n", "{shell}");
        assert_eq!(only_job(&server).await["status"], "completed", "{shell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reported_is_explained() {
    let server = server().await;
    for (arguments, word) in [
        (&["report", "10%"][..], "report start"),
        (&["report", "start"], "--type"),
        (&["report", "--id", "j", "exit", "x"], "exit code"),
        (
            &["report", "--id", "j", "-5"],
            "-5 is negative; progress must be",
        ),
        (&["report", "--id", "j", "-5%", "done"], "-5% is negative"),
        (
            &["report", "--id", "j", "--resutl", "{}"],
            "no option --resutl",
        ),
        (
            &["report", "--id", "j", "--school", "x", "5"],
            "TIDINGS_SCHOOL_ID",
        ),
        (&["report", "--id", "j", "ok", "--result", "{"], "JSON"),
    ] {
        let output = end_of(tidings(&server, arguments), b"").await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(word),
            "{}",
            text(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_words_are_one_message() {
    let server = server().await;
    server.running_job("j").await;
    for (words, progress, message) in [
        (
            &["40/200", "Reading", "the", "rows"][..],
            20.0,
            "Reading the rows",
        ),
        (&["30", "of", "100", "rows"], 30.0, "30 of 100 rows"),
        (
            &["3", "of", "3", "files", "failed"],
            30.0,
            "3 of 3 files failed",
        ),
        (&["31", "Reading rows"], 31.0, "Reading rows"),
        (&["32%", "at", "-5", "degrees"], 32.0, "at -5 degrees"),
        (&["Writing", "the", "index"], 32.0, "Writing the index"),
        (&["Step", "4/10"], 40.0, "Step 4/10"),
        (&["--", "- a list"], 40.0, "- a list"),
    ] {
        let mut arguments = vec!["report", "--id", "j", "--strict"];
        arguments.extend(words);
        let output = end_of(tidings(&server, &arguments), b"").await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let job = only_job(&server).await;
        assert_eq!(
            (&job["progress"], &job["message"]),
            (&json!(progress), &json!(message)),
            "{words:?}"
        );
    }
    let arguments = ["report", "--id", "j", "ok", "All", "rows", "--result", "{}"];
    let output = end_of(tidings(&server, &arguments), b"").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["message"], &job["result"]),
        (&json!("All rows"), &json!({}))
    );
}
