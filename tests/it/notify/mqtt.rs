//! MQTT, through a real broker: Mosquitto.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::config::Bounded;
use tidings::config::notifiers::MqttSettings;
use tidings::notify::mqtt::Mqtt;
use tidings::notify::notification::{DeliveryError, Medium as _, Notification};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::receivers::{
    Receiver, free_port, make_certificate, notification, rerun_trusting, unavailable,
};
use crate::support::{needs, process};

const OPEN: &str = "allow_anonymous true";

fn ready() -> bool {
    needs("mosquitto") && needs("mosquitto_sub")
}

/// Starts a broker on `port`.
async fn broker(directory: &TempDir, port: u16, configuration: &str) -> Receiver {
    let file = directory.path().join("mosquitto.conf");
    let text = format!("listener {port} 127.0.0.1\n{configuration}\n");
    std::fs::write(&file, text).unwrap();
    let mut broker = Receiver::start_logging(Command::new("mosquitto").arg("-c").arg(file));
    broker.line_with("running").await;
    broker
}

/// Starts a subscriber of everything, and waits until it is one.
async fn subscriber(port: u16) -> Receiver {
    let mut subscriber = Receiver::start(
        // `-d` says when the subscription stands; messages are recognized by their format.
        Command::new("stdbuf")
            .args(["-oL", "mosquitto_sub", "-d", "-h", "127.0.0.1"])
            .args(["-p", &port.to_string(), "-t", "#", "-q", "2"])
            .args(["-F", "MESSAGE %q %r %t %p"]),
    );
    subscriber.line_with("Subscribed").await;
    subscriber
}

/// The next event: `<qos> <retained> <topic>`, and its content.
async fn message(subscriber: &mut Receiver) -> (String, Value) {
    let line = loop {
        let line = subscriber.line_with("MESSAGE ").await;
        if !line.contains("/status ") {
            break line;
        }
    };
    let (head, content) = line.split_once(" {").unwrap();
    let content = serde_json::from_str(&format!("{{{content}")).unwrap();
    (head.trim_start_matches("MESSAGE ").into(), content)
}

/// The next status: `<qos> <retained> <topic> <status>`.
async fn status(subscriber: &mut Receiver) -> String {
    let line = subscriber.line_with("/status ").await;
    line.trim_start_matches("MESSAGE ").into()
}

fn settings(port: u16) -> MqttSettings {
    let settings = json!({"host": "127.0.0.1", "port": port});
    serde_json::from_value(settings).unwrap()
}

fn mqtt(settings: MqttSettings) -> Mqtt {
    Mqtt::new("ops-broker", settings).unwrap()
}

#[tokio::test]
async fn subscriber_gets_what_the_broker_acknowledged_at_every_qos() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = broker(&directory, port, OPEN).await;
    let mut subscriber = subscriber(port).await;
    for qos in [0, 1, 2] {
        let mqtt = mqtt(MqttSettings {
            qos: Bounded::new(qos).unwrap(),
            ..settings(port)
        });
        for attempt in ["a", "b"] {
            let id = format!("00c0ffee-{qos}{attempt}-ops-broker");
            mqtt.deliver(&notification(&id)).await.unwrap();
            let (head, content) = message(&mut subscriber).await;
            assert_eq!(head, format!("{qos} 0 tidings/7/jobs/report-7"));
            assert_eq!(
                content,
                json!({
                    "id": id,
                    "type": "jobs.job_progress",
                    "data": {
                        "type": "job_progress",
                        "job_id": "report-7",
                        "message": "Schülerliste – zu groß",
                    },
                })
            );
        }
    }
}

#[tokio::test]
async fn retained_message_waits_for_a_later_subscriber() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = broker(&directory, port, OPEN).await;
    let mqtt = mqtt(MqttSettings {
        retain: true,
        topic: "last/{type}".into(),
        ..settings(port)
    });
    mqtt.deliver(&notification("00c0ffee-3-ops-broker"))
        .await
        .unwrap();
    let mut subscriber = subscriber(port).await;
    let (head, _) = message(&mut subscriber).await;
    assert_eq!(head, "1 1 last/job_progress");
}

#[tokio::test]
async fn absent_broker_is_unavailable_and_found_when_it_comes() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mqtt = mqtt(settings(port));
    let notification = notification("00c0ffee-4-ops-broker");
    let cause = unavailable(mqtt.deliver(&notification).await);
    assert!(cause.contains("refused"), "{cause}");

    let _broker = broker(&directory, port, OPEN).await;
    let mut subscriber = subscriber(port).await;
    mqtt.deliver(&notification).await.unwrap();
    let (_, content) = message(&mut subscriber).await;
    assert_eq!(content["id"], "00c0ffee-4-ops-broker");
}

#[tokio::test]
async fn restarted_broker_gets_the_next_notification_once() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mqtt = mqtt(settings(port));

    let first = broker(&directory, port, OPEN).await;
    mqtt.deliver(&notification("00c0ffee-5-ops-broker"))
        .await
        .unwrap();
    first.stop().await;
    let _second = broker(&directory, port, OPEN).await;
    let mut subscriber = subscriber(port).await;
    mqtt.deliver(&notification("00c0ffee-6-ops-broker"))
        .await
        .unwrap();
    mqtt.deliver(&notification("00c0ffee-7-ops-broker"))
        .await
        .unwrap();
    for id in ["00c0ffee-6-ops-broker", "00c0ffee-7-ops-broker"] {
        let (_, content) = message(&mut subscriber).await;
        assert_eq!(content["id"], id);
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_is_not_delivered() {
    // A broker that takes everything and acknowledges connections only. Mosquitto would not do that.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forgetful = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                let mut said_welcome = false;
                while connection.read(&mut heard).await.is_ok_and(|read| read > 0) {
                    if !said_welcome {
                        connection.write_all(&[0x20, 2, 0, 0]).await.unwrap();
                        said_welcome = true;
                    }
                }
            });
        }
    });
    let attempt = async |qos| {
        let mqtt = mqtt(MqttSettings {
            qos: Bounded::new(qos).unwrap(),
            timeout_secs: Bounded::of::<1>(),
            ..settings(port)
        });
        let outcome = mqtt.deliver(&notification("00c0ffee-8-ops-broker")).await;
        assert_eq!(unavailable(outcome), "no acknowledgement within 1 s");
    };
    tokio::join!(attempt(1), attempt(2));
    forgetful.abort();
}

#[tokio::test]
async fn wrong_login_is_no_fault_of_the_event_and_shows_no_password() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = broker(&directory, port, "allow_anonymous false").await;
    let mqtt = mqtt(MqttSettings {
        username: Some("tidings".into()),
        password: Some("hush".into()),
        ..settings(port)
    });
    let outcome = mqtt.deliver(&notification("00c0ffee-9-ops-broker")).await;
    assert_eq!(unavailable(outcome), "the broker refused: NotAuthorized");
}

#[tokio::test]
async fn broker_sees_the_client_leave_with_its_owner() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut broker = broker(&directory, port, OPEN).await;
    let mqtt = mqtt(settings(port));
    mqtt.deliver(&notification("00c0ffee-10-ops-broker"))
        .await
        .unwrap();
    broker.line_with("as tidings-ops-broker").await;
    drop(mqtt);
    broker.line_with("Client tidings-ops-broker").await;
}

/// `tidings serve` with a notifier `building` at this broker.
fn serve(folder: &TempDir, port: u16) -> process::Process {
    let building = json!([{"name": "building", "mqtt": {"host": "127.0.0.1", "port": port}}]);
    let mut serve = process::command(folder.path());
    serve
        .arg("serve")
        .env("TIDINGS_NOTIFIERS", building.to_string());
    process::Process::start(&mut serve)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_shows_whether_the_server_is_online_however_it_ends() {
    if !ready() {
        return;
    }
    let (directory, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let port = free_port();
    let _broker = broker(&directory, port, OPEN).await;
    let mut first = subscriber(port).await;
    for is_killed in [true, false] {
        let mut server = serve(&folder, port);
        assert_eq!(
            status(&mut first).await,
            "1 0 tidings/building/status online"
        );
        let mut late = subscriber(port).await;
        assert_eq!(
            status(&mut late).await,
            "1 1 tidings/building/status online"
        );
        if is_killed {
            server.kill();
        } else {
            assert_eq!(server.terminate(), Some(0));
        }
        assert_eq!(
            status(&mut first).await,
            "1 0 tidings/building/status offline"
        );
        let mut late = subscriber(port).await;
        assert_eq!(
            status(&mut late).await,
            "1 1 tidings/building/status offline"
        );
    }
}

#[tokio::test]
async fn a_broker_that_has_lost_the_status_receives_it_again() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mqtt = mqtt(MqttSettings {
        status_topic: Some("own/status".into()),
        ..settings(port)
    });
    mqtt.start();
    for _ in 0..2 {
        let broker = broker(&directory, port, OPEN).await;
        let mut subscriber = subscriber(port).await;
        let message = status(&mut subscriber).await;
        assert!(message.ends_with(" own/status online"), "{message}");
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_order_says_so_itself() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut broker = broker(&directory, port, OPEN).await;
    let mut subscriber = subscriber(port).await;
    let mqtt = mqtt(settings(port));
    mqtt.start();
    assert_eq!(
        status(&mut subscriber).await,
        "1 0 tidings/ops-broker/status online"
    );
    mqtt.stop().await;
    assert_eq!(
        status(&mut subscriber).await,
        "1 0 tidings/ops-broker/status offline"
    );
    // An orderly end, by Mosquitto's own account: the will was not needed.
    broker
        .line_with("Client tidings-ops-broker disconnected.")
        .await;
    let outcome = mqtt.deliver(&notification("00c0ffee-12-ops-broker")).await;
    assert_eq!(unavailable(outcome), "the MQTT connection task has stopped");
    // As when the lease comes back from another node.
    mqtt.start();
    assert_eq!(
        status(&mut subscriber).await,
        "1 0 tidings/ops-broker/status online"
    );
}

#[tokio::test]
async fn the_status_is_not_published_where_it_is_switched_off() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let _broker = broker(&directory, port, OPEN).await;
    let mut subscriber = subscriber(port).await;
    let mqtt = mqtt(MqttSettings {
        status_topic: Some(String::new()),
        ..settings(port)
    });
    let notification = notification("00c0ffee-13-ops-broker");
    mqtt.deliver(&notification).await.unwrap();
    mqtt.stop().await;
    let line = subscriber.line_with("MESSAGE ").await;
    assert!(line.contains("tidings/7/jobs/report-7"), "{line}");
    let rest = subscriber.stop().await;
    assert!(
        !rest.iter().any(|line| line.contains("MESSAGE")),
        "{rest:?}"
    );
}

#[tokio::test]
async fn a_message_that_the_broker_breaks_off_at_is_rejected_and_others_are_taken() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let configuration = format!("{OPEN}\nmax_packet_size 1000");
    let _broker = broker(&directory, port, &configuration).await;
    let mqtt = mqtt(settings(port));
    let small = notification("00c0ffee-14-ops-broker");
    let large = Notification {
        json: json!({"message": "x".repeat(2_000)})
            .to_string()
            .into_bytes(),
        ..notification("00c0ffee-15-ops-broker")
    };
    for _ in 0..2 {
        mqtt.deliver(&small).await.unwrap();
        match mqtt.deliver(&large).await {
            Err(DeliveryError::Rejected { cause, .. }) => {
                assert!(
                    cause.contains("closed the connection at this message"),
                    "{cause}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    mqtt.deliver(&small).await.unwrap();
}

#[tokio::test]
async fn certificate_must_be_trusted() {
    if !ready() || !needs("openssl") {
        return;
    }
    let encrypted = |port| {
        mqtt(MqttSettings {
            tls: true,
            ..settings(port)
        })
    };
    // The second half: in the process that trusts the certificate.
    if let Some(certificate) = std::env::var_os("TLS_DIRECTORY") {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let _broker = broker(&directory, port, &with_tls(Path::new(&certificate))).await;
        let mqtt = encrypted(port);
        mqtt.deliver(&notification("00c0ffee-11-ops-broker"))
            .await
            .unwrap();
        return;
    }

    let directory = tempfile::tempdir().unwrap();
    make_certificate(directory.path());
    let port = free_port();
    let _broker = broker(&directory, port, &with_tls(directory.path())).await;
    let mqtt = encrypted(port);
    let cause = unavailable(mqtt.deliver(&notification("00c0ffee-11-ops-broker")).await);
    assert!(cause.contains("certificate"), "{cause}");
    rerun_trusting(
        directory.path(),
        module_path!(),
        "certificate_must_be_trusted",
    )
    .await;
}

fn with_tls(directory: &Path) -> String {
    format!(
        "{OPEN}\ncertfile {0}/cert.pem\nkeyfile {0}/key.pem",
        directory.display()
    )
}
