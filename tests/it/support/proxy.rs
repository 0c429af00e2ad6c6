//! Real proxies, with the configurations from `docs/proxies.md`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::Group;
use super::{PATIENCE, Server, needs, until};

const PAGE: &str = include_str!("../../../docs/proxies.md");

/// Number of attempts. Another program may take a free port before the proxy does.
const ATTEMPTS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Nginx,
    HaProxy,
    Caddy,
    Apache,
    Traefik,
    Squid,
    /// A forward proxy between the clients and the internet, not in front of the server.
    SquidForward,
}

/// A proxy with all its processes. They are killed when it is dropped.
pub(crate) struct Proxy {
    processes: Group,
    log: PathBuf,
    /// The URL to use in place of the server's.
    pub(crate) url: String,
    /// The same over TLS.
    pub(crate) secure_url: String,
    /// The certificate of `secure_url`.
    pub(crate) certificate: PathBuf,
}

/// Returns the code block of the page that starts with this comment.
fn block(title: &str) -> String {
    let start = format!("\n# {title}\n");
    let (_, rest) = PAGE
        .split_once(&start)
        .unwrap_or_else(|| panic!("docs/proxies.md has no block {title:?}"));
    rest.split("```").next().unwrap().to_owned()
}

/// Returns a port on which nothing listens.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Program {
    fn command(self) -> String {
        match self {
            Program::Nginx => "nginx".into(),
            Program::HaProxy => "haproxy".into(),
            Program::Caddy => "caddy".into(),
            Program::Apache => "apache2".into(),
            Program::Traefik => std::env::var("TRAEFIK").unwrap_or_else(|_| "traefik".into()),
            Program::Squid | Program::SquidForward => "squid".into(),
        }
    }

    /// Whether it is installed. If not, reports that the test is skipped.
    pub(crate) fn is_here(self) -> bool {
        needs(&self.command())
    }

    /// Returns the code blocks of its configuration: their titles, and the files to write them to.
    fn blocks(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Program::Nginx => &[("/etc/nginx/nginx.conf", "nginx.conf")],
            Program::HaProxy => &[("/etc/haproxy/haproxy.cfg", "haproxy.cfg")],
            Program::Caddy => &[("/etc/caddy/Caddyfile", "Caddyfile")],
            Program::Apache => &[("/etc/apache2/tidings.conf", "tidings.conf")],
            Program::Traefik => &[
                ("/etc/traefik/traefik.yml", "traefik.yml"),
                ("/etc/traefik/tidings.yml", "tidings.yml"),
            ],
            Program::Squid => &[("/etc/squid/squid.conf, in front of a server", "squid.conf")],
            Program::SquidForward => {
                &[("/etc/squid/squid.conf, in a school's network", "squid.conf")]
            }
        }
    }

    /// Whether its configuration contains this text.
    pub(crate) fn says(self, passage: &str) -> bool {
        let mut blocks = self.blocks().iter();
        blocks.any(|(title, _)| block(title).contains(passage))
    }

    /// Returns the changes to the page's configuration that let it run in `dir`, at the same time as others.
    fn substitutions(self, dir: &str) -> Vec<(&'static str, String)> {
        let inside = |name: &str| format!("{dir}/{name}");
        match self {
            Program::Nginx => vec![
                ("user www-data;\n", String::new()),
                ("/run/nginx.pid", inside("pid")),
                ("/var/log/nginx", dir.to_owned()),
                (
                    "http {\n",
                    format!(
                        "http {{ client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
                        uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n"
                    ),
                ),
            ],
            Program::HaProxy => vec![
                ("/dev/log local0", "stderr format raw local0".into()),
                ("maxconn 40000", "maxconn 1000".into()),
            ],
            Program::Caddy => vec![("default_bind 0.0.0.0", "admin off\n\tdefault_bind 127.0.0.1".into())],
            Program::Apache => vec![
                ("/run/apache2", dir.to_owned()),
                ("/var/log/apache2", dir.to_owned()),
            ],
            Program::Traefik => vec![("/etc/traefik", dir.to_owned())],
            Program::Squid | Program::SquidForward => vec![(
                "access_log stdio:/var/log/squid/access.log",
                "access_log none\npid_filename none\nnetdb_filename none\npinger_enable off\ncache_log /dev/stderr".into(),
            )],
        }
    }

    /// Returns the command that runs it in the foreground, with its configuration in `dir`.
    fn started_in(self, dir: &Path) -> Command {
        let mut command = Command::new(self.command());
        match self {
            Program::Nginx => command
                .args(["-g", "daemon off;", "-c", "nginx.conf", "-p"])
                .arg(dir),
            Program::HaProxy => command.args(["-db", "-f", "haproxy.cfg"]),
            Program::Caddy => command.args(["run", "--config", "Caddyfile"]),
            Program::Apache => command
                .args(["-DFOREGROUND", "-f"])
                .arg(dir.join("tidings.conf")),
            Program::Traefik => command.arg("--configfile=traefik.yml"),
            Program::Squid | Program::SquidForward => command.args(["-N", "-f", "squid.conf"]),
        };
        // Caddy's own data stays in the folder as well.
        command
            .current_dir(dir)
            .env("HOME", dir)
            .env("XDG_CONFIG_HOME", dir)
            .env("XDG_DATA_HOME", dir);
        command
    }
}

impl Proxy {
    /// Starts it in front of a server, with these replacements in its configuration, and waits until it responds.
    pub(crate) async fn open(
        program: Program,
        server: &Server,
        replaced: &[(&str, &str)],
    ) -> Proxy {
        for attempt in 1..=ATTEMPTS {
            let proxy = Proxy::start(program, server, replaced, attempt);
            if proxy.answers(program, server).await {
                return proxy;
            }
            let log = std::fs::read_to_string(&proxy.log).unwrap();
            assert!(attempt < ATTEMPTS, "{program:?} does not start: {log}");
        }
        unreachable!("the last attempt returns or fails")
    }

    fn start(
        program: Program,
        server: &Server,
        replaced: &[(&str, &str)],
        attempt: usize,
    ) -> Proxy {
        let folder = server.folder.path().join(format!("{program:?}-{attempt}"));
        std::fs::create_dir(&folder).unwrap();
        let certificate = certificate(&folder);
        let dir = folder.to_str().unwrap();
        let (port, secure_port) = (free_port(), free_port());
        let upstream = server.url.rsplit(':').next().unwrap();
        let mut everywhere = vec![
            ("0.0.0.0:", "127.0.0.1:".to_owned()),
            ("8000", upstream.to_owned()),
            ("8080", port.to_string()),
            ("8443", secure_port.to_string()),
            ("3128", port.to_string()),
            (
                "/etc/ssl/tidings.pem",
                folder.join("tidings.pem").display().to_string(),
            ),
        ];
        if program == Program::SquidForward {
            // The server's public port, to which the tunnels lead.
            everywhere.push(("443", upstream.to_owned()));
        }
        let mut substitutions = program.substitutions(dir);
        substitutions.extend(replaced.iter().map(|(from, to)| (*from, (*to).to_owned())));
        let blocks = program.blocks();
        let texts: Vec<String> = blocks.iter().map(|(title, _)| block(title)).collect();
        for (from, _) in &substitutions {
            assert!(
                texts.iter().any(|text| text.contains(from)),
                "docs/proxies.md does not say {from:?} of {program:?}"
            );
        }
        substitutions.extend(everywhere);
        for (text, (_, file)) in texts.iter().zip(blocks) {
            std::fs::write(folder.join(file), substituted(text, &substitutions)).unwrap();
        }
        let log = folder.join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut command = program.started_in(&folder);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        Proxy {
            processes: Group::start(&mut command),
            log,
            url: format!("http://127.0.0.1:{port}"),
            secure_url: format!("https://127.0.0.1:{secure_port}"),
            certificate,
        }
    }

    /// Waits until the server responds through it. Returns false if it ends before that.
    async fn answers(&self, program: Program, server: &Server) -> bool {
        let (url, http) = match program {
            Program::SquidForward => (&server.url, self.client()),
            _ => (&self.url, reqwest::Client::new()),
        };
        let request = http.get(format!("{url}/healthz")).timeout(PATIENCE);
        let mut runs = true;
        until(&format!("{program:?} answers"), async || {
            runs = self.processes.runs();
            let answer = request.try_clone().unwrap().send().await;
            !runs || answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        runs
    }

    /// Returns a client that uses it as a forward proxy.
    pub(crate) fn client(&self) -> reqwest::Client {
        let proxy = reqwest::Proxy::all(&self.url).unwrap();
        reqwest::Client::builder().proxy(proxy).build().unwrap()
    }
}

/// Creates a certificate for this machine, and `tidings.pem`, which contains it with its key.
fn certificate(folder: &Path) -> PathBuf {
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let both = [&certificate, &key].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(folder.join("tidings.pem"), both.concat()).unwrap();
    certificate
}

/// Replaces everything in one pass, so that no replacement is itself replaced.
fn substituted(text: &str, replaced: &[(&str, String)]) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match replaced.iter().find(|(from, _)| rest.starts_with(from)) {
            Some((from, to)) => {
                result.push_str(to);
                rest = &rest[from.len()..];
            }
            None => {
                result.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    result
}
