//! Search in lists (`q`): what finds what, of each kind, over the API and on the pages.

use serde_json::{Value, json};

use crate::support::*;

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
    let own = json!({
        "title": "Report \"7\"\nof\u{e9}t\u{e9} D:\\files",
        "deep": [{"serial": 18_446_744_073_709_551_615_u64, "ratio": 0.25}, [true, null]],
    });
    job(&server, "a", "", own).await;
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
            assert!(!page.contains("fits"), "{collection} {text}");
        }
        for text in ["firmware", "nowhere", "\0"] {
            let ids = found(&server, collection, id_field, text).await;
            assert!(ids.is_empty(), "{collection} {text:?}");
        }
        let page = search(&format!("/monitor/schools/1/{collection}"), "nowhere");
        let page = server.request("GET", &page, &viewer(1)).send().await;
        let page = page.unwrap().text().await.unwrap();
        assert!(page.contains("fits"), "{collection}");
    }
}
