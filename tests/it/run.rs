//! `tidings run` and `tidings report`: what a command does under them, and what the server learns.

mod away;
mod command;
mod keeping;
mod progress;
mod rejected;
mod report;
mod spool;
mod stopping;
mod terminal;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::process::{Patient, blocking, command, output_of, status_of};
use crate::support::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the command `tidings <arguments>` for this server.
fn tidings(server: &Server, arguments: &[&str]) -> Command {
    let mut command = command(server.folder.path());
    command
        .args(arguments)
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", worker(1));
    command
}

/// Returns the command `tidings run -- sh -c <script>` for this server.
fn run_script(server: &Server, options: &[&str], script: &str) -> Command {
    let mut arguments = vec!["run"];
    arguments.extend(options);
    arguments.extend(["--", "sh", "-c", script]);
    tidings(server, &arguments)
}

/// Runs a command to its end, with this input.
async fn end_of(mut command: Command, input: &'static [u8]) -> Output {
    blocking(move || {
        let mut child = started(&mut command);
        let mut target = child.stdin.take().unwrap();
        // At the same time as the output is read. Fails if the command does not read it.
        std::thread::spawn(move || drop(target.write_all(input)));
        output_of(child)
    })
    .await
}

fn started(command: &mut Command) -> Child {
    with_default_signals(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns this command with the signals of an interactive shell. A process in the background, as these tests may be, ignores
/// some of them, and so would its children.
fn with_default_signals(command: &Command) -> Command {
    let mut outer = Command::new("env");
    outer.arg("--default-signal=HUP,INT,QUIT,TSTP,TTIN,TTOU");
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

/// Returns the jobs of the school, newest first.
async fn jobs(server: &Server) -> Vec<Value> {
    let (status, list) = server.get("/api/jobs", &viewer(1)).await;
    assert_eq!(status, 200, "{list}");
    list["jobs"].as_array().unwrap().clone()
}

/// Returns the only job.
async fn only_job(server: &Server) -> Value {
    let mut jobs = jobs(server).await;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    jobs.remove(0)
}

/// Waits until the only job is as it is to be, and returns it.
async fn job_when(server: &Server, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut found = Value::Null;
    until(what, async || {
        let jobs = jobs(server).await;
        found = jobs.into_iter().next().unwrap_or_default();
        is(&found)
    })
    .await;
    found
}

/// Reads from a process until this text has come.
fn read_until(source: &mut (impl Read + AsFd), wanted: &str) -> String {
    let mut source = Patient(source);
    let mut read = Vec::new();
    let mut byte = [0];
    while !text(&read).contains(wanted) {
        assert_eq!(source.read(&mut byte).unwrap(), 1, "{}", text(&read));
        read.push(byte[0]);
    }
    text(&read)
}
