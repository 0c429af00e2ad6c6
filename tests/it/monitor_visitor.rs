//! What a visitor does on the monitoring pages, in a real browser: signs in, searches, goes back, acts.

use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::*;

/// Waits until the page at this path is there.
async fn arrive(page: &mut Page, path: &str) {
    page.until(&format!(
        "location.pathname + location.search === {path:?} && document.readyState === 'complete'"
    ))
    .await;
}

/// Writes into a field as a visitor does.
async fn fill(page: &mut Page, field: &str, text: &str) {
    page.evaluate(&format!("document.querySelector({field:?}).focus(); true"))
        .await;
    page.call("Input.insertText", json!({ "text": text })).await;
}

async fn click(page: &mut Page, element: &str) {
    page.evaluate(&format!(
        "document.querySelector({element:?}).click(); true"
    ))
    .await;
}

/// Presses a key where the focus is.
async fn press(page: &mut Page, key: &str) {
    let text = if key == "Enter" { "\r" } else { "" };
    for kind in ["keyDown", "keyUp"] {
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            _ => 32,
        };
        let params = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
        page.call("Input.dispatchKeyEvent", params).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_visitor_signs_in_and_out_by_keyboard_and_sees_no_other_school() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("ours").await;
    let theirs = json!({"job_id": "theirs", "job_type": "t", "status": "in_progress"});
    server.post("/api/jobs", &worker(2), theirs).await;
    let mut page = Page::open().await;
    let wanted = "/monitor/schools/1/jobs";
    page.visit(&format!("{}{wanted}", server.url)).await;
    arrive(
        &mut page,
        "/monitor/sign-in?next=%2Fmonitor%2Fschools%2F1%2Fjobs",
    )
    .await;
    fill(&mut page, "input[name=token]", "no token").await;
    press(&mut page, "Enter").await;
    page.until("document.body.innerText.includes('Signing in failed')")
        .await;
    fill(&mut page, "input[name=token]", &worker(1)).await;
    press(&mut page, "Enter").await;
    arrive(&mut page, wanted).await;
    page.until("document.body.innerText.includes('ours')").await;
    assert_eq!(
        page.evaluate("document.cookie").await,
        "",
        "no script reads the token"
    );
    assert_eq!(
        page.evaluate("document.body.innerText.includes('theirs')")
            .await,
        false
    );
    for path in ["", "/jobs/theirs", "/devices"] {
        page.visit(&format!("{}/monitor/schools/2{path}", server.url))
            .await;
        page.until("document.body.innerText.includes('Not found')")
            .await;
    }
    // The first stop of the keyboard leads past the navigation.
    page.visit(&format!("{}/monitor/schools/1", server.url))
        .await;
    arrive(&mut page, "/monitor/schools/1").await;
    press(&mut page, "Tab").await;
    assert_eq!(
        page.evaluate("document.activeElement.textContent").await,
        "Skip to content"
    );
    click(&mut page, ".account button").await;
    arrive(&mut page, "/monitor/sign-in").await;
    page.visit(&format!("{}{wanted}", server.url)).await;
    arrive(
        &mut page,
        "/monitor/sign-in?next=%2Fmonitor%2Fschools%2F1%2Fjobs",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn filters_stand_in_the_address_so_that_the_back_button_undoes_them() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    for (id, job_type) in [("one", "import"), ("two", "import"), ("three", "export")] {
        let body = json!({"job_id": id, "job_type": job_type, "status": "in_progress"});
        server.report("/api/jobs", body).await;
    }
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/two/fail", error).await;
    let mut page = Page::open().await;
    let list = "/monitor/schools/1/jobs";
    page.go(&format!("{}{list}", server.url), &viewer(1)).await;
    arrive(&mut page, list).await;
    let rows =
        "JSON.stringify([...document.querySelectorAll('tbody tr')].map(row => row.dataset.key))";
    assert_eq!(page.evaluate(rows).await, r#"["three","two","one"]"#);
    click(&mut page, "input[value=failed]").await;
    click(&mut page, ".filters button").await;
    arrive(
        &mut page,
        &format!("{list}?q=&job_type=&status=failed&sort=newest"),
    )
    .await;
    assert_eq!(page.evaluate(rows).await, r#"["two"]"#);
    assert_eq!(
        page.evaluate("document.querySelector('input[value=failed]').checked")
            .await,
        true
    );
    // What fails while one looks is there, too.
    page.until("document.getElementById('freshness').dataset.state === 'live'")
        .await;
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/one/fail", error).await;
    page.until(&format!(r#"{rows} === '["two","one"]'"#)).await;
    page.evaluate("history.back(); true").await;
    arrive(&mut page, list).await;
    assert_eq!(page.evaluate(rows).await, r#"["three","two","one"]"#);
    let sorted = format!("{}{list}?job_type=import&sort=oldest", server.url);
    page.visit(&sorted).await;
    page.until(&format!(r#"{rows} === '["one","two"]'"#)).await;
    page.visit(&format!("{}{list}?q=thr", server.url)).await;
    page.until(&format!(r#"{rows} === '["three"]'"#)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_job_is_cancelled_and_retried_from_its_page() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("j").await;
    let mut page = Page::open().await;
    let path = "/monitor/schools/1/jobs/j";
    page.go(&format!("{}{path}", server.url), &worker(1)).await;
    arrive(&mut page, path).await;
    click(&mut page, "form[action$='/cancel'] button").await;
    page.until("document.body.innerText.includes('has been asked to stop')")
        .await;
    let event = server
        .report("/api/jobs/j/progress", json!({"progress": 10}))
        .await;
    assert_eq!(event["cancel_requested"], true, "the worker is informed");
    server
        .report("/api/jobs/j/cancel", json!({"force": true}))
        .await;
    page.until("!!document.querySelector(\"form[action$='/retry'] button\")")
        .await;
    click(&mut page, "form[action$='/retry'] button").await;
    page.until("document.querySelector('h1 .badge').textContent === 'queued'")
        .await;
    let (_, job) = server.get("/api/jobs/j", &viewer(1)).await;
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("queued"), &json!(2))
    );
    // Who may only look has no buttons.
    page.go(&format!("{}{path}", server.url), &viewer(1)).await;
    page.until("document.body.innerText.includes('(viewer)')")
        .await;
    assert_eq!(
        page.evaluate("document.querySelectorAll('main button').length")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn without_a_script_the_page_is_complete_and_renews_itself() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    server.running_job("j").await;
    let mut page = Page::open().await;
    page.call(
        "Emulation.setScriptExecutionDisabled",
        json!({"value": true}),
    )
    .await;
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    // Our scripts are not inline, so they still run.
    let bar = "document.querySelector('[data-key=job-j] [role=progressbar]')";
    let value = format!("{bar}?.getAttribute('aria-valuenow')");
    page.until(&format!("!!{bar} && {value} === null")).await;
    assert_eq!(
        page.evaluate("document.getElementById('pause').hidden")
            .await,
        true
    );
    server
        .report("/api/jobs/j/progress", json!({"progress": 42}))
        .await;
    page.until_within(&format!("{value} === '42'"), 30).await;
    let (_, list) = server.get("/api/jobs", &viewer(1)).await;
    assert_eq!(list["jobs"][0]["progress"], Value::from(42.0));
}
