//! The monitoring pages in a real browser: what changes is there at once, without a reload.

use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::*;

/// Marks the document, so that a reload would be noticed.
const MARK: &str = "document.documentElement.dataset.mark = 'kept'; true";
const IS_MARKED: &str = "document.documentElement.dataset.mark === 'kept'";

async fn live(page: &mut Page) {
    page.until("document.getElementById('freshness')?.dataset.state === 'live'")
        .await;
    page.evaluate(MARK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_seen_from_start_to_finish_and_the_page_is_never_reloaded() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    let mut page = Page::open().await;
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    live(&mut page).await;
    page.until("document.body.innerText.includes('Nothing is running')")
        .await;
    server.running_job("report-7").await;
    page.until("!!document.querySelector('[data-key=\"job-report-7\"]')")
        .await;
    page.evaluate(
        "document.querySelector('[data-key=\"job-report-7\"]').dataset.own = 'kept'; true",
    )
    .await;
    for percent in [40, 80] {
        let body = json!({"progress": percent, "message": format!("At {percent}")});
        server.report("/api/jobs/report-7/progress", body).await;
        let bar = "document.querySelector('[data-key=\"job-report-7\"] [role=progressbar]')";
        page.until(&format!(
            "{bar}?.getAttribute('aria-valuenow') === '{percent}'"
        ))
        .await;
        page.until(&format!("document.body.innerText.includes('At {percent}')"))
            .await;
    }
    server
        .report("/api/jobs/report-7/complete", json!({}))
        .await;
    page.until("!document.querySelector('[data-key=\"job-report-7\"]')")
        .await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_enrollments_and_violations_are_live_and_a_form_is_left_alone() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    let put = async |path: &str, body: Value| {
        let request = server.request("PUT", path, &worker(1)).json(&body);
        assert_eq!(answer(request).await.0, 200);
    };
    put("/api/devices/door", json!({"name": "Front door"})).await;
    server
        .report("/api/devices/door/status", json!({"status": "online"}))
        .await;
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    put("/api/characteristics/bath", json!({"limits": limits})).await;
    let mut page = Page::open().await;
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    live(&mut page).await;
    page.until("!!document.querySelector('.device.online')")
        .await;
    server
        .report("/api/devices/door/status", json!({"status": "offline"}))
        .await;
    page.until("!!document.querySelector('.device.offline')")
        .await;
    let session = json!({"session_id": "s", "device_id": "door", "student_id": "Ada"});
    server.report("/api/enrollments", session).await;
    page.until("document.body.innerText.includes('Ada')").await;
    server
        .report(
            "/api/enrollments/s/progress",
            json!({"status": "capturing"}),
        )
        .await;
    page.until("document.body.innerText.includes('capturing')")
        .await;
    server
        .report("/api/characteristics/bath/samples", json!({"value": 9.0}))
        .await;
    page.until("!!document.querySelector('[data-key=\"violation-bath.1\"] input')")
        .await;
    let typing = "const field = document.querySelector('[data-key=\"violation-bath.1\"] input'); \
                  field.focus(); field.value = 'The door was open'; true";
    page.evaluate(typing).await;
    server
        .report("/api/enrollments/s/complete", json!({}))
        .await;
    page.until("!document.body.innerText.includes('Ada')").await;
    let typed = "document.activeElement.value === 'The door was open'";
    assert_eq!(page.evaluate(typed).await, true, "who types is left alone");
    page.evaluate("document.activeElement.form.requestSubmit(); true")
        .await;
    until("it is acknowledged", async || {
        let (_, list) = server.get("/api/violations", &viewer(1)).await;
        list["violations"][0]["ack_reason"] == "The door was open"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_outlives_the_server_recovers_without_a_reload_and_misses_nothing() {
    if !needs("chromium") {
        return;
    }
    use crate::support::process::{Process, command};
    let folder = tempfile::tempdir().unwrap();
    let mut first = Process::start(command(folder.path()).arg("serve"));
    let url = first.url.clone();
    let port = url.rsplit(':').next().unwrap().to_owned();
    let http = reqwest::Client::new();
    let report = async |path: &str, body: Value| {
        let request = http
            .post(format!("{url}{path}"))
            .bearer_auth(worker(1))
            .json(&body);
        assert!(
            request.send().await.unwrap().status().is_success(),
            "{path}"
        );
    };
    report(
        "/api/jobs",
        json!({"job_id": "j", "job_type": "t", "status": "in_progress"}),
    )
    .await;
    let mut page = Page::open().await;
    page.go(&format!("{url}/monitor/schools/1"), &worker(1))
        .await;
    live(&mut page).await;
    first.kill();
    page.until("document.getElementById('freshness').dataset.state === 'lost'")
        .await;
    page.until("document.getElementById('freshness').textContent.includes('as of')")
        .await;
    let _second = Process::start(command(folder.path()).arg("serve").env("ROCKET_PORT", port));
    report("/api/jobs/j/progress", json!({"progress": 77})).await;
    page.until("document.querySelector('[data-key=\"job-j\"] [role=progressbar]').getAttribute('aria-valuenow') === '77'").await;
    page.until("document.getElementById('freshness').dataset.state === 'live'")
        .await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_of_a_browser_share_one_stream() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("j").await;
    let url = format!("{}/monitor/schools/1", server.url);
    let mut page = Page::open().await;
    page.go(&url, &worker(1)).await;
    live(&mut page).await;
    let open = format!("window.other = window.open({url:?}); true");
    let params = json!({"expression": open, "userGesture": true});
    page.call("Runtime.evaluate", params).await;
    page.until("window.other?.document.getElementById('freshness') !== null")
        .await;
    server
        .report("/api/jobs/j/progress", json!({"progress": 55}))
        .await;
    let bar =
        "document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow') === '55'";
    page.until(&format!("window.other.{bar}")).await;
    assert_eq!(server.tidings.streams(), 1, "one for both");
}
