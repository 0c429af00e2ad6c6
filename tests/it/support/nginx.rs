//! A real reverse proxy.

use std::process::{Command, Stdio};

use super::process::Guarded;
use super::{Server, until};

/// nginx as Debian ships it, in front of a server; stopped when it is dropped.
pub(crate) struct Proxy {
    _process: Guarded,
    pub(crate) url: String,
}

impl Proxy {
    /// With more directives for the place that everything is below; also at `/old/` over HTTP/1.0.
    pub(crate) async fn open(server: &Server, directives: &str) -> Proxy {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let folder = server.folder.path().join("nginx");
        std::fs::create_dir(&folder).unwrap();
        let (dir, upstream) = (folder.display(), server.url.trim_start_matches("http://"));
        // No `proxy_buffering off`: the server's own headers must do.
        let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log; events {{}}
        http {{
            access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
            uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;
            map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Host $http_host;
                    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
                    {directives}
                }}
                location /old/ {{ proxy_pass http://{upstream}/; proxy_http_version 1.0; }}
            }}
        }}"
    );
        let path = folder.join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&path)
            .arg("-p")
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Proxy {
            _process: Guarded(child),
            url: format!("http://127.0.0.1:{port}"),
        };
        until("nginx listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
        })
        .await;
        proxy
    }
}
