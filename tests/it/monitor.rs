//! The monitoring pages, as a browser without JavaScript sees them.

use reqwest::StatusCode;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::json;

use crate::support::*;

/// A browser that follows nothing by itself.
fn browser() -> reqwest::Client {
    let policy = reqwest::redirect::Policy::none();
    reqwest::Client::builder().redirect(policy).build().unwrap()
}

async fn get(server: &Server, path: &str, token: &str) -> (StatusCode, String) {
    let request = browser().get(format!("{}{path}", server.url));
    let request = request.header(COOKIE, format!("tidings_token={token}"));
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

async fn page(server: &Server, path: &str, token: &str) -> String {
    let (status, text) = get(server, path, token).await;
    assert_eq!(status, 200, "{path}: {text}");
    text
}

/// Sends a form as a page of this server does, or of another.
async fn send(
    server: &Server,
    path: &str,
    token: Option<&str>,
    origin: &str,
    form: &str,
) -> reqwest::Response {
    let mut request = browser()
        .post(format!("{}{path}", server.url))
        .header("Origin", origin)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form.to_owned());
    if let Some(token) = token {
        request = request.header(COOKIE, format!("tidings_token={token}"));
    }
    request.send().await.unwrap()
}

async fn a_school(server: &Server) {
    server.running_job("report-7").await;
    server
        .report(
            "/api/jobs/report-7/progress",
            json!({"progress": 40, "message": "Part 2 of 5"}),
        )
        .await;
    server.running_job("broken").await;
    let error = json!({"error": {"code": "unreadable", "message": "Cannot read it"}});
    server.report("/api/jobs/broken/fail", error).await;
    let session = json!({"session_id": "s", "device_id": "door", "student_id": "Ada"});
    server.report("/api/enrollments", session).await;
    let put = async |path: &str, body: serde_json::Value| {
        let request = server.request("PUT", path, &worker(1)).json(&body);
        assert_eq!(answer(request).await.0, 200);
    };
    let info = json!({"firmware": "door-4.2"});
    put(
        "/api/devices/door",
        json!({"name": "Front door", "info": info}),
    )
    .await;
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    put(
        "/api/characteristics/bath",
        json!({"name": "Water", "limits": limits}),
    )
    .await;
    for value in [0.0, 1.0, 9.0] {
        server
            .report("/api/characteristics/bath/samples", json!({"value": value}))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_signed_in_is_asked_to_and_goes_on_where_he_wanted() {
    let server = server().await;
    let wanted = "/monitor/schools/1/jobs?status=failed";
    let response = browser()
        .get(format!("{}{wanted}", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 303);
    let asked = response.headers()[LOCATION].to_str().unwrap().to_owned();
    assert!(asked.starts_with("/monitor/sign-in?next="), "{asked}");
    let form = browser()
        .get(format!("{}{asked}", server.url))
        .send()
        .await
        .unwrap();
    let form = form.text().await.unwrap();
    assert!(
        form.contains(r#"value="&#x2F;monitor&#x2F;schools&#x2F;1&#x2F;jobs?status=failed""#),
        "{form}"
    );
    let token = viewer(1);
    let next = "%2Fmonitor%2Fschools%2F1%2Fjobs%3Fstatus%3Dfailed";
    let body = format!("token={token}&next={next}");
    let response = send(&server, "/monitor/sign-in", None, &server.url, &body).await;
    assert_eq!(
        (response.status(), &response.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &wanted.parse().unwrap())
    );
    let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
    for part in [&*token, "HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(
        !cookie.contains("Secure"),
        "this connection is not encrypted"
    );
    let out = send(&server, "/monitor/sign-out", Some(&token), &server.url, "").await;
    assert!(
        out.headers()[SET_COOKIE]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_leads_nobody_astray_and_no_other_site_can_do_it() {
    let server = server().await;
    let token = viewer(1);
    for next in [
        "https://evil.example/",
        "//evil.example/",
        "/monitor/../../evil",
        "/api/jobs",
        "%5C%5Cevil",
        "/monitor%0d%0aX: y",
    ] {
        let body = format!("token={token}&next={next}");
        let response = send(&server, "/monitor/sign-in", None, &server.url, &body).await;
        let to = response.headers()[LOCATION].to_str().unwrap();
        assert!(to.starts_with("/monitor"), "{next} led to {to}");
    }
    for (token, origin) in [(&*token, "https://evil.example"), ("wrong", &*server.url)] {
        let body = format!("token={token}&next=");
        let response = send(&server, "/monitor/sign-in", None, origin, &body).await;
        assert_eq!(response.status(), 401);
        assert!(!response.headers().contains_key(SET_COOKIE));
    }
    let out = send(
        &server,
        "/monitor/sign-out",
        Some(&token),
        "https://evil.example",
        "",
    )
    .await;
    assert!(
        !out.headers().contains_key(SET_COOKIE),
        "nor sign anybody out"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_complete_without_javascript() {
    let server = server().await;
    a_school(&server).await;
    let token = worker(1);
    for (path, parts) in [
        (
            "",
            vec![
                "report-7",
                r#"aria-valuenow="40""#,
                "Part 2 of 5",
                "unreadable",
                "Ada",
                "Front door",
                "Beyond 3 sigma",
                "Acknowledge",
            ],
        ),
        ("/jobs", vec!["report-7", "broken", "Part 2 of 5"]),
        (
            "/jobs/report-7",
            vec![
                "Milestones",
                "Cancel",
                "Part 2 of 5",
                "Metadata",
                "Progress of report-7",
                "40.0 %",
            ],
        ),
        ("/jobs/broken", vec!["Cannot read it", "Retry"]),
        ("/enrollments", vec!["Ada", "door", "ready"]),
        ("/devices", vec!["Front door", "unknown", "0.0 % online"]),
        (
            "/devices/door",
            vec![
                "Front door",
                "The last 24 hours of door",
                "Changes",
                "door-4.2",
            ],
        ),
        ("/characteristics", vec!["Water", "out of control", "3.000"]),
        (
            "/characteristics/bath",
            vec![
                "<svg",
                "UCL",
                "3 samples, 1 out of control",
                "bath.1",
                "Acknowledge",
            ],
        ),
    ] {
        let text = page(&server, &format!("/monitor/schools/1{path}"), &token).await;
        for part in parts {
            assert!(text.contains(part), "{path} lacks {part}: {text}");
        }
        // Where a reason can be written, it must not go while it is half there.
        let may_write = text.contains("name=\"reason\"") || text.contains("class=\"confirm\"");
        let renews = text.contains(r#"<noscript><meta http-equiv="refresh""#);
        assert_eq!(renews, !may_write, "{path}");
        assert!(text.len() < 100_000);
    }
    let empty = server_with(json!({})).await;
    for (path, part) in [
        ("", "No job is running"),
        ("/jobs", "No jobs yet"),
        ("/enrollments", "There is no enrollment session yet"),
        ("/devices", "No devices yet"),
        ("/characteristics", "No characteristics yet"),
        ("/jobs?q=nothing", "No job matches"),
    ] {
        let text = page(&empty, &format!("/monitor/schools/1{path}"), &token).await;
        assert!(text.contains(part), "{path}: {text}");
    }
}

/// Returns the address of the next page of a list.
fn next_page(text: &str) -> Option<String> {
    let before = &text[..text.find("rel=\"next\"")?];
    let start = before.rfind("href=\"").unwrap() + 6;
    let href = before[start..].split('"').next().unwrap();
    Some(href.replace("&amp;", "&").replace("&#x2F;", "/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_stand_in_the_address_and_pages_follow_one_another() {
    let server = server().await;
    let lines: String = (0..120)
        .map(|n| {
            json!({"op": "jobs.create", "job_id": format!("j{n}"), "job_type": "scan"}).to_string()
                + "\n"
        })
        .collect();
    server.batch(&worker(1), lines).await;
    server.report("/api/jobs/j7/start", json!({})).await;
    let token = viewer(1);
    let text = page(
        &server,
        "/monitor/schools/1/jobs?status=in_progress&job_type=scan",
        &token,
    )
    .await;
    assert!(text.contains("/jobs/j7\"") && !text.contains("/jobs/j8\""));
    assert!(text.contains(r#"value="in_progress" checked"#));
    let (mut path, mut seen) = ("/monitor/schools/1/jobs?status=pending".to_owned(), 0);
    loop {
        let text = page(&server, &path, &token).await;
        seen += text.matches("<th scope=\"row\">").count();
        let Some(href) = next_page(&text) else { break };
        assert!(href.contains("status=pending"), "{href}");
        path = format!("/monitor/schools/1/jobs{href}");
    }
    assert_eq!(seen, 119);
    let (status, text) = get(&server, "/monitor/schools/1/jobs?status=dancing", &token).await;
    assert_eq!(status, 400);
    assert!(text.contains("<h1>"), "a page, not JSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_cut_on_a_page_says_so_or_leads_on() {
    let server = server().await;
    let token = viewer(1);
    let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
    let put = |path: &str, body: serde_json::Value| {
        answer(server.request("PUT", path, &worker(1)).json(&body))
    };
    put("/api/characteristics/bath", json!({"limits": limits})).await;
    server.running_job("tried").await;
    put("/api/devices/door", json!({})).await;
    let mut lines = String::new();
    for n in 0..25 {
        let line = json!({"op": "characteristics.violations", "characteristic_id": "bath", "violation_id": n.to_string(), "rule_id": 1});
        lines += &format!("{line}\n");
    }
    for n in 0..50 {
        lines += &format!(
            "{}\n",
            json!({"op": "jobs.fail", "job_id": "tried", "error": {"code": "c", "message": n.to_string()}})
        );
        lines += &format!("{}\n", json!({"op": "jobs.retry", "job_id": "tried"}));
        lines += &format!("{}\n", json!({"op": "jobs.start", "job_id": "tried"}));
        let status = if n % 2 == 0 { "online" } else { "offline" };
        lines += &format!(
            "{}\n",
            json!({"op": "devices.status", "device_id": "door", "status": status})
        );
    }
    server.batch(&worker(1), lines).await;

    let (mut path, mut pages) = (
        "/monitor/schools/1/characteristics/bath".to_owned(),
        Vec::new(),
    );
    loop {
        let text = page(&server, &path, &token).await;
        pages.push(text.matches("<li data-key=\"violation-").count());
        let Some(href) = next_page(&text) else { break };
        path = format!("/monitor/schools/1/characteristics/bath{href}");
    }
    let (_, all) = server
        .get("/api/violations?characteristic_id=bath&limit=200", &token)
        .await;
    assert!(all["violations"].as_array().unwrap().len() >= 25, "{all}");
    assert_eq!(
        pages.iter().sum::<usize>(),
        all["violations"].as_array().unwrap().len()
    );
    assert!(pages.iter().all(|count| *count <= 10), "{pages:?}");
    let text = page(&server, "/monitor/schools/1/jobs/tried", &token).await;
    assert!(text.contains("The last 100 milestones."), "{text}");
    let text = page(&server, "/monitor/schools/1/devices/door", &token).await;
    assert!(text.contains("The last 50 changes."), "{text}");
    server.running_job("once").await;
    let text = page(&server, "/monitor/schools/1/jobs/once", &token).await;
    assert!(!text.contains("milestones."), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_do_is_not_shown_and_not_done() {
    let server = server().await;
    a_school(&server).await;
    let (viewer, worker) = (viewer(1), worker(1));
    for path in [
        "/jobs/report-7",
        "/jobs/broken",
        "/characteristics/bath",
        "",
    ] {
        let text = page(&server, &format!("/monitor/schools/1{path}"), &viewer).await;
        for button in [">Cancel<", ">Retry<", ">Acknowledge<"] {
            assert!(!text.contains(button), "{path} {button}");
        }
    }
    let forms = [
        ("/jobs/report-7/cancel", ""),
        ("/jobs/broken/retry", ""),
        ("/violations/bath.1/ack", "reason=Known"),
    ];
    for (path, form) in forms {
        let path = format!("/monitor/schools/1{path}");
        let rejected = send(&server, &path, Some(&viewer), &server.url, form).await;
        assert_eq!(rejected.status(), 403, "{path}");
        let foreign = send(&server, &path, Some(&worker), "https://evil.example", form).await;
        assert_eq!(foreign.status(), 403, "{path}");
        let done = send(&server, &path, Some(&worker), &server.url, form).await;
        assert_eq!(done.status(), 303, "{path}");
        let again = send(&server, &path, Some(&worker), &server.url, form).await;
        assert!(matches!(again.status().as_u16(), 303 | 409), "{path}");
    }
    let (_, job) = server.get("/api/jobs/report-7", &viewer).await;
    assert_eq!(job["cancel_requested"], true);
    let (_, job) = server.get("/api/jobs/broken", &viewer).await;
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("queued"), &json!(2))
    );
    let (_, page) = server.get("/api/violations", &viewer).await;
    assert_eq!(page["violations"][0]["ack_reason"], "Known");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_school_is_not_there_and_a_limited_token_sees_its_kinds_only() {
    let server = server().await;
    a_school(&server).await;
    for path in [
        "/monitor/schools/1",
        "/monitor/schools/1/jobs/report-7",
        "/monitor/schools/x",
        "/monitor/schools/2/jobs/report-7",
        "/monitor/schools/1/devices/door",
        "/monitor/schools/2/devices/door",
    ] {
        let (status, text) = get(&server, path, &viewer(2)).await;
        assert_eq!(status, 404, "{path}");
        assert!(!text.contains("Part 2 of 5"));
    }
    let mut limited = claims(Some(1), tidings::auth::Role::Viewer);
    limited.channels = Some(vec!["devices".into()]);
    let token = sign(&limited);
    let text = page(&server, "/monitor/schools/1", &token).await;
    assert!(text.contains("Front door"));
    for hidden in [
        "report-7",
        "Ada",
        "Beyond 3 sigma",
        ">Jobs<",
        "events per second",
        "Ended in",
    ] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    let (status, _) = get(&server, "/monitor/schools/1/jobs", &token).await;
    assert_eq!(status, 403);
    // A token for single subjects hears of what the page is about, and sees what belongs to it.
    limited.channels = Some(vec!["jobs/report-7".into(), "characteristics/bath".into()]);
    let token = sign(&limited);
    let text = page(&server, "/monitor/schools/1/jobs/report-7", &token).await;
    assert!(text.contains("channel=jobs&#x2F;report-7&amp;"), "{text}");
    let text = page(&server, "/monitor/schools/1/characteristics/bath", &token).await;
    assert!(text.contains("Beyond 3 sigma") && !text.contains("report-7"));
    let text = page(&server, "/monitor/schools/1", &token).await;
    assert!(!text.contains("data-stream"), "no page shows any of it");
    for link in ["/jobs/report%2D7", "/characteristics/bath"] {
        assert!(text.contains(&format!("{link}\"><bdi>")), "{text}");
    }
    let (status, _) = get(&server, "/monitor/schools/1/jobs/broken", &token).await;
    assert_eq!(status, 403);
    let mut limited = claims(None, tidings::auth::Role::Admin);
    limited.channels = Some(vec!["jobs".into()]);
    let index = page(&server, "/monitor", &sign(&limited)).await;
    assert!(
        index.contains("–") && !index.contains("Server status"),
        "what is not seen is not nothing: {index}"
    );
    let index = page(&server, "/monitor", &admin()).await;
    assert!(
        index.contains("School 1") && index.contains("Server status"),
        "{index}"
    );
    let (status, _) = get(&server, "/monitor", &viewer(1)).await;
    assert_eq!(status, 303, "who has one school has nothing to choose");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_write_is_text_and_nothing_comes_from_elsewhere() {
    let server = server().await;
    let evil = "</td><script>alert(1)</script>";
    server.running_job("j").await;
    let report = json!({"message": evil, "metadata": {"title": evil}});
    server.report("/api/jobs/j/progress", report).await;
    let put = server.request("PUT", "/api/characteristics/c", &worker(1));
    assert_eq!(answer(put.json(&json!({"name": evil}))).await.0, 200);
    server
        .report("/api/characteristics/c/samples", json!({"value": 1.0}))
        .await;
    for path in [
        "",
        "/jobs",
        "/jobs/j",
        "/characteristics",
        "/characteristics/c",
        "/jobs?q=%3Cscript%3Ealert(1)",
    ] {
        let text = page(&server, &format!("/monitor/schools/1{path}"), &worker(1)).await;
        assert!(!text.contains("<script>"), "{path}: {text}");
    }
    let request = browser()
        .get(format!("{}/monitor/schools/1", server.url))
        .bearer_auth(worker(1));
    let response = request.send().await.unwrap();
    let policy = response.headers()["content-security-policy"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let text = response.text().await.unwrap();
    let start = text.find("/monitor/assets/monitor.").unwrap();
    let file = text[start..].split('"').next().unwrap();
    let style = browser()
        .get(format!("{}{file}", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(style.status(), 200);
    assert!(
        style.headers()["cache-control"]
            .to_str()
            .unwrap()
            .contains("immutable")
    );
    assert!(
        style.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/css")
    );
    let stale = browser()
        .get(format!("{}/monitor/assets/monitor.0.css", server.url))
        .send()
        .await
        .unwrap();
    assert_eq!(stale.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_system_page_shows_a_school_its_own_and_everything_to_those_who_reach_all() {
    let server = server().await;
    server.running_job("report-7").await;
    let listener = async |scope, school| {
        let transport = Transport::EventSource;
        Listener::open(transport, &server.url, scope, &viewer(school), None).await
    };
    let here = listener("/jobs", 1).await;
    let there = listener("/devices", 2).await;
    let school_page = page(&server, "/monitor/schools/1/system", &admin_of(1)).await;
    assert!(
        school_page.contains("1 × SSE") && school_page.contains("<code>jobs</code>"),
        "{school_page}"
    );
    assert!(
        !school_page.contains("<code>devices</code>") && !school_page.contains("per commit"),
        "{school_page}"
    );
    let whole = page(&server, "/monitor/system", &admin()).await;
    for part in [
        "2 × SSE",
        "<code>jobs</code>",
        "<code>devices</code>",
        "per commit",
        "<dt>Database</dt>",
    ] {
        assert!(whole.contains(part), "{part}: {whole}");
    }
    for (path, token, status) in [
        ("/monitor/schools/1/system", viewer(1), 403),
        ("/monitor/schools/1/system", worker(1), 403),
        ("/monitor/schools/1/system", admin_of(2), 404),
        ("/monitor/system", admin_of(1), 404),
        ("/monitor/system", viewer(1), 403),
    ] {
        assert_eq!(get(&server, path, &token).await.0, status, "{path}");
    }
    let overview = page(&server, "/monitor/schools/1", &worker(1)).await;
    assert!(
        !overview.contains("/system"),
        "what may not be seen is not offered"
    );
    drop((here, there));
}

#[tokio::test(flavor = "multi_thread")]
async fn light_or_dark_is_chosen_without_a_script() {
    let server = server().await;
    let form = "theme=dark&next=%2Fmonitor%2Fschools%2F1%2Fjobs%3Fstatus%3Dfailed";
    let answer = send(&server, "/monitor/look", None, &server.url, form).await;
    assert_eq!(
        answer.headers()[LOCATION],
        "/monitor/schools/1/jobs?status=failed"
    );
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap();
    assert!(cookie.starts_with("tidings_theme=dark;"), "{cookie}");
    let sign_in_page = async |cookie: &str| {
        let request = browser().get(format!("{}/monitor/sign-in", server.url));
        let answer = request.header(COOKIE, cookie).send().await.unwrap();
        answer.text().await.unwrap()
    };
    assert!(
        sign_in_page("tidings_theme=dark")
            .await
            .contains(r#"data-theme="dark""#)
    );
    assert!(
        !sign_in_page("tidings_theme=%22%3E")
            .await
            .contains("data-theme")
    );
    let other = send(&server, "/monitor/look", None, "http://evil.example", form).await;
    assert!(other.headers().get(SET_COOKIE).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_an_address_opens_no_page_and_a_form_that_came_too_late_leads_back_to_its_page()
{
    let server = server().await;
    server.running_job("j").await;
    let path = format!("{}/monitor/schools/1?token={}", server.url, worker(1));
    let answer = browser().get(path).send().await.unwrap();
    assert_eq!(answer.status(), 303, "nor does it lead round and round");
    let next = answer.headers()["Location"].to_str().unwrap();
    assert_eq!(
        next, "/monitor/sign-in?next=%2Fmonitor%2Fschools%2F1",
        "the token is not repeated"
    );
    let form = browser()
        .post(format!("{}/monitor/schools/1/jobs/j/cancel", server.url))
        .header(
            "Referer",
            format!("{}/monitor/schools/1/jobs/j?x=1", server.url),
        );
    let answer = form.send().await.unwrap();
    assert_eq!(
        answer.headers()["Location"],
        "/monitor/sign-in?next=%2Fmonitor%2Fschools%2F1%2Fjobs%2Fj%3Fx%3D1"
    );
    let (status, text) = get(&server, "/monitor/no/such/page", &worker(1)).await;
    assert!(
        status == 404 && text.contains("<h1>Not found</h1>"),
        "people read it: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_sent_too_fast_are_answered_with_a_delay() {
    let server = server_with(json!({"publishes_per_sec": 1, "batch_limit_commands": 2})).await;
    server.running_job("j").await;
    let mut last = StatusCode::SEE_OTHER;
    for _ in 0..10 {
        let path = "/monitor/schools/1/jobs/j/cancel";
        let answer = send(&server, path, Some(&worker(1)), &server.url, "").await;
        last = answer.status();
        if last == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.headers().contains_key("Retry-After"));
            break;
        }
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_leads_to_the_monitor_except_that_of_another_application() {
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let leads = async |server: &Server, path: &str, to: &str| {
        let asked = http.get(format!("{}{path}", server.url));
        let response = asked.send().await.unwrap();
        assert_eq!(response.status(), 303, "{path}");
        assert_eq!(response.headers()[LOCATION], to, "{path}");
    };
    let server = server().await;
    leads(&server, "/", "/monitor").await;
    drop(server);
    let server = server_with(json!({"base_path": "/tidings"})).await;
    for path in ["/", "/tidings", "/tidings/"] {
        leads(&server, path, "/tidings/monitor").await;
    }
    drop(server);
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let application = crate::embed::example::application(figment(&folder, &json!({})));
    let server = launch(application, folder).await;
    leads(&server, "/live", "/live/monitor").await;
    let root = http.get(format!("{}/", server.url)).send().await.unwrap();
    assert_eq!(root.status(), 200);
    assert!(root.text().await.unwrap().starts_with("An application"));
}
