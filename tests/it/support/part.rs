//! Programs that belong to the tests: databases, message servers, poolers. They end with the test process, however that ends.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts the program, and ends it when its standard input ends, which the test process holds open. Then it removes the
/// folder. The signal is repeated, because a program that has just started ignores it. If the program ends by itself, its folder
/// stays for a look at its log.
const KEEPER: &str = r#"
signal=$1 folder=$2
shift 2
exec 3<&0
"$@" 3<&- &
program=$!
{ read -r _ <&3; : >"$folder/over"; while kill -s "$signal" "$program"; do sleep 0.1; done; } 2>/dev/null &
keeper=$!
wait "$program"
code=$?
kill "$keeper" 2>/dev/null
if [ -e "$folder/over" ]; then rm -rf "$folder"; fi
exit "$code"
"#;

/// A running program with a folder of its own. Both are removed when it is dropped, or when the test process ends.
pub(crate) struct Part {
    keeper: Child,
    folder: PathBuf,
}

/// How a program is run.
pub(crate) struct Program {
    /// The program with its arguments.
    pub(crate) arguments: Vec<OsString>,
    /// Its folder, which it gets as its working directory. It must be empty or belong to it already.
    pub(crate) folder: PathBuf,
    /// The signal that ends it without delay.
    pub(crate) signal: &'static str,
    /// Whether it refuses to run as root.
    pub(crate) unprivileged: bool,
}

impl Program {
    /// Starts it. Its output goes to `log` in its folder.
    pub(crate) fn start(self) -> Part {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let mut arguments = self.arguments;
        if self.unprivileged {
            arguments.splice(0..0, as_ordinary_user(&self.folder));
        }
        // A group of its own, so that Ctrl-C in a terminal ends the tests first.
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", self.signal])
            .arg(&self.folder)
            .args(arguments)
            .current_dir(&self.folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Part {
            keeper,
            folder: self.folder,
        }
    }
}

impl Part {
    /// Whether it is still running.
    pub(crate) fn runs(&mut self) -> bool {
        self.keeper.try_wait().unwrap().is_none()
    }

    /// Returns what it has written to its output.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // Fails only if it has already been waited for.
        let _ = self.keeper.wait();
        // It is still there only if the program ended by itself.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Creates a folder for a program. Its [`Part`] removes it.
pub(crate) fn folder(name: &str) -> PathBuf {
    let prefix = format!("tidings-{name}-");
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir()
        .unwrap()
        .keep()
}

/// Returns a port of the loopback interface on which nothing listens.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Returns the beginning of a command that runs a program as an ordinary user, if this process runs as root. The folder then
/// belongs to that user.
pub(crate) fn as_ordinary_user(folder: &Path) -> Vec<OsString> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let user = ["postgres", "nobody"]
        .into_iter()
        .find(|user| {
            let id = Command::new("id").arg(user).output();
            id.is_ok_and(|id| id.status.success())
        })
        .expect("a user `nobody`");
    let owned = Command::new("chown")
        .arg("-R")
        .arg(user)
        .arg(folder)
        .status();
    assert!(owned.unwrap().success());
    let group = Command::new("id").args(["-g", user]).output().unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    [
        "setpriv".into(),
        format!("--reuid={user}"),
        format!("--regid={}", group.trim()),
        "--clear-groups".into(),
        "--".into(),
    ]
    .map(OsString::from)
    .into()
}
