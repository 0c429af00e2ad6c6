//! Embedded pages and badges in a page of another origin, in Chromium.

use std::sync::{Arc, OnceLock};

use rocket::http::ContentType;
use rocket::{State, get, routes};
use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::*;

/// The page that has the frames, once it is known what it shows.
type Host = Arc<OnceLock<String>>;

#[get("/host")]
fn host_page(page: &State<Host>) -> (ContentType, String) {
    (ContentType::HTML, page.get().unwrap().clone())
}

/// A site of its own: another origin.
async fn site(page: Host) -> Server {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let rocket = tidings::server(figment(&folder, &json!({}))).unwrap();
    launch(rocket.manage(page).mount("/", routes![host_page]), folder).await
}

/// Returns an execution context in each frame of the page, in order.
async fn frames(page: &mut Page) -> Vec<Value> {
    let tree = page.call("Page.getFrameTree", json!({})).await;
    let mut contexts = Vec::new();
    for child in tree["frameTree"]["childFrames"].as_array().unwrap() {
        let world = json!({"frameId": child["frame"]["id"]});
        let world = page.call("Page.createIsolatedWorld", world).await;
        contexts.push(world["executionContextId"].clone());
    }
    contexts
}

/// Waits until an expression has this value in a frame.
async fn until_in(page: &mut Page, frame: &Value, script: &str, wanted: Value) {
    let mut seen = Value::Null;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen != wanted {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{script}: {seen}, and not {wanted}"
        );
        let asked = json!({"expression": script, "contextId": frame, "returnByValue": true});
        let answer = page.call("Runtime.evaluate", asked).await;
        seen = answer["result"]["value"].clone();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_page_of_an_allowed_origin_shows_jobs_live_in_a_frame_and_others_show_none() {
    if !needs("chromium") {
        return;
    }
    let html = Host::default();
    let site = site(Arc::clone(&html)).await;
    let server = server_with(json!({"frame_ancestors": [site.url]})).await;
    for (id, title, progress) in [
        ("a", "Nightly backup", 40),
        ("b", "Import <b>", 10),
        ("c", "Prüfung 作业", 80),
    ] {
        let body = json!({"job_id": id, "job_type": "t", "status": "in_progress", "metadata": {"title": title}});
        server.report("/api/jobs", body).await;
        let path = format!("/api/jobs/{id}/progress");
        server.report(&path, json!({"progress": progress})).await;
    }
    let mut urls = Vec::new();
    for (channel, view) in [("jobs/a", "embed"), ("jobs", "embed"), ("jobs/a", "badge")] {
        let asked = json!({"channel": channel, "view": view});
        let (_, created) = server.post("/api/links", &admin_of(1), asked).await;
        urls.push(format!(
            "{}{}",
            server.url,
            created["url"].as_str().unwrap()
        ));
    }
    let [one, all, badge] = &urls[..] else {
        panic!("{urls:?}");
    };
    html.set(format!(
        r#"<!doctype html><meta charset="utf-8"><title>Host</title><script>loads = 0</script>
<p><img id="badge" src="{badge}"> <img id="refused" src="{badge}x"></p>
<iframe onload="loads++" src="{one}" width="400" height="90"></iframe>
<iframe onload="loads++" src="{all}" width="400" height="240"></iframe>"#
    ))
    .unwrap();
    let mut page = Page::open().await;
    page.look(500, false).await;
    page.visit(&format!("{}/host", site.url)).await;
    page.until("loads === 2 && document.readyState === 'complete'")
        .await;
    // Browsers show an image whatever its status is: a badge says that its link is not valid.
    page.until("['badge', 'refused'].every(id => document.getElementById(id).naturalWidth > 50)")
        .await;
    let contexts = frames(&mut page).await;
    let [one, all] = &contexts[..] else {
        panic!("{contexts:?}");
    };
    let percent = "document.querySelector('tidings-progress')?.shadowRoot?.querySelector('[part=percent]')?.textContent";
    until_in(&mut page, one, percent, json!("40 %")).await;
    let rows = "document.querySelector('tidings-jobs')?.shadowRoot?.querySelectorAll('li')?.length";
    until_in(&mut page, all, rows, json!(3)).await;
    server
        .report("/api/jobs/a/progress", json!({"progress": 70}))
        .await;
    until_in(&mut page, one, percent, json!("70 %")).await;
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("frames");
    page.screenshot(&kept.join("light.png")).await;
    page.look(500, true).await;
    page.screenshot(&kept.join("dark.png")).await;
    server.report("/api/jobs/a/complete", json!({})).await;
    let status = "document.querySelector('tidings-progress')?.getAttribute('status')";
    until_in(&mut page, one, status, json!("completed")).await;
    assert!(server.tidings.streams() > 0);
    // The same page under another origin.
    let (_, port) = site.url.rsplit_once(':').unwrap();
    page.visit(&format!("http://localhost:{port}/host")).await;
    page.until("location.hostname === 'localhost' && loads === 2")
        .await;
    page.until("document.getElementById('badge').naturalWidth > 50")
        .await;
    until("the frames of the page before are gone", async || {
        server.tidings.streams() == 0
    })
    .await;
}
