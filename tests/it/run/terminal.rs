//! The command in a terminal: it has one of its own, with colours, size, keyboard and job control.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};

use pty_process::Size;
use pty_process::blocking::{Command as InTerminal, Pty, open};
use serde_json::json;

use super::*;

/// A terminal with `tidings run` in it.
struct Terminal {
    pty: Arc<Pty>,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Ends when no process has the terminal any more, and everything was read.
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    fn start(command: &Command) -> Terminal {
        Terminal::with(command, None)
    }

    /// Starts it with another standard input than the terminal.
    fn with(command: &Command, input: Option<Stdio>) -> Terminal {
        let command = &with_default_signals(command);
        let (pty, theirs) = open().unwrap();
        pty.resize(Size::new(33, 77)).unwrap();
        let mut in_terminal = InTerminal::new(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            in_terminal = match value {
                Some(value) => in_terminal.env(name, value),
                None => in_terminal.env_remove(name),
            };
        }
        if let Some(input) = input {
            in_terminal = in_terminal.stdin(input);
        }
        in_terminal = in_terminal
            .current_dir(command.get_current_dir().unwrap())
            .env("TERM", "xterm-256color");
        let child = in_terminal.spawn(theirs).unwrap();
        let pty = Arc::new(pty);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (reader, sink) = (Arc::clone(&pty), Arc::clone(&shown));
        let reader = std::thread::spawn(move || {
            let mut part = [0; 64 * 1024];
            while let Ok(count @ 1..) = (&*reader).read(&mut part) {
                sink.lock().unwrap().extend(&part[..count]);
            }
        });
        Terminal {
            pty,
            child,
            shown,
            reader,
        }
    }

    fn shown(&self) -> String {
        text(&self.shown.lock().unwrap())
    }

    async fn shows(&self, wanted: &str) {
        until(wanted, async || self.shown().contains(wanted)).await;
    }

    fn types(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    async fn ended(mut self) -> (std::process::ExitStatus, String) {
        let mut status = None;
        until("it ends", async || {
            status = status.or(self.child.try_wait().unwrap());
            status.is_some() && self.reader.is_finished()
        })
        .await;
        (status.unwrap(), self.shown())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_terminal_has_one_of_the_same_size_that_follows_it() {
    let server = server().await;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo all; stty size; trap 'stty size' WINCH; echo ready; \
                  while ! read line; do :; done; exit 4";
    let terminal = Terminal::start(&run_script(&server, &[], script));
    terminal.shows("ready\r\n").await;
    terminal.pty.resize(Size::new(40, 100)).unwrap();
    terminal.shows("40 100").await;
    terminal.types("\n");
    let (status, shown) = terminal.ended().await;
    assert_eq!(status.code(), Some(4));
    assert!(shown.starts_with("all\r\n33 77\r\nready\r\n"), "{shown:?}");
    assert!(!shown.contains("\r\r"), "{shown:?}");
    assert_eq!(only_job(&server).await["error"]["details"]["exit_code"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_reach_the_command_and_ctrl_c_interrupts_it() {
    let server = server().await;
    let terminal = Terminal::start(&run_script(
        &server,
        &[],
        "read name; echo hello $name; sleep 600",
    ));
    terminal.types("reader\n");
    terminal.shows("hello reader").await;
    terminal.types("\u{3}");
    let (status, _) = terminal.ended().await;
    assert_eq!(status.signal(), Some(2));
    let job = only_job(&server).await;
    assert_eq!(
        (&job["status"], &job["message"]),
        (&json!("cancelled"), &json!("Interrupted"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_z_suspends_run_and_its_command_until_the_shell_continues_them() {
    let server = server().await;
    let run = run_script(
        &server,
        &[],
        "echo started; sleep 1; echo awake; read line; echo got $line",
    );
    // An interactive shell, as it has job control.
    let mut shell = Command::new("bash");
    shell
        .args(["--norc", "--noprofile", "-i"])
        .current_dir(server.folder.path());
    for (name, value) in run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
    {
        shell.env(name, value);
    }
    shell.env("PS1", "prompt> ");
    let terminal = Terminal::start(&shell);
    let words: Vec<_> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    terminal.types(&format!("{}\n", words.join(" ")));
    terminal.shows("started\r\n").await;
    terminal.types("\u{1a}");
    terminal.shows("Stopped").await;
    terminal.types("echo in shell $((1 + 1))\n");
    terminal.shows("in shell 2").await;
    terminal.types("fg\n");
    terminal.shows("awake\r\n").await;
    terminal.types("keys\n");
    // Until the shell has the terminal again, keys are the command's.
    until("the shell is back", async || {
        let shown = terminal.shown();
        let after = shown.split_once("got keys\r\n");
        after.is_some_and(|(_, shown)| shown.contains("prompt> "))
    })
    .await;
    terminal.types("exit\n");
    terminal.ended().await;
    assert_eq!(only_job(&server).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_output_is_a_terminal_only_where_the_own_one_is() {
    let server = server().await;
    let file = server.folder.path().join("output");
    let script = "test -t 1 || echo out: no; test -t 2 && echo err: yes >&2; test -r /dev/tty && echo tty >/dev/tty; cat";
    let run = run_script(&server, &[], script);
    let mut outer = Command::new("sh");
    outer
        .args(["-c", "exec \"$@\" >output", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(server.folder.path());
    for (name, value) in run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)))
    {
        outer.env(name, value);
    }
    let (input, mut writer) = std::io::pipe().unwrap();
    let terminal = Terminal::with(&outer, Some(input.into()));
    terminal.shows("err: yes\r\n").await;
    terminal.shows("tty\r\n").await;
    writer.write_all(b"from a pipe\n").unwrap();
    drop(writer);
    let (status, shown) = terminal.ended().await;
    assert!(status.success(), "{shown}");
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "out: no\nfrom a pipe\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: waits for retries"]
async fn the_own_terminal_shows_the_progress_where_nothing_is_cut_by_it() {
    let server = server().await;
    let script =
        "printf '10%%\\n'; sleep 0.5; printf '\\033['; sleep 0.5; printf '31m20%%\\n'; sleep 0.5";
    let terminal = Terminal::start(&run_script(&server, &["--taskbar", "always"], script));
    let (status, shown) = terminal.ended().await;
    assert!(status.success());
    assert!(shown.contains("\u{1b}]9;4;1;10\u{1b}\\"), "{shown:?}");
    assert!(shown.contains("\u{1b}[31m20%"), "{shown:?}");
    assert!(shown.contains("\u{1b}]9;4;0;\u{1b}\\"), "{shown:?}");
    let terminal = Terminal::start(&run_script(
        &server,
        &["--taskbar", "auto"],
        "echo 10%; sleep 0.3",
    ));
    let (_, shown) = terminal.ended().await;
    assert_eq!(shown, "10%\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_shows_its_progress_in_the_terminal_if_it_is_asked_to() {
    let server = server().await;
    let report = |id: &str, taskbar: &str, words: &[&str]| {
        let mut arguments = vec!["report"];
        arguments.extend(words);
        arguments.extend(["--id", id, "--type", "t", "--strict", "--taskbar", taskbar]);
        tidings(&server, &arguments)
    };
    for (words, sequence) in [
        (&["start"][..], "\u{1b}]9;4;0;\u{1b}\\"),
        (&["40/200", "Rows"], "\u{1b}]9;4;1;20\u{1b}\\"),
        (&["Indexes"], ""),
        (&["ok"], "\u{1b}]9;4;0;\u{1b}\\"),
    ] {
        let (status, shown) = Terminal::start(&report("a", "always", words)).ended().await;
        assert!(status.success(), "{words:?}: {shown}");
        let sequences = shown.matches("\u{1b}]9;4").count();
        assert_eq!(sequences, usize::from(!sequence.is_empty()), "{shown:?}");
        assert!(shown.contains(sequence), "{words:?}: {shown:?}");
    }
    // The terminal of the tests is not known to support it.
    for taskbar in ["auto", "never"] {
        let report = report(taskbar, taskbar, &["start"]);
        let (status, shown) = Terminal::start(&report).ended().await;
        assert!(
            status.success() && !shown.contains("\u{1b}]9;4"),
            "{shown:?}"
        );
    }
    // A script reads this output.
    let output = end_of(report("never", "always", &["55%"]), b"").await;
    assert!(
        output.status.success() && !text(&output.stdout).contains("\u{1b}]9;4"),
        "{output:?}"
    );
}
