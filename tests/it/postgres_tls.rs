//! TLS to Postgres: what each `sslmode` demands of a real server with a certificate.

use std::path::Path;
use std::process::Command;

use tidings::config::Settings;
use tidings::log::Committed;
use tidings::store::postgres::{Address, PostgresStore};
use tokio_postgres::NoTls;

use crate::support::postgres::{self, Cluster, Database};
use crate::support::process::{blocking, command, run};
use crate::support::{needs, part, skip};

/// Makes a certificate, `<name>.pem`, which is its own authority, and its key, `<name>.key`.
fn make_certificate(folder: &Path, name: &str) {
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1".split(' '),
        )
        .args(["-subj", &format!("/CN={name}")])
        .args("-addext subjectAltName=IP:127.0.0.1".split(' '))
        .args("-addext basicConstraints=critical,CA:FALSE".split(' '))
        .args([
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.pem"),
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A server with the certificate `right.pem`, which is for 127.0.0.1 only, and a folder that also has `other.pem`.
struct Encrypted {
    database: Database,
    folder: tempfile::TempDir,
    _cluster: Cluster,
}

impl Encrypted {
    fn start() -> Option<Encrypted> {
        let Some(bin) = postgres::programs() else {
            skip("PostgreSQL");
            return None;
        };
        if !needs("openssl") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["right", "other"] {
            make_certificate(folder.path(), name);
        }
        // The server rejects a key that belongs to another user. Openssl creates keys with mode 0600.
        part::as_ordinary_user(folder.path());
        let file = |name: &str| folder.path().join(name).display().to_string();
        let certificate = format!("ssl_cert_file={}", file("right.pem"));
        let key = format!("ssl_key_file={}", file("right.key"));
        let cluster = Cluster::start(&bin, &["ssl=on", &certificate, &key]);
        Some(Encrypted {
            database: cluster.database(),
            folder,
            _cluster: cluster,
        })
    }

    /// Opens a store by this host with these parameters. Returns whether its connections are encrypted, or why it failed.
    async fn open(&self, host: &str, mode: &str, roots: Option<&str>) -> Result<bool, String> {
        let url = self.database.url.replace("127.0.0.1", host);
        let name = format!("{host}-{mode}-{}", roots.unwrap_or("none"));
        let mut url = format!("{url}?sslmode={mode}&application_name={name}");
        if let Some(roots) = roots {
            let roots = self.folder.path().join(roots);
            url.push_str(&format!("&sslrootcert={}", roots.display()));
        }
        let address = Address::parse(&url.into(), true).unwrap();
        let (committed, _) = Committed::channel(10);
        let opened =
            blocking(move || PostgresStore::open(&Settings::default(), address, committed, &[]));
        let store = opened.await.map_err(|error| error.to_string())?;
        // A connection stays open after a read.
        tidings::log::Catalog::schools(&store, None, 1)
            .await
            .unwrap();
        let connecting = tokio_postgres::connect(&self.database.url, NoTls);
        let (client, connection) = connecting.await.unwrap();
        tokio::spawn(connection);
        let rows = client
            .query(
                "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = $1",
                &[&name],
            )
            .await
            .unwrap();
        let encrypted: Vec<bool> = rows.iter().map(|row| row.get(0)).collect();
        let first = *encrypted.first().expect("a connection of the store");
        assert!(encrypted.iter().all(|ssl| *ssl == first), "{encrypted:?}");
        tidings::log::Journal::close(&store).await.unwrap();
        Ok(first)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: starts a server of its own"]
async fn sslmode_decides_on_encryption_and_on_what_is_verified() {
    let Some(server) = Encrypted::start() else {
        return;
    };
    for (mode, roots, encrypted) in [
        ("disable", None, false),
        ("prefer", None, true),
        ("require", None, true),
        ("require", Some("right.pem"), true),
        ("verify-ca", Some("right.pem"), true),
        ("verify-full", Some("right.pem"), true),
    ] {
        let opened = server.open("127.0.0.1", mode, roots).await;
        assert_eq!(opened, Ok(encrypted), "{mode} {roots:?}");
    }
    // Without a verification, any name will do.
    assert_eq!(server.open("localhost", "require", None).await, Ok(true));
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = server.open("127.0.0.1", mode, Some("other.pem")).await;
        let error = error.expect_err(mode);
        assert!(
            error.contains("is not accepted") && error.contains("UnknownIssuer"),
            "{mode}: {error}"
        );
        let error = server.open("localhost", mode, Some("right.pem")).await;
        let error = error.expect_err(mode);
        assert!(error.contains("not valid for name"), "{mode}: {error}");
    }
    // It is no reason to wait: somebody has to correct the settings.
    let folder = tempfile::tempdir().unwrap();
    let roots = server.folder.path().join("other.pem");
    let url = &server.database.url;
    let url = format!("{url}?sslmode=verify-full&sslrootcert={}", roots.display());
    let output = run(command(folder.path())
        .env("TIDINGS_DATABASE_URL", url)
        .arg("serve"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected = "the certificate of Postgres is not accepted: ";
    assert!(
        !output.status.success() && stderr.contains(expected),
        "{stderr}"
    );
}
