//! `docs/migrating-from-fastapi.md`: back ends that call in-process broadcasters call the drop-ins instead, and their pages,
//! at the endpoints that they use, receive the same.

use std::path::Path;
use std::process::Stdio;

use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use serde_json::{Value, json};
use tidings::auth::Role;

use crate::support::listener::{Socket, receive, send, socket, socket_url};
use crate::support::page::{blocks, text};
use crate::support::process::Group;
use crate::support::*;

const PAGE: &str = "docs/migrating-from-fastapi.md";
const MODULE: &str = "examples/python/tidings_dropins.py";

/// What a back end has at hand.
const PRELUDE: &str = "
import asyncio, datetime, logging
from types import SimpleNamespace as Event
import tidings_dropins
from tidings_dropins import *
logging.basicConfig(format='%(message)s')
now = datetime.datetime(2026, 1, 31, 9, 30, tzinfo=datetime.timezone.utc)
";

/// Runs a back end's code, and returns what it printed and what it logged.
async fn backend(url: &str, token: &str, folder: &Path, code: &str) -> Option<(String, String)> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !needs(&python) {
        return None;
    }
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
    let output = tokio::process::Command::new(python)
        .kill_on_drop(true)
        .args(["-c", &format!("{PRELUDE}{code}")])
        .current_dir(folder)
        .env("PYTHONPATH", module)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIDINGS_URL", url)
        .env("TIDINGS_TOKEN", token)
        // Of the objects that know no school.
        .env("TIDINGS_SCHOOL_ID", "1")
        .output();
    let output = tokio::time::timeout(2 * PATIENCE, output)
        .await
        .expect("it ends")
        .unwrap();
    let logged = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{logged}");
    Some((String::from_utf8(output.stdout).unwrap(), logged))
}

/// A server with the settings of the page, but for the secret.
async fn server_of_the_page() -> Server {
    let block = &blocks(PAGE, "toml")[0];
    let file = Figment::from(Toml::string(block)).focus("default");
    let mut settings: Value = file.extract_inner("tidings").unwrap();
    settings.as_object_mut().unwrap().remove("jwt_secret");
    server_with(settings).await
}

/// Tokens as the pages have them.
fn token_of_school(school: i64) -> String {
    let now = chrono::Utc::now().timestamp();
    sign(&json!({
        "sub": "7", "email": "a@b.example", "first_name": "A", "last_name": "B", "school_id": school,
        "role": "school_admin", "exp": now + 600, "iat": now, "typ": "access",
    }))
}

fn token_of_process() -> String {
    let now = chrono::Utc::now().timestamp();
    sign(&json!({"sub": "1", "username": "ann", "type": "access", "exp": now + 600, "iat": now}))
}

fn reporter() -> String {
    for_schools(&[1, 7, 8], Role::Worker)
}

/// So many messages, with these fields only.
async fn receive_fields(socket: &mut Socket, count: usize, fields: &[&str]) -> Vec<Value> {
    let mut messages = Vec::new();
    for _ in 0..count {
        let message = receive(socket).await.unwrap();
        messages.push(fields.iter().map(|name| message[name].clone()).collect());
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrollment_back_end_reaches_its_pages_through_the_drop_in() {
    let server = server_of_the_page().await;
    let mut page = socket(&server.url, "/ws/enrollment", &token_of_school(7)).await;
    let mut other = socket(&server.url, "/ws/enrollment", &token_of_school(8)).await;
    for page in [&mut page, &mut other] {
        assert_eq!(receive(page).await.unwrap()["type"], "connected");
    }
    let code = r#"
async def main():
    broadcaster = EnrollmentProgressBroadcaster()
    for scan in (1, 2, 3):
        for progress, status in ((0, "ready"), (33, "placing"), (66, "capturing"), (100, "complete")):
            await broadcaster.broadcast_progress(7, "s 1", progress, status, f"{status} {scan}")
    await broadcaster.broadcast_completion(school_id=7, session_id="s 1", quality_score=87)
    await broadcaster.broadcast_cancelled(7, "s/2", message="No time")
    await broadcaster.broadcast_error(7, "s3", "Sensor is dirty")
    await broadcaster.broadcast_error(7, "s3", "Again")
    await broadcaster.broadcast_error(8, "s3", "Another school's")
    print(broadcaster.get_connection_count(7))
asyncio.run(main())
"#;
    let Some((printed, logged)) =
        backend(&server.url, &reporter(), server.folder.path(), code).await
    else {
        return;
    };
    assert_eq!(printed, "1\n");
    assert_eq!(
        logged,
        "POST /api/enrollments/s3/error was not delivered: 409 it is already error, which is final\n"
    );
    let fields = ["session_id", "status", "progress", "message"];
    // Each session is made known first.
    assert_eq!(receive_fields(&mut page, 1, &fields).await[0][1], "ready");
    let mut expected = Vec::new();
    for scan in 1..=3 {
        for (status, progress) in [
            ("ready", 0),
            ("placing", 33),
            ("capturing", 66),
            ("processing", 66),
        ] {
            let word = if status == "processing" {
                "complete"
            } else {
                status
            };
            let progress = if scan == 1 { progress } else { 66 };
            expected.push(json!(["s 1", status, progress, format!("{word} {scan}")]));
        }
    }
    expected.push(json!(["s 1", "complete", 100, "Enrollment complete"]));
    assert_eq!(receive_fields(&mut page, 13, &fields).await, expected);
    let fields = ["type", "session_id", "message", "error"];
    let ends = receive_fields(&mut page, 4, &fields).await;
    assert_eq!(
        (&ends[1], &ends[3]),
        (
            &json!(["enrollment_cancelled", "s/2", "No time", null]),
            &json!(["enrollment_error", "s3", null, "Sensor is dirty"])
        )
    );
    let ends = receive_fields(&mut other, 2, &fields).await;
    assert_eq!(
        ends[1],
        json!(["enrollment_error", "s3", null, "Another school's"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_checker_reaches_its_pages_through_the_drop_in() {
    let server = server_of_the_page().await;
    let mut page = socket(&server.url, "/ws/device-status", &token_of_school(7)).await;
    assert_eq!(receive(&mut page).await.unwrap()["type"], "connected");
    let code = r#"
async def main():
    broadcaster = DeviceStatusBroadcaster()
    await broadcaster.broadcast_device_status(7, 21, "online", last_seen=now)
    await broadcaster.broadcast_device_status(7, 21, "offline")
    await broadcaster.broadcast_device_info(7, 22, {"firmware": "4.2"})
asyncio.run(main())
"#;
    let ran = backend(&server.url, &reporter(), server.folder.path(), code).await;
    let Some((_, logged)) = ran else { return };
    assert_eq!(logged, "");
    let fields = ["device_id", "status", "last_seen", "info"];
    assert_eq!(
        receive_fields(&mut page, 4, &fields).await,
        [
            json!([21, "online", "2026-01-31T09:30:00.000Z", null]),
            json!([21, "offline", "2026-01-31T09:30:00.000Z", null]),
            json!([22, "unknown", null, null]),
            json!([22, null, null, {"firmware": "4.2"}]),
        ]
    );
    let (_, device) = server.get("/api/devices/22", &viewer(7)).await;
    assert_eq!(device["lease_secs"], 600, "longer than it may be silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_celery_worker_reaches_its_pages_through_the_drop_in() {
    let server = server_of_the_page().await;
    server
        .report("/api/jobs", json!({"job_id": "j", "job_type": "scan"}))
        .await;
    let mut page = socket(&server.url, "/progress/ws/j", &token_of_process()).await;
    let code = r#"
lifecycle = ProcessingJobLifecycle
lifecycle.mark_queued("j", queue_name="scans", task_id="t1")
print(lifecycle.mark_started("j")["attempt"])
lifecycle.mark_progress("j", progress=40, message="Page 2", metadata={"page": 2})
lifecycle.mark_failed("j", error_message="Out of memory")
print(lifecycle.mark_started("j")["attempt"])
lifecycle.mark_completed("j", result_payload={"pages": 3})
# Made by itself, made before, and cancelled while it waited.
waiting = lifecycle.enqueue("scan", {"path": "x"})
print(lifecycle.mark_started(waiting)["status"], lifecycle.mark_progress(42, 10)["job_type"])
waiting = lifecycle.enqueue("scan", {})
call("POST", f"/api/jobs/{waiting}/cancel", {})
print(lifecycle.mark_started(waiting)["status"])
print(lifecycle.mark_completed(42, "x" * 20_000)["status"])
"#;
    let ran = backend(&server.url, &reporter(), server.folder.path(), code).await;
    let Some((printed, logged)) = ran else { return };
    assert_eq!(logged, "");
    assert_eq!(printed, "1\n2\nin_progress job\ncancelled\ncompleted\n");
    let fields = ["status", "progress", "message", "metadata"];
    let queue = json!({"queue_name": "scans", "task_id": "t1"});
    let with = |more: Value| {
        let mut all = queue.clone();
        let more = more.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(more);
        all
    };
    let failed = with(json!({"page": 2, "error": "Out of memory"}));
    assert_eq!(
        receive_fields(&mut page, 8, &fields).await,
        [
            json!(["pending", 0.0, "Pending", {}]),
            json!(["queued", 0.0, "Queued", queue]),
            json!(["in_progress", 0.0, "In progress", queue]),
            json!(["in_progress", 40.0, "Page 2", with(json!({"page": 2}))]),
            json!(["failed", 40.0, "Out of memory", failed]),
            json!(["queued", 0.0, "Queued", failed]),
            json!(["in_progress", 0.0, "In progress", failed]),
            json!([
                "completed",
                100.0,
                "Completed",
                with(json!({"page": 2, "result": {"pages": 3}}))
            ]),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_control_back_end_reaches_its_charts_through_the_drop_in() {
    let server = server_of_the_page().await;
    let mut chart = socket(&server.url, "/ws/samples", &token_of_process()).await;
    server.put("/api/characteristics/3", json!({})).await;
    send(
        &mut chart,
        r#"{"type":"subscribe","characteristic_ids":[3]}"#,
    )
    .await;
    // The present state has no limits yet.
    for name in ["subscribed", "limits_update"] {
        assert_eq!(receive(&mut chart).await.unwrap()["type"], name);
    }
    let code = r#"
async def main():
    notifier = AlertNotifier()
    await notifier.control_limits_updated(Event(characteristic_id=3, center_line=5.0, ucl=8.0, lcl=2.0, method="own", sample_count=25))
    await notifier.sample_processed(Event(characteristic_id=3, sample_id=501, mean=9.0, zone="beyond_ucl", in_control=False, timestamp=now))
    await notifier.notify_violation_created(Event(violation_id=9001, sample_id=501, characteristic_id=3, rule_id=1,
                                              rule_name="Beyond limits", severity="CRITICAL", timestamp=now))
    await notifier.notify_violation_acknowledged(Event(violation_id=9001, user="ann", reason="Tool changed", timestamp=now))
    await notifier.sample_processed(Event(characteristic_id=4, sample_id=502, mean=1.0, zone="zone_c_upper", in_control=True, timestamp=now))
asyncio.run(main())
"#;
    let ran = backend(&server.url, &reporter(), server.folder.path(), code).await;
    let Some((_, logged)) = ran else { return };
    assert_eq!(logged, "");
    let mut messages = Vec::new();
    for _ in 0..4 {
        messages.push(receive(&mut chart).await.unwrap());
    }
    assert_eq!(
        field(&messages, "type"),
        ["limits_update", "sample", "violation", "ack_update"]
    );
    assert_eq!(messages[0]["ucl"], 8.0);
    let sample = &messages[1]["sample"];
    assert_eq!(
        (&sample["id"], &sample["zone"], &sample["in_control"]),
        (&json!(501), &json!("beyond_ucl"), &json!(false))
    );
    let violation = &messages[2]["violation"];
    assert_eq!(
        (&violation["id"], &violation["severity"]),
        (&json!(9001), &json!("CRITICAL"))
    );
    assert_eq!(
        (&messages[3]["violation_id"], &messages[3]["ack_user"]),
        (&json!(9001), &json!("ann"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_one_name_reach_their_pages_through_the_drop_in() {
    let server = server_of_the_page().await;
    let mut page = socket(&server.url, "/ws/upload-progress", &token_of_process()).await;
    let code = r#"
for progress in (0, 50, 100):
    progress_notifier.notify(ProgressEvent("Zeugnis 作业.pdf", progress))
progress_notifier.notify(ProgressEvent(file_id="Zeugnis 作业.pdf", progress=30))
progress_notifier.notify(ProgressEvent("Zeugnis 作业.pdf", -1, "The disk is full"))
"#;
    let ran = backend(&server.url, &reporter(), server.folder.path(), code).await;
    let Some((_, logged)) = ran else { return };
    assert_eq!(logged, "");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = receive(&mut page).await.unwrap();
        if message["status"] != "processing" && message["type"] == "progress_update" {
            assert_eq!(message["file_id"], "Zeugnis 作业.pdf");
            let fields = ["status", "progress", "isComplete", "error"];
            let fields: Vec<Value> = fields.iter().map(|name| message[name].clone()).collect();
            seen.push((fields, message["processing_id"].clone()));
        }
    }
    assert_eq!(
        seen[0].0,
        json!(["completed", 100, true, null]).as_array().unwrap()[..]
    );
    assert_eq!(
        seen[1].0,
        json!(["error", 30, false, "The disk is full"])
            .as_array()
            .unwrap()[..]
    );
    assert_ne!(seen[0].1, seen[1].1, "each upload is a job of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_goes_on_when_nobody_answers_it() {
    let folder = tempfile::tempdir().unwrap();
    let code = r#"
tidings_dropins.PAUSES_SECS = (0, 0)
asyncio.run(EnrollmentProgressBroadcaster().broadcast_progress(7, "s", 0, "ready", ""))
ProcessingJobLifecycle.mark_failed("j", error_message="x")
progress_notifier.notify(ProgressEvent("f", 100))
print("goes on")
"#;
    // Nothing listens on port 1.
    let ran = backend("http://127.0.0.1:1", "", folder.path(), code).await;
    let Some((printed, logged)) = ran else { return };
    assert_eq!(printed, "goes on\n");
    assert!(
        logged.contains("/api/jobs/j/fail was not delivered"),
        "{logged}"
    );
}

/// The page's own lines, with a broadcaster as such back ends have it.
#[tokio::test(flavor = "multi_thread")]
async fn during_a_rollover_a_back_end_reports_to_both() {
    let server = server_of_the_page().await;
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    std::fs::create_dir(&app).unwrap();
    let old = r#"
class EnrollmentProgressBroadcaster:
    async def register(self, socket, school_id): print("registered", socket)
    async def broadcast_progress(self, school_id, session_id, progress, status, message): print(status, progress)
    def get_connection_count(self, school_id=None): return 12
"#;
    std::fs::write(app.join("broadcasting.py"), old).unwrap();
    let page = text(PAGE);
    let (_, block) = page.split_once("   ```python\n").unwrap();
    let block = block.split("   ```").next().unwrap().replace("\n   ", "\n");
    let code = format!(
        "{}\nasync def main():\n    await broadcaster.register('socket', 7)\n    await broadcaster.broadcast_progress(7, 's', 33, 'placing', 'x')\n    \
         print(broadcaster.get_connection_count())\nasyncio.run(main())\n",
        block.trim_start()
    );
    let ran = backend(&server.url, &reporter(), folder.path(), &code).await;
    let Some((printed, logged)) = ran else { return };
    assert_eq!(printed, "registered socket\nplacing 33\n12\n");
    assert_eq!(logged, "");
    let (_, session) = server.get("/api/enrollments/s", &viewer(7)).await;
    assert_eq!(session["status"], "placing");
}

#[test]
fn the_page_shows_the_module_as_it_is() {
    let class = &blocks(PAGE, "python")[0];
    assert!(class.starts_with("class ") && text(MODULE).contains(class));
}

/// The page's configuration, with a second server in place of the application.
#[tokio::test(flavor = "multi_thread")]
async fn the_paths_of_existing_pages_are_routed_here_and_no_others() {
    if !needs("nginx") {
        return;
    }
    let (tidings, application) = (server().await, server().await);
    tidings.running_job("j").await;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display();
    let sockets = format!("{dir}/nginx.sock");
    let port = |server: &Server| server.url.rsplit(':').next().unwrap().to_owned();
    let block = blocks(PAGE, "nginx")[0]
        .replace("0.0.0.0:8080", &format!("unix:{sockets}"))
        .replace(":8000", &format!(":{}", port(&tidings)))
        .replace(":5000", &format!(":{}", port(&application)));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
        .collect();
    let file = format!(
        "pid {dir}/pid; error_log {dir}/error;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{block}}}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), file).unwrap();
    let mut nginx = std::process::Command::new("nginx");
    nginx
        .args(["-g", "daemon off;", "-c"])
        .arg(folder.path().join("nginx.conf"))
        .stdout(Stdio::null());
    let nginx = Group::start(&mut nginx);
    until("nginx listens", async || {
        assert!(nginx.runs());
        tokio::net::UnixStream::connect(&sockets).await.is_ok()
    })
    .await;
    for (path, is_here) in [
        ("/ws", true),
        ("/ws/samples", true),
        ("/ws/enrollment", true),
        ("/ws/device-status", true),
        ("/ws/upload-progress", true),
        ("/ws/upload-progress/j", true),
        ("/progress/ws/j", true),
        ("/events/jobs", false),
        ("/ws/other", false),
    ] {
        let before = (tidings.tidings.streams(), application.tidings.streams());
        let stream = tokio::net::UnixStream::connect(&sockets).await.unwrap();
        let url = socket_url("http://localhost", path, Some(&viewer(1)), None);
        let opened = tokio_tungstenite::client_async(url, stream).await;
        let streams = || (tidings.tidings.streams(), application.tidings.streams());
        match (is_here, path) {
            (true, _) => assert!(streams().0 > before.0, "{path}"),
            (false, "/events/jobs") => assert!(streams().1 > before.1, "{path}"),
            (false, _) => assert!(opened.is_err(), "{path}"),
        }
        assert_eq!(is_here, streams().1 == before.1 && opened.is_ok(), "{path}");
        drop(opened);
        until("the streams are over", async || streams() == (0, 0)).await;
    }
}
