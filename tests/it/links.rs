//! Signed links: what a badge shows, what a link opens, and what it does not.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tidings::auth::{Claims, Role};
use tidings::config::BADGE_AGE_SECS;

use crate::support::process::{self, Process};
use crate::support::*;

/// Creates a link. It must succeed. Returns its path.
async fn link(server: &Server, token: &str, body: Value) -> String {
    let (status, created) = server.post("/api/links", token, body).await;
    assert_eq!(status, 201, "{created}");
    created["url"].as_str().unwrap().to_owned()
}

/// Creates a link to a badge of school 1, as an admin.
async fn badge_of(server: &Server, channel: &str) -> String {
    let asked = json!({"channel": channel, "view": "badge"});
    link(server, &admin_of(1), asked).await
}

/// Requests a path without a credential, with a header.
async fn fetch(server: &Server, path: &str, header: (&str, &str)) -> (u16, HeaderMap, String) {
    let url = format!("{}{path}", server.url);
    let answer = server.http.get(url).header(header.0, header.1).send();
    let answer = answer.await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.text().await.unwrap())
}

/// Requests a badge without a credential. It must be an image. Returns the status and what it says.
async fn badge(server: &Server, path: &str) -> (u16, String) {
    let (status, headers, image) = fetch(server, path, ("Accept", "image/*")).await;
    assert_eq!(headers["content-type"], "image/svg+xml", "{image}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(image.starts_with("<svg "), "{image}");
    assert!(image.contains(r#" role="img" "#), "{image}");
    let (_, rest) = image.split_once("<title>").unwrap();
    let (title, _) = rest.split_once("</title>").unwrap();
    assert!(image.contains(&format!(r#"aria-label="{title}""#)));
    (status, title.to_owned())
}

fn limited_to(channel: &str, role: Role) -> String {
    sign(&Claims {
        channels: Some(vec![channel.to_owned()]),
        ..claims(Some(1), role)
    })
}

#[tokio::test]
async fn a_badge_shows_state_and_percentage_to_whoever_has_the_link() {
    let server = server().await;
    let url = badge_of(&server, "jobs/a%20b").await;
    assert_eq!(badge(&server, &url).await, (404, "a b: not found".into()));
    // Each of these is another badge: one is shown for some seconds.
    for (id, path, body, expected) in [
        ("p", "", json!({}), "p: in progress"),
        ("q", "progress", json!({"progress": 40.9}), "q: 40 %"),
        ("r", "complete", json!({}), "r: completed"),
        (
            "s",
            "fail",
            json!({"error": {"code": "x", "message": "y"}}),
            "s: failed",
        ),
        ("t", "cancel", json!({"force": true}), "t: cancelled"),
    ] {
        server.running_job(id).await;
        if !path.is_empty() {
            let path = format!("/api/jobs/{id}/{path}");
            let answer = server.post(&path, &worker(1), body).await;
            assert_eq!(answer.0, 200, "{answer:?}");
        }
        let url = badge_of(&server, &format!("jobs/{id}")).await;
        let seen = badge(&server, &url).await;
        let is_asked = id == "t" && seen.1 == "t: in progress";
        assert!(seen == (200, expected.into()) || is_asked, "{seen:?}");
    }
    server
        .put("/api/devices/door", json!({"name": "Door"}))
        .await;
    let url = badge_of(&server, "devices/door").await;
    assert_eq!(badge(&server, &url).await, (200, "Door: unknown".into()));
    let url = badge_of(&server, "jobs").await;
    let (_, jobs) = badge(&server, &url).await;
    assert!(jobs.contains("in progress"), "{jobs}");
    let url = badge_of(&server, "schools/1").await;
    let (_, school) = badge(&server, &url).await;
    assert!(school.starts_with("School 1: "), "{school}");
    assert!(school.contains(" jobs"), "{school}");
    let url = badge_of(&server, "enrollments").await;
    let (_, sessions) = badge(&server, &url).await;
    assert!(sessions.ends_with(": none active"), "{sessions}");
}

#[tokio::test]
#[ignore = "slow: real seconds pass"]
async fn a_badge_is_cached_for_seconds_and_is_not_sent_twice_to_a_client_that_has_it() {
    let server = server().await;
    server.running_job("a").await;
    let url = badge_of(&server, "jobs/a").await;
    let (status, headers, _) = fetch(&server, &url, ("Accept", "*/*")).await;
    assert_eq!(status, 200);
    let control = headers["cache-control"].to_str().unwrap();
    let age = control.strip_prefix("public, max-age=").unwrap();
    assert!(
        (1..=BADGE_AGE_SECS).contains(&age.parse::<u64>().unwrap()),
        "{age}"
    );
    let tag = headers["etag"].to_str().unwrap();
    for tag in [tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
        let (status, headers, image) = fetch(&server, &url, ("If-None-Match", tag)).await;
        assert_eq!((status, &*image), (304, ""), "{tag}");
        assert!(headers.contains_key("etag"));
    }
    assert_eq!(
        fetch(&server, &url, ("If-None-Match", "\"x\"")).await.0,
        200
    );
    let head = server.http.head(format!("{}{url}", server.url));
    assert_eq!(head.send().await.unwrap().status(), StatusCode::OK);
    // What has changed is shown after these seconds.
    server.report("/api/jobs/a/complete", json!({})).await;
    until("the badge is renewed", async || {
        let (status, _, image) = fetch(&server, &url, ("If-None-Match", tag)).await;
        status == 200 && image.contains("completed")
    })
    .await;
    // Proxies must not keep what is refused.
    let (_, headers, _) = fetch(&server, "/badge/jobs/a.svg", ("Accept", "*/*")).await;
    assert_eq!(headers["cache-control"], "no-store");
}

#[tokio::test]
async fn what_publishers_write_stays_text_in_a_badge() {
    let server = server().await;
    let title = "</title><script>alert('1')</script>\u{202e}\u{0}&\"";
    let body = json!({"job_id": "a", "job_type": "t", "metadata": {"title": title.replace('\0', "\u{1}")}});
    server.report("/api/jobs", body).await;
    let url = badge_of(&server, "jobs/a").await;
    let (_, _, image) = fetch(&server, &url, ("Accept", "*/*")).await;
    assert!(!image.contains("<script"), "{image}");
    let escaped = "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;";
    assert!(image.contains(escaped), "{image}");
    let is_plain = |c: char| !c.is_control() && c != '\u{202e}';
    assert!(image.chars().all(is_plain), "{image}");
    // However long a title is, the badge is short.
    let title = "ab".repeat(400);
    let body = json!({"job_id": "b", "job_type": "t", "metadata": {"title": title}});
    server.report("/api/jobs", body).await;
    let url = badge_of(&server, "jobs/b").await;
    let (_, shown) = badge(&server, &url).await;
    assert!(shown.contains("ba…: "), "{shown}");
    assert!(shown.chars().count() < 60, "{shown}");
}

#[tokio::test]
async fn a_link_opens_what_it_was_signed_for_and_nothing_else() {
    let server = server().await;
    for id in ["a", "b"] {
        server.running_job(id).await;
    }
    let body = json!({"job_id": "a", "job_type": "secret", "status": "pending"});
    let (status, _) = server.post("/api/jobs", &worker(2), body).await;
    assert_eq!(status, 201);
    let asked = json!({"channel": "jobs/a", "view": "badge", "expires_in_secs": 3_600});
    let url = link(&server, &admin_of(1), asked).await;
    assert_eq!(badge(&server, &url).await.0, 200);
    let (path, query) = url.split_once('?').unwrap();
    let fields: Vec<&str> = query.split('&').collect();
    let [school, expires, signature] = fields[..] else {
        panic!("{query}");
    };
    // Everything is signed: the channel, the school, the expiry and the view. The order and additions are not.
    for (changed, status, reason) in [
        (
            format!("/badge/jobs/b.svg?{query}"),
            403,
            "link is not valid",
        ),
        (format!("/badge/jobs.svg?{query}"), 403, "link is not valid"),
        (
            format!("/badge/nothing.svg?{query}"),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?school_id=2&{expires}&{signature}"),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?{school}&{signature}"),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?{school}&expires=9999999999&{signature}"),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?{school}&{expires}&signature=AAAA"),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?{school}&{expires}&signature={}", "A".repeat(2_000)),
            403,
            "link is not valid",
        ),
        (
            format!("{path}?{school}&{expires}"),
            400,
            "link is not complete",
        ),
        (
            format!("{path}?{expires}&{signature}"),
            400,
            "link is not complete",
        ),
        (
            format!("{path}?{school}&expires=soon&{signature}"),
            400,
            "link is not complete",
        ),
        (format!("/badge/jobs/a?{query}"), 404, "not found"),
    ] {
        let (got, text) = badge(&server, &changed).await;
        assert_eq!(
            (got, text),
            (status, format!("status: {reason}")),
            "{changed}"
        );
    }
    let changed = format!("{path}?{signature}&v=2&{expires}&{school}");
    assert_eq!(badge(&server, &changed).await.0, 200, "{changed}");
    // A badge's link does not open the page, which tells more, nor is a link a token or a ticket.
    let (status, _, _) = fetch(
        &server,
        &format!("/embed/jobs/a?{query}"),
        ("Accept", "*/*"),
    )
    .await;
    assert_eq!(status, 403);
    let secret = signature.strip_prefix("signature=").unwrap();
    for path in ["/api/jobs/a?token=", "/events/jobs/a?wait=0&ticket="] {
        let url = format!("{}{path}{secret}", server.url);
        let request = server.http.get(url).header("Accept", "application/json");
        assert_eq!(answer(request).await.0, 401, "{path}");
    }
    // A token is no link either: a visitor's own does not open another school's badge.
    let url = format!("{}/badge/jobs/a.svg?school_id=2", server.url);
    let other = server.http.get(url).bearer_auth(viewer(1)).send().await;
    assert_eq!(other.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_link_is_made_for_what_its_maker_reaches_and_for_as_long() {
    let server = server_with(json!({"anonymous_school_id": 3})).await;
    let asked = |channel: &str| json!({"channel": channel, "view": "badge"});
    let narrow = limited_to("jobs/a", Role::Admin);
    for (token, channel, status) in [
        (narrow.as_str(), "jobs/a", 201),
        (&narrow, "jobs/b", 403),
        (&narrow, "jobs", 403),
        (&viewer(1), "schools/2", 404),
        (&viewer(1), "nothing/1", 422),
        (&admin(), "jobs/a", 400),
    ] {
        let (got, answer) = server.post("/api/links", token, asked(channel)).await;
        assert_eq!(got, status, "{channel}: {answer}");
    }
    // An admin's link can stay; others end with their token.
    let (_, created_link) = server.post("/api/links", &admin_of(1), asked("jobs")).await;
    assert!(created_link["expires_at"].is_null(), "{created_link}");
    let token = sign(&claims(Some(1), Role::Worker));
    let end = claims(Some(1), Role::Worker).exp as i64;
    for secs in [None, Some(1_000_000_000)] {
        let mut body = asked("jobs");
        body["expires_in_secs"] = json!(secs);
        let (_, created_link) = server.post("/api/links", &token, body).await;
        let at = created_link["expires_at"].as_str().unwrap();
        let at = chrono::DateTime::parse_from_rfc3339(at).unwrap();
        assert!(at.timestamp() <= end + 60, "{created_link}");
    }
    let anonymous = server.http.post(format!("{}/api/links", server.url));
    let (status, _) = answer(anonymous.json(&asked("jobs"))).await;
    assert_eq!(status, 403, "the link would outlive the setting");
    for (field, value) in [
        ("view", json!("page")),
        ("expires_in_secs", json!(0)),
        ("expires_in_secs", json!(4_000_000_000_u64)),
        ("other", json!(1)),
    ] {
        let mut body = asked("jobs");
        body[field] = value;
        let (status, answer) = server.post("/api/links", &admin_of(1), body).await;
        assert_eq!(status, 422, "{field}");
        assert!(
            answer["detail"].as_str().unwrap().contains(field),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_expired_link_says_so() {
    let server = server().await;
    server.running_job("a").await;
    for view in ["badge", "embed"] {
        let asked = json!({"channel": "jobs/a", "view": view, "expires_in_secs": 1});
        let url = link(&server, &viewer(1), asked).await;
        until("the link expires", async || {
            let (status, _, text) = fetch(&server, &url, ("Accept", "*/*")).await;
            assert!(status == 200 || text.contains("link has expired"), "{text}");
            status == 403
        })
        .await;
    }
}

/// A stream of an embedded page ends with its link, not with its ticket.
#[tokio::test]
#[ignore = "slow: real seconds pass"]
async fn an_embedded_page_gets_tickets_for_its_channel_until_its_link_expires() {
    let server = server().await;
    server.running_job("a").await;
    let asked = json!({"channel": "jobs/a", "view": "embed", "expires_in_secs": 3});
    let url = link(&server, &viewer(1), asked).await;
    let (status, _, page) = fetch(&server, &url, ("Accept", "text/html")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page.contains(r#"<tidings-progress job="a""#), "{page}");
    let ticket = async |channels: Value| {
        let request = server.http.post(format!("{}{url}", server.url));
        answer(request.json(&json!({ "channels": channels }))).await
    };
    for channel in ["jobs/b", "jobs", "schools/1"] {
        let (status, rejected) = ticket(json!([channel])).await;
        assert_eq!(status, 403, "{rejected}");
    }
    let (status, rejected) = ticket(json!(["schools/2"])).await;
    assert_eq!(status, 404, "{rejected}");
    let (status, granted) = ticket(json!(["jobs/a"])).await;
    assert_eq!(status, 201, "{granted}");
    let stream = format!("{}{}", server.url, granted["url"].as_str().unwrap());
    let stream = server
        .http
        .get(stream)
        .header("Accept", "text/event-stream");
    let text = stream.send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#""job_id":"a""#), "{text}");
    assert!(text.contains(r#""code":4401"#), "it ends by itself: {text}");
    let (status, rejected) = ticket(json!(["jobs/a"])).await;
    assert_eq!(status, 403, "{rejected}");
    assert!(rejected["detail"].as_str().unwrap().contains("expired"));
}

#[tokio::test]
async fn only_the_origins_of_the_setting_can_show_a_page_in_a_frame() {
    let policy = async |settings: Value| {
        let server = server_with(settings).await;
        let asked = json!({"channel": "jobs", "view": "embed"});
        let url = link(&server, &admin_of(1), asked).await;
        let (_, valid, page) = fetch(&server, &url, ("Accept", "*/*")).await;
        let (_, rejected, _) = fetch(&server, "/embed/jobs", ("Accept", "*/*")).await;
        for name in ["content-security-policy", "x-frame-options"] {
            assert_eq!(valid.get(name), rejected.get(name));
        }
        let text = |name: &str| {
            valid
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let policy = text("content-security-policy").unwrap();
        let (_, ancestors) = policy.split_once("frame-ancestors ").unwrap();
        assert!(page.contains("<tidings-jobs"), "{page}");
        (ancestors.to_owned(), text("x-frame-options"))
    };
    let nobody = ("'none'".to_owned(), Some("DENY".to_owned()));
    assert_eq!(policy(json!({})).await, nobody);
    let origins = json!({"frame_ancestors": ["https://a.example", "https://*.b.example:8443"]});
    let both = "https://a.example https://*.b.example:8443".to_owned();
    assert_eq!(policy(origins).await, (both, None));
    let all = json!({"frame_ancestors": "*"});
    assert_eq!(policy(all).await, ("*".to_owned(), None));
    // The pages of the monitor stay out of frames.
    let server = server_with(json!({"frame_ancestors": "*"})).await;
    let (_, headers, _) = fetch(&server, "/monitor/sign-in", ("Accept", "*/*")).await;
    assert_eq!(headers["x-frame-options"], "DENY");
}

#[tokio::test]
async fn only_jobs_can_be_embedded_and_their_list_can_be_limited() {
    let server = server().await;
    // A page's tickets open the whole channel, and it shows jobs only.
    for channel in ["devices", "enrollments/s", "schools/1"] {
        let asked = json!({"channel": channel, "view": "embed"});
        let (status, answer) = server.post("/api/links", &admin_of(1), asked).await;
        assert_eq!(status, 422, "{answer}");
    }
    let asked = json!({"channel": "jobs", "view": "embed"});
    let url = link(&server, &admin_of(1), asked).await;
    let limits = format!("{url}&job_type=%22%3E%3Cscript%3E&limit=3&status=failed");
    let (_, _, page) = fetch(&server, &limits, ("Accept", "*/*")).await;
    assert!(page.contains(r#" limit="3""#), "{page}");
    assert!(page.contains(r#" status="failed""#), "{page}");
    assert!(!page.contains("\"><script>"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_a_link_and_no_signature_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = process::command(folder.path());
    let mut server = Process::start(serve.arg("serve").env("TIDINGS_LOG", "debug"));
    let mut log = server.stderr();
    let mut signatures = Vec::new();
    for (view, channel) in [("badge", "jobs"), ("embed", "jobs/a")] {
        let mut token = process::command(folder.path());
        let option = format!("--{view}");
        let args = ["token", "--school", "1", &option, channel, "--ttl", "90d"];
        let printed = process::run(token.args(args).args(["--url", &server.url]));
        assert!(printed.status.success(), "{printed:?}");
        let url = String::from_utf8(printed.stdout).unwrap();
        let url = url.trim();
        assert!(
            url.starts_with(&format!("{}/{view}/{channel}", server.url)),
            "{url}"
        );
        let shown = reqwest::get(url).await.unwrap();
        assert_eq!(shown.status(), StatusCode::OK, "{url}");
        let rejected = reqwest::get(format!("{url}x")).await.unwrap();
        assert_eq!(rejected.status(), StatusCode::FORBIDDEN, "{url}");
        let (_, signature) = url.split_once("signature=").unwrap();
        signatures.push(signature.to_owned());
    }
    assert_eq!(server.terminate(), Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut log, &mut text).unwrap();
    for signature in signatures {
        assert!(!text.contains(&signature), "{text}");
    }
}
