//! Behind a proxy: below a path prefix, under another name, for clients at other addresses. Also, what
//! the same headers do when they come from a client that is not a trusted proxy.

use std::collections::BTreeSet;
use std::sync::Arc;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use serde_json::{Value, json};

use crate::support::devtools::Page;
use crate::support::proxy::{Program, Proxy};
use crate::support::*;

/// Where a browser finds the server, and how its requests reach us.
struct Way {
    server: Server,
    url: String,
    http: reqwest::Client,
    /// What stands before the paths of the routes in the addresses that the browser knows.
    public: &'static str,
    /// And in those that reach us.
    internal: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

impl Way {
    fn new(
        server: Server,
        public: &'static str,
        internal: &'static str,
        headers: &[(&'static str, &'static str)],
    ) -> Way {
        let http = reqwest::Client::builder().redirect(Policy::none());
        Way {
            url: server.url.clone(),
            server,
            http: http.build().unwrap(),
            public,
            internal,
            headers: headers.to_vec(),
        }
    }

    /// A request to an address that the browser knows, as the proxy passes it on.
    async fn ask(&self, method: &str, address: &str, token: &str, body: &str) -> Answer {
        let path = address
            .strip_prefix(self.public)
            .unwrap_or_else(|| panic!("{address} is not below {}", self.public));
        let url = format!("{}{}{path}", self.url, self.internal);
        let mut request = self.http.request(method.parse().unwrap(), url);
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let form = "application/x-www-form-urlencoded";
        let request = request
            .header("Cookie", format!("tidings_token={token}"))
            .header("Content-Type", form)
            .header("Accept", "application/json, text/html")
            .body(body.to_owned());
        let answer = request.send().await.unwrap();
        Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: answer.text().await.unwrap(),
        }
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.public)
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    /// The values of an attribute that leads elsewhere than to the page itself.
    fn attributes(&self, name: &str) -> Vec<String> {
        let begin = format!(" {name}=\"");
        let parts = self.text.split(&begin).skip(1);
        let values = parts.map(|part| part.split('"').next().unwrap());
        let plain = values.map(|value| value.replace("&#x2F;", "/").replace("&amp;", "&"));
        plain
            .filter(|value| !value.is_empty() && !value.starts_with(['#', '?']))
            .collect()
    }
}

/// Something of every kind.
async fn furnish(server: &Server) {
    server.running_job("j").await;
    server
        .put("/api/devices/gate", json!({"name": "Gate"}))
        .await;
    let limits = json!({"center_line": 0.0, "ucl": 1.0, "lcl": -1.0});
    let body = json!({"limits": limits});
    server.put("/api/characteristics/c", body).await;
    let sample = json!({"value": 9.0});
    server
        .report("/api/characteristics/c/samples", sample)
        .await;
    let session = json!({"session_id": "s", "device_id": "gate"});
    server.report("/api/enrollments", session).await;
}

/// Follows everything that any page leads to, and every address in any answer.
async fn everything_leads_below(way: &Way) {
    furnish(&way.server).await;
    let nobody = way
        .ask("GET", &way.address("/monitor/schools/1/jobs?q=j"), "", "")
        .await;
    let sign_in = nobody.header("location").to_owned();
    let next = way.address("/monitor/schools/1/jobs?q=j");
    let escaped = sign_in.split_once("?next=").unwrap().1;
    let form = format!("token={}&next={escaped}", worker(1));
    let signed_in = way
        .ask("POST", sign_in.split('?').next().unwrap(), "", &form)
        .await;
    assert_eq!(
        (signed_in.status, signed_in.header("location")),
        (303, next.as_str())
    );
    let cookie = signed_in.header("set-cookie").to_owned();
    let path = cookie
        .split("; ")
        .find_map(|part| part.strip_prefix("Path="));
    // The cookie is not sent to other applications on the same host.
    let path = format!("{}/", path.unwrap());
    assert!(
        path.len() > 1 && way.public.starts_with(path.trim_end_matches('/')),
        "{cookie}"
    );

    let mut links = BTreeSet::new();
    let mut actions = BTreeSet::new();
    for (path, token, status) in [
        ("/monitor/sign-in", worker(1), 200),
        ("/monitor", admin(), 200),
        ("/monitor", worker(1), 303),
        ("/monitor/system", admin(), 200),
        ("/monitor/schools/1", worker(1), 200),
        ("/monitor/schools/1/jobs?status=in_progress", worker(1), 200),
        ("/monitor/schools/1/enrollments", worker(1), 200),
        ("/monitor/schools/1/devices", worker(1), 200),
        ("/monitor/schools/1/characteristics", worker(1), 200),
        ("/monitor/schools/1/jobs/j", worker(1), 200),
        ("/monitor/schools/1/devices/gate", worker(1), 200),
        ("/monitor/schools/1/characteristics/c", worker(1), 200),
        ("/monitor/schools/1/system", admin_of(1), 200),
        ("/monitor/schools/1/jobs/none", worker(1), 404),
        ("/monitor/no/such/page", worker(1), 404),
    ] {
        let page = way.ask("GET", &way.address(path), &token, "").await;
        assert_eq!(page.status, status, "{path}: {}", page.text);
        if status == 303 {
            links.insert(page.header("location").to_owned());
            continue;
        }
        for name in ["href", "src"] {
            let found = page.attributes(name);
            assert!(name == "src" || found.len() >= 3, "{path}: {found:?}");
            links.extend(found);
        }
        actions.extend(page.attributes("action"));
        for stream in page.attributes("data-stream") {
            let joint = if stream.contains('?') { '&' } else { '?' };
            let stream = format!("{stream}{joint}wait=0");
            let response = way.ask("GET", &stream, &token, "").await;
            assert_eq!(response.status, 200, "{stream}");
        }
    }
    assert!(links.len() >= 12, "{links:#?}");
    for link in &links {
        let page = way.ask("GET", link, &admin(), "").await;
        assert!(matches!(page.status, 200 | 303), "{link}: {}", page.status);
    }
    let forms: Vec<_> = actions
        .iter()
        .map(|action| action.rsplit('/').next().unwrap())
        .collect();
    for form in ["ack", "cancel", "look", "sign-in", "sign-out"] {
        assert!(forms.contains(&form), "{form}: {actions:?}");
    }
    for action in &actions {
        let body = format!("reason=z&theme=dark&next={next}&token={}", worker(1));
        let done = way.ask("POST", action, &worker(1), &body).await;
        assert_eq!(done.status, 303, "{action}: {}", done.text);
        let to = done.header("location");
        let page = way.ask("GET", to, &worker(1), "").await;
        assert_eq!(page.status, 200, "{action} leads to {to}");
    }

    let made = way
        .ask(
            "POST",
            &way.address("/api/jobs"),
            &worker(1),
            r#"{"job_type": "t"}"#,
        )
        .await;
    let job = way
        .ask("GET", made.header("location"), &worker(1), "")
        .await;
    assert_eq!((made.status, job.status), (201, 200));
    for channels in [json!(["jobs"]), json!(["jobs", "devices"])] {
        let wanted = json!({"channels": channels}).to_string();
        let ticket = way
            .ask("POST", &way.address("/api/tickets"), &viewer(1), &wanted)
            .await;
        let ticket: Value = serde_json::from_str(&ticket.text).unwrap();
        let url = format!("{}&wait=0", ticket["url"].as_str().unwrap());
        assert_eq!(way.ask("GET", &url, "", "").await.status, 200, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn everything_stays_below_the_prefix_that_a_proxy_removes_and_forwards() {
    for value in ["/a/b", "/a/b/", "/a, /b"] {
        let way = Way::new(server().await, "/a/b", "", &[("X-Forwarded-Prefix", value)]);
        everything_leads_below(&way).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn everything_stays_below_the_base_path_whether_a_proxy_removes_it_or_not() {
    for internal in ["", "/tidings"] {
        let server = server_with(json!({"base_path": "/tidings"})).await;
        everything_leads_below(&Way::new(server, "/tidings", internal, &[])).await;
    }
    // One that has the name of a route of ours.
    let server = server_with(json!({"base_path": "/events"})).await;
    everything_leads_below(&Way::new(server, "/events", "", &[])).await;
    // What the proxy says goes before what the settings say.
    let server = server_with(json!({"base_path": "/tidings"})).await;
    let headers = [("X-Forwarded-Prefix", "/other")];
    everything_leads_below(&Way::new(server, "/other", "", &headers)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn everything_stays_below_a_prefix_and_the_place_in_another_application() {
    for (internal, settings) in [
        ("/live", json!({"base_path": "/tidings"})),
        ("/tidings/live", json!({"base_path": "/tidings"})),
    ] {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let figment = figment(&folder, &settings);
        let rocket = rocket::custom(figment).attach(tidings::http::fairing("/live"));
        let server = launch(rocket, folder).await;
        let mut way = Way::new(server, "/tidings/live", internal, &[]);
        // Clients other than browsers connect without the proxy.
        way.server.url = format!("{}/live", way.url);
        everything_leads_below(&way).await;
    }
}

/// Where the job is that was made with these headers.
async fn location(server: &Server, headers: &[(&str, &str)]) -> String {
    let mut request = server.request("POST", "/api/jobs?x=1", &worker(1));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request
        .json(&json!({"job_type": "t"}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    answer.headers()["location"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn a_prefix_that_leads_elsewhere_or_comes_from_nobody_we_trust_is_ignored() {
    let trusting = server().await;
    let long = format!("/{}", "x".repeat(300));
    for value in [
        "//evil.example",
        "/a//b",
        "a",
        "https://evil.example",
        "/a/../b",
        "/a\"><script>",
        "/a b",
        "/a%0d%0ab",
        "/a?b",
        "/a;b",
        "/a, //evil.example",
        "/a, b",
        "\\evil.example",
        "",
        &long,
    ] {
        let location = location(&trusting, &[("X-Forwarded-Prefix", value)]).await;
        assert!(location.starts_with("/api/jobs/"), "{value}: {location}");
    }
    for proxies in [json!([]), json!(["10.0.0.0/8", "::1"])] {
        let wary = server_with(json!({"trusted_proxies": proxies})).await;
        let location = location(&wary, &[("X-Forwarded-Prefix", "/a")]).await;
        assert!(location.starts_with("/api/jobs/"), "{location}");
    }
}

/// The status of a write with a cookie by a page.
async fn write(server: &Server, origin: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = server
        .http
        .post(format!("{}/api/jobs/j/progress", server.url))
        .header("Cookie", format!("tidings_token={}", worker(1)))
        .header("Origin", origin);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body("{}").send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_forwards_the_name_that_the_browser_knows() {
    const HOST: &str = "X-Forwarded-Host";
    const PORT: &str = "X-Forwarded-Port";
    const PROTO: &str = "X-Forwarded-Proto";
    let trusting = server().await;
    let wary = server_with(json!({"trusted_proxies": []})).await;
    for server in [&trusting, &wary] {
        server.running_job("j").await;
    }
    for (headers, origin, status) in [
        (&[(HOST, "pub.example")][..], "https://pub.example", 200),
        (&[(HOST, "pub.example")], "http://pub.example", 200),
        (&[(HOST, "pub.example:443")], "https://pub.example", 200),
        (
            &[(HOST, "pub.example:8443")],
            "https://pub.example:8443",
            200,
        ),
        (
            &[(HOST, "pub.example, inner:8000")],
            "https://pub.example",
            200,
        ),
        (
            &[(HOST, "pub.example"), (PORT, "8443")],
            "https://pub.example:8443",
            200,
        ),
        (
            &[(HOST, "pub.example"), (PORT, "443")],
            "https://pub.example",
            200,
        ),
        (
            &[("Host", "pub.example"), (PORT, "8443")],
            "https://pub.example:8443",
            200,
        ),
        (
            &[(HOST, "pub.example"), (PROTO, "https")],
            "https://pub.example",
            200,
        ),
        (
            &[(HOST, "pub.example"), (PROTO, "https")],
            "http://pub.example",
            403,
        ),
        (
            &[(HOST, "pub.example:8443"), (PORT, "9000")],
            "https://pub.example:9000",
            403,
        ),
        (
            &[(HOST, "pub.example"), (PORT, "x")],
            "https://pub.example:8443",
            403,
        ),
        (&[(HOST, "pub.example")], "https://evil.example", 403),
        (&[(HOST, "pub.example")], "https://pub.example:8443", 403),
        (
            &[(HOST, "a/b"), ("Host", "pub.example")],
            "https://pub.example",
            200,
        ),
    ] {
        assert_eq!(
            write(&trusting, origin, headers).await,
            status,
            "{headers:?} {origin}"
        );
        // A client that may set every header may set these as well.
        let believed =
            headers.iter().any(|(name, _)| *name == "Host") && !headers.contains(&(PORT, "8443"));
        let status = if believed { 200 } else { 403 };
        assert_eq!(
            write(&wary, origin, headers).await,
            status,
            "{headers:?} {origin}"
        );
    }
    let wary_url = wary.url.as_str();
    assert_eq!(
        write(&wary, wary_url, &[(PROTO, "https")]).await,
        200,
        "nobody says that it is encrypted"
    );
    assert_eq!(
        write(&trusting, &trusting.url, &[(PROTO, "https")]).await,
        403
    );
    assert_eq!(
        write(&trusting, &trusting.url, &[(PROTO, "https, http")]).await,
        403
    );
    assert_eq!(
        write(&trusting, &trusting.url, &[(PROTO, "http, https")]).await,
        200
    );
}

/// Whether two requests with these headers count as from one address.
async fn are_one(server: Server, one: &[(&str, &str)], other: &[(&str, &str)]) -> bool {
    let open = async |headers: &[(&str, &str)]| {
        let request = server.request("GET", "/events/schools/1", &viewer(1));
        let request = request.header("Accept", "text/event-stream");
        let add = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, add).send().await.unwrap()
    };
    let first = open(one).await;
    assert_eq!(first.status(), 200);
    let second = open(other).await.status();
    assert!(matches!(second.as_u16(), 200 | 429));
    second == 429
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn a_client_is_where_a_trusted_proxy_says_and_else_where_it_connects_from() {
    const FOR: &str = "X-Forwarded-For";
    const REAL: &str = "X-Real-IP";
    for (proxies, one, other, same) in [
        (
            json!(["127.0.0.0/8"]),
            &[(REAL, "1.1.1.1")][..],
            &[(REAL, "2.2.2.2")][..],
            false,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(REAL, "1.1.1.1")],
            &[(REAL, "1.1.1.1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "1.1.1.1")],
            &[(FOR, "2.2.2.2")],
            false,
        ),
        // What the client itself has written, before what the proxy adds.
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "8.8.8.8, 1.1.1.1")],
            &[(FOR, "9.9.9.9, 1.1.1.1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "8.8.8.8"), (FOR, "1.1.1.1")],
            &[(FOR, "1.1.1.1")],
            true,
        ),
        // Proxies of ours on the way.
        (
            json!(["127.0.0.0/8", "10.0.0.0/8"]),
            &[(FOR, "1.1.1.1, 10.0.0.1")],
            &[(FOR, "2.2.2.2, 10.0.0.1")],
            false,
        ),
        (
            json!(["127.0.0.0/8", "10.0.0.0/8"]),
            &[(FOR, "1.1.1.1, 10.0.0.1")],
            &[(FOR, "1.1.1.1, 10.0.0.2")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "1.1.1.1, 10.0.0.1")],
            &[(FOR, "2.2.2.2, 10.0.0.1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "1.1.1.1:4711")],
            &[(FOR, "1.1.1.1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "[2001:db8::1]:4711")],
            &[(FOR, "2001:db8::1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "::ffff:1.1.1.1")],
            &[(FOR, "1.1.1.1")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(FOR, "1.1.1.1, unknown")],
            &[(FOR, "2.2.2.2, unknown")],
            true,
        ),
        (
            json!(["127.0.0.0/8"]),
            &[(REAL, "1.1.1.1"), (FOR, "2.2.2.2")],
            &[(REAL, "1.1.1.1"), (FOR, "3.3.3.3")],
            true,
        ),
        // Nobody whose word counts.
        (json!([]), &[(REAL, "1.1.1.1")], &[(REAL, "2.2.2.2")], true),
        (json!([]), &[(FOR, "1.1.1.1")], &[(FOR, "2.2.2.2")], true),
        (json!(["10.0.0.0/8"]), &[(FOR, "1.1.1.1")], &[], true),
    ] {
        let settings = json!({"max_streams_per_address": 1, "trusted_proxies": proxies});
        let server = server_with(settings).await;
        assert_eq!(
            are_one(server, one, other).await,
            same,
            "{proxies} {one:?} {other:?}"
        );
    }
    // Who has switched Rocket's header off wants none to be believed.
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let figment =
        figment(&folder, &json!({"max_streams_per_address": 1})).merge(("ip_header", false));
    let server = launch(tidings::server(figment).unwrap(), folder).await;
    let headers = [[(REAL, "1.1.1.1")], [(FOR, "2.2.2.2")]];
    assert!(are_one(server, &headers[0], &headers[1]).await);
}

/// A real proxy and a real browser: signing in, a live page, and a button.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: a real proxy"]
async fn the_monitor_works_below_a_path_of_nginx_in_a_browser() {
    if !Program::Nginx.is_here() || !needs("chromium") {
        return;
    }
    for (prefix, upstream_path) in [("/stripped", "/"), ("/kept", "")] {
        let server = server_with(json!({"base_path": prefix})).await;
        server.running_job("j").await;
        let limit = "limit_conn address 1000;\n";
        let below = format!(
            "{limit} location {prefix}/ {{
                proxy_pass {}{upstream_path}; proxy_http_version 1.1; proxy_set_header Host $http_host;
            }}\n",
            server.url
        );
        let proxy = Proxy::open(Program::Nginx, &server, &[(limit, &below)]).await;
        let mut page = Page::open().await;
        let wanted = format!("{prefix}/monitor/schools/1/jobs/j");
        page.visit(&format!("{}{wanted}", proxy.url)).await;
        page.until(
            "!!document.querySelector('input[name=token]') && document.readyState === 'complete'",
        )
        .await;
        page.evaluate(&format!(
            "document.querySelector('input[name=token]').value = '{}'; document.querySelector('main button').click(); true",
            worker(1)
        ))
        .await;
        page.until(&format!("location.pathname === '{wanted}'"))
            .await;
        page.until("document.getElementById('freshness')?.dataset.state === 'live'")
            .await;
        // The style sheet has come, too.
        page.until(
            "document.styleSheets.length === 1 && document.styleSheets[0].cssRules.length > 10",
        )
        .await;
        server
            .report("/api/jobs/j/progress", json!({"progress": 42}))
            .await;
        page.until("!!document.querySelector('[aria-valuenow=\"42\"]')")
            .await;
        page.evaluate("document.querySelector(\"form[action$='/cancel'] button\").click(); true")
            .await;
        page.until("document.body.innerText.includes('has been asked to stop')")
            .await;
        page.until(&format!("location.pathname === '{wanted}'"))
            .await;
    }
}
