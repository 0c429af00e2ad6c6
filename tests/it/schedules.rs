//! Schedules: what should have run and did not. The rules as pure functions, and real servers whose clock is moved.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tidings::auth::Role;
use tidings::event::Class;
use tidings::id::SubjectId;
use tidings::kind::job::Status as JobStatus;
use tidings::kind::schedule::{
    Command, MISSED_AGAIN_SECS, Observed, Put, Run, Schedule, Status, apply,
};
use tidings::kind::{Context, RuleError};
use tidings::uptime::Uptime;

use crate::support::process::{Process, command, set_clock, with_clock};
use crate::support::*;

const HOUR: i64 = 3_600;

/// 2026-06-01 00:00 UTC, a Monday, and so many seconds.
fn at(secs: i64) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-06-01T00:00:00Z")
        .unwrap()
        .to_utc()
        + TimeDelta::seconds(secs)
}

fn context(secs: i64) -> Context<'static> {
    Context {
        now: at(secs),
        limits: &LIMITS,
        history: None,
        uptime: Uptime::from_millis(secs.unsigned_abs() * 1_000),
        sub: None,
        next_seq: 1,
        holder: None,
        part: None,
        taken_part: None,
    }
}

/// What becomes of a schedule by a command, and the class of its event.
fn after(
    own: Option<&Schedule>,
    command: &Command,
    secs: i64,
) -> Result<(Schedule, Option<Class>), RuleError> {
    let id: SubjectId = "backup".parse().unwrap();
    let outcome = apply(&id, own, command, &context(secs))?;
    assert!(outcome.drafts.len() <= 1);
    let class = outcome.drafts.first().map(|draft| draft.class);
    Ok((outcome.state, class))
}

fn put(body: Value) -> Command {
    Command::Put(serde_json::from_value::<Put>(body).unwrap())
}

fn nightly() -> Schedule {
    let body = json!({"cron": "0 3 * * *", "grace_secs": 600, "max_run_secs": 7_200});
    after(None, &put(body), 0).unwrap().0
}

fn run(id: &str, started: i64, ended: Option<i64>) -> Run {
    Run {
        job_id: id.parse().unwrap(),
        status: ended.map_or(JobStatus::InProgress, |_| JobStatus::Completed),
        started_at: at(started),
        finished_at: ended.map(at),
    }
}

fn check(run: Option<Run>) -> Command {
    Command::Check(Some(Observed {
        run,
        is_clock_steady: true,
    }))
}

fn jumped(run: Option<Run>) -> Command {
    Command::Check(Some(Observed {
        run,
        is_clock_steady: false,
    }))
}

/// Applies checks one after the other: the time, the run that is seen. Tells the status and the class of the event of each.
fn lives(own: &Schedule, checks: &[(i64, Option<Run>)]) -> Vec<(Status, Option<Class>)> {
    let mut own = own.clone();
    let mut told = Vec::new();
    for (secs, run) in checks {
        let (next, class) = after(Some(&own), &check(run.clone()), *secs).unwrap();
        // The same check of another node changes nothing.
        let (again, twice) = after(Some(&next), &check(run.clone()), *secs).unwrap();
        assert_eq!(
            (again.status, again.due_at, twice),
            (next.status, next.due_at, None)
        );
        assert!(next.check_uptime.is_some());
        told.push((next.status, class));
        own = next;
    }
    told
}

#[test]
fn a_run_that_does_not_start_in_time_is_missed_until_one_starts() {
    use Class::*;
    use Status::*;
    let late_run = Some(run("b", 5 * HOUR, None));
    let ended = Some(run("b", 5 * HOUR, Some(6 * HOUR)));
    let told = lives(
        &nightly(),
        &[
            (3 * HOUR, None),
            (3 * HOUR + 599, None),
            (3 * HOUR + 600, None),
            (4 * HOUR, None),
            (5 * HOUR, late_run),
            (6 * HOUR, ended.clone()),
            (27 * HOUR + 599, ended.clone()),
            (27 * HOUR + 600, ended),
        ],
    );
    let expected = [
        (OnTime, None),
        (OnTime, None),
        (Missed, Some(Milestone)),
        (Missed, None),
        (OnTime, Some(Milestone)),
        (OnTime, Some(Tick)),
        (OnTime, None),
        (Missed, Some(Milestone)),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_run_that_does_not_end_in_time_is_late_until_it_ends() {
    use Class::*;
    use Status::*;
    let start = 3 * HOUR - 30;
    let going = Some(run("a", start, None));
    let told = lives(
        &nightly(),
        &[
            (3 * HOUR, going.clone()),
            (start + 7_199, going.clone()),
            (start + 7_200, going.clone()),
            (20 * HOUR, going),
            (21 * HOUR, Some(run("a", start, Some(21 * HOUR)))),
        ],
    );
    let expected = [
        (OnTime, Some(Tick)),
        (OnTime, None),
        (Late, Some(Milestone)),
        (Late, None),
        (OnTime, Some(Milestone)),
    ];
    assert_eq!(told, expected);
}

/// A server that was down for weeks says so once, and while runs are missed in a row the milestone comes back.
#[test]
fn what_was_missed_in_a_downtime_is_told_once() {
    let (own, class) = after(Some(&nightly()), &check(None), 10 * 24 * HOUR + 4 * HOUR).unwrap();
    assert_eq!(
        (own.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!(own.missed_since, Some(at(3 * HOUR)));
    assert_eq!(own.missed_at, Some(at(10 * 24 * HOUR + 3 * HOUR)));
    assert_eq!(own.due_at, at(11 * 24 * HOUR + 3 * HOUR));
    let (own, class) = after(Some(&own), &check(None), 11 * 24 * HOUR + 4 * HOUR).unwrap();
    assert_eq!(
        (own.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!(own.missed_since, Some(at(3 * HOUR)));
    // A run each minute: not a milestone each minute.
    let body = json!({"cron": "* * * * *", "grace_secs": 1});
    let mut own = after(None, &put(body), 0).unwrap().0;
    let mut milestones = Vec::new();
    for secs in 1..3 * HOUR {
        let (next, class) = after(Some(&own), &check(None), secs).unwrap();
        milestones.extend((class == Some(Class::Milestone)).then_some(secs));
        own = next;
    }
    assert_eq!(milestones.len(), 3, "{milestones:?}");
    assert!(
        milestones
            .windows(2)
            .all(|own| own[1] - own[0] >= MISSED_AGAIN_SECS)
    );
}

#[test]
fn a_clock_that_is_set_forward_or_back_blames_nobody() {
    let own = nightly();
    let year = 365 * 24 * HOUR;
    let going = || Some(run("a", 3 * HOUR, None));
    let begun = after(Some(&own), &check(going()), 3 * HOUR).unwrap().0;
    for own in [own, begun] {
        let (ahead, class) = after(Some(&own), &jumped(going()), year).unwrap();
        assert_eq!((ahead.status, class), (Status::OnTime, Some(Class::Tick)));
        assert_eq!(ahead.due_at, at(year + 3 * HOUR));
        // What was being waited for starts anew.
        let (still, class) = after(Some(&ahead), &check(going()), year + 7_199).unwrap();
        assert_eq!((still.status, class), (Status::OnTime, None));
        // Back, and nobody has noticed: the times of the last check tell.
        let (back, class) = after(Some(&ahead), &check(going()), 4 * HOUR).unwrap();
        assert_eq!((back.status, class), (Status::OnTime, Some(Class::Tick)));
        assert_eq!(back.due_at, at(27 * HOUR));
        let (missed, _) = after(Some(&back), &check(going()), 28 * HOUR).unwrap();
        assert_eq!(missed.status, Status::Missed);
    }
}

#[test]
fn a_period_is_counted_from_the_start_of_the_last_run() {
    let body = json!({"period_secs": 600, "grace_secs": 60});
    let own = after(None, &put(body), 0).unwrap().0;
    assert_eq!(own.due_at, at(600));
    let (own, _) = after(Some(&own), &check(Some(run("a", 100, Some(110)))), 120).unwrap();
    assert_eq!(own.due_at, at(700));
    let (own, class) = after(Some(&own), &check(Some(run("a", 100, Some(110)))), 760).unwrap();
    assert_eq!(
        (own.status, class),
        (Status::Missed, Some(Class::Milestone))
    );
    assert_eq!((own.missed_at, own.due_at), (Some(at(700)), at(1_300)));
    let (own, _) = after(Some(&own), &check(Some(run("b", 800, None))), 800).unwrap();
    assert_eq!((own.status, own.due_at), (Status::OnTime, at(1_400)));
}

#[test]
fn a_rule_is_checked_and_the_same_rule_changes_nothing() {
    for (body, field) in [
        (json!({}), "cron"),
        (json!({"cron": "0 3 * * *", "period_secs": 60}), "cron"),
        (json!({"cron": "every night"}), "cron"),
        (json!({"cron": "0 0 30 2 *"}), "cron"),
        (
            json!({"cron": "0 3 * * *", "time_zone": "Mars"}),
            "time_zone",
        ),
        (json!({"period_secs": 60, "time_zone": "UTC"}), "time_zone"),
        (json!({"period_secs": 59}), "period_secs"),
        (json!({"period_secs": 60, "grace_secs": 0}), "grace_secs"),
        (
            json!({"period_secs": 60, "max_run_secs": 2_592_001}),
            "max_run_secs",
        ),
    ] {
        match after(None, &put(body.clone()), 0) {
            Err(RuleError::Invalid { field: own, .. }) => assert_eq!(own, field, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
    let long = put(json!({"cron": "0,".repeat(100)}));
    assert!(matches!(
        after(None, &long, 0),
        Err(RuleError::TooLarge { .. })
    ));
    let own = nightly();
    let (missed, _) = after(Some(&own), &check(None), 4 * HOUR).unwrap();
    let same = json!({"cron": " 0 3  * * * ", "time_zone": "UTC", "grace_secs": 600, "max_run_secs": 7_200});
    let (same, class) = after(Some(&missed), &put(same), 4 * HOUR).unwrap();
    assert_eq!((same.status, class), (Status::Missed, None));
    let other = put(json!({"cron": "0 3 * * *", "grace_secs": 601}));
    let (other, class) = after(Some(&missed), &other, 4 * HOUR).unwrap();
    assert_eq!(
        (other.status, class),
        (Status::OnTime, Some(Class::Milestone))
    );
    let (gone, class) = after(Some(&missed), &Command::Remove, 4 * HOUR).unwrap();
    assert_eq!(
        (gone.status, class),
        (Status::Removed, Some(Class::Milestone))
    );
    assert_eq!(gone.check_uptime, None);
    let (still, class) = after(Some(&gone), &check(None), 100 * HOUR).unwrap();
    assert_eq!((still.status, class), (Status::Removed, None));
    let (still, class) = after(Some(&gone), &Command::Remove, 5 * HOUR).unwrap();
    assert_eq!((still.finished_at, class), (gone.finished_at, None));
    let back = put(json!({"cron": "0 3 * * *", "grace_secs": 600, "max_run_secs": 7_200}));
    let (back, class) = after(Some(&gone), &back, 5 * HOUR).unwrap();
    assert_eq!(
        (back.status, class),
        (Status::OnTime, Some(Class::Milestone))
    );
    // Nobody has looked: nothing is judged.
    let (unseen, class) = after(Some(&own), &Command::Check(None), 100 * HOUR).unwrap();
    assert_eq!((unseen.status, class), (Status::OnTime, None));
}

/// Whatever reports the job, the schedule of its school hears of it, and streams, lists and pages tell when it is late.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_run_is_told_by_every_transport_and_shown_until_it_ends() {
    let server = server().await;
    let rule = json!({"cron": "0 0 1 1 *", "time_zone": "Europe/Berlin", "max_run_secs": 1});
    for school in [1, 2] {
        let request = server.request("PUT", "/api/schedules/import", &worker(school));
        let (status, told) = answer(request.json(&rule)).await;
        assert_eq!(
            (status, &told["status"]),
            (200, &json!("on_time")),
            "{told}"
        );
    }
    let mut listeners = Vec::new();
    for transport in Transport::ALL {
        let mut own = server.listen(transport, "/schedules/import").await;
        own.until_ready().await;
        listeners.push(own);
    }
    let new = json!({"job_id": "i", "job_type": "import", "status": "in_progress"});
    server.report("/api/jobs", new).await;
    for own in &mut listeners {
        let heard = own.take_until(|own| own["status"] == "late").await;
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
    for own in &mut listeners {
        let heard = own.take_until(|own| own["status"] == "on_time").await;
        assert_eq!(heard.last().unwrap()["last_run"]["status"], "completed");
    }
    assert!(!page("").await.contains("Overdue schedules"));
    // A ping is a run, too.
    let new = json!({"job_type": "import"});
    let (_, key) = server.post("/api/pings", &admin_of(1), new).await;
    let url = format!("{}{}", server.url, key["url"].as_str().unwrap());
    assert_eq!(server.http.get(url).send().await.unwrap().status(), 204);
    for own in &mut listeners {
        own.take_until(|own| {
            let job = own["last_run"]["job_id"].as_str();
            job.is_some_and(|job| job.starts_with("import:"))
                && own["last_run"]["status"] == "completed"
        })
        .await;
    }
    let remove = server.request("DELETE", "/api/schedules/import", &worker(1));
    assert_eq!(answer(remove).await.1["status"], "removed");
    for own in &mut listeners {
        own.take_until(|own| own["status"] == "removed").await;
    }
    for (method, path, status) in [
        ("DELETE", "/api/schedules/nothing", 404),
        ("DELETE", "/api/jobs/i", 405),
        ("POST", "/api/schedules", 405),
        ("PUT", "/api/schedules/a%20b", 422),
    ] {
        let request = server.request(method, path, &worker(1));
        let (got, told) = answer(request.json(&rule)).await;
        assert_eq!(got, status, "{method} {path} {told}");
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
        let mut own = Clocked {
            folder: tempfile::tempdir().unwrap(),
            server: None,
        };
        own.set(0);
        own.serve();
        own
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
        let (status, told) = answer(request.bearer_auth(sign(&claims)).json(&body)).await;
        assert!(status < 300, "{method} {path}: {status} {told}");
        told
    }

    async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, json!({})).await
    }
}

/// The planned check is a minute of uptime away; the start of the server looks at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_due_while_the_server_was_down_or_slept_is_missed_when_it_is_back() {
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
async fn a_clock_that_jumps_causes_no_storm_on_a_running_server() {
    if !needs("cc") {
        return;
    }
    let clocked = Clocked::start();
    let paths: Vec<String> = (0..20)
        .map(|own| format!("/api/schedules/s{own}"))
        .collect();
    for path in &paths {
        let rule = json!({"cron": "0 3 * * *", "grace_secs": 1});
        clocked.ask("PUT", path, rule).await;
    }
    let day = |own: &Value| own["due_at"].as_str().unwrap()[..10].to_owned();
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
    let told = story.iter().filter(|own| own["seq"].is_u64());
    assert!(told.clone().count() >= 80);
    assert!(
        told.clone().all(|own| own["status"] == "on_time"),
        "{story:?}"
    );
}
