//! Schedules: what should have run and did not, against real servers, some of them with a clock that is moved.

use chrono::TimeDelta;
use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::process::{Process, command, set_clock, with_clock};
use crate::support::*;

/// Whatever reports the job, the schedule of its school hears of it, and streams, lists and pages tell when it is late.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_late_run_is_delivered_by_every_transport_and_shown_until_it_ends() {
    let server = server().await;
    let rule = json!({"cron": "0 0 1 1 *", "time_zone": "Europe/Berlin", "max_run_secs": 1});
    for school in [1, 2] {
        let request = server.request("PUT", "/api/schedules/import", &worker(school));
        let (status, response) = answer(request.json(&rule)).await;
        assert_eq!(
            (status, &response["status"]),
            (200, &json!("on_time")),
            "{response}"
        );
    }
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        let mut listener = server.listen(transport, "/schedules/import").await;
        listener.until_ready().await;
        listeners.push(listener);
    }
    let new = json!({"job_id": "i", "job_type": "import", "status": "in_progress"});
    server.report("/api/jobs", new).await;
    for listener in &mut listeners {
        let heard = listener
            .take_until(|message| message["status"] == "late")
            .await;
        assert_eq!(heard.last().unwrap()["last_run"]["job_id"], "i");
    }
    let theirs = server.get("/api/schedules/import", &worker(2)).await.1;
    assert_eq!(
        (&theirs["status"], &theirs["last_run"]),
        (&json!("on_time"), &Value::Null)
    );
    let (_, listed) = server.get("/api/schedules?status=late", &viewer(1)).await;
    assert_eq!(listed["schedules"].as_array().unwrap().len(), 1, "{listed}");
    let page = async |path: &str| {
        let cookie = format!("tidings_token={}", viewer(1));
        let url = format!("{}/monitor/schools/1{path}", server.url);
        let page = server.http.get(url).header("Cookie", cookie).send();
        page.await.unwrap().text().await.unwrap()
    };
    let overview = page("").await;
    for part in [
        "(1) ",
        "Overdue schedules",
        "<bdi>import</bdi>",
        "badge late",
    ] {
        assert!(overview.contains(part), "{part}: {overview}");
    }
    let list = page("/schedules").await;
    for part in [
        "<h1>Schedules</h1>",
        "0 0 1 1 * Europe&#x2F;Berlin",
        "badge late",
    ] {
        assert!(list.contains(part), "{part}: {list}");
    }
    server.report("/api/jobs/i/complete", json!({})).await;
    for listener in &mut listeners {
        let heard = listener
            .take_until(|message| message["status"] == "on_time")
            .await;
        assert_eq!(heard.last().unwrap()["last_run"]["status"], "completed");
    }
    assert!(!page("").await.contains("Overdue schedules"));
    // A ping is a run, too.
    let new = json!({"job_type": "import"});
    let (_, key) = server.post("/api/pings", &admin_of(1), new).await;
    let url = format!("{}{}", server.url, key["url"].as_str().unwrap());
    assert_eq!(server.http.get(url).send().await.unwrap().status(), 204);
    for listener in &mut listeners {
        listener
            .take_until(|message| {
                let job = message["last_run"]["job_id"].as_str();
                job.is_some_and(|job| job.starts_with("import:"))
                    && message["last_run"]["status"] == "completed"
            })
            .await;
    }
    let remove = server.request("DELETE", "/api/schedules/import", &worker(1));
    assert_eq!(answer(remove).await.1["status"], "removed");
    for listener in &mut listeners {
        listener
            .take_until(|message| message["status"] == "removed")
            .await;
    }
    for (method, path, status) in [
        ("DELETE", "/api/schedules/nothing", 404),
        ("DELETE", "/api/jobs/i", 405),
        ("POST", "/api/schedules", 405),
        ("PUT", "/api/schedules/a%20b", 422),
    ] {
        let request = server.request(method, path, &worker(1));
        let (got, response) = answer(request.json(&rule)).await;
        assert_eq!(got, status, "{method} {path} {response}");
    }
    let remove = server.request("DELETE", "/api/schedules/import", &viewer(1));
    assert_eq!(answer(remove).await.0, 403);
}

/// A server whose clock can be set.
struct Clocked {
    folder: tempfile::TempDir,
    server: Option<Process>,
}

impl Clocked {
    fn start() -> Clocked {
        let mut clocked = Clocked {
            folder: tempfile::tempdir().unwrap(),
            server: None,
        };
        clocked.set(0);
        clocked.serve();
        clocked
    }

    fn set(&self, offset_secs: i64) {
        set_clock(&self.folder.path().join("clock"), offset_secs);
    }

    fn serve(&mut self) {
        let mut command = command(self.folder.path());
        command.arg("serve");
        let clock = self.folder.path().join("clock");
        self.server = Some(Process::start(with_clock(&mut command, &clock)));
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.server.as_ref().unwrap().url);
        let mut claims = claims(Some(1), Role::Worker);
        claims.exp += 30.0 * 86_400.0;
        let request = reqwest::Client::new().request(method.parse().unwrap(), url);
        let (status, response) = answer(request.bearer_auth(sign(&claims)).json(&body)).await;
        assert!(status < 300, "{method} {path}: {status} {response}");
        response
    }

    async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, json!({})).await
    }
}

/// The planned check is a minute of uptime away; the start of the server looks at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_run_due_while_the_server_was_down_or_suspended_is_missed_when_it_is_back() {
    if !needs("cc") {
        return;
    }
    let mut clocked = Clocked::start();
    let rule = json!({"period_secs": 60, "grace_secs": 1});
    let due = clocked.ask("PUT", "/api/schedules/a", rule.clone()).await["due_at"].clone();
    clocked.server.as_mut().unwrap().kill();
    // So little is no step of the clock, but time that has passed.
    clocked.set(58);
    clocked.serve();
    until("it is missed", async || {
        clocked.get("/api/schedules/a").await["status"] == "missed"
    })
    .await;
    let missed = clocked.get("/api/schedules/a").await;
    assert_eq!(
        (&missed["missed_since"], &missed["missed_at"]),
        (&due, &due)
    );
    // Asleep: the wall clock goes on, and the uptime does not.
    let due = clocked.ask("PUT", "/api/schedules/b", rule).await["due_at"].clone();
    clocked.set(58 + 59);
    until("it is missed", async || {
        clocked.get("/api/schedules/b").await["missed_at"] == due
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn a_clock_that_jumps_causes_no_storm_on_a_running_server() {
    if !needs("cc") {
        return;
    }
    let clocked = Clocked::start();
    let paths: Vec<String> = (0..20)
        .map(|number| format!("/api/schedules/s{number}"))
        .collect();
    for path in &paths {
        let rule = json!({"cron": "0 3 * * *", "grace_secs": 1});
        clocked.ask("PUT", path, rule).await;
    }
    let day = |schedule: &Value| schedule["due_at"].as_str().unwrap()[..10].to_owned();
    let today = day(&clocked.get(&paths[0]).await);
    for offset_days in [10_i64, -10, 0] {
        clocked.set(offset_days * 86_400);
        let due = (today.parse::<chrono::NaiveDate>().unwrap() + TimeDelta::days(offset_days))
            .to_string();
        for path in &paths {
            until("the next run is expected at its time", async || {
                day(&clocked.get(path).await) == due
            })
            .await;
            assert_eq!(clocked.get(path).await["status"], "on_time");
        }
    }
    let cursor = clocked.get("/api/schedules").await["cursor"].clone();
    let epoch = cursor.as_str().unwrap().split('-').next().unwrap();
    let mut claims = claims(Some(1), Role::Viewer);
    claims.exp += 30.0 * 86_400.0;
    let url = &clocked.server.as_ref().unwrap().url;
    let (query, from) = ("/schedules?tick_ms=0", format!("{epoch}-0"));
    let transport = Transport::EventSource;
    let mut log = Listener::open(transport, url, query, &sign(&claims), Some(&from)).await;
    let story = log.until_ready().await;
    let events = story.iter().filter(|event| event["seq"].is_u64());
    assert!(events.clone().count() >= 80);
    assert!(
        events.clone().all(|event| event["status"] == "on_time"),
        "{story:?}"
    );
}
