//! The monitoring pages in a real browser: what changes is there at once, without a reload.

use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::forwarder::Forwarder;
use crate::support::proxy::{Program, Proxy};
use crate::support::*;

/// Marks the document, so that a reload would be noticed.
const MARK: &str = "document.documentElement.dataset.mark = 'kept'; true";
const IS_MARKED: &str = "document.documentElement.dataset.mark === 'kept'";

/// Returns a script that hides the page, or shows it again.
fn hide(hidden: bool) -> String {
    format!(
        "Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}}); \
         document.dispatchEvent(new Event('visibilitychange')); true"
    )
}

async fn live(page: &mut Page) {
    page.until("document.getElementById('freshness')?.dataset.state === 'live'")
        .await;
    page.evaluate(MARK).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_job_is_seen_from_start_to_finish_and_the_page_is_never_reloaded() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    live(&mut page).await;
    page.until("document.body.innerText.includes('No job is running')")
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
#[ignore = "slow: a real browser"]
async fn devices_enrollments_and_violations_are_live_and_a_form_is_left_alone() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
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
#[ignore = "slow: a real browser"]
async fn a_page_that_outlives_the_server_recovers_without_a_reload_and_misses_nothing() {
    if !needs("chromium") {
        return;
    }
    use crate::support::process::{Process, command};
    let mut page = Page::open().await;
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
    page.go(&format!("{url}/monitor/schools/1"), &worker(1))
        .await;
    live(&mut page).await;
    first.terminate();
    page.until("document.getElementById('freshness').dataset.state !== 'live'")
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
#[ignore = "slow: a real browser"]
async fn a_page_whose_connection_is_cut_goes_on_where_it_was_and_misses_nothing() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    let network = Forwarder::to(&server);
    let mut page = Page::open().await;
    page.go(&format!("{}/monitor/schools/1", network.url), &viewer(1))
        .await;
    live(&mut page).await;
    for id in ["first", "second"] {
        server.running_job(id).await;
        page.until(&format!("!!document.querySelector('[data-key=job-{id}]')"))
            .await;
        network.cut(true);
        let error = json!({"error": {"code": "broken", "message": "It broke"}});
        server.report(&format!("/api/jobs/{id}/fail"), error).await;
        page.until("document.getElementById('freshness').dataset.state !== 'live'")
            .await;
        network.cut(false);
        // Only the stream announces: it has delivered what happened while it was cut.
        page.until(&format!(
            "document.getElementById('milestones').textContent === 'Job {id} failed.'"
        ))
        .await;
        page.until("document.getElementById('freshness').dataset.state === 'live'")
            .await;
    }
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn two_windows_of_a_browser_share_one_stream_and_the_other_goes_on_when_one_is_hidden() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    server.running_job("j").await;
    let url = format!("{}/monitor/schools/1", server.url);
    page.go(&url, &worker(1)).await;
    live(&mut page).await;
    // A second tab would hide the first one.
    let open = format!("window.other = window.open({url:?}, '', 'popup'); true");
    let params = json!({"expression": open, "userGesture": true});
    page.call("Runtime.evaluate", params).await;
    page.until("window.other.document.getElementById('freshness')?.dataset.state === 'live'")
        .await;
    let hidden = "document.hidden || window.other.document.hidden";
    assert_eq!(page.evaluate(hidden).await, false);
    let shows = |percent: i32| {
        format!(
            "document.querySelector('[role=progressbar]')?.getAttribute('aria-valuenow') === '{percent}'"
        )
    };
    let progress = async |percent: i32| {
        let body = json!({ "progress": percent });
        server.report("/api/jobs/j/progress", body).await;
    };
    progress(55).await;
    page.until(&shows(55)).await;
    page.until(&format!("window.other.{}", shows(55))).await;
    assert_eq!(server.tidings.streams(), 1, "one for both");
    page.evaluate(&hide(true)).await;
    progress(66).await;
    page.until(&format!("window.other.{}", shows(66))).await;
    progress(77).await;
    page.until(&format!("window.other.{}", shows(77))).await;
    until("the first stream is gone", async || {
        server.tidings.streams() == 1
    })
    .await;
    page.evaluate(&hide(false)).await;
    page.until(&shows(77)).await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

/// Every page, light, dark and as wide as a phone: axe-core has nothing to say, and what it looks like is kept below
/// `target/tmp/monitor`, to be looked at.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn every_page_is_accessible() {
    let axe = std::env::var("NODE_PATH").unwrap_or_default();
    let axe = std::path::Path::new(&axe).join("axe-core/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(axe) else {
        skip("Node's axe-core");
        return;
    };
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    a_busy_school(&server).await;
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitor");
    let school = "/monitor/schools/1";
    for (name, path, token) in [
        ("sign-in", "/monitor/sign-in".to_owned(), String::new()),
        ("schools", "/monitor".to_owned(), admin()),
        ("overview", school.to_owned(), worker(1)),
        ("jobs", format!("{school}/jobs"), worker(1)),
        ("job", format!("{school}/jobs/report-7"), worker(1)),
        ("failed-job", format!("{school}/jobs/import-3"), worker(1)),
        ("enrollments", format!("{school}/enrollments"), worker(1)),
        ("devices", format!("{school}/devices"), worker(1)),
        ("device", format!("{school}/devices/gym"), worker(1)),
        (
            "characteristics",
            format!("{school}/characteristics"),
            worker(1),
        ),
        ("schedules", format!("{school}/schedules"), worker(1)),
        (
            "characteristic",
            format!("{school}/characteristics/bath"),
            worker(1),
        ),
        ("nothing", format!("{school}/jobs/nobody"), worker(1)),
        ("school-system", format!("{school}/system"), admin_of(1)),
        ("system", "/monitor/system".to_owned(), admin()),
    ] {
        for (window, width, dark) in [
            ("light", 1280, false),
            ("dark", 1280, true),
            ("phone", 390, false),
        ] {
            page.look(width, dark).await;
            page.go(&format!("{}{path}", server.url), &token).await;
            page.until(
                "document.readyState === 'complete' && location.pathname.startsWith('/monitor')",
            )
            .await;
            page.evaluate(&format!("{axe}; true")).await;
            let found = page
                .evaluate("axe.run().then(({violations}) => JSON.stringify(violations.map(v => [v.id, v.nodes.map(n => n.html + n.failureSummary)])))")
                .await;
            assert_eq!(found, "[]", "{name} {window}");
            let fits = page
                .evaluate(
                    "document.documentElement.scrollWidth <= document.documentElement.clientWidth",
                )
                .await;
            assert_eq!(fits, true, "{name} is wider than a {window}");
            page.screenshot(&kept.join(format!("{name}-{window}.png")))
                .await;
        }
    }
}

/// Some of everything.
async fn a_busy_school(server: &Server) {
    let put = async |path: &str, body: Value| {
        let request = server.request("PUT", path, &worker(1)).json(&body);
        assert_eq!(answer(request).await.0, 200);
    };
    for (id, percent, message) in [
        ("report-7", 62, "Processing part 5 of 8"),
        ("scan-0412", 18, "Reading page 9 of 50"),
        ("backup", 91, "Copying files"),
    ] {
        let create = json!({"job_id": id, "job_type": "document", "status": "in_progress", "metadata": {"title": "Letter"}});
        server.report("/api/jobs", create).await;
        let body = json!({"progress": percent, "message": message});
        server
            .report(&format!("/api/jobs/{id}/progress"), body)
            .await;
    }
    server.running_job("import-3").await;
    let error = json!({"error": {"code": "unreadable", "message": "The file is encrypted"}});
    server.report("/api/jobs/import-3/fail", error).await;
    for (id, device, status) in [("s1", "library", "capturing"), ("s2", "gate", "placing")] {
        let session = json!({"session_id": id, "device_id": device, "student_id": "Ada Lovelace", "total_attempts": 3});
        server.report("/api/enrollments", session).await;
        let step = json!({"status": status, "attempt": 2});
        server
            .report(&format!("/api/enrollments/{id}/progress"), step)
            .await;
    }
    for (id, name, status) in [
        ("gate", "Main gate", "online"),
        ("library", "Library", "online"),
        ("gym", "Gymnasium", "offline"),
    ] {
        put(&format!("/api/devices/{id}"), json!({"name": name})).await;
        server
            .report(
                &format!("/api/devices/{id}/status"),
                json!({"status": status}),
            )
            .await;
    }
    let limits = json!({"center_line": 28.0, "ucl": 28.6, "lcl": 27.4});
    put(
        "/api/characteristics/bath",
        json!({"name": "Water of the bath", "unit": "°C", "limits": limits, "rules": [1, 2, 3, 5]}),
    )
    .await;
    for index in 0..60_u32 {
        let wave = (f64::from(index) * 1.7).sin() * 0.3 + f64::from(index) * 0.006;
        let body = json!({"value": 27.9 + wave});
        server
            .report("/api/characteristics/bath/samples", body)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn who_listens_is_seen_while_he_does_and_what_ended_is_announced() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    server.running_job("report-7").await;
    page.go(
        &format!("{}/monitor/schools/1/system", server.url),
        &admin_of(1),
    )
    .await;
    live(&mut page).await;
    let has = |text: &str| format!("document.getElementById('main').innerText.includes('{text}')");
    // A WebSocket: its end is noticed at once.
    let transport = Transport::WebSocket;
    let listener = Listener::open(transport, &server.url, "/jobs/report-7", &viewer(1), None).await;
    page.until(&has("jobs/report-7")).await;
    server
        .report("/api/jobs/report-7/complete", json!({}))
        .await;
    page.until("document.getElementById('milestones').textContent === 'Job report-7 completed.'")
        .await;
    drop(listener);
    page.until(&format!("!{}", has("jobs/report-7"))).await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_job_that_is_stuck_comes_first_and_is_seen_to_fail() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    let stuck = json!({"job_id": "stuck", "job_type": "t", "status": "in_progress", "stall_after_secs": 2, "timeout_secs": 8});
    server.report("/api/jobs", stuck).await;
    server.running_job("well").await;
    page.go(&format!("{}/monitor/schools/1", server.url), &viewer(1))
        .await;
    live(&mut page).await;
    let first = "document.querySelector('.jobs > li')";
    page.until(&format!(
        "{first}.dataset.key === 'job-stuck' && {first}.className === 'stalled'"
    ))
    .await;
    let failed = "[...document.querySelectorAll('section')].find(own => own.innerText.includes('Failed in the last 24 hours'))";
    page.until(&format!("{failed}?.innerText.includes('timeout')"))
        .await;
    page.until("!document.querySelector('.stalled') && document.querySelector('.totals .bad .number').textContent === '1'")
        .await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn where_a_proxy_holds_streams_back_long_polls_keep_the_page_live() {
    if !needs("chromium") || !needs("nginx") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    server.running_job("j").await;
    // Compression waits until there is enough to compress.
    let holds = "location / { proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types text/event-stream; gzip_min_length 0;";
    let proxy = Proxy::open(Program::Nginx, &server, &[("location / {", holds)]).await;
    page.go(&format!("{}/monitor/schools/1", proxy.url), &viewer(1))
        .await;
    live(&mut page).await;
    for percent in [30, 60] {
        let body = json!({ "progress": percent });
        server.report("/api/jobs/j/progress", body).await;
        page.until(&format!(
            "document.querySelector('[role=progressbar]').getAttribute('aria-valuenow') === '{percent}'"
        ))
        .await;
    }
    until("it has turned to long polls", async || {
        let (by_transport, _) = server.tidings.hub().connections(None, 10, 10);
        by_transport.contains_key("long poll")
    })
    .await;
    // An event now comes by the way that is left, not with the next round.
    server.report("/api/jobs/j/complete", json!({})).await;
    page.until("!document.querySelector('[data-key=job-j]')")
        .await;
    page.until("document.getElementById('freshness').dataset.state === 'live'")
        .await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_page_that_nobody_sees_has_no_stream_and_goes_on_where_it_was() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server_with(json!({"heartbeat_secs": 1})).await;
    server.running_job("j").await;
    page.go(&format!("{}/monitor/schools/1", server.url), &viewer(1))
        .await;
    live(&mut page).await;
    page.evaluate(&hide(true)).await;
    until("the stream is gone", async || server.tidings.streams() == 0).await;
    server
        .report("/api/jobs/j/progress", json!({"progress": 88}))
        .await;
    let value = "document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')";
    assert_eq!(
        page.evaluate(value).await,
        Value::Null,
        "nothing is delivered yet"
    );
    page.evaluate(&hide(false)).await;
    page.until(&format!("{value} === '88'")).await;
    assert_eq!(server.tidings.streams(), 1);
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn what_is_seen_grows_old_in_words_and_a_visitor_can_hold_it() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    server.running_job("j").await;
    page.go(
        &format!("{}/monitor/schools/1/jobs/j", server.url),
        &viewer(1),
    )
    .await;
    live(&mut page).await;
    let heard = "[...document.querySelectorAll('dt')].find(own => own.textContent === 'Last report').nextSibling.querySelector('.ago').textContent";
    page.until(&format!("/^\\d+ s ago$/.test({heard})")).await;
    let before = page.evaluate(heard).await;
    page.until(&format!(
        "/^\\d+ s ago$/.test({heard}) && {heard} !== {before}"
    ))
    .await;
    let is_local = "(time => time.querySelector('.at').textContent === new Intl.DateTimeFormat(undefined, {month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', timeZoneName: 'short'}).format(new Date(time.dateTime)))(document.querySelector('dd time'))";
    assert_eq!(page.evaluate(is_local).await, true, "as people have it");
    page.evaluate("document.querySelector('details').open = true; true")
        .await;
    page.evaluate("document.getElementById('pause').click(); true")
        .await;
    server
        .report("/api/jobs/j/progress", json!({"progress": 66}))
        .await;
    page.until("document.getElementById('freshness').textContent.startsWith('Paused, as of ')")
        .await;
    let value = "document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')";
    assert_eq!(page.evaluate(value).await, Value::Null, "it is held");
    page.evaluate("document.getElementById('pause').click(); true")
        .await;
    page.until(&format!("{value} === '66'")).await;
    page.until("document.querySelector('details').open && document.querySelectorAll('details tbody tr').length === 2")
        .await;
    assert_eq!(page.evaluate(IS_MARKED).await, true, "no reload");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn what_goes_takes_no_focus_from_what_stays() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    for id in ["one", "two"] {
        let path = format!("/api/characteristics/{id}");
        server.put(&path, json!({"limits": limits})).await;
        let path = format!("{path}/samples");
        server.report(&path, json!({"value": 9.0})).await;
    }
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    live(&mut page).await;
    let field = "document.querySelector('[data-key=\"violation-one.1\"] input')";
    page.evaluate(&format!("{field}.focus(); {field}.value = 'Half a'; true"))
        .await;
    let reason = json!({"reason": "seen"});
    server.report("/api/violations/two.1/ack", reason).await;
    page.until("!document.querySelector('[data-key=\"violation-two.1\"]')")
        .await;
    assert_eq!(
        page.evaluate("document.activeElement?.value").await,
        "Half a"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn without_locks_each_tab_follows_for_itself() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    server.running_job("j").await;
    let none = "Object.defineProperty(Navigator.prototype, 'locks', {value: undefined});";
    page.call("Page.enable", json!({})).await;
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        json!({"source": none}),
    )
    .await;
    page.go(&format!("{}/monitor/schools/1", server.url), &worker(1))
        .await;
    live(&mut page).await;
    assert_eq!(page.evaluate("navigator.locks === undefined").await, true);
    server
        .report("/api/jobs/j/progress", json!({"progress": 55}))
        .await;
    page.until(
        "document.querySelector('[role=progressbar]').getAttribute('aria-valuenow') === '55'",
    )
    .await;
}
