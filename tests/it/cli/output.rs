//! What commands print in terminals, pipes and files.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::text;
use crate::support::process::{
    Guarded, Patient, Process, blocking, command, output_of, run, watch,
};
use crate::support::*;

/// A pipe that nobody reads.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// Runs to the end, with the standard output that has been chosen.
fn run_as_it_is(command: &mut Command) -> Output {
    let child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    output_of(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_gone_is_a_quiet_end() {
    let server = server().await;
    server.running_job("a").await;
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    std::fs::create_dir(&documents).unwrap();
    let documents = documents.to_str().unwrap();
    for (arguments, code) in [
        (&["token", "--role", "admin"][..], 1),
        (&["demo", documents, "--no-simulators"], 1),
        (&["watch", "jobs"], 1),
        (&["watch", "jobs", "--json"], 1),
        (&["--help"], 0),
    ] {
        let mut command = command(folder.path());
        command
            .args(arguments)
            .env("TIDINGS_URL", &server.url)
            .env("TIDINGS_TOKEN", viewer(1))
            .env("TIDINGS_LOG", "error")
            .stdout(unread());
        let output = blocking(move || run_as_it_is(&mut command)).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
    // Neither output is read.
    for arguments in [
        &["token", "--role", "king"][..],
        &["token", "--role", "admin"],
    ] {
        let mut command = command(folder.path());
        command.args(arguments).stdout(unread()).stderr(unread());
        let code = command.status().unwrap().code();
        assert!(
            code.is_some_and(|code| (1..=2).contains(&code)),
            "{arguments:?}: {code:?}"
        );
    }
}

#[test]
fn an_output_that_cannot_be_written_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut command = command(folder.path());
    let output = run_as_it_is(command.args(["token", "--role", "admin"]).stdout(full));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to standard output"));
}

/// Runs a command in a terminal of its own.
fn in_terminal(command: &Command, before: &str) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut terminal = Command::new("script");
    terminal
        .args([
            "-qefc",
            &format!("{before} {}", words.join(" ")),
            "/dev/null",
        ])
        .current_dir(command.get_current_dir().unwrap())
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal
}

/// A command in a terminal of 24 rows and 60 columns. It is killed when this is dropped.
struct SmallTerminal {
    script: Guarded,
    command: u32,
}

impl SmallTerminal {
    fn start(command: &Command) -> SmallTerminal {
        let file = command.get_current_dir().unwrap().join("terminal.pid");
        // As under `nohup`: the command survives the end of its terminal.
        let prepare = "trap '' HUP; stty rows 24 cols 60; echo $$ >terminal.pid; exec";
        let mut terminal = in_terminal(command, prepare);
        let mut script = Guarded(terminal.stdout(Stdio::piped()).spawn().unwrap());
        let command = loop {
            let id = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(id) = id.strip_suffix('\n') {
                break id.parse().unwrap();
            }
            let ended = script.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        SmallTerminal { script, command }
    }
}

impl Drop for SmallTerminal {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        let kill = ["-s", "KILL", &self.command.to_string()];
        let _ = Command::new("kill")
            .args(kill)
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn a_command_in_a_terminal_does_not_outlive_its_test() {
    if !needs("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut sleeping = Command::new("sleep");
    let terminal = SmallTerminal::start(sleeping.arg("600").current_dir(folder.path()));
    let process = format!("/proc/{}/stat", terminal.command);
    // A process that nobody has waited for is dead, too.
    let runs = || std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(runs());
    drop(terminal);
    let deadline = Instant::now() + PATIENCE;
    while runs() {
        assert!(Instant::now() < deadline, "it runs on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("documents")).unwrap();
    let called = |arguments: &[&str]| {
        let mut called = command(folder.path());
        called.env("TIDINGS_LOG", "debug").args(arguments);
        called
    };
    // The one is wrong, and the other logs.
    for (arguments, code) in [
        (&["dance"][..], 2),
        (&["demo", "documents", "--exit", "--no-simulators"], 0),
    ] {
        let output = run(&mut called(arguments));
        assert_eq!(output.status.code(), Some(code));
        let stderr = text(&output.stderr);
        assert!(!stderr.is_empty() && !stderr.contains('\u{1b}'), "{stderr}");
        if !needs("script") {
            continue;
        }
        for (is_wanted, no_colour) in [(true, ""), (false, "1")] {
            let mut terminal = in_terminal(&called(arguments), "");
            let output = run(terminal.env("NO_COLOR", no_colour));
            assert_eq!(output.status.code(), Some(code));
            let stdout = text(&output.stdout);
            assert_eq!(stdout.contains('\u{1b}'), is_wanted, "{stdout}");
        }
    }
}

/// What a terminal would obey or show in another order.
fn is_obeyed(character: char) -> bool {
    character.is_control() && character != '\n' || ('\u{202a}'..='\u{202e}').contains(&character)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_terminal_would_obey_reaches_it() {
    let nasty = "a\u{1b}[31m\u{7}\u{202e}gpj.txt";
    let folder = tempfile::tempdir().unwrap();
    let documents = folder.path().join("documents");
    std::fs::create_dir(&documents).unwrap();
    std::fs::write(documents.join(nasty), "abc").unwrap();
    let mut demo = command(folder.path());
    demo.arg("demo")
        .arg(&documents)
        .args(["--exit", "--no-simulators"]);
    let output = blocking(move || run(&mut demo)).await;
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(
        printed.contains("completed") && printed.contains("\\u{1b}[31m"),
        "{printed}"
    );
    assert!(!printed.contains(is_obeyed), "{printed:?}");

    let server = server().await;
    let body = json!({"job_id": "j", "job_type": "t", "status": "in_progress", "metadata": {"title": nasty}});
    server.report("/api/jobs", body).await;
    let done = json!({"message": "\u{202e}done"});
    server.report("/api/jobs/j/complete", done).await;
    for (arguments, word) in [
        (&["jobs/j"][..], "\\u{202e}done"),
        (&["jobs/j", "--json"], "\\u202edone"),
        (&["jobs?status=\u{1b}[31m"], "percent-encoded"),
        (&["jobs?status=%1B[31m"], "HTTP 400"),
    ] {
        let mut watching = watch(&server, arguments);
        let output = blocking(move || run(&mut watching)).await;
        let printed = text(&output.stdout) + &text(&output.stderr);
        assert!(printed.contains(word), "{word}: {printed}");
        assert!(!printed.contains(is_obeyed), "{printed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_notice_is_printed_to_its_end_in_60_columns() {
    if !needs("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start(command(folder.path()).arg("serve"));
    let mut watching = command(folder.path());
    watching
        .args(["watch", "jobs"])
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    let mut terminal = SmallTerminal::start(&watching);
    let mut out = Patient(terminal.script.0.stdout.take().unwrap());
    let streams = async || {
        let list = reqwest::Client::new()
            .get(format!("{}/metrics", server.url))
            .bearer_auth(admin());
        let text = list.send().await.unwrap().text().await.unwrap();
        text.lines()
            .any(|line| line.starts_with("tidings_streams") && line.ends_with(" 1"))
    };
    until("it watches", streams).await;
    server.kill();
    let seen = blocking(move || {
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        let mut attempts = 0;
        // That it is lost, and then that the server cannot be reached.
        while attempts < 3 {
            let length = out.read(&mut part).unwrap();
            assert!(length > 0, "it ended: {}", text(&bytes));
            bytes.extend_from_slice(&part[..length]);
            let shown = console::strip_ansi_codes(&text(&bytes)).replace(['\r', '\n'], " ");
            let words: Vec<&str> = shown.split_whitespace().collect();
            attempts = words.join(" ").matches("trying again in").count();
        }
        text(&bytes)
    })
    .await;
    assert!(
        rows(&seen, 60)
            .iter()
            .any(|row| row.contains("cannot reach http://127.0.0.1:")),
        "{seen}"
    );
}

/// What a terminal of so many columns shows, row by row: it begins a new one where the text does, or where one is full.
fn rows(output: &str, columns: usize) -> Vec<String> {
    let output = console::strip_ansi_codes(output);
    let mut rows = vec![String::new()];
    for character in output.chars() {
        let row = rows.last_mut().unwrap();
        let width = console::measure_text_width(character.encode_utf8(&mut [0; 4]));
        if character == '\n' || character == '\r' {
            rows.push(String::new());
        } else if console::measure_text_width(row) + width > columns {
            rows.push(character.into());
        } else {
            row.push(character);
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn bars_stay_in_view_in_24_rows_and_60_columns() {
    if !needs("script") {
        return;
    }
    let server = server().await;
    for number in 0..40 {
        let title = format!("{number} {}", "名簿".repeat(50));
        let body = json!({"job_id": format!("j{number}"), "job_type": "t", "status": "in_progress", "message": "word ".repeat(40), "metadata": {"title": title}});
        server.report("/api/jobs", body).await;
    }
    let watching = watch(&server, &["jobs"]);
    let mut terminal = SmallTerminal::start(&watching);
    let mut out = Patient(terminal.script.0.stdout.take().unwrap());
    let seen = blocking(move || {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        // 20 rows are for bars, of which the last counts the others.
        while !text(&bytes).contains("and 21 more (21 running)") {
            let length = out.read(&mut part).unwrap();
            assert!(length > 0, "it ended: {}", text(&bytes));
            bytes.extend_from_slice(&part[..length]);
        }
        text(&bytes)
    })
    .await;
    let rows = rows(&seen, 60);
    let is_cut = |row: &String| row.contains("名簿") && row.contains('…');
    assert!(rows.iter().any(is_cut), "{seen}");
    // A row that is wider than the terminal would go on in the next.
    for row in rows.iter().filter(|row| !row.trim().is_empty()) {
        let is_first = |first: char| first.is_ascii_digit();
        assert!(
            row.starts_with(is_first) || row.starts_with("and "),
            "{row:?}"
        );
    }
}
