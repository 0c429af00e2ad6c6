//! What a new kind takes: parcels, whose files are in `tests/toy-kind`.
//!
//! A kind is a module, a table, and a line in the list of either, with the `mod` that Rust wants. Everything else follows
//! from the kind's description: HTTP, batches, streams, searches, the monitor's table and tab, `tidings watch`.
//!
//! Tests run in the order of their names, and the build takes longer than any of them. By the name of this module, it is among the first,
//! and the others run meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::process::{self, Process};
use crate::support::*;

/// Files that it adds: where they stand in the source tree, and in `tests/toy-kind`.
const ADDED: [(&str, &str); 4] = [
    ("src/kind/parcel.rs", "parcel.rs"),
    ("src/store/sqlite/parcels.rs", "parcels.rs"),
    (
        "migrations/sqlite/99999999999999_parcels/up.sql",
        "migration/up.sql",
    ),
    (
        "migrations/sqlite/99999999999999_parcels/down.sql",
        "migration/down.sql",
    ),
];

/// Lines that it adds to other files: the file, the line before, and the line.
const LINES: [(&str, &str, &str); 4] = [
    ("src/kind/mod.rs", "pub mod job;\n", "pub mod parcel;\n"),
    (
        "src/kind/mod.rs",
        "    Characteristic(characteristic::Characteristic) as characteristic;\n",
        "    /// For parcels.\n    Parcel(parcel::Parcel) as parcel;\n",
    ),
    (
        "src/store/sqlite/mod.rs",
        "mod opening;\n",
        "mod parcels;\n",
    ),
    (
        "src/store/sqlite/tables.rs",
        "    (kind::device::KIND, &DevicesTable),\n",
        "    (kind::parcel::KIND, &super::parcels::ParcelsTable),\n",
    ),
];

/// The program with the new kind. Its name differs, so that it does not take the place of the one under test.
const PROGRAM: &str = "tidings-with-parcels";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Changes a file in place: `from` must be there once.
fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{}: {from}", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// A copy of the source tree with parcels in it.
fn tree_with_parcels(tree: &Path) {
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "benches",
        "examples",
        "migrations",
        "src",
        "templates",
        "tests/it",
        "tests/interleavings.rs",
    ] {
        let to = tree.join(part);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy(&root().join(part), &to);
    }
    for (path, source) in ADDED {
        let to = tree.join(path);
        assert!(!to.exists(), "{path} is new");
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy(&root().join("tests/toy-kind").join(source), &to);
    }
    for (path, before, line) in LINES {
        replace(&tree.join(path), before, &format!("{before}{line}"));
    }
}

/// Every file below a folder, with its text.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn a_new_kind_is_a_module_a_table_and_a_line_for_each() {
    let folder = tempfile::tempdir().unwrap();
    tree_with_parcels(folder.path());
    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for (path, text) in files(folder.path()) {
        let path = path.strip_prefix(folder.path()).unwrap();
        let name = path.display().to_string();
        match fs::read(root().join(path)) {
            Err(_) => added.push(name),
            Ok(before) if before == text => {}
            Ok(before) => {
                let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').count();
                changed.push((name, lines(&text) - lines(&before)));
            }
        }
    }
    added.sort();
    changed.sort();
    assert_eq!(
        added,
        [
            "migrations/sqlite/99999999999999_parcels/down.sql",
            "migrations/sqlite/99999999999999_parcels/up.sql",
            "src/kind/parcel.rs",
            "src/store/sqlite/parcels.rs"
        ]
    );
    let expected = [
        ("src/kind/mod.rs", 3),
        ("src/store/sqlite/mod.rs", 1),
        ("src/store/sqlite/tables.rs", 1),
    ];
    assert_eq!(
        changed,
        expected.map(|(name, lines)| (name.to_owned(), lines))
    );
}

/// Builds the program with the new kind. The tree has a version of its own: Cargo would take its artifacts for those of this
/// tree, whose place in its workspace is the same, and would not notice later changes here.
fn built() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = temporary.join("toy-kind");
    if tree.exists() {
        fs::remove_dir_all(&tree).unwrap();
    }
    tree_with_parcels(&tree);
    let manifest = tree.join("Cargo.toml");
    let program = format!("[[bin]]\nname = \"{PROGRAM}\"");
    replace(&manifest, "[[bin]]\nname = \"tidings\"", &program);
    let version = env!("CARGO_PKG_VERSION");
    let package = |version: &str| format!("name = \"tidings\"\nversion = \"{version}\"");
    let renamed = package(&format!("{version}-parcels"));
    replace(&manifest, &package(version), &renamed);
    let default = format!("default-run = \"{PROGRAM}\"");
    replace(&manifest, "default-run = \"tidings\"", &default);
    let target = temporary.parent().unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| env!("CARGO").to_owned());
    // A test target, so that dependencies have the features of tests and are not built a second time.
    // The other tests that run meanwhile have real timeouts.
    let mut build = Command::new("nice");
    // What Cargo has set for this test would make build scripts run again.
    for (name, _) in std::env::vars() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            build.env_remove(name);
        }
    }
    let build = build
        .args([
            "-n",
            "19",
            &cargo,
            "build",
            "--offline",
            "--bin",
            PROGRAM,
            "--test",
        ])
        .arg("interleavings")
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&build.stderr);
    assert!(build.status.success(), "{log}");
    assert!(!log.contains("warning: "), "{log}");
    target.join("debug").join(PROGRAM)
}

fn serve(program: &Path, folder: &Path) -> Process {
    let usual = process::command(folder);
    let mut serve = Command::new(program);
    serve.arg("serve").current_dir(folder);
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => serve.env(name, value),
            None => serve.env_remove(name),
        };
    }
    Process::start(&mut serve)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: compiles a copy of the crate"]
async fn a_new_kind_publishes_streams_lists_and_shows_on_the_monitor() {
    let program = tokio::task::spawn_blocking(built).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = serve(&program, folder.path());
    let http = reqwest::Client::new();
    let request = |method: &str, path: &str, token: &str| {
        let url = format!("{}{path}", server.url);
        http.request(method.parse().unwrap(), url)
            .bearer_auth(token)
    };
    let post = async |path: &str, body: Value| {
        let (status, answered) = answer(request("POST", path, &worker(1)).json(&body)).await;
        (status, answered)
    };

    // Published.
    let (status, sent) = post("/api/parcels", json!({"parcel_id": 7, "recipient": "Ada"})).await;
    assert_eq!((status, &sent["type"]), (201, &json!("parcel_update")));
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        let scope = "/parcels?id_type=number";
        let mut listener = Listener::open(transport, &server.url, scope, &viewer(1), None).await;
        let snapshot = listener.until_ready().await;
        let states: Vec<_> = snapshot
            .iter()
            .filter(|parcel| parcel["snapshot"] == true)
            .collect();
        assert_eq!(states.len(), 1, "{transport:?} {snapshot:?}");
        assert_eq!(
            (&states[0]["parcel_id"], &states[0]["status"]),
            (&json!(7), &json!("sent"))
        );
        listeners.push(listener);
    }
    assert_eq!(post("/api/parcels/7/deliver", json!({})).await.0, 200);
    let (status, rejected) = post("/api/parcels/7/deliver", json!({})).await;
    assert_eq!((status, &rejected["code"]), (409, &json!("finished")));
    assert_eq!(post("/api/parcels/8/deliver", json!({})).await.0, 404);
    assert_eq!(post("/api/parcels/7/open", json!({})).await.0, 404);
    let line = json!({"op": "parcels.create", "parcel_id": "b", "recipient": "Grace"});
    let batch = request("POST", "/api/batch", &worker(1)).body(line.to_string());
    assert_eq!(answer(batch).await.1["status"], 200);

    // Streamed.
    for mut listener in listeners {
        let delivered = listener
            .take_until(|message| message["status"] == "delivered")
            .await;
        assert_eq!(delivered.last().unwrap()["recipient"], "Ada");
        listener
            .take_until(|message| message["parcel_id"] == "b")
            .await;
    }

    // Listed, filtered and searched; the other school has none.
    let ids = async |query: &str, token: &str| -> Vec<Value> {
        let path = format!("/api/parcels{query}");
        let (_, list) = answer(request("GET", &path, token)).await;
        let parcels = list["parcels"].as_array().unwrap();
        parcels
            .iter()
            .map(|parcel| parcel["parcel_id"].clone())
            .collect()
    };
    let viewer = viewer(1);
    assert_eq!(ids("", &viewer).await, ["b", "7"]);
    assert_eq!(ids("?status=delivered", &viewer).await, ["7"]);
    assert_eq!(ids("?q=grace", &viewer).await, ["b"]);
    assert!(ids("", &worker(2)).await.is_empty());

    // Described.
    let (_, document) = answer(request("GET", "/openapi.json", &viewer)).await;
    let deliver = &document["paths"]["/api/parcels/{parcel_id}/deliver"]["post"];
    assert!(deliver["responses"]["409"].is_object(), "{deliver}");
    let (_, document) = answer(request("GET", "/asyncapi.json", &viewer)).await;
    let update = &document["components"]["messages"]["ParcelUpdate"]["payload"];
    assert!(update["properties"]["recipient"].is_object(), "{update}");

    // NotifierStatus.
    let page = request("GET", "/monitor/schools/1/parcels", &viewer)
        .header("Cookie", format!("tidings_token={viewer}"))
        .send();
    let page = page.await.unwrap().text().await.unwrap();
    for part in [
        "<h1>Parcels</h1>",
        "parcels\" aria-current=\"page\">Parcels</a>",
        "<th scope=\"col\">Recipient</th>",
        "<bdi>Ada</bdi>",
        "<bdi>Grace</bdi>",
        "delivered</span>",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
}
