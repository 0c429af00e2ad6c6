//! The places in the source that are exempt from a rule of the architecture. Each list is exact: a new place is a decision, and a
//! place that is gone leaves its list.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::sources::{code, rust_files};

/// Modules of the server that spawn tasks on no group of `Tasks`; see `tasks.rs`.
const TASKS_OF_THEIR_OWN: &[&str] = &[
    "app/batch.rs",
    "feed/tail.rs",
    "http/pipeline.rs",
    "notify/mqtt/courier.rs",
    "notify/runner.rs",
    "store/postgres/connect.rs",
    "store/postgres/pool.rs",
    "subscribe/catch_up.rs",
];

/// Returns the sources below this folder that have one of these texts in their code, without tests.
fn with(folder: &str, texts: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for path in rust_files(&root.join(folder)) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let code = code(&path);
        let code: String = code.lines().flat_map(|line| [line.trim(), " "]).collect();
        // A call may be on a line of its own.
        let code = code.replace(" .", ".");
        if texts.iter().any(|text| code.contains(text)) {
            let path = path.strip_prefix(&root).unwrap();
            found.insert(path.to_str().unwrap().to_owned());
        }
    }
    found
}

fn named(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn no_http_module_reads_the_store_without_a_service() {
    assert_eq!(with("http", &[".store()"]), named(&[]));
    let with_the_proof = ["http/metrics.rs", "http/monitor/system.rs"];
    assert_eq!(
        with("http", &["reads.store(", "reads().store("]),
        named(&with_the_proof)
    );
}

#[test]
fn only_these_modules_of_the_server_spawn_tasks_outside_its_groups() {
    let mut found = with("", &["tokio::spawn(", "task::spawn(", "JoinSet::new("]);
    // Programs of their own, and the client, which uses nothing of the server.
    found.retain(|path| !path.starts_with("cli/") && !path.starts_with("client/"));
    // Compiled for tests only.
    found.remove("http/stream/echo.rs");
    assert_eq!(found, named(TASKS_OF_THEIR_OWN));
}
