//! Search in lists (`q`): what finds what, of each kind, over the API and on the pages.

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};
use tidings::config::INDEXED_TEXT_MAX_BYTES;

use crate::silence::connect;
use crate::support::*;

/// Undoes the migration that made the index of texts.
const WITHOUT_INDEX: &str =
    include_str!("../../migrations/sqlite/00000000000016_job_texts/down.sql");

/// The address of a list with this search; every byte that is not plain is escaped.
fn search(collection: &str, text: &str) -> String {
    let escaped: String = text
        .bytes()
        .map(|byte| match byte.is_ascii_alphanumeric() {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect();
    format!("{collection}?q={escaped}")
}

/// The ids of those that a search finds, oldest first.
async fn found(server: &Server, collection: &str, id_field: &str, text: &str) -> Vec<String> {
    let path = search(&format!("/api/{collection}"), text);
    let (status, page) = server.get(&path, &viewer(1)).await;
    assert_eq!(status, 200, "{text}: {page}");
    let items = page[collection].as_array().unwrap();
    let id = |item: &Value| item[id_field].as_str().unwrap().to_owned();
    items.iter().rev().map(id).collect()
}

async fn job(server: &Server, id: &str, message: &str, metadata: Value) {
    let body = json!({"job_id": id, "job_type": "t", "message": message, "metadata": metadata});
    server.report("/api/jobs", body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_differs_only_in_case_in_any_script() {
    let server = server().await;
    let texts = [
        ("de", "Übergröße für Änne"),
        ("fr", "École supérieure"),
        ("el", "ΟΔΟΣ Σίσυφος"),
        ("ru", "Сканирование"),
        ("tr", "İstanbul"),
        ("ascii", "Plain Text"),
    ];
    for (id, text) in texts {
        job(&server, id, text, json!({})).await;
        job(&server, &format!("{id}2"), "", json!({"a": [{"b": text}]})).await;
    }
    for (wanted, id) in [
        ("ÜBERGRÖSSE", "de"),
        ("übergröße FÜR ä", "de"),
        ("u\u{308}bergro\u{308}sse", "de"),
        ("école SUPÉRIEURE", "fr"),
        ("e\u{301}cole", "fr"),
        ("οδος", "el"),
        ("οδοσ", "el"),
        ("ΣΊΣΥΦΟΣ", "el"),
        ("СКАНИРОВАНИЕ", "ru"),
        ("İSTANBUL", "tr"),
        ("stanbul", "tr"),
        ("plain tEXT", "ascii"),
    ] {
        let two = [id.to_owned(), format!("{id}2")];
        assert_eq!(found(&server, "jobs", "job_id", wanted).await, two);
    }
    for wanted in ["ecole", "Übergroße ", "éé", "plain\u{301}"] {
        assert!(
            found(&server, "jobs", "job_id", wanted).await.is_empty(),
            "{wanted}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_reads_the_values_of_metadata_and_neither_its_names_nor_its_syntax() {
    let server = server().await;
    let metadata = json!({
        "title": "Report \"7\"\nof\u{e9}t\u{e9} D:\\files",
        "deep": [{"serial": 18_446_744_073_709_551_615_u64, "ratio": 0.25}, [true, null]],
    });
    job(&server, "a", "", metadata).await;
    job(&server, "plain", "", json!({"title": "plain"})).await;
    for wanted in [
        "report \"7\"",
        "\"7\"\nofété",
        "été",
        "d:\\FILES",
        "18446744073709551615",
        "0.25",
    ] {
        let ids = found(&server, "jobs", "job_id", wanted).await;
        assert_eq!(ids, ["a"], "{wanted}");
    }
    for wanted in [
        "title", "deep", "serial", "{", "[", ",", "\":\"", "\\n", "\\\"", "u00e9", "true", "null",
    ] {
        let ids = found(&server, "jobs", "job_id", wanted).await;
        assert!(ids.is_empty(), "{wanted}: {ids:?}");
    }
    assert_eq!(found(&server, "jobs", "job_id", "\"").await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_takes_every_sign_for_itself_and_u_0000_for_nothing() {
    let server = server().await;
    job(&server, "a", "100% of a_b\\c*?", json!({})).await;
    job(&server, "b", "100 of axb/c", json!({})).await;
    job(&server, "nul", "before\0Behind", json!({"x": "in\0side"})).await;
    for (wanted, ids) in [
        ("100%", &["a"][..]),
        ("a_b", &["a"]),
        ("\\", &["a"]),
        ("*?", &["a"]),
        ("%", &["a"]),
        ("_", &["a"]),
        ("' OR 1=1 --", &[]),
        ("behind", &["nul"]),
        ("SIDE", &["nul"]),
        ("\0", &[]),
        ("before\0", &[]),
        ("100\0", &[]),
        ("", &["a", "b", "nul"]),
    ] {
        let found = found(&server, "jobs", "job_id", wanted).await;
        assert_eq!(found, ids, "{wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_reads_the_texts_of_each_kind_and_the_pages_search_alike() {
    let server = server().await;
    server.running_job("Über-1").await;
    let error = json!({"error": {"code": "disk_full", "message": "Kein Platz für Änderungen"}});
    server
        .report("/api/jobs/%C3%9Cber-1/fail", error.clone())
        .await;
    let session = json!({"session_id": "S-É", "device_id": "Leser-Ö", "student_id": "Σοφία"});
    server.report("/api/enrollments", session).await;
    let failed = json!({"code": "duplicate_finger", "error": "Doppelter Daumen"});
    server
        .report("/api/enrollments/S-%C3%89/error", failed)
        .await;
    let device = json!({"name": "Tür Süd", "info": {"firmware": "Ä 2.1"}});
    server.put("/api/devices/door-1", device).await;
    let characteristic = json!({"name": "pH-Wert Übungsbecken"});
    server.put("/api/characteristics/ph", characteristic).await;
    for (collection, id_field, id, texts) in [
        (
            "jobs",
            "job_id",
            "Über-1",
            &["über-1", "DISK_full", "für änderungen"][..],
        ),
        (
            "enrollments",
            "session_id",
            "S-É",
            &[
                "s-é",
                "LESER-ö",
                "ΣΟΦΊΑ",
                "duplicate_FINGER",
                "doppelter daumen",
            ],
        ),
        (
            "devices",
            "device_id",
            "door-1",
            &["DOOR", "TÜR SÜD", "ä 2.1"],
        ),
        (
            "characteristics",
            "characteristic_id",
            "ph",
            &["PH", "übungsBECKEN"],
        ),
    ] {
        for text in texts {
            let ids = found(&server, collection, id_field, text).await;
            assert_eq!(ids, [id], "{collection} {text}");
            let page = search(&format!("/monitor/schools/1/{collection}"), text);
            let page = server.request("GET", &page, &viewer(1)).send().await;
            let page = page.unwrap().text().await.unwrap();
            assert!(!page.contains("matches"), "{collection} {text}");
        }
        for text in ["firmware", "nowhere", "\0"] {
            let ids = found(&server, collection, id_field, text).await;
            assert!(ids.is_empty(), "{collection} {text:?}");
        }
        let page = search(&format!("/monitor/schools/1/{collection}"), "nowhere");
        let page = server.request("GET", &page, &viewer(1)).send().await;
        let page = page.unwrap().text().await.unwrap();
        assert!(page.contains("matches"), "{collection}");
    }
}

/// Makes jobs in a school that have ended, some of them badly; each tenth of another type.
async fn ended_jobs(server: &Server, school: i64, count: usize) {
    let line = |number: usize| {
        let job_type = if number.is_multiple_of(10) {
            "rare"
        } else {
            "usual"
        };
        let end = if number.is_multiple_of(100) {
            r#""op":"jobs.fail","error":{"code":"disk_full","message":"No room"}"#
        } else {
            r#""op":"jobs.complete""#
        };
        format!(
            "{{\"op\":\"jobs.create\",\"job_id\":\"j{number}\",\"job_type\":\"{job_type}\",\"status\":\"in_progress\",\
             \"metadata\":{{\"title\":\"Report {number} of {count}\"}}}}\n{{{end},\"job_id\":\"j{number}\"}}\n"
        )
    };
    let numbers: Vec<usize> = (0..count).collect();
    for some in numbers.chunks(2_000) {
        let lines: String = some.iter().map(|number| line(*number)).collect();
        let results = server.batch(&worker(school), lines).await;
        assert!(results.iter().all(|result| result["status"] == 200));
    }
}

/// How many jobs a search finds, and how many it looks at; to its end.
async fn looked_at(server: &Server, query: &str) -> (usize, u64) {
    let path = format!("/api/jobs?limit=500&{query}");
    let (status, page) = server.get(&path, &viewer(1)).await;
    assert_eq!(status, 200, "{query}: {page}");
    assert_eq!(page["searched"]["complete"], true, "{query}: {page}");
    assert_eq!(page["next"], Value::Null, "{query}");
    let found = page["jobs"].as_array().unwrap().len();
    (found, page["searched"]["rows"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn a_search_over_many_jobs_reads_only_those_that_may_match() {
    let server = server().await;
    ended_jobs(&server, 2, 2_000).await;
    ended_jobs(&server, 1, 4_000).await;
    server.running_job("goes-on").await;
    for (query, found, rows) in [
        ("q=zzz", 0, 1),
        ("q=zzz&sort=oldest", 0, 1),
        ("q=report+3999+of", 1, 2),
        ("q=REPORT+3999+OF&sort=oldest", 1, 2),
        ("q=goes-on", 1, 1),
        // What a type or a status leaves out is not looked at.
        ("q=report&status=failed", 40, 40),
        ("q=report&job_type=rare", 400, 401),
        ("q=report&job_type=rare&status=completed", 360, 360),
        ("q=no+room", 40, 41),
    ] {
        assert_eq!(looked_at(&server, query).await, (found, rows), "{query}");
    }
    let (_, looked) = looked_at(&server, "q=zz").await;
    assert_eq!(looked, 4_001, "shorter than what the index has");
    // One with more text than the index takes is looked at each time.
    let long = "x".repeat(INDEXED_TEXT_MAX_BYTES);
    job(
        &server,
        "long",
        "",
        json!({"long": long, "title": "needle"}),
    )
    .await;
    let message = json!({"error": {"code": "c", "message": "y".repeat(1_000)}});
    server.report("/api/jobs/long/fail", message).await;
    assert_eq!(looked_at(&server, "q=needle").await, (1, 2));
    assert_eq!(looked_at(&server, "q=zzz").await, (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_ended_before_there_was_an_index_are_found_by_it_after_the_upgrade() {
    if !store::is_a_file("it upgrades a file of an earlier release") {
        return;
    }
    let server = server().await;
    ended_jobs(&server, 1, 1_000).await;
    server.running_job("goes-on").await;
    let folder = server.stop().await;
    let before = "DELETE FROM __diesel_schema_migrations WHERE version = '00000000000016'";
    let mut conn = connect(&folder.path().join("tidings.db"));
    conn.batch_execute(&format!("{WITHOUT_INDEX}{before}"))
        .unwrap();
    drop(conn);
    let server = server_in(folder, json!({})).await;
    assert_eq!(looked_at(&server, "q=report+999+").await, (1, 2));
    assert_eq!(looked_at(&server, "q=no+room").await, (10, 11));
}
