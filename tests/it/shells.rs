//! Completion scripts and manual pages, with the real shells and the real `groff`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::process::{command, output_of, run};
use crate::support::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes the completion script for a shell into `folder`.
fn script(folder: &Path, shell: &str) {
    let output = run(command(folder).args(["completions", shell]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    std::fs::write(folder.join(format!("script.{shell}")), output.stdout).unwrap();
}

fn succeeded(output: &Output) -> String {
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{printed}");
    printed
}

#[test]
fn bash_completes_a_command_line_when_a_user_presses_tab() {
    if !needs("bash") || !needs("script") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    script(folder.path(), "bash");
    let mut check = Command::new("bash");
    check.args(["-n", "script.bash"]).current_dir(folder.path());
    succeeded(&run(&mut check));
    let mut terminal = Command::new("script");
    let mut terminal = terminal
        .args(["-qec", "bash --norc -i", "/dev/null"])
        .current_dir(folder.path())
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What runs is a function, which shows what was completed.
    let typed = "source script.bash\ntidings() { echo \"ran: $*\"; }\n\
        tidings wat\t jobs --unt\tcompleted\ntidings schedules rem\t x\ntidings completions z\t\nexit\n";
    let mut keys = terminal.stdin.take().unwrap();
    keys.write_all(typed.as_bytes()).unwrap();
    let printed = succeeded(&output_of(terminal));
    drop(keys);
    for line in [
        "ran: watch jobs --until completed",
        "ran: schedules remove x",
        "ran: completions zsh",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
}

#[test]
fn zsh_and_fish_complete_a_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let shell = |name: &str, arguments: &[&str]| {
        let mut shell = Command::new(name);
        shell
            .args(arguments)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .env("XDG_CONFIG_HOME", folder.path())
            .env("XDG_DATA_HOME", folder.path());
        succeeded(&run(&mut shell))
    };
    if needs("zsh") {
        script(folder.path(), "zsh");
        shell("zsh", &["-n", "script.zsh"]);
        let load = "autoload -U compinit; compinit -D; source ./script.zsh; print $_comps[tidings]";
        assert_eq!(shell("zsh", &["-fc", load]), "_tidings\n");
    }
    if needs("fish") {
        script(folder.path(), "fish");
        for (line, expected) in [
            ("tidings wat", "watch\t"),
            ("tidings watch jobs --unt", "--until\t"),
            ("tidings schedules rem", "remove\t"),
        ] {
            let load = format!("source script.fish; complete -C '{line}'");
            let printed = shell("fish", &["--no-config", "-c", &load]);
            assert!(printed.starts_with(expected), "{line}: {printed}");
        }
    }
}

#[test]
fn every_other_shell_has_a_script_and_an_unknown_one_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["elvish", "powershell"] {
        let output = run(command(folder.path()).args(["completions", shell]));
        assert!(succeeded(&output).contains("--until"), "{shell}");
    }
    let output = run(command(folder.path()).args(["completions", "csh"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("bash"));
}

#[test]
fn each_command_has_a_manual_page_that_is_typeset_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let written = run(command(folder.path()).arg("man").arg("--dir").arg(&pages));
    assert_eq!(succeeded(&written), "");
    let help = succeeded(&run(command(folder.path()).arg("--help")));
    let commands = help.split_once("Commands:").unwrap().1;
    let commands: Vec<_> = commands
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"watch"), "{commands:?}");
    let top = std::fs::read_to_string(pages.join("tidings.1")).unwrap();
    let printed = succeeded(&run(command(folder.path()).arg("man")));
    assert_eq!(printed.trim_end(), top.trim_end());
    for name in &commands {
        assert!(pages.join(format!("tidings-{name}.1")).exists(), "{name}");
    }
    // What the environment holds is not on the page.
    let secret = run(command(folder.path())
        .arg("man")
        .env("TIDINGS_URL", "https://private.example")
        .env("TIDINGS_TOKEN", "private"));
    assert_eq!(text(&secret.stdout), printed);
    if !needs("groff") {
        return;
    }
    for page in std::fs::read_dir(&pages).unwrap() {
        let page = page.unwrap().path();
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&page);
        let output = run(&mut groff);
        assert_eq!(text(&output.stderr), "", "{}", page.display());
        let shown = succeeded(&output);
        assert!(shown.contains("SYNOPSIS"), "{}: {shown}", page.display());
        if page.ends_with("tidings-watch.1") {
            for line in ["tidings watch jobs/42 devices/d7\n", "EXIT STATUS\n"] {
                assert!(shown.contains(line), "{line}: {shown}");
            }
        }
    }
}
