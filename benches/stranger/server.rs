//! The server as a process of its own, and what the kernel says that a request has cost it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Requests that are counted together: the kernel counts in ticks of 10 ms.
const REQUESTS: u32 = 20;
/// Ticks a second (`getconf CLK_TCK`), the same on every Linux.
const TICKS: f64 = 100.0;
/// A stream does not end by itself: what comes first is enough.
const ANSWER_BYTES: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(20);

/// What a request has cost.
pub(crate) struct Cost {
    pub(crate) cpu_micros: f64,
    pub(crate) memory_kib: u64,
    /// The status of the answer, or that there was none.
    pub(crate) status: String,
}

pub(crate) struct Server {
    process: Child,
    address: String,
    _folder: TempDir,
}

impl Server {
    /// Starts it with its default settings, and waits until it listens.
    pub(crate) fn start() -> Server {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut process = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .arg("serve")
            .current_dir(folder.path())
            .env("ROCKET_PORT", "0")
            .env("TIDINGS_DATA_DIR", folder.path())
            .env("TIDINGS_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("a line");
        let address = line.trim().rsplit("//").next().expect("an address");
        Server {
            process,
            address: address.to_owned(),
            _folder: folder,
        }
    }

    /// Sends a request many times, each on a connection of its own.
    pub(crate) fn cost(&mut self, request: &[u8]) -> Cost {
        // The first one warms up what stays.
        self.send(request);
        let before = self.memory_kib("VmRSS:");
        fs::write(self.file("clear_refs"), "5").expect("its peak is reset");
        let status = self.send(request);
        let memory_kib = self.memory_kib("VmHWM:").saturating_sub(before);
        let began = self.ticks();
        (0..REQUESTS).for_each(|_| drop(self.send(request)));
        Cost {
            cpu_micros: (self.ticks() - began) as f64 / TICKS * 1e6 / f64::from(REQUESTS),
            memory_kib,
            status,
        }
    }

    fn send(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        // The server may have answered and closed before it has read all.
        let _ = stream.write_all(request);
        let mut answer = [0; ANSWER_BYTES];
        let read = stream.read(&mut answer).unwrap_or(0);
        let _ = stream.shutdown(Shutdown::Both);
        let line = String::from_utf8_lossy(&answer[..read]);
        let status = line.split(' ').nth(1).unwrap_or("nothing");
        status.to_owned()
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.process.id())
    }

    fn memory_kib(&self, size: &str) -> u64 {
        let status = fs::read_to_string(self.file("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(size));
        let kib = line.expect("the kernel tells it").trim();
        let kib = kib.trim_end_matches(" kB").parse();
        kib.expect("a number")
    }

    /// `utime` and `stime`.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(self.file("stat")).expect("it runs");
        // The name, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
        ticks(11) + ticks(12)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
