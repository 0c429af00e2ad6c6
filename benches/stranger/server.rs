//! Measures what a request costs the server, by the kernel's figures.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, tidings};

/// Requests that are measured together, because the kernel counts in ticks of 10 ms.
const REQUESTS: u32 = 40;
/// How much of an answer is read. A stream does not end by itself, and its beginning is enough.
const ANSWER_BYTES: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(20);

/// The cost of a request.
pub(crate) struct Cost {
    pub(crate) cpu_micros: f64,
    pub(crate) memory_kib: u64,
    /// The status of the answer, or that there was none.
    pub(crate) status: String,
}

pub(crate) struct Server {
    process: Process,
    /// A second server, whose allocator returns freed memory to the kernel at once. In the first server, which keeps
    /// freed memory, only the first request would show how much memory it needs.
    frugal: Process,
    _folders: [TempDir; 2],
}

/// Settings of jemalloc.
const FRUGAL: [(&str, &str); 1] = [(
    "_RJEM_MALLOC_CONF",
    "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0",
)];

impl Server {
    /// Starts both servers with default settings, except for the keys that verify tokens, if there is a file of them.
    pub(crate) fn start(keys: Option<&Path>) -> Server {
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let command = |folder: &TempDir| {
            let mut command = tidings(folder.path(), "0");
            command.env("TIDINGS_LOG", "error");
            if let Some(keys) = keys {
                command.env("TIDINGS_JWT_JWKS_FILE", keys);
            }
            command
        };
        Server {
            process: Process::start(&mut command(&folders[0])),
            frugal: Process::start(command(&folders[1]).envs(FRUGAL)),
            _folders: folders,
        }
    }

    /// Sends a request many times, each time on a separate connection.
    pub(crate) fn cost(&self, request: &[u8]) -> Cost {
        // The first request warms up caches.
        send(&self.frugal, request);
        let before = self.frugal.memory();
        self.frugal.forget_peak();
        let status = send(&self.frugal, request);
        let memory_kib = self.frugal.peak_memory().saturating_sub(before) / 1_024;
        let began = self.process.cpu_secs();
        (0..REQUESTS).for_each(|_| drop(send(&self.process, request)));
        Cost {
            cpu_micros: (self.process.cpu_secs() - began) * 1e6 / f64::from(REQUESTS),
            memory_kib,
            status,
        }
    }
}

fn send(to: &Process, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(&to.address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // The server may have answered and closed the connection before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = [0; ANSWER_BYTES];
    let read = stream.read(&mut answer).unwrap_or(0);
    let _ = stream.shutdown(Shutdown::Both);
    let line = String::from_utf8_lossy(&answer[..read]);
    let status = line.split(' ').nth(1).unwrap_or("nothing");
    status.to_owned()
}
