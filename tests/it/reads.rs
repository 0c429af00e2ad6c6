//! Reads are bounded and take turns: nobody's search keeps others from reading, and each says how far it came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tidings::config::{Bounded, Settings};
use tidings::feed::Feed;
use tidings::hub::{Hub, Reader};
use tidings::id::{Cursor, Epoch, Place, SchoolId};
use tidings::kind::{self, job};
use tidings::log::{Bounds, Committed, ListQuery, Log, LogRange, Page, StoreError};
use tidings::scope::{Filter, Scope};
use tidings::subscribe::{Delivery, Request, Subscriber};
use tidings::wire::Control;

use crate::support::*;

/// A search that finds nothing.
const IN_VAIN: &str = "/api/jobs?q=zzz";

/// Makes jobs in a school: `j0`, `j1`, …; the first has `needle` as its message.
async fn fill(server: &Server, school: i64, count: usize) {
    const AT_ONCE: usize = 5_000;
    for first in (0..count).step_by(AT_ONCE) {
        let line = |number: usize| {
            let message = if number == 0 { "needle" } else { "hay" };
            format!(
                "{{\"op\":\"jobs.create\",\"job_id\":\"j{number}\",\"job_type\":\"{message}\",\"message\":\"{message}\"}}\n"
            )
        };
        let lines: String = (first..count.min(first + AT_ONCE)).map(line).collect();
        let results = server.batch(&worker(school), lines).await;
        let all_made = results.iter().all(|result| result["status"] == 200);
        assert!(all_made, "{:?}", results.first());
    }
}

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

fn in_vain() -> ListQuery {
    ListQuery {
        text: Some("zzz".into()),
        limit: 10,
        ..ListQuery::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_stops_at_its_bound_says_how_far_it_came_and_goes_on_from_there() {
    let server = server_with(json!({"read_rows_max": 1_000})).await;
    fill(&server, 1, 2_500).await;
    for (sort, after) in [("newest", [true, true, false]), ("oldest", [false; 3])] {
        let (mut found, mut rows, mut next) = (Vec::new(), 0, String::new());
        for stopped in after {
            let path = format!("/api/jobs?q=NEEDLE&sort={sort}{next}");
            let (status, page) = server.get(&path, &viewer(1)).await;
            assert_eq!(status, 200, "{page}");
            found.extend(page["jobs"].as_array().unwrap().clone());
            let searched = &page["searched"];
            rows += searched["rows"].as_u64().unwrap();
            if sort == "newest" {
                assert_eq!(searched["complete"], !stopped, "{page}");
                assert_eq!(searched["until"].is_string(), stopped, "{page}");
                assert_eq!(page["next"].is_string(), stopped, "{page}");
            }
            let Some(place) = page["next"].as_str() else {
                break;
            };
            next = format!("&page={place}");
        }
        assert_eq!(found.len(), 1, "{sort}");
        assert_eq!(found[0]["job_id"], "j0");
        assert_eq!(rows, 2_500, "{sort}: each is looked at once");
    }
    let (_, page) = server.get("/api/jobs?status=pending", &viewer(1)).await;
    assert!(page.get("searched").is_none(), "an index has them");
    assert_eq!(page["jobs"].as_array().unwrap().len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_fills_its_page_is_complete_and_goes_on_behind_it() {
    let server = server().await;
    fill(&server, 1, 120).await;
    let (mut ids, mut next) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/jobs?q=hay&limit=50{next}");
        let (_, page) = server.get(&path, &viewer(1)).await;
        assert_eq!(page["searched"]["complete"], true);
        assert_eq!(page["searched"]["until"], Value::Null);
        let jobs = page["jobs"].as_array().unwrap().clone();
        ids.extend(jobs.iter().map(|job| job["job_id"].to_string()));
        let Some(place) = page["next"].as_str() else {
            break;
        };
        next = format!("&page={place}");
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 119);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn a_search_answers_with_what_it_has_found_when_its_time_is_up() {
    let server = server_with(json!({"read_timeout_ms": 5, "read_rows_max": 1_000_000})).await;
    fill(&server, 1, 20_000).await;
    until("a search is stopped by its time", async || {
        let (status, page) = server.get(IN_VAIN, &viewer(1)).await;
        match status {
            // It may be that it does not even begin in time.
            503 => {
                assert_eq!(page["limit"], "read_timeout_ms", "{page}");
                false
            }
            _ => page["searched"]["complete"] == false && page["next"].is_string(),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn a_search_whose_client_has_disconnected_reads_no_further_window() {
    let server = server().await;
    fill(&server, 1, 20_000).await;
    fill(&server, 2, 10).await;
    let store = server.tidings.store();
    let tidings = &server.tidings;
    let searches: Vec<_> = (0..16)
        .map(|_| {
            let tidings = Arc::clone(tidings);
            let search = async move {
                let store = tidings.store();
                store.subjects(school(1), job::KIND, in_vain()).await
            };
            tokio::spawn(search)
        })
        .collect();
    until("they read", async || store.windows() > 3).await;
    searches.iter().for_each(tokio::task::JoinHandle::abort);
    for search in searches {
        assert!(search.await.is_err(), "it had not ended");
    }
    let before = store.windows();
    for _ in 0..10 {
        let found = store.subjects(school(2), job::KIND, in_vain()).await;
        assert!(found.unwrap().searched.unwrap().is_complete);
    }
    assert_eq!(store.windows(), before + 10);
    assert_eq!(store.waiting_reads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn a_schools_search_does_not_wait_for_those_of_another_school() {
    let server = server_with(json!({"read_timeout_ms": 600_000})).await;
    fill(&server, 1, 20_000).await;
    fill(&server, 2, 200).await;
    let store = server.tidings.store();
    let done = Arc::new(AtomicUsize::new(0));
    let searches: Vec<_> = (0..64)
        .map(|_| {
            let request = server.request("GET", IN_VAIN, &viewer(1));
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let answer = request.send().await;
                done.fetch_add(1, Ordering::SeqCst);
                answer
            })
        })
        .collect();
    until("they read and wait", async || {
        store.windows() > 3 && store.waiting_reads() > 32
    })
    .await;
    for path in [IN_VAIN, "/api/jobs/j0", "/api/jobs?status=pending"] {
        let (status, page) = server.get(path, &viewer(2)).await;
        assert_eq!(status, 200, "{page}");
    }
    let ready = reqwest::get(format!("{}/readyz", server.url))
        .await
        .unwrap();
    assert_eq!(ready.status(), 200, "it waits for no read");
    assert_eq!(
        done.load(Ordering::SeqCst),
        0,
        "all of the other school's go on"
    );
    searches.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn reads_beyond_those_that_may_wait_are_rejected_with_a_time_to_come_back() {
    for (settings, status, code, limit) in [
        (
            json!({"max_waiting_reads_per_school": 2, "reader_connections": 1}),
            429,
            "too-many-reads",
            "max_waiting_reads_per_school",
        ),
        (
            json!({"max_waiting_reads": 2, "reader_connections": 1}),
            503,
            "unavailable",
            "max_waiting_reads",
        ),
    ] {
        let server = server_with(settings).await;
        fill(&server, 1, 20_000).await;
        let searches = (0..32).map(|_| server.request("GET", IN_VAIN, &viewer(1)).send());
        let answers = futures_util::future::join_all(searches).await;
        let (mut served, mut rejected) = (0, 0);
        for answer in answers {
            let answer = answer.unwrap();
            if answer.status() == 200 {
                served += 1;
                continue;
            }
            assert_eq!(answer.status(), status);
            assert!(answer.headers().contains_key("Retry-After"));
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], code, "{problem}");
            assert_eq!(problem["limit"], limit, "{problem}");
            rejected += 1;
        }
        assert!(served >= 1 && rejected >= 1, "{served} {rejected}");
        let (status, _) = server.get(IN_VAIN, &viewer(1)).await;
        assert_eq!(status, 200, "there is room again");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn a_filtered_stream_finds_the_one_that_fits_window_by_window() {
    let server = server().await;
    fill(&server, 1, 10_000).await;
    let store = server.tidings.store();
    for scope in [
        "/jobs?job_type=needle",
        "/jobs?job_type=needle&status=pending",
    ] {
        let before = store.windows();
        let mut listener = server.listen(Transport::EventSource, scope).await;
        let messages = listener.until_ready().await;
        let ids: Vec<&Value> = messages
            .iter()
            .filter(|message| message["type"] == "job_progress")
            .map(|message| &message["job_id"])
            .collect();
        assert_eq!(ids, ["j0"], "{scope}");
        assert!(store.windows() >= before + 10, "{scope}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_how_far_it_searched_and_offers_to_go_on() {
    let server = server_with(json!({"read_rows_max": 100})).await;
    fill(&server, 1, 150).await;
    let page = async |path: &str| {
        let request = server.request("GET", path, &viewer(1));
        request.send().await.unwrap().text().await.unwrap()
    };
    let first = page("/monitor/schools/1/jobs?q=needle").await;
    assert!(first.contains("No job matches so far"), "{first}");
    assert!(first.contains("Searched so far: 100"), "{first}");
    let link = first
        .split("<a href=\"")
        .find(|part| part.contains("Continue search"));
    let link = link.unwrap().split('"').next().unwrap();
    let link = link.replace("&amp;", "&").replace("&#x2F;", "/");
    let second = page(&format!("/monitor/schools/1/jobs{link}")).await;
    assert!(second.contains("j0"), "{second}");
    assert!(!second.contains("Searched so far"), "{second}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: very many rows"]
async fn searches_whose_clients_hang_up_end() {
    use tokio::io::AsyncWriteExt;
    const SEARCHES: usize = 100;
    const JOBS: usize = 20_000;
    let server = server_with(json!({"read_timeout_ms": 600_000})).await;
    fill(&server, 1, JOBS).await;
    let store = server.tidings.store();
    let mut clients = Vec::new();
    let address = server.url.strip_prefix("http://").unwrap();
    for number in 0..SEARCHES {
        let path = match number % 2 {
            0 => IN_VAIN,
            _ => "/monitor/schools/1/jobs?q=zzz",
        };
        let token = viewer(1);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        clients.push(client);
    }
    until("all wait", async || store.waiting_reads() >= SEARCHES - 4).await;
    let before = store.windows();
    drop(clients);
    until("none waits", async || store.waiting_reads() == 0).await;
    let needed = (SEARCHES * JOBS / tidings::config::READ_WINDOW_ROWS) as u64;
    let read = store.windows() - before;
    assert!(read < needed / 2, "{read} of {needed} windows");
}

/// A log without end in which nothing is for anybody.
struct Endless(Epoch);

#[async_trait]
impl Log for Endless {
    fn epoch(&self) -> Epoch {
        self.0
    }

    async fn bounds(&self, _: SchoolId) -> Result<Bounds, StoreError> {
        Ok(Bounds {
            head: Place::untagged(1_000_000),
            floor: Place::default(),
        })
    }

    async fn read_range(&self, _: SchoolId, _: u64, upto: u64) -> Result<LogRange, StoreError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(LogRange {
            events: Vec::new(),
            through: upto,
            head: 1_000_000,
            floor: Place::default(),
            last: HashMap::new(),
        })
    }

    async fn replay(&self, _: Arc<Scope>, after: u64, _: bool) -> Result<Page, StoreError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(Page {
            events: Vec::new(),
            through: Place::untagged(after + 1),
            head: Place::untagged(1_000_000),
            newest: Place::untagged(1_000_000),
            floor: 0,
        })
    }

    async fn snapshot(
        &self,
        scope: Arc<Scope>,
        after: u64,
        _: Option<Place>,
    ) -> Result<Page, StoreError> {
        self.replay(scope, after, true).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_reads_long_for_nothing_gives_signs_of_life_by_which_a_departure_shows() {
    let settings = Settings {
        heartbeat_secs: Bounded::of::<3_600>(),
        ..Settings::default()
    };
    let (committed, _batches) = Committed::channel(1);
    let hub = Arc::new(Hub::new(
        settings.window_events.get(),
        settings.mailbox_capacity.get(),
    ));
    let epoch = Epoch::generate();
    let log = Arc::new(Endless(epoch));
    let feed = Arc::new(Feed::new(log, committed));
    let subscriber = Subscriber::new(feed, hub, &settings);
    let scope = Scope::new(school(1), [kind::channel("jobs").unwrap()]);
    for from in [None, Some(Cursor::untagged(epoch, 1))] {
        let filter = Filter {
            statuses: ["failed".to_owned()].into(),
            ..Filter::default()
        };
        let mut subscription = subscriber
            .open(Request {
                scope: scope.clone().filtered(filter),
                reader: Reader {
                    transport: "test",
                    user: "test".into(),
                    address: None,
                    peer: None,
                },
                from,
                tick: Duration::ZERO,
                expires_at: None,
                reconnects_until: None,
                welcome: None,
            })
            .unwrap();
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            let delivery = subscription.next().await;
            assert!(
                matches!(delivery, Some(Delivery::Control(Control::Heartbeat { .. }))),
                "{delivery:?}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
