//! The server as a separate process, and the kernel's figures about it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Clock ticks per second (`getconf CLK_TCK`), the same on every Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// The server's program, with its data in `folder`. `BENCH_SERVER` overrides the program, for comparisons.
pub(crate) fn tidings(folder: &Path, port: &str) -> Command {
    tidings_of(None, folder, port)
}

/// The same, of another build.
pub(crate) fn tidings_of(program: Option<&str>, folder: &Path, port: &str) -> Command {
    let chosen = std::env::var("BENCH_SERVER");
    let program = program.or(chosen.as_deref().ok());
    let mut command = Command::new(program.unwrap_or(env!("CARGO_BIN_EXE_tidings")));
    command
        .current_dir(folder)
        .env("ROCKET_PORT", port)
        .env("TIDINGS_DATA_DIR", folder);
    command
}

/// Returns the same command on the processors that `BENCH_SERVER_CPUS` names, as for `taskset`; on all of them if it is not set. A server
/// starts as many threads as it may use processors.
fn confined(command: &Command) -> Command {
    let mut confined = match std::env::var("BENCH_SERVER_CPUS") {
        Ok(cpus) => {
            let mut taskset = Command::new("taskset");
            taskset
                .args(["--cpu-list", &cpus])
                .arg(command.get_program());
            taskset
        }
        Err(_) => Command::new(command.get_program()),
    };
    confined.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => confined.env(name, value),
            None => confined.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        confined.current_dir(folder);
    }
    confined.stdin(Stdio::null());
    confined
}

/// A running server. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

impl Process {
    /// Starts `tidings serve`, and waits until it listens.
    pub(crate) fn start(command: &mut Command) -> Process {
        Process::run(command.arg("serve"))
    }

    /// Starts any server, and waits until it prints its address.
    pub(crate) fn run(command: &mut Command) -> Process {
        let mut child = confined(command)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        let address = line.trim().rsplit("//").next().expect("an address");
        Process {
            child,
            address: address.to_owned(),
        }
    }

    /// Starts any server, and waits until it listens at this address.
    pub(crate) fn listening(command: &mut Command, address: &str) -> Process {
        let child = confined(command).spawn().expect("the server starts");
        while TcpStream::connect(address).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Process {
            child,
            address: address.to_owned(),
        }
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("a port")
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the server runs");
        self.child.wait().expect("the server ends");
    }

    /// Shuts the server down.
    pub(crate) fn terminate(&mut self) {
        let id = self.child.id().to_string();
        let signalled = Command::new("kill").args(["-s", "TERM", &id]).status();
        assert!(
            signalled.is_ok_and(|status| status.success()),
            "the server runs"
        );
        self.child.wait().expect("the server ends");
    }

    /// Returns the CPU time that it has used, in seconds, from `utime` and `stime`.
    pub(crate) fn cpu_secs(&self) -> f64 {
        let stat = fs::read_to_string(self.file("stat")).expect("it runs");
        // The name, in parentheses, can contain any character.
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / TICKS_PER_SEC
    }

    /// Returns its resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Returns its peak resident memory since [`Process::forget_peak`], in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) {
        fs::write(self.file("clear_refs"), "5").expect("its peak is reset");
    }

    fn status(&self, size: &str) -> u64 {
        let status = fs::read_to_string(self.file("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(size));
        let kib = line.expect("the kernel reports it").trim();
        let kib = kib.trim_end_matches(" kB").parse::<u64>();
        kib.expect("a number") * 1_024
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
