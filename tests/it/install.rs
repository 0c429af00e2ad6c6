//! `docs/install.md` and `docs/backup.md` as an administrator follows them: each of their commands.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::config::Settings;

use crate::support::page::{blocks, shell, text};
use crate::support::process::{Process, binary, command, run};
use crate::support::*;

const PAGE: &str = "docs/install.md";
const BACKUP: &str = "docs/backup.md";
const UNIT: &str = "examples/systemd/tidings.service";

/// The values of a key of the unit, which stand in it more than once where that adds to them.
fn values(unit: &str, key: &str) -> Vec<String> {
    let start = format!("{key}=");
    let lines = unit.lines();
    let values = lines.filter_map(|line| line.strip_prefix(&start));
    values.map(str::to_owned).collect()
}

fn value(unit: &str, key: &str) -> String {
    let values = values(unit, key);
    assert_eq!(values.len(), 1, "{key}");
    values[0].clone()
}

fn secs(unit: &str, key: &str) -> Duration {
    Duration::from_secs(value(unit, key).parse().unwrap())
}

/// A machine below a folder, with the tests in place of its service manager.
struct Machine {
    root: TempDir,
    server: Option<Process>,
    url: String,
}

impl Machine {
    fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        for folder in ["etc", "usr/local/bin", "var/lib"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        // What `useradd` adds to.
        for file in ["passwd", "group", "shadow", "gshadow"] {
            std::fs::write(root.path().join("etc").join(file), "").unwrap();
        }
        Machine {
            root,
            server: None,
            url: String::new(),
        }
    }

    /// What stands on the page or in the unit, below the folder.
    fn below(&self, text: &str) -> String {
        let root = self.root.path().display().to_string();
        ["/etc/systemd", "/etc/tidings", "/usr/local/bin", "/var/lib"]
            .iter()
            .fold(text.to_owned(), |text, path| {
                text.replace(path, &format!("{root}{path}"))
            })
    }

    /// Runs a block line by line, and returns what its commands wrote to standard output.
    fn run(&mut self, block: &str) -> String {
        let mut output = String::new();
        for line in block.lines() {
            match line.strip_prefix("sudo systemctl ") {
                Some("daemon-reload") => {}
                Some("enable --now tidings" | "start tidings") => self.start(),
                Some("stop tidings") => self.stop(),
                Some(other) => panic!("systemctl {other}"),
                None => output.push_str(&self.shell(line)),
            }
        }
        output
    }

    fn shell(&self, line: &str) -> String {
        let root = self.root.path().display();
        let program = format!(" {}", binary().display());
        let line = [
            // It was built, or this test would not run.
            ("cargo build --release", "true"),
            (" target/release/tidings", &program),
            ("sudo -u tidings ", ""),
            ("sudo ", ""),
            (" -o tidings", ""),
            (" -g tidings", ""),
            ("useradd ", &format!("/usr/sbin/useradd --prefix {root} ")),
        ]
        .iter()
        .fold(self.below(line), |line, (from, to)| line.replace(from, to));
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut shell = shell(repository, &line, &self.url);
        let output = run(shell.env_remove("TIDINGS_JWT_SECRET"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn unit(&self) -> String {
        let unit = self.root.path().join("etc/systemd/system/tidings.service");
        self.below(&std::fs::read_to_string(unit).unwrap())
    }

    /// Does what the unit says.
    fn start(&mut self) {
        let unit = self.unit();
        let state = self.below(&format!("/var/lib/{}", value(&unit, "StateDirectory")));
        std::fs::create_dir_all(&state).unwrap();
        let mode = u32::from_str_radix(&value(&unit, "StateDirectoryMode"), 8).unwrap();
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode)).unwrap();
        let start = value(&unit, "ExecStart");
        let (program, arguments) = start.split_once(' ').unwrap();
        let mut serve = Command::new(program);
        serve
            .args(arguments.split(' '))
            .current_dir(value(&unit, "WorkingDirectory"));
        for (name, _) in command(self.root.path()).get_envs() {
            serve.env_remove(name);
        }
        for setting in values(&unit, "Environment") {
            let (name, value) = setting.split_once('=').unwrap();
            serve.env(name, value);
        }
        // Others may listen on port 8000.
        let server = Process::start(serve.env("ROCKET_PORT", "0"));
        self.url = server.url.clone();
        self.server = Some(server);
    }

    fn stop(&mut self) {
        let unit = self.unit();
        let mut server = self.server.take().unwrap();
        let begun = Instant::now();
        server.signal(value(&unit, "KillSignal").trim_start_matches("SIG"));
        assert_eq!(server.wait(), Some(0));
        assert!(begun.elapsed() < secs(&unit, "TimeoutStopSec"));
    }

    async fn post(&self, token: &str, id: &str) -> Value {
        let request = reqwest::Client::new().post(format!("{}/api/jobs", self.url));
        let body = json!({"job_id": id, "job_type": "t"});
        let (status, response) = answer(request.bearer_auth(token).json(&body)).await;
        assert_eq!(status, 201, "{response}");
        response
    }

    async fn has(&self, token: &str, id: &str) -> bool {
        let request = reqwest::Client::new().get(format!("{}/api/jobs/{id}", self.url));
        answer(request.bearer_auth(token)).await.0 == 200
    }
}

/// What a reader receives that comes back with this cursor: the reason of a `reset`, or the jobs since.
pub(crate) async fn comes_back(
    url: &str,
    token: &str,
    cursor: &Value,
) -> Result<Vec<String>, String> {
    let cursor = cursor.as_str().unwrap();
    let address = format!("{url}/events/jobs?wait=0&cursor={cursor}");
    let request = reqwest::Client::new().get(address).bearer_auth(token);
    let (_, page) = answer(request.header("Accept", "application/json")).await;
    let messages = page["messages"].as_array().unwrap();
    if let Some(reset) = messages.iter().find(|message| message["type"] == "reset") {
        return Err(reset["reason"].as_str().unwrap().to_owned());
    }
    let jobs = messages
        .iter()
        .filter_map(|message| message["job_id"].as_str());
    Ok(jobs.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a whole installation"]
async fn the_pages_install_upgrade_back_up_and_restore_a_server() {
    let is_root = rustix::process::geteuid().is_root();
    if !needs("curl") || !needs("sqlite3") || !(is_root || skip("root, for useradd,")) {
        return;
    }
    let page = blocks(PAGE, "sh");
    let [build, service, token, upgrade] = &page[..] else {
        panic!("{PAGE} has {} blocks of commands", page.len());
    };
    let page = blocks(BACKUP, "sh");
    let [vacuum, backup, stopped, restore, restore_folder] = &page[..] else {
        panic!("{BACKUP} has {} blocks of commands", page.len());
    };
    let mut machine = Machine::new();
    machine.run(build);
    machine.run(service);
    let users = std::fs::read_to_string(machine.root.path().join("etc/passwd")).unwrap();
    assert!(users.starts_with("tidings:"), "{users}");
    let token = machine.run(token).trim().to_owned();
    let first = machine.post(&token, "first").await;

    machine.run(upgrade);
    assert!(machine.has(&token, "first").await);
    let second = machine.post(&token, "second").await;
    let since = comes_back(&machine.url, &token, &first["cursor"]).await;
    assert_eq!(since.unwrap(), ["second"], "cursors stay valid");

    let (mut kept, mut lost) = (vec![first, second], Vec::new());
    for (round, (backup, restore)) in [
        (vacuum, restore),
        (backup, restore),
        (stopped, restore_folder),
    ]
    .into_iter()
    .enumerate()
    {
        machine.run(backup);
        let name = format!("lost{round}");
        lost.push(machine.post(&token, &name).await);
        machine.run(restore);
        assert!(machine.has(&token, "second").await && !machine.has(&token, &name).await);
        kept.push(machine.post(&token, &format!("other{round}")).await);
        for event in &kept {
            let since = comes_back(&machine.url, &token, &event["cursor"]).await;
            assert!(since.is_ok(), "{since:?}");
        }
        for lost in &lost {
            let since = comes_back(&machine.url, &token, &lost["cursor"]).await;
            assert_eq!(since.unwrap_err(), "history_changed");
        }
    }
    machine.stop();
}

#[test]
fn the_unit_is_valid_and_fits_the_settings() {
    let unit = text(UNIT);
    let settings = Settings::default();
    let files: u64 = value(&unit, "LimitNOFILE").parse().unwrap();
    // As `tidings serve` counts them: three for each reader of the database, and some of its own.
    let streams = settings.max_streams.get() as u64;
    let wanted = streams + 3 * u64::from(settings.reader_connections.get()) + 128;
    assert!(files >= wanted);
    // `shutdown.grace`, `shutdown.mercy`, and what notifiers have.
    assert!(secs(&unit, "TimeoutStopSec") > Duration::from_secs(5 + 2 + 3));
    if !needs("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("tidings.service");
    let program = binary().display().to_string();
    std::fs::write(&copy, unit.replace("/usr/local/bin/tidings", &program)).unwrap();
    let verified = run(Command::new("systemd-analyze").arg("verify").arg(&copy));
    let stderr = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && !stderr.contains("tidings.service"),
        "{stderr}"
    );
}
