//! The real binary in a separate process, for tests that kill it.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::{PATIENCE, SECRET, Server, store, viewer};

/// Returns the path of the binary under test.
pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_tidings").into()
}

/// Returns a command that runs the binary in `folder`, without the developer's own settings.
pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder);
    for (name, _) in std::env::vars()
        .filter(|(name, _)| name.starts_with("TIDINGS_") || name.starts_with("ROCKET_"))
    {
        command.env_remove(name);
    }
    command
        .env("ROCKET_PORT", "0")
        .env("XDG_STATE_HOME", folder.join("state"))
        .env("TIDINGS_DATA_DIR", folder.join("data"))
        .env("TIDINGS_JWT_SECRET", SECRET)
        .envs(store::database_url(folder).map(|url| ("TIDINGS_DATABASE_URL", url)));
    command
}

/// Returns the command `tidings watch <arguments>` for a server, with a viewer's token.
pub(crate) fn watch(server: &Server, arguments: &[&str]) -> Command {
    let mut watch = command(server.folder.path());
    watch
        .arg("watch")
        .args(arguments)
        .env("TIDINGS_URL", &server.url)
        .env("TIDINGS_TOKEN", viewer(1));
    watch
}

/// Returns the command `tidings serve` in `folder`, in a shell that first executes `limits`.
pub(crate) fn limited(folder: &Path, limits: &str) -> Command {
    let serve = command(folder);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("{limits}; exec \"$0\" serve")])
        .arg(serve.get_program())
        .current_dir(folder);
    for (name, value) in serve.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    limited
}

/// Lets a command run with a separate wall clock, which [`set_clock`] must have set before and can change. Needs `cc`.
pub(crate) fn with_clock<'a>(command: &'a mut Command, clock: &Path) -> &'a mut Command {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    command
        .env("LD_PRELOAD", LIBRARY.get_or_init(|| library("clock")))
        .env("CLOCK_FILE", clock)
}

/// Builds a library from `tests/chaos`.
fn library(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let built = folder.join(format!("{name}-{}.so", std::process::id()));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos");
    let mut build = Command::new("cc");
    build.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&built);
    build.arg(sources.join(format!("{name}.c"))).arg("-ldl");
    assert!(build.status().unwrap().success());
    // Renamed atomically, because another run of the tests may be using it.
    let library = folder.join(format!("{name}.so"));
    std::fs::rename(built, &library).unwrap();
    library
}

/// The power supply of a machine on which servers run, with their data in `folder`. Needs `cc`.
pub(crate) struct Power<'a> {
    folder: &'a Path,
    losses: u32,
}

impl<'a> Power<'a> {
    /// Switches the power on.
    pub(crate) fn of(folder: &'a Path) -> Power<'a> {
        std::fs::create_dir(folder.join("disk")).unwrap();
        let power = Power { folder, losses: 0 };
        power.boot();
        power
    }

    /// Returns the command `tidings serve` on this machine.
    pub(crate) fn serve(&self) -> Command {
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        let mut serve = command(self.folder);
        serve
            .arg("serve")
            .env("LD_PRELOAD", LIBRARY.get_or_init(|| library("powerloss")))
            .env("POWERLOSS_FOLDER", self.folder.join("data"))
            .env("POWERLOSS_DISK", self.folder.join("disk"))
            .env("POWERLOSS_BOOT_ID", self.folder.join("boot_id"));
        serve
    }

    /// Cuts the power and boots again: only data that was synced is left. The server must have been killed before.
    pub(crate) fn is_lost(&mut self) {
        let files = |folder: &str| {
            let files = std::fs::read_dir(self.folder.join(folder)).unwrap();
            files.map(|file| file.unwrap().path())
        };
        files("data").for_each(|file| std::fs::remove_file(file).unwrap());
        for file in files("disk") {
            let name = file.file_name().unwrap();
            std::fs::copy(&file, self.folder.join("data").join(name)).unwrap();
        }
        self.losses += 1;
        self.boot();
    }

    fn boot(&self) {
        let boot = format!("boot {}\n", self.losses);
        std::fs::write(self.folder.join("boot_id"), boot).unwrap();
    }
}

/// Sets such a clock to this many seconds after the real one.
pub(crate) fn set_clock(clock: &Path, offset_secs: i64) {
    // Written in place: a running process has the file mapped into memory.
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(clock)
        .unwrap();
    std::io::Write::write_all(&mut file, &offset_secs.to_ne_bytes()).unwrap();
}

/// How long a process may take to end or to say something.
const PROCESS_PATIENCE: Duration = Duration::from_secs(180);

/// Does work that blocks, such as waiting for a process, on a thread of its own. Fails after a while.
///
/// A blocking task of the runtime that never ends would keep a test that fails from ending.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send {
    let (sender, ended) = oneshot::channel();
    // If nothing is sent, the test has failed.
    std::thread::spawn(move || sender.send(work()).ok());
    async {
        let result = tokio::time::timeout(PROCESS_PATIENCE + PATIENCE, ended).await;
        result.expect("it ends").expect("it does not fail")
    }
}

/// Runs a command until it ends.
pub(crate) fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null());
    output_of(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

/// Waits until a process ends, and returns what it wrote.
pub(crate) fn output_of(child: Child) -> Output {
    let id = child.id();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()).ok());
    match ended.recv_timeout(PROCESS_PATIENCE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            send(id, "KILL");
            panic!("process {id} did not end, or left its outputs open");
        }
    }
}

/// Waits until a process ends.
pub(crate) fn status_of(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PROCESS_PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "process {} runs on", child.id());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a process the signal with this name.
pub(crate) fn send(id: u32, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", name, &id.to_string()]);
    assert!(sent.status().unwrap().success());
}

/// An output of a process. Reading fails if nothing is written for [`PROCESS_PATIENCE`].
pub(crate) struct Patient<R>(pub(crate) R);

impl<R: Read + AsFd> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut waited = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec::try_from(PROCESS_PATIENCE).unwrap();
        if poll(&mut waited, Some(&patience))? == 0 {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.0.read(buffer)
    }
}

/// A server process. It is killed when it is dropped.
pub(crate) struct Process {
    child: Guarded,
    pub(crate) url: String,
    /// Its standard output after the line with its address.
    pub(crate) stdout: BufReader<Patient<ChildStdout>>,
}

impl Process {
    /// Starts `tidings serve` (or another `command`) and waits until it listens.
    pub(crate) fn start(command: &mut Command) -> Process {
        let mut child = Guarded(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut stdout = BufReader::new(Patient(child.0.stdout.take().unwrap()));
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some(url) = line.trim().strip_prefix("Tidings listens on ") else {
            let mut rest = String::new();
            let mut stderr = Patient(child.0.stderr.take().unwrap());
            stderr.read_to_string(&mut rest).ok();
            panic!("the server did not start: {line} {rest}");
        };
        Process {
            url: url.to_owned(),
            child,
            stdout,
        }
    }

    /// Starts a server on this port, for clients that reconnect to it at once after a restart.
    pub(crate) fn on_port(folder: &Path, port: &str) -> Process {
        let mut serve = command(folder);
        serve.arg("serve").env("ROCKET_PORT", port);
        serve.env("TIDINGS_RECONNECT_SPREAD_MS", "0");
        Process::start(&mut serve)
    }

    pub(crate) fn stderr(&mut self) -> Patient<ChildStderr> {
        Patient(self.child.0.stderr.take().unwrap())
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends the signal with this name.
    pub(crate) fn signal(&self, name: &str) {
        send(self.child.0.id(), name);
    }

    /// Returns how many bytes of memory it uses.
    pub(crate) fn memory(&self) -> usize {
        self.status("VmRSS:")
    }

    /// Returns the maximum number of bytes of memory that it has used.
    pub(crate) fn peak_memory(&self) -> usize {
        self.status("VmHWM:")
    }

    fn status(&self, size: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(size));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() * 1024
    }

    /// Sends SIGKILL, which ends it without a shutdown.
    pub(crate) fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// Sends SIGTERM. Returns the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait()
    }

    /// Waits until it ends. Returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        status_of(&mut self.child.0).code()
    }
}

/// A child process that is killed when it is dropped.
pub(crate) struct Guarded(pub(crate) Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process and all processes that it starts, in a process group. It is killed when it is dropped.
pub(crate) struct Group(Child);

impl Group {
    pub(crate) fn start(command: &mut Command) -> Group {
        Group(command.process_group(0).spawn().unwrap())
    }

    /// Whether the process that was started is still running.
    pub(crate) fn runs(&self) -> bool {
        // Not `try_wait`: after that, its id could be reused by another group before this one is killed.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        !stat.contains(") Z ")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        // Fails only if no process is left.
        let _ = Command::new("kill")
            .args(["-s", "KILL", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.0.wait();
    }
}

/// Chromium with all its processes. They are killed when it is dropped.
pub(crate) struct Browser {
    _processes: Group,
    _turn: SemaphorePermit<'static>,
}

/// Permits one browser at a time. A browser keeps a small machine busy for seconds, so others would reach their time
/// limits.
static TURN: Semaphore = Semaphore::const_new(1);

impl Browser {
    /// Opens a page. The browser writes its files below `folder`.
    pub(crate) async fn open(folder: &Path, page: &str) -> Browser {
        let turn = TURN.acquire().await.unwrap();
        let mut command = Command::new("chromium");
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-breakpad",
                "--remote-debugging-port=0",
            ])
            .arg(format!(
                "--user-data-dir={}",
                folder.join("profile").display()
            ))
            .arg(page)
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Browser {
            _processes: Group::start(&mut command),
            _turn: turn,
        }
    }
}
