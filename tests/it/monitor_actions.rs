//! What the monitoring pages say of a job's state and let visitors do about it, and what they say when something is wrong.

use reqwest::header::{COOKIE, LOCATION};
use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::devtools::Page;
use crate::support::*;

const SCHOOL: &str = "/monitor/schools/1";

/// A request of a browser that is signed in with this token, and follows nothing by itself.
fn request(server: &Server, method: &str, path: &str, token: &str) -> reqwest::RequestBuilder {
    let policy = reqwest::redirect::Policy::none();
    let browser = reqwest::Client::builder().redirect(policy).build().unwrap();
    browser
        .request(method.parse().unwrap(), format!("{}{path}", server.url))
        .header(COOKIE, format!("tidings_token={token}"))
}

async fn text(server: &Server, path: &str, token: &str) -> String {
    let answer = request(server, "GET", path, token).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.text().await.unwrap()
}

/// Sends a form, as a page of this origin does.
async fn send(server: &Server, path: &str, token: &str, origin: &str, form: &str) -> u16 {
    let request = request(server, "POST", path, token)
        .header("Origin", origin)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form.to_owned());
    request.send().await.unwrap().status().as_u16()
}

/// A job that stalls after a second of silence, once it has.
async fn stalled_job(server: &Server, id: &str) {
    let job =
        json!({"job_id": id, "job_type": "t", "status": "in_progress", "stall_after_secs": 1});
    server.report("/api/jobs", job).await;
    until("it has stalled", async || {
        let (_, job) = server.get(&format!("/api/jobs/{id}"), &viewer(1)).await;
        job["stalled"] == true
    })
    .await;
}

async fn status_of(server: &Server, id: &str) -> Value {
    let (_, job) = server.get(&format!("/api/jobs/{id}"), &viewer(1)).await;
    job["status"].clone()
}

async fn arrive(page: &mut Page, server: &Server, path: &str, token: &str) {
    page.go(&format!("{}{path}", server.url), token).await;
    page.until(&format!(
        "location.pathname + location.search === {path:?} && document.readyState === 'complete'"
    ))
    .await;
}

/// Where the middle of an element is, once it is to be seen.
async fn press(page: &mut Page, element: &str) {
    page.until(&format!("{element}?.getClientRects().length > 0"))
        .await;
    page.evaluate(&format!(
        "{element}.scrollIntoView({{block: 'center'}}); true"
    ))
    .await;
    let place = page
        .evaluate(&format!("(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())"))
        .await;
    for kind in ["mousePressed", "mouseReleased"] {
        let params =
            json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
        page.call("Input.dispatchMouseEvent", params).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_stalled_job_is_ended_from_its_page_once_that_is_confirmed() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    let mut page = Page::open().await;
    for (id, has_script) in [("stuck", true), ("stuck-too", false)] {
        stalled_job(&server, id).await;
        let disabled = json!({"value": !has_script});
        page.call("Emulation.setScriptExecutionDisabled", disabled)
            .await;
        let path = format!("{SCHOOL}/jobs/{id}");
        arrive(&mut page, &server, &path, &worker(1)).await;
        let summary = "document.querySelector('[data-key=end] summary')";
        let button = "document.querySelector('[data-key=end] button')";
        assert_eq!(
            page.evaluate(&format!("{button}.checkVisibility()")).await,
            false,
            "it is not there at once"
        );
        press(&mut page, summary).await;
        page.until(&format!("{button}.checkVisibility()")).await;
        assert_eq!(status_of(&server, id).await, "in_progress", "not yet");
        press(&mut page, button).await;
        until("it has ended", async || {
            status_of(&server, id).await == "cancelled"
        })
        .await;
        page.until("document.querySelector('h1 .badge').textContent === 'cancelled'")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn only_those_who_may_end_a_job_and_only_the_attempt_that_they_saw() {
    let server = server().await;
    stalled_job(&server, "j").await;
    let path = format!("{SCHOOL}/jobs/j/cancel");
    let form = "attempt=1&force=true";
    let seen = text(&server, &format!("{SCHOOL}/jobs/j"), &viewer(1)).await;
    assert!(!seen.contains("End now") && !seen.contains("/cancel"));
    assert_eq!(
        send(&server, &path, &viewer(1), &server.url, form).await,
        403
    );
    assert_eq!(
        send(&server, &path, &worker(2), &server.url, form).await,
        404
    );
    let foreign = send(&server, &path, &worker(1), "https://evil.example", form).await;
    assert_eq!(foreign, 403);
    assert_eq!(status_of(&server, "j").await, "in_progress");
    // Meanwhile somebody else has ended it and begun it anew.
    server
        .report("/api/jobs/j/cancel", json!({"force": true}))
        .await;
    server.report("/api/jobs/j/retry", json!({})).await;
    server.report("/api/jobs/j/start", json!({})).await;
    assert_eq!(
        send(&server, &path, &worker(1), &server.url, form).await,
        409
    );
    assert_eq!(status_of(&server, "j").await, "in_progress");
    let form = "attempt=2&force=true";
    assert_eq!(
        send(&server, &path, &worker(1), &server.url, form).await,
        303
    );
    assert_eq!(status_of(&server, "j").await, "cancelled");
    assert_eq!(
        send(&server, &path, &worker(1), &server.url, form).await,
        409
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_form_that_came_too_late_says_what_has_changed_and_leads_back_to_its_page() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    stalled_job(&server, "j").await;
    let path = format!("{SCHOOL}/jobs/j");
    let mut page = Page::open().await;
    arrive(&mut page, &server, &path, &worker(1)).await;
    // The page is not renewed any more, and meanwhile the job is at another attempt.
    page.until("!!document.querySelector('#pause:not([hidden])')")
        .await;
    page.evaluate("document.getElementById('pause').click()")
        .await;
    let force = json!({"force": true});
    server.report("/api/jobs/j/cancel", force).await;
    server.report("/api/jobs/j/retry", json!({})).await;
    server.report("/api/jobs/j/start", json!({})).await;
    page.evaluate("document.querySelector('[data-key=end]').open = true")
        .await;
    page.evaluate("document.querySelector('[data-key=end] button').click()")
        .await;
    page.until("document.querySelector('h1')?.textContent === 'Request failed'")
        .await;
    let main_text = page
        .evaluate("document.querySelector('main').innerText")
        .await;
    assert!(
        main_text.as_str().unwrap().contains("attempt"),
        "{main_text}"
    );
    assert_eq!(status_of(&server, "j").await, "in_progress");
    page.evaluate("document.querySelector('main a').click()")
        .await;
    page.until(&format!("location.pathname === '{path}' && document.querySelector('h1 .badge')?.textContent === 'in progress'")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_cookie_that_expires_while_a_page_is_open_leads_to_sign_in_which_says_so() {
    if !needs("chromium") {
        return;
    }
    let server = server_with(json!({"jwt_leeway_secs": 0})).await;
    server.running_job("j").await;
    for path in [SCHOOL.to_owned(), format!("{SCHOOL}/jobs/j")] {
        let mut page = Page::open().await;
        let mut short = claims(Some(1), Role::Worker);
        short.exp = chrono::Utc::now().timestamp() as f64 + 20.0;
        arrive(&mut page, &server, &path, &sign(&short)).await;
        page.until("location.pathname === '/monitor/sign-in' && document.body.innerText.includes('Your token expired')")
            .await;
        let next = page
            .evaluate("document.querySelector('main [name=next]').value")
            .await;
        assert_eq!(next, path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_asked_before_it_is_ended_and_one_that_has_ended_is_asked_nothing() {
    let server = server().await;
    server.running_job("j").await;
    let path = format!("{SCHOOL}/jobs/j");
    let asked = "has been asked to stop";
    let seen = text(&server, &path, &worker(1)).await;
    assert!(seen.contains("data-key=\"cancel\"") && !seen.contains("data-key=\"end\""));
    let cancel = format!("{path}/cancel");
    assert_eq!(
        send(&server, &cancel, &worker(1), &server.url, "attempt=1").await,
        303
    );
    let seen = text(&server, &path, &worker(1)).await;
    assert!(seen.contains(asked) && seen.contains("data-key=\"end\""));
    assert!(!seen.contains("data-key=\"cancel\""), "not twice");
    assert!(text(&server, &path, &viewer(1)).await.contains(asked));
    server.report("/api/jobs/j/complete", json!({})).await;
    let (_, job) = server.get("/api/jobs/j", &viewer(1)).await;
    assert_eq!(job["cancel_requested"], true, "the API tells what happened");
    for path in [&*path, SCHOOL, &format!("{SCHOOL}/jobs")] {
        let seen = text(&server, path, &worker(1)).await;
        assert!(
            !seen.contains(asked) && !seen.contains("stopping"),
            "{path}"
        );
        assert!(!seen.contains("/cancel"), "{path}");
    }
}

/// What a page says in place of a percentage, and the number that it draws.
async fn drawn(server: &Server, path: &str, id: &str) -> (bool, Option<String>) {
    let seen = text(server, path, &viewer(1)).await;
    let label = format!("aria-label=\"Progress of {id}\"");
    let Some(at) = seen.find(&label) else {
        return (false, None);
    };
    let tag = &seen[at..at + seen[at..].find('>').unwrap()];
    let value = tag.split("aria-valuenow=\"").nth(1);
    (
        true,
        value.map(|rest| rest.split('"').next().unwrap().to_owned()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_that_nobody_has_reported_is_not_drawn_as_0_percent() {
    let server = server().await;
    let jobs = format!("{SCHOOL}/jobs");
    let job = json!({"job_id": "j", "job_type": "t"});
    server.report("/api/jobs", job).await;
    assert_eq!(drawn(&server, &jobs, "j").await, (false, None), "it waits");
    assert!(text(&server, &jobs, &viewer(1)).await.contains("waiting"));
    for (verb, body) in [
        ("start", json!({})),
        ("progress", json!({"message": "Well"})),
    ] {
        server.report(&format!("/api/jobs/j/{verb}"), body).await;
        for path in [&*jobs, SCHOOL] {
            assert_eq!(
                drawn(&server, path, "j").await,
                (true, None),
                "{path} {verb}"
            );
        }
    }
    let job_path = format!("{jobs}/j");
    let seen = text(&server, &job_path, &viewer(1)).await;
    assert!(seen.contains("No progress reported") && !seen.contains("<polyline"));
    assert!(
        !seen.contains("aria-valuenow") && !seen.contains("0 %"),
        "{seen}"
    );
    // Nothing is a report, too, if it is one.
    let nothing = json!({"progress": 0});
    server.report("/api/jobs/j/progress", nothing).await;
    assert_eq!(drawn(&server, &jobs, "j").await, (true, Some("0".into())));
    server
        .report("/api/jobs/j/progress", json!({"progress": 40}))
        .await;
    assert_eq!(drawn(&server, &jobs, "j").await, (true, Some("40".into())));
    let seen = text(&server, &job_path, &viewer(1)).await;
    assert!(seen.contains("1 reports, the last of 40 %"), "{seen}");
    // A new attempt begins without any.
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/j/fail", error).await;
    server.report("/api/jobs/j/retry", json!({})).await;
    assert_eq!(drawn(&server, &jobs, "j").await, (false, None));
    server.report("/api/jobs/j/start", json!({})).await;
    assert_eq!(drawn(&server, &jobs, "j").await, (true, None));
    let seen = text(&server, &job_path, &viewer(1)).await;
    assert!(
        seen.contains("the last of 40 %"),
        "no line falls to 0: {seen}"
    );
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/j/fail", error).await;
    assert_eq!(drawn(&server, &jobs, "j").await, (false, None));
    let unknown = json!({"job_type": "t", "progress": null});
    server.report("/api/jobs/k/progress", unknown).await;
    assert_eq!(drawn(&server, &jobs, "k").await, (true, None));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn ticking_several_statuses_shows_all_of_them_page_by_page() {
    let server = server().await;
    let mut wanted = Vec::new();
    let mut lines = String::new();
    for n in 0..60 {
        for (id, stall_after_secs) in [("runs", 0), ("stuck", 1), ("broken", 1)] {
            let id = format!("{id}-{n}");
            let job = json!({"op": "jobs.create", "job_id": id, "job_type": "t", "status": "in_progress", "stall_after_secs": stall_after_secs});
            lines += &format!("{job}\n");
            if !id.starts_with("runs") {
                wanted.push(id.clone());
            }
            if id.starts_with("broken") {
                let error = json!({"code": "no", "message": "No"});
                let fail = json!({"op": "jobs.fail", "job_id": id, "error": error});
                lines += &format!("{fail}\n");
            }
        }
    }
    server.batch(&worker(1), lines).await;
    until("they have stalled", async || {
        let (_, list) = server
            .get("/api/jobs?stalled=true&limit=500", &viewer(1))
            .await;
        list["jobs"].as_array().unwrap().len() == 60
    })
    .await;
    let keys = |seen: &str| -> Vec<String> {
        let rows = seen.split("<tr data-key=\"").skip(1);
        rows.map(|row| row.split('"').next().unwrap().to_owned())
            .collect()
    };
    // The second is an older bookmark.
    for query in ["status=failed&status=stalled", "status=failed&stalled=true"] {
        let (mut listed, mut path) = (Vec::new(), format!("?sort=oldest&{query}"));
        loop {
            let seen = text(&server, &format!("{SCHOOL}/jobs{path}"), &viewer(1)).await;
            assert_eq!(seen.matches(" checked").count(), 2, "{query}");
            listed.extend(keys(&seen));
            let Some(at) = seen.find("\" rel=\"next\"") else {
                break;
            };
            let start = seen[..at].rfind("href=\"").unwrap() + 6;
            path = seen[start..at].replace("&amp;", "&");
        }
        assert_eq!(listed, wanted, "each once and in order: {query}");
    }
    let only = async |query: &str, begins: &str| {
        let seen = text(&server, &format!("{SCHOOL}/jobs?{query}"), &viewer(1)).await;
        let keys = keys(&seen);
        assert!(!keys.is_empty(), "{query}");
        assert!(
            keys.iter().all(|key| key.starts_with(begins)),
            "{query}: {keys:?}"
        );
    };
    only("status=stalled", "stuck").await;
    only("status=in_progress", "runs").await;
    only("status=failed", "broken").await;
    // The API's filters narrow one another, as documented.
    for (query, count) in [
        ("status=failed&stalled=true", 0),
        ("status=in_progress&stalled=true", 60),
        ("status=in_progress", 120),
    ] {
        let path = format!("/api/jobs?limit=500&{query}");
        let (_, list) = server.get(&path, &viewer(1)).await;
        assert_eq!(list["jobs"].as_array().unwrap().len(), count, "{query}");
    }
    let (status, _) = server.get("/api/jobs?status=stalled", &viewer(1)).await;
    assert_eq!(status, 400, "it is no status of the API");
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_says_that_a_token_has_expired_and_when() {
    let server = server().await;
    let mut old = claims(Some(1), Role::Worker);
    let ended = chrono::Utc::now() - chrono::TimeDelta::minutes(12);
    old.exp = ended.timestamp() as f64;
    let token = sign(&old);
    let says = |seen: &str| {
        assert!(seen.contains("Your token expired 12 min ago"), "{seen}");
        let when = ended.format("%-d %b, %H:%M").to_string();
        assert!(seen.contains(&when), "{when}: {seen}");
    };
    // A user whose cookie expired in the meantime.
    let answer = request(&server, "GET", SCHOOL, &token)
        .send()
        .await
        .unwrap();
    let asked = answer.headers()[LOCATION].to_str().unwrap().to_owned();
    assert!(asked.starts_with("/monitor/sign-in?next="), "{asked}");
    says(&text(&server, &asked, &token).await);
    // And somebody who signs in with it.
    let form = request(&server, "POST", "/monitor/sign-in", "")
        .header("Origin", &server.url)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(format!("token={token}&next="));
    let answer = form.send().await.unwrap();
    assert_eq!(answer.status(), 401);
    says(&answer.text().await.unwrap());
    for exp in [0.0, -1e15, 1.0] {
        old.exp = exp;
        let seen = text(&server, "/monitor/sign-in", &sign(&old)).await;
        assert!(seen.contains("Sign in"), "{exp}");
    }
    // A browser that has sent no expired token gets no message about one.
    let fresh = text(&server, "/monitor/sign-in", &worker(1)).await;
    assert!(!fresh.contains("expired") && !fresh.contains("role=\"alert\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_not_there_keeps_the_tabs_of_the_school() {
    let server = server().await;
    let missing = async |path: &str, token: &str| {
        let answer = request(&server, "GET", path, token).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        answer.text().await.unwrap()
    };
    for path in [
        "/monitor/schools/1/jobs/nobody",
        "/monitor/schools/1/nothing",
        "/monitor/schools/1/nothing/at/all",
        "/monitor/schools/2/jobs/nobody",
        "/monitor/nothing",
    ] {
        let seen = missing(path, &viewer(1)).await;
        for part in [
            "href=\"&#x2F;monitor&#x2F;schools&#x2F;1&#x2F;jobs\"",
            ">Devices<",
            ">Process control<",
            "(viewer)",
        ] {
            assert!(seen.contains(part), "{path} lacks {part}: {seen}");
        }
        assert!(
            !seen.contains(">System<") && !seen.contains("schools&#x2F;2&#x2F;jobs\""),
            "{path}"
        );
    }
    // The title counts what is wrong, as those of the other pages do.
    server.running_job("j").await;
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/j/fail", error).await;
    for path in [
        "/monitor/schools/1/jobs/nobody",
        "/monitor/schools/1/nothing",
    ] {
        let seen = missing(path, &viewer(1)).await;
        assert!(seen.contains("<title>(1) 404 – Tidings</title>"), "{seen}");
    }
    let seen = missing("/monitor/schools/1/nothing", "").await;
    assert!(
        seen.contains("<title>404 – Tidings</title>"),
        "a stranger is shown none"
    );
    let mut limited = claims(Some(1), Role::Viewer);
    limited.channels = Some(vec!["devices".into()]);
    let seen = missing("/monitor/schools/1/devices/none", &sign(&limited)).await;
    assert!(seen.contains(">Devices<") && !seen.contains(">Jobs<"));
    let seen = missing("/monitor/schools/7/jobs/none", &admin()).await;
    assert!(seen.contains("schools&#x2F;7&#x2F;jobs\"") && seen.contains(">System<"));
    for token in ["", "wrong"] {
        let seen = missing("/monitor/schools/1/nothing", token).await;
        assert!(!seen.contains("class=\"tabs\""), "a stranger sees none");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn the_title_counts_what_is_wrong_and_goes_back_to_none() {
    if !needs("chromium") {
        return;
    }
    let server = server().await;
    let mut page = Page::open().await;
    arrive(&mut page, &server, &format!("{SCHOOL}/jobs"), &worker(1)).await;
    page.until("document.title === 'Jobs – Tidings'").await;
    server.running_job("j").await;
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/j/fail", error).await;
    page.until("document.title === '(1) Jobs – Tidings'").await;
    server.put("/api/devices/door", json!({})).await;
    let status = "/api/devices/door/status";
    server.report(status, json!({"status": "offline"})).await;
    page.until("document.title === '(2) Jobs – Tidings'").await;
    let limits = json!({"limits": {"center_line": 0.0, "ucl": 3.0, "lcl": -3.0}});
    server.put("/api/characteristics/bath", limits).await;
    let sample = json!({"value": 9.0});
    server
        .report("/api/characteristics/bath/samples", sample)
        .await;
    page.until("document.title === '(3) Jobs – Tidings'").await;
    stalled_job(&server, "stuck").await;
    page.until("document.title === '(4) Jobs – Tidings'").await;
    // What may not be seen is not counted.
    let mut limited = claims(Some(1), Role::Viewer);
    limited.channels = Some(vec!["devices".into()]);
    let seen = text(&server, &format!("{SCHOOL}/devices"), &sign(&limited)).await;
    assert!(
        seen.contains("<title>(1) Devices – Tidings</title>"),
        "{seen}"
    );
    server.report("/api/jobs/j/retry", json!({})).await;
    server.report("/api/jobs/stuck/progress", json!({})).await;
    server.report(status, json!({"status": "online"})).await;
    let known = json!({"reason": "Known"});
    server.report("/api/violations/bath.1/ack", known).await;
    server.report("/api/jobs/stuck/complete", json!({})).await;
    page.until("document.title === 'Jobs – Tidings'").await;
}
