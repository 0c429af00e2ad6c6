//! Two tiers of tests: `cargo test` leaves out those that are slow, `.ci/run` runs all.

use std::path::Path;
use std::process::Output;

use crate::support::page::text;
use crate::support::process::run;
use crate::support::sources::rust_files;

/// What runs all tests.
const FULL: &str = "cargo test -- --include-ignored";

#[test]
fn everything_runs_before_a_change_lands_and_the_readme_says_how() {
    assert!(text(".ci/run").lines().any(|line| line == "bash .ci/tests"));
    let output = with_cargo("echo \"cargo $*\"", &[".ci/tests"]);
    let ran = String::from_utf8_lossy(&output.stdout).replace(" --no-fail-fast", "");
    assert_eq!(ran.trim(), FULL);
    for page in ["README.md", "docs/testing.md"] {
        assert!(text(page).contains(FULL), "{page}");
    }
}

/// A test that is left out for another reason would run nowhere, or fail in `.ci/run`.
#[test]
fn a_test_is_left_out_of_the_fast_tier_for_being_slow_and_for_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut slow = 0;
    for path in ["src", "tests/it", "tests/simulation"].map(|path| root.join(path)) {
        for path in rust_files(&path) {
            let source = std::fs::read_to_string(&path).unwrap();
            let attributes = source.lines().map(str::trim);
            for line in attributes.filter(|line| line.starts_with("#[ignore")) {
                assert!(
                    line.starts_with("#[ignore = \"slow: "),
                    "{}: {line}",
                    path.display()
                );
                slow += 1;
            }
        }
    }
    assert!(slow > 0, "the slow ones were found");
}

/// Over SQLite, the nodes of a process share one store, so that its cached states are never outdated.
#[test]
fn tests_of_several_nodes_run_over_postgres_too() {
    let script = text(".ci/stores");
    let list = script.split_once("modules=(\n").unwrap().1;
    let modules: Vec<&str> = list
        .split_once("\n)")
        .unwrap()
        .0
        .split_whitespace()
        .collect();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let uses_nodes = format!("use crate::support::{}", "nodes::");
    let mut count = 0;
    for path in rust_files(&tests) {
        let source = std::fs::read_to_string(&path).unwrap();
        if !source.contains(&uses_nodes) {
            continue;
        }
        let of_tests = path.strip_prefix(&tests).unwrap();
        let module = Path::new(of_tests.iter().next().unwrap())
            .file_stem()
            .unwrap();
        assert!(
            modules.contains(&module.to_str().unwrap()),
            "{}",
            of_tests.display()
        );
        count += 1;
    }
    assert!(count > 2, "they were found");
}

/// Runs a script whose `cargo` is another script.
fn with_cargo(cargo: &str, script: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cargo");
    std::fs::write(&file, format!("#!/bin/bash\n{cargo}")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&file, mode).unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let mut bash = std::process::Command::new("bash");
    bash.args(script).env("PATH", path);
    run(bash.current_dir(env!("CARGO_MANIFEST_DIR")))
}

/// `$again` is empty in the first run. In the second one, it is the tests that run once more.
#[test]
fn a_few_tests_that_fail_run_once_more_and_everything_else_fails_the_run() {
    let run = |cargo: &str| {
        let again = r#"all="$*"; again="${all#*--exact}"; [ "$again" != "$all" ] || again="#;
        let cargo = format!("{again}\n{cargo}");
        let output = with_cargo(&cargo, &[".ci/tests"]);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), stdout)
    };
    let fails = "echo 'test a::b ... FAILED'; exit 101";
    let passes = "echo 'test result: ok. 1 passed; 0 failed'";
    let (passed, stdout) = run(&format!("[ \"$again\" ] || {{ {fails}; }}; {passes}"));
    assert!(passed, "{stdout}");
    assert!(stdout.contains("run once more: a::b"), "{stdout}");
    for (what, cargo) in [
        ("it fails twice", fails.to_owned()),
        (
            "it no longer exists",
            format!("[ \"$again\" ] || {{ {fails}; }}; echo 'test result: ok. 0 passed'"),
        ),
        (
            "a binary crashed",
            format!(
                "[ \"$again\" ] || {{ echo \"process didn't exit successfully\"; {fails}; }}; {passes}"
            ),
        ),
        (
            "nothing was compiled",
            "echo 'error: could not compile'; exit 101".to_owned(),
        ),
        (
            "too many fail",
            r#"[ "$again" ] || { for one in 1 2 3 4; do echo "test a::$one ... FAILED"; done; exit 101; }; echo 'test result: ok. 4 passed'"#.to_owned(),
        ),
    ] {
        let (passed, stdout) = run(&cargo);
        assert!(!passed, "{what}: {stdout}");
    }
}

/// A test of another target may have the same name, and the other arguments may leave the test out.
#[test]
fn tests_that_run_once_more_are_of_the_same_target() {
    let cargo = r#"echo "ran $*"; [[ "$*" = *--exact* ]] || { echo 'test a::b ... FAILED'; exit 101; }; echo 'test result: ok. 1 passed'"#;
    let output = with_cargo(
        cargo,
        &[".ci/tests", "--test", "it", "--", "--skip", "c", "a::"],
    );
    let stdout = String::from_utf8_lossy(&output.stdout);
    let ran: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.strip_prefix("ran test --no-fail-fast "))
        .collect();
    let expected = [
        "--test it -- --skip c a::",
        "--test it -- --include-ignored --exact a::b",
    ];
    assert_eq!(ran, expected);
    assert!(output.status.success());
}

/// Otherwise a Postgres that cannot be reached would count as the detection of every mutant.
#[test]
fn a_mutant_counts_as_detected_only_if_the_tests_pass_without_it() {
    let failing = "echo test store_contract::postgres::a_test ... FAILED\nexit 101\n";
    let output = with_cargo(failing, &[".ci/mutants", "a fence"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("the tests fail without a mutant"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty());
}

/// `.ci/mutants` is run by hand, so nobody would notice that the text of a mutant is gone from the source.
#[test]
fn every_mutant_changes_a_text_that_the_source_has() {
    let script = text(".ci/mutants");
    let list = script.split_once("mutants=(\n").unwrap().1;
    let list = list.split_once("\n)").unwrap().0;
    let mut count = 0;
    for mutant in list.lines() {
        let mutant = mutant.trim().trim_matches('"');
        let (name, rest) = mutant.split_once("|src/").unwrap();
        let (file, rest) = rest.split_once('|').unwrap();
        let original = rest.split('|').next().unwrap().replace('\\', "");
        let source = text(&format!("src/{file}"));
        assert!(source.contains(&original), "{name}: {original}");
        count += 1;
    }
    assert!(count > 5, "the mutants were found");
}
