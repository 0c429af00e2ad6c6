//! Back ends that exist report without registering, naming or judging anything as a new one would: ids of any form.

mod device_reports;
mod job_reports;
mod verdicts;

use serde_json::json;

use crate::support::listener::{receive, send, socket};
use crate::support::*;

/// Registers a characteristic with limits at three either side of zero.
async fn characteristic(server: &Server, id: &str) {
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server
        .put(&format!("/api/characteristics/{id}"), limits)
        .await;
}

/// People have files with spaces, and files in any script.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_may_be_any_text_and_is_percent_encoded_in_addresses() {
    let server = server().await;
    for (id, encoded) in [
        ("Zeugnis 3.pdf", "Zeugnis%203.pdf"),
        ("a/b", "a%2Fb"),
        ("100%.pdf", "100%25.pdf"),
        ("作业.docx", "%E4%BD%9C%E4%B8%9A.docx"),
        ("?x=1&y#z", "%3Fx%3D1%26y%23z"),
        ("+ +", "%2B%20%2B"),
        ("\"<b>'", "%22%3Cb%3E%27"),
    ] {
        let create = json!({"job_id": id, "job_type": "upload"});
        let request = server
            .request("POST", "/api/jobs", &worker(1))
            .json(&create);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 201, "{id}");
        assert_eq!(
            response.headers()["location"],
            format!("/api/jobs/{encoded}")
        );
        server
            .report(&format!("/api/jobs/{encoded}/start"), json!({}))
            .await;
        let (_, found) = server
            .get(&format!("/api/jobs/{encoded}"), &viewer(1))
            .await;
        assert_eq!(found["job_id"], id);
        for transport in Transport::ALL {
            let twice = encoded.replace('%', "%25");
            for scope in [format!("/jobs/{encoded}"), format!("?channel=jobs/{twice}")] {
                let messages = server.listen(transport, &scope).await.until_ready().await;
                assert_eq!(
                    messages[0]["channels"],
                    json!([format!("jobs/{encoded}")]),
                    "{transport:?}"
                );
                assert_eq!(messages[1]["job_id"], id, "{transport:?} {scope}");
            }
        }
        let mut ws = socket(&server.url, &format!("/progress/ws/{encoded}"), &viewer(1)).await;
        assert_eq!(receive(&mut ws).await.unwrap()["job_id"], id);
        let mut ws = socket(&server.url, "/ws", &viewer(1)).await;
        for subscribe in [
            json!({"job_id": id}),
            json!({"channels": [format!("jobs/{encoded}")]}),
        ] {
            let mut subscribe = subscribe;
            subscribe["type"] = json!("subscribe");
            send(&mut ws, &subscribe.to_string()).await;
            loop {
                let message = receive(&mut ws).await.unwrap();
                assert_ne!(message["type"], "error", "{message}");
                if message["type"] == "ready" {
                    break;
                }
            }
        }
        // A ticket's address opens what it was made for.
        for channels in [
            json!([format!("jobs/{encoded}")]),
            json!([format!("jobs/{encoded}"), "devices"]),
        ] {
            let (_, ticket) = server
                .post("/api/tickets", &viewer(1), json!({"channels": channels}))
                .await;
            let url = format!("{}{}&wait=0", server.url, ticket["url"].as_str().unwrap());
            let request = server.http.get(url).header("Accept", "application/json");
            let (status, reply) = answer(request).await;
            assert_eq!((status, &reply["messages"][1]["job_id"]), (200, &json!(id)));
        }
        // The page links to it.
        let page = server.request("GET", "/monitor/schools/1/jobs", &viewer(1));
        let page = page.send().await.unwrap().text().await.unwrap();
        let page = page.replace("&#x2F;", "/");
        let link = page
            .split("href=\"")
            .filter_map(|rest| rest.split('"').next())
            .find(|link| {
                link.to_lowercase().ends_with(&format!(
                    "/jobs/{}",
                    encoded.to_lowercase().replace('.', "%2e")
                ))
            });
        let link = link.unwrap_or_else(|| panic!("no link to {id}: {page}"));
        let path = link.strip_prefix(&server.url).unwrap_or(link);
        let page = server
            .request("GET", path, &viewer(1))
            .send()
            .await
            .unwrap();
        assert_eq!(page.status(), 200, "{link}");
    }
    let body = json!({"job_id": "a\u{7}b", "job_type": "upload"});
    assert_eq!(server.post("/api/jobs", &worker(1), body).await.0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_have_any_name() {
    let server = server().await;
    for id in ["a\"b.pdf", "c\\d.pdf", "e\u{2028}f"] {
        let create = json!({"job_id": id, "job_type": "upload", "status": "in_progress"});
        server.report("/api/jobs", create).await;
    }
    let mut ws = socket(&server.url, "/ws/upload-progress", &viewer(1)).await;
    let first = receive(&mut ws).await.unwrap();
    assert_eq!(
        (&first["type"], first["data"].as_object().unwrap().len()),
        (&json!("initial_state"), 3)
    );
    for id in ["a\"b.pdf", "c\\d.pdf", "e\u{2028}f"] {
        let message = receive(&mut ws).await.unwrap();
        assert_eq!(
            (&message["type"], &message["file_id"]),
            (&json!("progress_update"), &json!(id))
        );
    }
    let page = server.request("GET", "/monitor/schools/1/jobs", &viewer(1));
    let page = page.send().await.unwrap().text().await.unwrap();
    assert!(
        page.contains("a&quot;b.pdf</bdi></a>") && !page.contains("&amp;quot;"),
        "{page}"
    );
}

/// Also a characteristic's, though the ids of its samples and violations are made of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_any_kind_may_have_128_bytes() {
    let server = server().await;
    let id = "x".repeat(128);
    server.put(&format!("/api/devices/{id}"), json!({})).await;
    server
        .report("/api/jobs", json!({"job_id": id, "job_type": "t"}))
        .await;
    server
        .report("/api/enrollments", json!({"session_id": id}))
        .await;
    characteristic(&server, &id).await;
    let path = format!("/api/characteristics/{id}");
    let event = server
        .report(&format!("{path}/samples"), json!({"value": 9}))
        .await;
    let sample_id = event["payload"]["sample_id"].clone();
    assert_eq!(sample_id, format!("{id}.1"));
    let body = json!({"rule_id": 2, "sample_id": sample_id});
    let event = server.report(&format!("{path}/violations"), body).await;
    let violation_id = event["payload"]["violation_id"].as_str().unwrap();
    let ack = json!({"reason": "known"});
    server
        .report(&format!("/api/violations/{violation_id}/ack"), ack)
        .await;
    let (status, _) = answer(
        server
            .request("PUT", &format!("{path}x"), &worker(1))
            .json(&json!({})),
    )
    .await;
    assert_eq!(status, 422);
}
