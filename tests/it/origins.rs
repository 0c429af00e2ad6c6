//! Pages of this origin and of others: whose may use the cookie, and whose may read answers.

use reqwest::header::HeaderMap;
use rocket::figment::Figment;
use rocket::figment::providers::Serialized;
use serde_json::{Value, json};
use tidings::config::{ORIGIN_MAX_BYTES, Settings};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::listener::socket_url;
use crate::support::*;

/// The status of a write with a cookie, with these headers in addition.
async fn write(server: &Server, headers: &[(&str, &str)]) -> u16 {
    let mut request = server
        .http
        .post(format!("{}/api/jobs/a/progress", server.url))
        .header("Cookie", format!("tidings_token={}", worker(1)));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.body("{}").send().await.unwrap();
    answer.status().as_u16()
}

/// Whether a WebSocket opens with the cookie, or without, from a page.
async fn opens(server: &Server, origin: &str, cookie: Option<&str>) -> bool {
    let url = socket_url(&server.url, "/events/jobs", None, None);
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Origin", origin.parse().unwrap());
    if let Some(token) = cookie {
        let cookie = format!("tidings_token={token}");
        headers.insert("Cookie", cookie.parse().unwrap());
    }
    tokio_tungstenite::connect_async(request).await.is_ok()
}

/// Leading zeros of a port are ignored.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_longer_than_any_of_a_browser_is_a_foreign_one() {
    let server = server().await;
    server.running_job("a").await;
    let (start, end) = ("https://x:", "443");
    for (bytes, status) in [(ORIGIN_MAX_BYTES, 200), (ORIGIN_MAX_BYTES + 1, 403)] {
        let zeros = "0".repeat(bytes - start.len() - end.len());
        let origin = format!("{start}{zeros}{end}");
        let headers = [("Host", "x"), ("Origin", &*origin)];
        assert_eq!(write(&server, &headers).await, status, "{bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_the_servers_own_whatever_its_spelling_and_default_port() {
    let server = server().await;
    server.running_job("a").await;
    for (host, origin) in [
        ("x", "https://x"),
        ("x", "http://x"),
        ("x:443", "https://x"),
        ("x:443", "https://x:443"),
        ("x", "https://x:443"),
        ("x:80", "http://x"),
        ("x", "http://x:80"),
        ("x:80", "https://x"),
        ("x:8443", "https://x:8443"),
        ("X.Example", "https://x.example"),
        ("x.example", "HTTPS://X.EXAMPLE"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::1]", "http://[0:0:0:0:0:0:0:1]"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
    ] {
        let status = write(&server, &[("Host", host), ("Origin", origin)]).await;
        assert_eq!(status, 200, "{host} {origin}");
        let form = server
            .http
            .post(format!("{}/monitor/sign-in", server.url))
            .header("Host", host)
            .header("Origin", origin)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("token={}&next=", worker(1)));
        let cookie = once(form).await.1;
        let cookie = cookie["set-cookie"].to_str().unwrap().to_owned();
        let is_secure = origin.to_lowercase().starts_with("https");
        assert_eq!(cookie.contains("; Secure"), is_secure, "{host} {origin}");
    }
    for (host, origin) in [
        ("x", "https://x:8443"),
        ("x:8443", "https://x"),
        ("x:443", "http://x"),
        ("x:8080", "http://x"),
        ("x:80", "http://x:443"),
        ("x", "https://y"),
        ("x", "https://x.evil.example"),
        ("x", "https://evil-x"),
        ("x", "https://x@evil.example"),
        ("x", "https://x/"),
        ("x", "ftp://x"),
        ("x", "null"),
        ("x", ""),
        ("null", "null"),
        ("[::1]:8000", "http://[::2]:8000"),
        ("x y", "https://x"),
    ] {
        let status = write(&server, &[("Host", host), ("Origin", origin)]).await;
        assert_eq!(status, 403, "{host} {origin}");
    }
    let twice = [
        ("Host", "x"),
        ("Origin", "https://x"),
        ("Origin", "https://evil.example"),
    ];
    assert_eq!(write(&server, &twice).await, 403);
    assert_eq!(
        write(&server, &[("Host", "x")]).await,
        200,
        "no browser page"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_without_an_origin_counts_as_it_comes_from_no_page() {
    let server = server().await;
    server.running_job("a").await;
    assert_eq!(write(&server, &[]).await, 200);
    for origin in [
        "null",
        "",
        "https://x https://y",
        "http://elsewhere.example",
    ] {
        assert_eq!(write(&server, &[("Origin", origin)]).await, 403, "{origin}");
    }
}

/// One request without following where it leads.
async fn once(request: reqwest::RequestBuilder) -> (u16, HeaderMap) {
    let request = request.build().unwrap();
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let answer = client.build().unwrap().execute(request).await.unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

/// The answer to a preflight request of a page.
async fn preflight(server: &Server, origin: &str, asked: Option<&str>) -> HeaderMap {
    let mut request = server
        .http
        .request(reqwest::Method::OPTIONS, format!("{}/api/jobs", server.url))
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "POST");
    if let Some(asked) = asked {
        request = request.header("Access-Control-Request-Headers", asked);
    }
    let (status, headers) = once(request).await;
    assert_eq!(status, 204);
    headers
}

fn has(headers: &HeaderMap, name: &str, item: &str) -> bool {
    let mut lines = headers.get_all(name).iter();
    lines.any(|line| {
        let mut items = line.to_str().unwrap().split(',').map(str::trim);
        items.any(|listed| listed.eq_ignore_ascii_case(item))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_clients_may_send_their_headers_and_read_ours_across_origins() {
    let server = server_with(json!({"allowed_origins": ["https://office.example"]})).await;
    let origin = "https://office.example";
    let plain = preflight(&server, origin, None).await;
    assert_eq!(plain["access-control-allow-origin"], origin);
    assert_eq!(plain["access-control-allow-credentials"], "true");
    assert!(has(&plain, "vary", "Origin"));
    for method in ["GET", "HEAD", "POST", "PUT"] {
        assert!(
            has(&plain, "access-control-allow-methods", method),
            "{method}"
        );
    }
    let name = "access-control-allow-headers";
    for header in [
        "Accept",
        "Authorization",
        "Cache-Control",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "Pragma",
        "X-Requested-With",
    ] {
        assert!(has(&plain, name, header), "{header}: {plain:?}");
    }
    // What libraries add of their own.
    let asked = preflight(
        &server,
        origin,
        Some("authorization,x-xsrf-token, traceparent"),
    )
    .await;
    for header in [
        "authorization",
        "x-xsrf-token",
        "traceparent",
        "cache-control",
    ] {
        assert!(has(&asked, name, header), "{header}: {asked:?}");
    }
    let odd = "x-forwarded-host, x-real-ip, a b, \"c\", , x-fine";
    let odd = preflight(&server, origin, Some(odd)).await;
    for header in ["x-forwarded-host", "x-real-ip", "a b", "\"c\"", "", "*"] {
        assert!(!has(&odd, name, header), "{header}: {odd:?}");
    }
    assert!(has(&odd, name, "x-fine"));
    let long = preflight(&server, origin, Some(&"x-long,".repeat(1_000))).await;
    assert!(!has(&long, name, "x-long") && has(&long, name, "authorization"));

    for (path, status) in [
        ("/api/jobs", 200),
        ("/api/jobs/none", 404),
        ("/nothing", 404),
    ] {
        let request = server.request("GET", path, &viewer(1));
        let (answered, headers) = once(request.header("Origin", origin)).await;
        assert_eq!(answered, status);
        assert_eq!(headers["access-control-allow-origin"], origin, "{path}");
        for header in ["Location", "Retry-After", "WWW-Authenticate"] {
            assert!(
                has(&headers, "access-control-expose-headers", header),
                "{path}"
            );
        }
    }
    // Somebody else's page learns nothing, and caches know that the answer depends on who asks.
    for origin in [
        "https://evil.example",
        "https://office.example:8443",
        "null",
    ] {
        for headers in [
            preflight(&server, origin, Some("authorization")).await,
            once(
                server
                    .request("GET", "/api/jobs", &viewer(1))
                    .header("Origin", origin),
            )
            .await
            .1,
        ] {
            let mut names = headers.keys().map(|name| name.as_str());
            assert!(
                names.all(|name| !name.starts_with("access-control")),
                "{headers:?}"
            );
            assert!(has(&headers, "vary", "Origin"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_origin_may_read_but_only_a_named_one_may_use_the_cookie() {
    let settings = json!({"allowed_origins": ["*", "https://office.example"]});
    let server = server_with(settings).await;
    server.running_job("a").await;
    for origin in ["https://anywhere.example", "http://localhost:3000", "null"] {
        for headers in [
            preflight(&server, origin, Some("authorization")).await,
            once(
                server
                    .request("GET", "/api/jobs", &viewer(1))
                    .header("Origin", origin),
            )
            .await
            .1,
        ] {
            assert_eq!(headers["access-control-allow-origin"], "*", "{origin}");
            assert!(
                !headers.contains_key("access-control-allow-credentials"),
                "{origin}"
            );
        }
        assert_eq!(write(&server, &[("Origin", origin)]).await, 403, "{origin}");
        assert!(!opens(&server, origin, Some(&worker(1))).await, "{origin}");
        // With a token that the page has itself, it does as it likes.
        let request = server.request("POST", "/api/jobs/a/progress", &worker(1));
        let (status, _) = once(request.header("Origin", origin).body("{}")).await;
        assert_eq!(status, 200, "{origin}");
    }
    let named = "https://office.example";
    let headers = preflight(&server, named, None).await;
    assert_eq!(headers["access-control-allow-origin"], named);
    assert_eq!(headers["access-control-allow-credentials"], "true");
    assert_eq!(write(&server, &[("Origin", named)]).await, 200);
    assert!(opens(&server, named, Some(&worker(1))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_token_is_open_to_any_page_where_any_origin_is_allowed() {
    for (origins, is_open) in [(json!(["*"]), true), (json!([]), false)] {
        let settings = json!({"allowed_origins": origins, "anonymous_school_id": 1});
        let server = server_with(settings).await;
        let origin = "https://anywhere.example";
        assert_eq!(opens(&server, origin, None).await, is_open);
        assert!(
            !opens(&server, origin, Some(&viewer(1))).await,
            "with a cookie"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_allows_the_hosts_below_a_domain_and_no_others() {
    let server = server_with(json!({"allowed_origins": ["https://*.example.com"]})).await;
    server.running_job("a").await;
    for (origin, allowed) in [
        ("https://a.example.com", true),
        ("https://a.b.example.com", true),
        ("https://example.com", false),
        ("https://evilexample.com", false),
        ("https://a.example.com.evil.example", false),
        ("http://a.example.com", false),
        ("https://a.example.com:8443", false),
    ] {
        let headers = preflight(&server, origin, None).await;
        let allowed_origin = headers.get("access-control-allow-origin");
        assert_eq!(
            allowed_origin.map(|value| value == origin),
            allowed.then_some(true),
            "{origin}"
        );
        let status = write(&server, &[("Origin", origin)]).await;
        assert_eq!(status == 200, allowed, "{origin}");
        assert_eq!(
            opens(&server, origin, Some(&worker(1))).await,
            allowed,
            "{origin}"
        );
    }
}

fn read(name: &str, value: Value) -> Result<Settings, String> {
    let figment = Figment::from(Serialized::default("tidings", json!({ name: value })));
    Settings::from_figment(&figment).map_err(|error| error.to_string())
}

#[test]
fn an_origin_that_can_never_match_prevents_the_start_with_the_right_form() {
    for (entry, right) in [
        ("https://office.example/", "https://office.example"),
        ("office.example", "https://office.example"),
        ("https://office.example/app", "https://office.example"),
        ("wss://office.example", "https://office.example"),
        ("*.example.com", "https://*.example.com"),
        ("https://*", "https://app.example.com"),
    ] {
        let error = read("allowed_origins", json!(["https://fine.example", entry])).unwrap_err();
        assert!(error.contains("allowed_origins"), "{error}");
        assert!(error.contains(&format!("`{entry}`")), "{error}");
        assert!(error.contains(&format!("`{right}`")), "{error}");
        assert!(!error.contains("fine.example"), "{error}");
    }
    for entry in [
        "*",
        "https://*.example.com",
        "https://office.example:443",
        "http://[::1]:3000",
    ] {
        assert!(read("allowed_origins", json!([entry])).is_ok(), "{entry}");
    }
}

#[test]
fn a_proxy_or_a_path_that_cannot_be_prevents_the_start_with_the_right_form() {
    for (name, value, right) in [
        (
            "trusted_proxies",
            json!(["10.0.0.0/8", "proxy.example"]),
            "10.0.0.0/8",
        ),
        ("trusted_proxies", json!(["10.0.0.0/33"]), "10.0.0.0/8"),
        ("base_path", json!("tidings"), "`/tidings`"),
        ("base_path", json!("https://x/tidings"), "`/tidings`"),
        ("base_path", json!("//x"), "`/tidings`"),
    ] {
        let error = read(name, value.clone()).unwrap_err();
        assert!(error.contains(name) && error.contains(right), "{error}");
    }
    for (name, value) in [
        ("trusted_proxies", json!([])),
        ("trusted_proxies", json!(["10.0.0.7", "fd00::/8"])),
        ("base_path", json!("/tidings/")),
        ("base_path", json!("/")),
    ] {
        assert!(read(name, value.clone()).is_ok(), "{name} {value}");
    }
}

/// In the environment one value needs no brackets.
#[test]
fn a_list_may_be_its_only_item() {
    for (name, one) in [
        ("allowed_origins", "*"),
        ("allowed_origins", "https://office.example"),
        ("trusted_proxies", "10.0.0.0/8"),
    ] {
        let alone = read(name, json!(one)).unwrap();
        let listed = read(name, json!([one])).unwrap();
        assert_eq!(alone.allowed_origins, listed.allowed_origins, "{one}");
        assert_eq!(alone.trusted_proxies, listed.trusted_proxies, "{one}");
    }
    let problem = read("allowed_origins", json!("office.example")).unwrap_err();
    assert!(problem.contains("https://office.example"), "{problem}");
}
