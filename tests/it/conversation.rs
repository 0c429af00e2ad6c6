//! A conversation and its rules without any transport: what a second two-way transport would build on, and what code of an
//! application that has Tidings built in meets.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tidings::Tidings;
use tidings::app::{Caller, Listen, Rejected, TooFast};
use tidings::auth::{Access, AuthError, Role, Schools};
use tidings::config::Settings;
use tidings::hub::Reader;
use tidings::id::SchoolId;
use tidings::kind::{self, job};
use tidings::rejections::RequestSource;
use tidings::scope::Scope;
use tidings::session::{Beginning, Dialect, Outbox, Outgoing, Publishing, Session};
use tidings::wire::{Close, Encoding, Framing};
use tokio::time::{Instant, timeout};

use crate::support::*;

fn school(number: i64) -> SchoolId {
    number.try_into().unwrap()
}

/// A Tidings without a server.
fn start(settings: Value) -> (Tidings, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::from_figment(&figment(&folder, &settings)).unwrap();
    (Tidings::start(settings).unwrap(), folder)
}

fn create(id: &str) -> job::Create {
    serde_json::from_value(json!({"job_id": id, "job_type": "import"})).unwrap()
}

/// A transport that writes nothing down.
struct Output {
    messages: Vec<Value>,
    room: usize,
}

impl Outbox for Output {
    fn has_room(&self) -> bool {
        self.messages.len() < self.room
    }

    fn send(&mut self, outgoing: Outgoing<'_>) {
        let frame = match outgoing {
            Outgoing::Event(event) => {
                let encoding = Encoding::new(Framing::WebSocket);
                tidings::wire::event(event, encoding).to_vec()
            }
            Outgoing::Control(control) => tidings::wire::control(control, Framing::WebSocket),
            Outgoing::Json(json) => json.to_vec(),
            Outgoing::BarePong => b"\"pong\"".to_vec(),
            Outgoing::Ping(cursor) => json!({ "ping": cursor.map(|cursor| cursor.to_string()) })
                .to_string()
                .into_bytes(),
        };
        let begin = frame.iter().position(|byte| *byte == b'{').unwrap();
        self.messages
            .push(serde_json::from_slice(&frame[begin..]).unwrap());
    }
}

struct Talk {
    session: Session,
    output: Output,
}

impl Talk {
    fn begin(tidings: &Tidings, access: Access, dialect: Dialect) -> Talk {
        let caller = Caller::new(access, Some(school(1))).unwrap();
        let listen = Listen {
            reader: Reader {
                transport: "a test's own",
                user: Arc::clone(caller.name()),
                address: None,
                peer: None,
            },
            from: None,
            tick: Duration::ZERO,
            welcome: Some(Map::new()),
        };
        let service = tidings.subscriptions();
        let scope = Scope::new(school(1), []);
        let beginning = Beginning {
            source: RequestSource::new("/test", None),
            access: caller.access().clone(),
            subscription: service
                .open(service.allow(&caller, scope).unwrap(), listen)
                .unwrap(),
            from: None,
        };
        Talk {
            session: Session::new(Arc::clone(service), dialect, beginning),
            output: Output {
                messages: Vec::new(),
                room: usize::MAX,
            },
        }
    }

    fn receive(&mut self, message: Value) {
        self.session.receive(&message.to_string(), &mut self.output);
    }

    /// Has its commands carried out with this.
    fn with_publishing(self, publishing: impl Publishing + 'static) -> Talk {
        Talk {
            session: self.session.with_publishing(Box::new(publishing)),
            ..self
        }
    }

    /// Drives the conversation until this has been sent, and returns all that was sent.
    async fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Vec<Value> {
        let Talk { session, output } = self;
        let all_output = poll_fn(|cx| {
            loop {
                let answered = session.poll_answer(cx, output) == Poll::Ready(true);
                let any = answered | session.resume(output) | session.poll_deliveries(cx, output);
                if let Some(at) = output.messages.iter().position(&is_it) {
                    return Poll::Ready(output.messages.drain(..=at).collect::<Vec<_>>());
                }
                if !any {
                    return Poll::Pending;
                }
            }
        });
        timeout(PATIENCE, all_output).await.expect("it is sent")
    }
}

/// Answers no command.
struct Unanswered;

impl Publishing for Unanswered {
    fn has_room(&self) -> bool {
        true
    }

    fn publish(&mut self, _: &Access, _: Option<Value>, _: Map<String, Value>, _: usize) {}

    fn poll_answer(&mut self, _: &mut Context<'_>, _: &Access) -> Poll<Option<Vec<u8>>> {
        Poll::Pending
    }

    fn stop(&mut self) {}
}

fn is(name: &'static str) -> impl Fn(&Value) -> bool {
    move |message| message["type"] == name
}

fn access(role: Role) -> Access {
    Access {
        subject: "ada".into(),
        schools: Schools::One(school(1)),
        role,
        channels: None,
        expires_at: None,
        reconnects_until: None,
    }
}

#[tokio::test]
async fn a_conversation_needs_no_socket() {
    let (tidings, _folder) = start(json!({}));
    let worker = Caller::in_process("importer", school(1));
    let publications = tidings.publications();
    publications.publish(&worker, create("a")).await.unwrap();
    let mut talk = Talk::begin(&tidings, access(Role::Viewer), Dialect::MULTIPLEXED);
    talk.until(is("connected")).await;
    talk.receive(json!({"type": "ping", "timestamp": 7}));
    assert_eq!(talk.until(is("pong")).await[0]["timestamp"], 7);
    talk.receive(json!({"type": "subscribe", "channels": ["jobs/a", "jobs/b"]}));
    let messages = talk.until(is("ready")).await;
    assert_eq!(field(&messages, "type")[..1], ["error"], "{messages:?}");
    assert_eq!(messages[0]["channels"], json!(["jobs/b"]));
    let states: Vec<_> = messages
        .iter()
        .filter(|message| message["snapshot"] == true)
        .collect();
    assert_eq!(states.len(), 1, "{messages:?}");
    assert_eq!(states[0]["job_id"], "a");
    publications.publish(&worker, create("b")).await.unwrap();
    let messages = talk.until(|message| message["job_id"] == "b").await;
    assert_eq!(messages.len(), 1);
    talk.session.close(Close::TryAgainLater, &mut talk.output);
    assert_eq!(talk.until(is("closing")).await.len(), 1);
    assert_eq!(talk.session.ended(), Some(Close::TryAgainLater));
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn a_conversation_sends_no_more_than_there_is_room_for() {
    let (tidings, _folder) = start(json!({}));
    let worker = Caller::in_process("importer", school(1));
    let mut talk = Talk::begin(&tidings, access(Role::Viewer), Dialect::MULTIPLEXED);
    talk.receive(json!({"type": "subscribe", "channels": ["jobs"]}));
    talk.until(is("ready")).await;
    talk.output.room = 2;
    for id in ["a", "b", "c"] {
        let published = tidings.publications().publish(&worker, create(id));
        published.await.unwrap();
    }
    let messages = talk.until(|message| message["job_id"] == "b").await;
    assert_eq!(field(&messages, "job_id"), ["a", "b"]);
    assert!(talk.output.messages.is_empty(), "the third waits for room");
    let messages = talk.until(|message| message["job_id"] == "c").await;
    assert_eq!(messages.len(), 1);
    tidings.close().await.unwrap();
}

/// Records the commands, and answers them. It has room for one.
#[derive(Default, Clone)]
struct OneAtATime(Arc<Mutex<Vec<Map<String, Value>>>>);

impl OneAtATime {
    fn waiting(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl Publishing for OneAtATime {
    fn has_room(&self) -> bool {
        self.waiting() == 0
    }

    fn publish(&mut self, _: &Access, _: Option<Value>, command: Map<String, Value>, _: usize) {
        self.0.lock().unwrap().push(command);
    }

    fn poll_answer(&mut self, _: &mut Context<'_>, _: &Access) -> Poll<Option<Vec<u8>>> {
        let answered = self.0.lock().unwrap().pop();
        Poll::Ready(answered.map(|_| br#"{"type":"published"}"#.to_vec()))
    }

    fn stop(&mut self) {}
}

#[tokio::test]
async fn a_command_waits_until_there_is_room_for_it() {
    let (tidings, _folder) = start(json!({}));
    let commands = OneAtATime::default();
    let talk = Talk::begin(&tidings, access(Role::Worker), Dialect::MULTIPLEXED);
    let mut talk = talk.with_publishing(commands.clone());
    talk.until(is("connected")).await;
    assert!(!talk.session.is_busy());
    let command = json!({"type": "publish", "kind": "jobs", "id": "a", "action": "start"});
    for _ in 0..2 {
        talk.receive(command.clone());
    }
    assert_eq!(commands.waiting(), 1);
    assert!(talk.session.has_held_message() && talk.session.is_busy());
    let Talk { session, output } = &mut talk;
    let mut cx = Context::from_waker(Waker::noop());
    assert!(!session.resume(output), "there is still no room");
    assert!(session.poll_published(&mut cx, output), "the answer");
    assert!(session.resume(output));
    assert_eq!(commands.waiting(), 1, "the second command");
    assert!(!session.has_held_message() && !session.is_busy());
    assert_eq!(field(&output.messages, "type"), ["published"]);
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn only_workers_may_publish_and_only_where_commands_are_taken() {
    let (tidings, _folder) = start(json!({}));
    for (role, takes_commands, expected) in [
        (Role::Worker, true, true),
        (Role::Worker, false, false),
        (Role::Viewer, true, false),
        (Role::Viewer, false, false),
    ] {
        let mut talk = Talk::begin(&tidings, access(role), Dialect::MULTIPLEXED);
        if takes_commands {
            talk = talk.with_publishing(OneAtATime::default());
        }
        let case = format!("{role:?} {takes_commands}");
        assert_eq!(talk.session.can_publish(), expected, "{case}");
    }
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn a_connection_may_have_as_many_channels_as_the_limit_says() {
    let (tidings, _folder) = start(json!({"channels_per_connection": 2}));
    let mut talk = Talk::begin(&tidings, access(Role::Viewer), Dialect::MULTIPLEXED);
    talk.receive(json!({"type": "subscribe", "channels": ["jobs", "devices"]}));
    talk.until(is("ready")).await;
    talk.receive(json!({"type": "subscribe", "channels": ["enrollments"]}));
    let messages = talk.until(is("error")).await;
    assert_eq!(messages.last().unwrap()["code"], "too_many_channels");
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn an_unsubscribe_waits_for_the_subscribe_before_it() {
    let (tidings, _folder) = start(json!({}));
    let mut talk = Talk::begin(&tidings, access(Role::Viewer), Dialect::MULTIPLEXED);
    talk.until(is("connected")).await;
    talk.receive(json!({"type": "subscribe", "channels": ["jobs"]}));
    let Talk { session, output } = &mut talk;
    assert!(poll_fn(|cx| session.poll_answer(cx, output)).await);
    assert!(session.is_busy());
    talk.receive(json!({"type": "unsubscribe", "channels": ["jobs"]}));
    assert!(talk.session.has_held_message());
    let messages = talk.until(is("unsubscribed")).await;
    assert_eq!(field(&messages, "type")[0], "subscribed", "{messages:?}");
    assert!(!talk.session.is_busy());
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn a_credential_receives_acknowledgements_only_if_it_reaches_a_characteristic() {
    for (channel, expected) in [
        (None, true),
        (Some("schools/1"), true),
        (Some("schools/2"), false),
        (Some("characteristics"), true),
        (Some("characteristics/c"), true),
        (Some("jobs"), false),
    ] {
        let access = Access {
            channels: channel.map(|name| [kind::channel(name).unwrap()].into()),
            ..access(Role::Viewer)
        };
        let receives = |dialect: Dialect| dialect.receives_acknowledgements(&access, school(1));
        assert_eq!(receives(Dialect::MULTIPLEXED), expected, "{channel:?}");
        assert!(!receives(Dialect::EVENTS), "{channel:?}");
    }
}

#[test]
fn only_some_endpoints_conflate_ticks_by_default() {
    let settings = Settings::default();
    let tick = Duration::from_millis(settings.tick_ms.get());
    assert!(tick > Duration::ZERO);
    assert_eq!(Dialect::EVENTS.tick(&settings), tick);
    assert_eq!(Dialect::MULTIPLEXED.tick(&settings), Duration::ZERO);
}

#[tokio::test]
async fn a_close_message_waits_for_answers_but_not_forever() {
    let (tidings, _folder) = start(json!({}));
    let expired = Access {
        expires_at: Some(Utc::now()),
        ..access(Role::Worker)
    };
    let talk = Talk::begin(&tidings, expired, Dialect::MULTIPLEXED);
    let mut talk = talk.with_publishing(Unanswered);
    let Talk { session, output } = &mut talk;
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        session.poll_deliveries(&mut cx, output),
        "the close message"
    );
    let until = session.poll_timers(Instant::now(), output).unwrap();
    assert!(!session.poll_published(&mut cx, output));
    assert_eq!(session.ended(), None);
    assert!(output.messages.is_empty());
    assert_eq!(session.poll_timers(until, output), None);
    assert!(!session.poll_published(&mut cx, output));
    assert_eq!(session.ended(), Some(Close::TokenExpired));
    assert_eq!(field(&output.messages, "type"), ["closing"]);
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn a_close_message_is_sent_once_all_commands_are_answered() {
    let (tidings, _folder) = start(json!({}));
    let expired = Access {
        expires_at: Some(Utc::now()),
        ..access(Role::Worker)
    };
    let talk = Talk::begin(&tidings, expired, Dialect::MULTIPLEXED);
    let mut talk = talk.with_publishing(OneAtATime::default());
    let Talk { session, output } = &mut talk;
    let mut cx = Context::from_waker(Waker::noop());
    assert!(session.poll_deliveries(&mut cx, output));
    assert_eq!(session.ended(), None);
    assert!(session.poll_published(&mut cx, output));
    assert_eq!(session.ended(), Some(Close::TokenExpired));
    assert_eq!(field(&output.messages, "type"), ["closing"]);
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn a_close_message_invites_back_only_with_a_credential_that_is_valid_then() {
    let (tidings, _folder) = start(json!({}));
    let at = |secs| Some(Utc::now() + TimeDelta::seconds(secs));
    // The client is asked to wait for five seconds before it returns.
    let later = Close::TryAgainLater;
    for (expires_at, reconnects_until, close, invites) in [
        (None, None, later, true),
        (at(60), at(60), later, true),
        (at(2), None, later, false),
        (None, at(2), later, false),
        (at(2), at(60), later, false),
        // It returns with another one.
        (at(0), at(60), Close::TokenExpired, true),
        (at(0), at(-60), Close::TokenExpired, false),
    ] {
        let access = Access {
            expires_at,
            reconnects_until,
            ..access(Role::Viewer)
        };
        let mut talk = Talk::begin(&tidings, access, Dialect::MULTIPLEXED);
        talk.session.close(close, &mut talk.output);
        let case = format!("{expires_at:?} {reconnects_until:?} {close:?}");
        assert_eq!(talk.output.messages[0]["reconnect"], invites, "{case}");
    }
    tidings.close().await.unwrap();
}

#[tokio::test]
async fn code_of_the_application_is_held_to_the_rules_of_a_token() {
    let (tidings, _folder) = start(json!({"publishes_per_sec": 1, "batch_limit_commands": 2}));
    let publications = tidings.publications();
    let viewer = Caller::new(access(Role::Viewer), None).unwrap();
    let rejected = publications.publish(&viewer, create("a")).await;
    let is_role = |error: &Rejected| matches!(error, Rejected::Auth(AuthError::Role { .. }));
    assert!(rejected.as_ref().is_err_and(is_role), "{rejected:?}");
    let limited = Access {
        channels: Some([kind::channel("devices").unwrap()].into()),
        ..access(Role::Worker)
    };
    let limited = Caller::new(limited, None).unwrap();
    let rejected = publications.publish(&limited, create("a")).await;
    let is_channel = |error: &Rejected| matches!(error, Rejected::Auth(AuthError::Channel(_)));
    assert!(rejected.as_ref().is_err_and(is_channel), "{rejected:?}");
    let elsewhere = Caller::new(access(Role::Worker), Some(school(2)));
    assert!(matches!(elsewhere, Err(AuthError::NotFound)));

    let worker = Caller::in_process("importer", school(1));
    for id in ["a", "b"] {
        publications.publish(&worker, create(id)).await.unwrap();
    }
    let rejected = publications.publish(&worker, create("c")).await;
    let Err(Rejected::TooFast(TooFast::Commands { most: 1, wait })) = rejected else {
        panic!("{rejected:?}");
    };
    assert!(wait > Duration::ZERO);
    let other = Caller::in_process("exporter", school(1));
    publications.publish(&other, create("c")).await.unwrap();

    let scope = Scope::new(school(1), [kind::channel("jobs").unwrap()]);
    let rejected = tidings.subscriptions().allow(&limited, scope);
    assert!(matches!(rejected, Err(AuthError::Channel(_))));
    tidings.close().await.unwrap();
}
