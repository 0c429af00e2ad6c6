//! What the monitoring pages look like in a real browser: on a desk, on a phone and on paper, whatever publishers write and
//! however much there is.

use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::*;

const SCHOOL: &str = "/monitor/schools/1";

/// A text of 600 characters without a space.
fn word() -> String {
    "Wörterbuch".repeat(60)
}

/// The same from right to left, and in signs of several code points.
fn foreign() -> [String; 2] {
    ["مرحبا".repeat(60), "👩‍👩‍👧‍👦".repeat(40)]
}

/// As much of a text as fits into so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let ends = (0..=bytes.min(text.len())).rev();
    let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap()]
}

/// Goes to a page and waits until it is there.
async fn visit(page: &mut Page, server: &Server, path: &str, token: &str) {
    page.go(&format!("{}{path}", server.url), token).await;
    page.until(&format!(
        "location.pathname + location.search === {path:?} && document.readyState === 'complete'"
    ))
    .await;
}

/// With everything open that can be opened. Not `innerWidth`: a phone widens it to what there is.
async fn fits(page: &mut Page) -> Value {
    page.evaluate(
        "(document.querySelectorAll('details').forEach((own) => (own.open = true)), \
          document.documentElement.scrollWidth <= document.documentElement.clientWidth)",
    )
    .await
}

/// Publishes texts that are as unwieldy as they may be, in every place that a publisher controls.
async fn hostile_school(server: &Server) {
    let [right_to_left, emoji] = foreign();
    for (index, text) in [word(), right_to_left, emoji].iter().enumerate() {
        let id = format!("{index}{}", cut(text, 120));
        let escaped =
            percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC);
        let job_type = "t".repeat(64);
        for (ending, end) in [("", None), ("f", Some("fail")), ("c", Some("complete"))] {
            let id = format!("{id}{ending}");
            let metadata = json!({"title": text, "note": text, text: text});
            let job = json!({"job_id": id, "job_type": job_type, "status": "in_progress", "message": text, "metadata": metadata});
            server.report("/api/jobs", job).await;
            let path = format!("/api/jobs/{escaped}{ending}");
            let progress = json!({"progress": 30, "message": text, "worker": cut(text, 120)});
            server.report(&format!("{path}/progress"), progress).await;
            let error = json!({"code": cut(text, 64), "message": text});
            let outcome = match end {
                Some("fail") => json!({"error": error}),
                _ => json!({"result": {"file": text}}),
            };
            if let Some(end) = end {
                server.report(&format!("{path}/{end}"), outcome).await;
            }
        }
        let session = json!({"session_id": id, "device_id": id, "student_id": cut(text, 120), "message": text, "total_attempts": 3});
        server.report("/api/enrollments", session).await;
        let device = json!({"name": cut(text, 256), "info": {"firmware": text, cut(text, 100): 1}});
        server.put(&format!("/api/devices/{escaped}"), device).await;
        let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
        let characteristic =
            json!({"name": cut(text, 256), "unit": cut(text, 256), "limits": limits});
        let path = format!("/api/characteristics/{escaped}");
        server.put(&path, characteristic).await;
        let sample = json!({"value": 9.0, "sample_id": id, "zone": cut(text, 256)});
        server.report(&format!("{path}/samples"), sample).await;
        for (number, is_known) in [(1, true), (2, false)] {
            let violation = json!({"violation_id": format!("v{index}{number}"), "rule_id": 100 + number, "rule_name": cut(text, 256)});
            server
                .report(&format!("{path}/violations"), violation)
                .await;
            if is_known {
                let known = json!({"reason": text, "user": cut(text, 200)});
                server
                    .report(&format!("/api/violations/v{index}{number}/ack"), known)
                    .await;
            }
        }
    }
    let minutes: Vec<String> = (0..40).map(|minute| minute.to_string()).collect();
    let rule = json!({"cron": format!("{} * * * *", minutes.join(",")), "time_zone": "America/Argentina/ComodRivadavia"});
    let path = format!("/api/schedules/{}", "t".repeat(64));
    server.put(&path, rule).await;
}

/// The addresses of the pages of everything that [`hostile_school`] makes.
async fn addresses(server: &Server) -> Vec<String> {
    let mut all: Vec<String> = [
        "",
        "/jobs",
        "/enrollments",
        "/devices",
        "/characteristics",
        "/schedules",
        "/violations",
        "/system",
    ]
    .iter()
    .map(|path| format!("{SCHOOL}{path}"))
    .collect();
    for (collection, id) in [
        ("jobs", "job_id"),
        ("devices", "device_id"),
        ("characteristics", "characteristic_id"),
    ] {
        let (_, list) = server.get(&format!("/api/{collection}"), &viewer(1)).await;
        for item in list[collection].as_array().unwrap() {
            let id = item[id].as_str().or(item["payload"][id].as_str()).unwrap();
            let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
            all.push(format!("{SCHOOL}/{collection}/{id}"));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn no_text_of_a_publisher_makes_a_page_wider_than_its_window() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    hostile_school(&server).await;
    let addresses = addresses(&server).await;
    assert_eq!(addresses.len(), 8 + 9 + 3 + 3);
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitor-looks");
    for (place, window) in ["phone", "desk", "paper"].into_iter().enumerate() {
        match window {
            "phone" => page.phone().await,
            "desk" => page.look(1280, false).await,
            _ => page.paper().await,
        }
        for (index, address) in addresses.iter().enumerate() {
            visit(&mut page, &server, address, &admin_of(1)).await;
            assert_eq!(fits(&mut page).await, true, "{address} on a {window}");
            let broken = "[...document.querySelectorAll('.badge:not(:has(bdi))')].filter(own => own.getBoundingClientRect().height > 30).length";
            assert_eq!(page.evaluate(broken).await, 0, "{address} on a {window}");
            if place == 0 {
                let name = format!("hostile-{index}-{window}.png");
                page.screenshot(&kept.join(name)).await;
            }
        }
    }
}

/// A school with 1,000 running jobs, 500 that have stalled, 40 that wait, 30 that failed, and 300 devices.
async fn crowded_school(server: &Server) {
    let job = |id: String, stall_after_secs: u32, status: &str| json!({"op": "jobs.create", "job_id": id, "job_type": "scan", "status": status, "stall_after_secs": stall_after_secs});
    let mut lines: Vec<Value> = Vec::new();
    lines.extend((0..1_000).map(|n| job(format!("runs-{n}"), 0, "in_progress")));
    // The newest: a list of what runs must not be full of them.
    lines.extend((0..500).map(|n| job(format!("stuck-{n}"), 1, "in_progress")));
    lines.extend((0..30).map(|n| job(format!("waits-{n}"), 0, "queued")));
    lines.extend((0..10).map(|n| job(format!("is-new-{n}"), 0, "pending")));
    for n in 0..30 {
        lines.push(job(format!("broken-{n}"), 0, "in_progress"));
        let error = json!({"code": "no", "message": "No"});
        lines.push(json!({"op": "jobs.fail", "job_id": format!("broken-{n}"), "error": error}));
    }
    lines.extend((0..300).map(
        |n| json!({"op": "devices.put", "device_id": format!("door-{n}"), "name": format!("Door {n}")}),
    ));
    lines.extend(
        (0..20).map(|n| json!({"op": "enrollments.create", "session_id": format!("s{n}")})),
    );
    for n in 0..12 {
        let limits = json!({"center_line": 0.0, "ucl": 3.0, "lcl": -3.0});
        let id = format!("c{n}");
        lines.push(json!({"op": "characteristics.put", "characteristic_id": id, "limits": limits}));
        lines.push(json!({"op": "characteristics.samples", "characteristic_id": id, "value": 9.0}));
    }
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for result in server.batch(&worker(1), lines).await {
        assert!(
            result["status"].as_u64().is_none_or(|status| status < 300),
            "{result}"
        );
    }
    until("all 500 have stalled", async || {
        let (_, list) = server
            .get("/api/jobs?stalled=true&limit=500", &viewer(1))
            .await;
        list["jobs"].as_array().unwrap().len() == 500
    })
    .await;
}

/// The text of the tile whose label begins so.
fn tile(label: &str) -> String {
    format!(
        "[...document.querySelectorAll('.totals li')].find(own => own.innerText.includes('{label}'))?.querySelector('.number').textContent.replace(/\\s/g, '')"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_crowd_is_counted_and_the_overview_shows_ten_of_each() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    crowded_school(&server).await;
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitor-looks");
    for (window, max_height) in [("phone", 14_000), ("desk", 5_000)] {
        match window {
            "phone" => page.phone().await,
            _ => page.look(1280, false).await,
        }
        visit(&mut page, &server, SCHOOL, &worker(1)).await;
        page.screenshot(&kept.join(format!("crowd-{window}.png")))
            .await;
        let height = page.evaluate("document.documentElement.scrollHeight").await;
        assert!(height.as_u64().unwrap() < max_height, "{window}: {height}");
        assert_eq!(fits(&mut page).await, true, "{window}");
    }
    let lists = "JSON.stringify([...document.querySelectorAll('main ul:not(.totals)')].map(own => own.children.length))";
    assert_eq!(page.evaluate(lists).await, "[10,10,10,10,10,10]");
    for (label, number) in [
        ("jobs running", "1000"),
        ("pending or queued", "40"),
        ("stalled", "500"),
        ("failed in 24 hours", "30"),
        ("active enrollments", "20"),
        ("open violations", "12"),
    ] {
        assert_eq!(page.evaluate(&tile(label)).await, number, "{label}");
    }
    let more = "JSON.stringify([...document.querySelectorAll('.more a')].map(own => own.innerText.replace(/\\s(?=\\d)/g, ' ').replace(/(\\d)\\s(?=\\d)/g, '$1')))";
    assert_eq!(
        page.evaluate(more).await,
        r#"["and 490 more","and 20 more","and 990 more","and 2 more","and 10 more","and 290 more"]"#
    );
    // Each leads to a list of just these.
    let hrefs = page
        .evaluate("JSON.stringify([...document.querySelectorAll('.more a')].map(own => own.getAttribute('href')))")
        .await;
    let hrefs: Vec<String> = serde_json::from_str(hrefs.as_str().unwrap()).unwrap();
    for (href, begins, is_full) in [
        (&hrefs[0], "stuck-", true),
        (&hrefs[1], "broken-", false),
        (&hrefs[2], "runs-", true),
        (&hrefs[5], "door-", true),
    ] {
        visit(&mut page, &server, href, &worker(1)).await;
        let rows = format!(
            "[...document.querySelectorAll('tbody tr')].every(own => own.dataset.key.startsWith('{begins}'))"
        );
        assert_eq!(page.evaluate(&rows).await, true, "{href}");
        let has_next = "!!document.querySelector('[rel=next]')";
        assert_eq!(page.evaluate(has_next).await, is_full, "{href}");
    }
    visit(&mut page, &server, &hrefs[3], &worker(1)).await;
    let listed = "document.querySelectorAll('.violations > li').length";
    assert_eq!(page.evaluate(listed).await, 12, "{}", hrefs[3]);
    // What happens meanwhile is counted, too.
    visit(&mut page, &server, SCHOOL, &worker(1)).await;
    page.until("document.getElementById('freshness').dataset.state === 'live'")
        .await;
    let error = json!({"error": {"code": "no", "message": "No"}});
    server.report("/api/jobs/stuck-7/fail", error).await;
    server.report("/api/jobs/runs-7/complete", json!({})).await;
    server.report("/api/jobs/waits-7/start", json!({})).await;
    for (label, number) in [
        ("stalled", "499"),
        ("failed in 24 hours", "31"),
        ("pending or queued", "39"),
    ] {
        page.until(&format!("{} === '{number}'", tile(label))).await;
    }
    assert_eq!(page.evaluate(lists).await, "[10,10,10,10,10,10]");
    assert_eq!(
        page.evaluate("document.title.replace(/(\\d)\\s(?=\\d)/g, '$1')")
            .await,
        "(542) School 1 – Tidings",
        "499 stalled, 31 failed, 12 violations"
    );
}

/// Whether an element of this class in each `time` takes up room.
fn each_time_shows(class: &str) -> String {
    format!(
        "(times => times.length > 0 && times.every(own => own.querySelector('.{class}').getClientRects().length > 0))([...document.querySelectorAll('main time:not([data-form])')].filter(own => !own.closest('details:not([open])') && own.parentElement.className !== 'on-paper'))"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn a_time_says_how_long_ago_and_when_without_a_pointer_and_on_paper_when() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    hostile_school(&server).await;
    for path in [
        "",
        "/jobs",
        "/devices",
        "/characteristics",
        "/schedules",
        "/violations",
        "/enrollments",
    ] {
        let path = format!("{SCHOOL}{path}");
        page.phone().await;
        visit(&mut page, &server, &path, &worker(1)).await;
        for class in ["ago", "at"] {
            assert_eq!(
                page.evaluate(&each_time_shows(class)).await,
                true,
                "{path} {class}"
            );
        }
        let says = "[...document.querySelectorAll('main time:not([data-form])')].every(own => /\\d{1,2}:\\d\\d:\\d\\d/.test(own.querySelector('.at').textContent) && / ago|now|in /.test(own.querySelector('.ago').textContent))";
        assert_eq!(page.evaluate(says).await, true, "{path}");
        page.paper().await;
        assert_eq!(page.evaluate(&each_time_shows("at")).await, true, "{path}");
        let shown = "[...document.querySelectorAll('.ago')].filter(own => own.getClientRects().length > 0).length";
        assert_eq!(page.evaluate(shown).await, 0, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn on_a_phone_charts_are_legible_and_tabs_progress_and_ids_are_in_view() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    hostile_school(&server).await;
    let addresses = addresses(&server).await;
    page.phone().await;
    let mut words = 0;
    for address in &addresses {
        visit(&mut page, &server, address, &admin_of(1)).await;
        let sizes = page
            .evaluate("JSON.stringify([...document.querySelectorAll('main svg text')].map(own => own.getBoundingClientRect().height))")
            .await;
        let sizes: Vec<f64> = serde_json::from_str(sizes.as_str().unwrap()).unwrap();
        words += sizes.len();
        assert!(
            sizes.iter().all(|size| *size >= 10.0),
            "{address}: {sizes:?}"
        );
        let tab = "(({left, right, top, bottom}) => left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight)(document.querySelector('.tabs [aria-current]').getBoundingClientRect())";
        assert_eq!(page.evaluate(tab).await, true, "{address}");
    }
    assert!(words > 10, "there are charts with words: {words}");
    for path in ["/jobs", "/enrollments"] {
        visit(&mut page, &server, &format!("{SCHOOL}{path}"), &worker(1)).await;
        let bars = "(bars => bars.length > 0 && bars.every(own => (({left, right, width}) => left >= 0 && right <= innerWidth && width > 60)(own.getBoundingClientRect())))([...document.querySelectorAll('.rows .progress')])";
        assert_eq!(page.evaluate(bars).await, true, "{path}");
    }
    visit(&mut page, &server, &format!("{SCHOOL}/jobs"), &worker(1)).await;
    let lines = "Math.max(...[...document.querySelectorAll('.rows .id, .rows th a')].map(own => own.getBoundingClientRect().height / parseFloat(getComputedStyle(own).lineHeight)))";
    let lines = page.evaluate(lines).await.as_f64().unwrap();
    assert!(lines < 2.5, "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn on_paper_there_are_dates_and_legends_and_nothing_to_press() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    hostile_school(&server).await;
    let addresses = addresses(&server).await;
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitor-looks");
    page.paper().await;
    let mut legends = 0;
    for (index, address) in addresses.iter().enumerate() {
        visit(&mut page, &server, address, &admin_of(1)).await;
        let shown = |what: &str| {
            format!(
                "[...document.querySelectorAll('{what}')].filter(own => own.getClientRects().length > 0).length"
            )
        };
        let pressed = shown("form, button, summary, input, select, nav, #freshness");
        assert_eq!(page.evaluate(&pressed).await, 0, "{address}");
        // A row of a list takes a few lines, whatever publishers write.
        let tall = "[...document.querySelectorAll('tr, li')].filter(own => own.querySelector('.clamp') && own.getBoundingClientRect().height > 400).length";
        assert_eq!(page.evaluate(tall).await, 0, "{address}");
        // A line of digits is a number: none is on two.
        let broken = "[...document.querySelectorAll('td.number')].filter(own => { \
             const range = document.createRange(); range.selectNodeContents(own); \
             return own.innerText.trim().length < 12 && !/\\s/.test(own.innerText.trim()) && new Set([...range.getClientRects()].map(one => one.top)).size > 1; }).length";
        assert_eq!(page.evaluate(broken).await, 0, "{address}");
        let as_of = page
            .evaluate("document.querySelector('.on-paper').innerText")
            .await;
        assert!(as_of.as_str().unwrap().starts_with("As of "), "{as_of}");
        let keys = page.evaluate(&shown(".key")).await.as_u64().unwrap();
        let coloured = "[...document.querySelectorAll('.key')].every(own => getComputedStyle(own).printColorAdjust === 'exact')";
        assert_eq!(page.evaluate(coloured).await, true, "{address}");
        legends += keys;
        if index % 4 == 0 {
            page.pdf(&kept.join(format!("paper-{index}.pdf"))).await;
            page.screenshot(&kept.join(format!("paper-{index}.png")))
                .await;
        }
    }
    assert!(
        legends >= 3,
        "the bars of the overview, and the broken rules: {legends}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real browser"]
async fn the_theme_button_says_what_it_does_and_does_it() {
    if !needs("chromium") {
        return;
    }
    let mut page = Page::open().await;
    let server = server().await;
    for (dark, first, then) in [
        (false, "Switch to dark theme", "Switch to light theme"),
        (true, "Switch to light theme", "Switch to dark theme"),
    ] {
        page.look(1280, dark).await;
        visit(&mut page, &server, SCHOOL, &viewer(1)).await;
        let names = "JSON.stringify([...document.querySelectorAll('.look button')].filter(own => own.getClientRects().length > 0).map(own => own.innerText))";
        assert_eq!(page.evaluate(names).await, json!([first]).to_string());
        let press = |name: &str| {
            format!(
                "[...document.querySelectorAll('.look button')].find(own => own.innerText === \"{name}\").click(); true"
            )
        };
        let background = "getComputedStyle(document.body).backgroundColor";
        let before = page.evaluate(background).await;
        page.evaluate(&press(first)).await;
        page.until("!!document.documentElement.dataset.theme").await;
        assert_ne!(page.evaluate(background).await, before);
        let all = json!([then, "Use system theme"]).to_string();
        page.until(&format!("{names} === {}", json!(all))).await;
        page.evaluate(&press(then)).await;
        page.until(&format!("{background} === {before}")).await;
        page.evaluate(&press("Use system theme")).await;
        page.until("!document.documentElement.dataset.theme").await;
    }
}
