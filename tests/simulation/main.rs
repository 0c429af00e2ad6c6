//! A deterministic simulation of writer, decisions, log, feed, hub, mailbox, subscription, session and notifier. One thing
//! happens at a time, and a seed determines time and randomness. A simple model checks what each client must receive.
//!
//! Two schools have publishers that repeat requests, commits that fail, and readers that attach, stall, vanish, resume
//! from any cursor that they were sent, change their channels, and have tokens that expire or are renewed. Some readers
//! have a filter.
//! The process crashes between any two steps, the power fails, and retention deletes events meanwhile.
//!
//! The message of a failure contains the seed; `TIDINGS_SEED=<seed> cargo test --test simulation whatever` runs it
//! alone, and `TIDINGS_SEED=<first>..<end>` runs any number of seeds. To verify the model itself, faults are injected at the boundaries of what is simulated, and each must be
//! detected.
//!
//! This is a separate test binary, so that `.ci/mutants` builds it quickly.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected should say so and end"
)]

mod cluster;
mod consumer;
mod cursors;
mod ledger;
mod line;
mod publisher;
mod reader;
mod shadow;
mod trace;
#[path = "../it/support"]
#[allow(dead_code, reason = "the integration tests use more of it")]
mod support {
    pub(crate) mod commands;
    pub(crate) mod memory;
}

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use serde_json::json;
use tidings::config::{Bounded, Settings};
use tidings::event::{Class, Event};
use tidings::feed::{self, Feed};
use tidings::hub::Hub;
use tidings::id::{Channel, Place, SchoolId};
use tidings::kind;
use tidings::log::{
    CommandError, Committed, Envelope, Idempotency, Log, Receipt, Store, StoreError,
};
use tidings::notify::{Notifier, Notifiers};
use tidings::scope::Filter;
use tidings::subscribe::Subscriber;
use tidings::tasks::Tasks;

use self::consumer::Receiver;
use self::ledger::{Ledger, schools};
use self::line::Sessions;
use self::publisher::Publisher;
use self::reader::Reader;
use crate::support::commands::job;

/// What is reported of a run in which something panicked.
const PANICKED: &str = "something panicked";
/// Number of seeds in a quick run.
const SEEDS_QUICK: u64 = 100;
/// Number of seeds in a full run.
const SEEDS: u64 = 1_500;
/// Number of seeds within which an injected fault must be detected.
const SEEDS_FOR_A_FAULT: u64 = 500;
const STEPS: usize = 300;
/// Number of events in a segment: more than in a page.
const SEGMENT: u64 = 8;
const READERS: usize = 5;
/// Maximum number of events in a replay. If there are more, the client gets a `reset`.
const REPLAY_MAX: u64 = 60;
const SUBJECTS: [&str; 4] = ["a", "b", "c", "d"];
/// Number of rounds after which nothing can be pending any more.
const ROUNDS_TO_SETTLE: usize = 400;
/// Maximum number of changes that a multiplexed reader makes to its channels in one step.
const MOST_CHANGES: u8 = 6;
/// How often the server's tasks get a turn in each of these rounds.
const YIELDS: usize = 8;
/// Maximum number of commands with an idempotency key that are kept, to be repeated.
const REPEATABLE: usize = 8;

/// An injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A subscriber reads the log before it listens.
    ReadBeforeListening,
    /// Some wake-ups get lost.
    LostWakeUp,
    /// A milestone is treated as a tick, and conflated.
    FoldedMilestone,
    /// A replay begins one event too late.
    OffByOne,
    /// Only the number of a cursor is used, whichever event the cursor names.
    NumbersAlone,
    /// A client's cursor does not say what it awaits.
    NothingAwaited,
    /// The log reports outdated bounds.
    StaleBounds,
    /// A heartbeat carries the head of the log although the client listens to no channel.
    CursorOfNothing,
    /// An added channel begins after the cursor that was sent with the request.
    LateAddition,
    /// The log of another school is read.
    OtherSchool,
    /// A token never expires.
    EndlessToken,
    /// A commit is acknowledged but not made.
    LostCommit,
    /// A failed commit has an effect.
    HalfCommit,
    /// An idempotency key is not recognised.
    ForgottenKey,
    /// A milestone is acknowledged before it is on the disk.
    UnsyncedMilestone,
    /// A notifier's place moves beyond the events that were delivered.
    PlaceTooFar,
    /// Of several nodes: the heads of the logs are not compared.
    UncomparedHeads,
    /// The end of a log is read where a hole begins.
    HoleIsEnd,
    /// A node keeps states that another node has changed.
    StaleCache,
    /// A commit does not compare stamps.
    UncomparedStamps,
    /// A commit of unknown outcome is taken for one that failed.
    UnknownIsFailed,
    /// A write of unknown outcome that is settled as not carried out can still be carried out.
    UnsettledWrite,
    /// The fence of a notifier's write is not checked.
    UncheckedFence,
    /// A step of a notifier moves its place although a failover has replaced the event that the step was about.
    LostStep,
    /// Events are announced on the bus that are not committed.
    EarlyAnnouncement,
    /// A node does not recognise its own messages on the bus. This must be harmless.
    OwnHints,
}

/// The server between two crashes.
struct Server {
    hub: Arc<Hub>,
    committed: Committed,
    /// Passes committed events to the hub.
    following: Pin<Box<dyn Future<Output = ()>>>,
    subscriber: Subscriber,
    sessions: Sessions,
    publisher: Publisher,
    tasks: Tasks,
}

/// A command with an idempotency key that was carried out.
struct Used {
    school: SchoolId,
    envelope: Envelope,
    place: Place,
}

struct World {
    rng: Rng,
    fault: Option<Fault>,
    ledger: Arc<Ledger>,
    receiver: Arc<Receiver>,
    server: Server,
    used: Vec<Used>,
    commands: u64,
    /// Batches that other nodes have committed, and of which the server has not received the hints yet.
    hints: Vec<Vec<Arc<Event>>>,
    /// Whether there are other nodes.
    is_one_of_several: bool,
    readers: Vec<Reader>,
}

fn start(rng: &mut Rng, ledger: &Arc<Ledger>, receiver: &Arc<Receiver>) -> Server {
    let fault = ledger.fault;
    let settings = Settings {
        window_events: Bounded::new(rng.usize(1..=12)).unwrap(),
        mailbox_capacity: Bounded::new(rng.usize(2..=8)).unwrap(),
        replay_max_events: Bounded::of::<REPLAY_MAX>(),
        heartbeat_secs: Bounded::of::<1>(),
        ..Settings::default()
    };
    let hub = Arc::new(Hub::new(
        settings.window_events.get(),
        settings.mailbox_capacity.get(),
    ));
    let (committed, mut batches) = Committed::channel(1_024);
    let log = Arc::clone(ledger) as Arc<dyn Log>;
    let feed = Feed::with_segments(Arc::clone(&log), committed.clone(), SEGMENT);
    let feed = Arc::new(feed);
    let subscriber = Subscriber::new(Arc::clone(&feed), Arc::clone(&hub), &settings);
    let store = Arc::clone(ledger) as Arc<dyn Store>;
    let receiver = Arc::clone(receiver) as Arc<dyn Notifier>;
    let tasks = Tasks::default();
    let notifiers = Arc::new(Notifiers::new(&store, &feed, vec![receiver]));
    notifiers.start(&tasks);
    let offered = Arc::clone(&hub);
    if !matches!(fault, Some(Fault::FoldedMilestone)) {
        let most = rng.usize(0..=4);
        let offered = Arc::clone(&hub);
        let notifiers = Arc::downgrade(&notifiers);
        batches.express_to(Box::new(move |events| {
            let Some(wake_list) = offered.offer_to_few(events, most) else {
                return false;
            };
            wake_list.wake();
            if let Some(notifiers) = notifiers.upgrade() {
                notifiers.observe(events);
            }
            EXPRESSED.fetch_add(1, Ordering::Relaxed);
            true
        }));
    }
    let following = Box::pin(async move {
        let is_shared = log.is_shared();
        let deliver = |events: &[Arc<Event>]| {
            // Of several nodes, the one that delivers may receive no hints of the school at all.
            if !is_shared {
                notifiers.observe(events);
            }
            match fault {
                Some(Fault::FoldedMilestone) => {
                    let ticks: Vec<Arc<Event>> = events.iter().map(as_tick).collect();
                    offered.offer(&ticks).wake();
                }
                _ => offered.offer(events).wake(),
            }
        };
        feed::follow(&mut batches, &offered, log, deliver, std::future::pending()).await;
    });
    Server {
        publisher: Publisher::start(ledger, &committed),
        hub,
        committed,
        following,
        sessions: Sessions::new(store, subscriber.clone(), &settings),
        subscriber,
        tasks,
    }
}

impl World {
    fn new(seed: u64, fault: Option<Fault>) -> World {
        let mut rng = Rng::with_seed(seed);
        let is_one_of_several = rng.bool();
        let ledger = Arc::new(match rng.bool() && !is_one_of_several {
            true => Ledger::embedded(fault),
            false => Ledger::new(fault, is_one_of_several),
        });
        let receiver = Arc::new(Receiver::new(Arc::clone(&ledger), seed));
        let server = start(&mut rng, &ledger, &receiver);
        let mut world = World {
            rng,
            fault,
            ledger,
            receiver,
            server,
            used: Vec::new(),
            commands: 0,
            hints: Vec::new(),
            is_one_of_several,
            readers: Vec::new(),
        };
        for _ in 0..READERS {
            let reader = world.some_reader();
            world.readers.push(reader);
        }
        world
    }

    fn some_reader(&mut self) -> Reader {
        let is_multiplexed = self.rng.u8(0..4) == 0;
        some_reader(&mut self.rng, is_multiplexed, self.fault)
    }

    fn command(&mut self, school: SchoolId) -> Envelope {
        self.commands += 1;
        command(&mut self.rng, &self.ledger, school, self.commands)
    }

    /// Publishes a request of one school, or one of each at the same time; only single commands if these commit by
    /// themselves. Sometimes it repeats an earlier request or its commit fails.
    fn publish(&mut self) -> Result<(), String> {
        let is_alone = self.ledger.is_embedded;
        let asked = match self.rng.u8(0..6) {
            0 if !is_alone => schools().to_vec(),
            _ => vec![self.rng.choice(schools()).unwrap()],
        };
        let mut submissions = Vec::new();
        for school in asked {
            let count = if is_alone { 1 } else { self.rng.usize(1..=4) };
            let commands = (0..count).map(|_| self.command(school)).collect();
            submissions.push((school, commands));
        }
        match self.rng.u8(0..20) {
            0 => self.fails_to_publish(submissions),
            1 => self.repeat(),
            _ => self.submit(submissions),
        }
    }

    fn submit(&mut self, submissions: Vec<(SchoolId, Vec<Envelope>)>) -> Result<(), String> {
        let answers = self.server.publisher.append(submissions.clone());
        for ((school, commands), answer) in submissions.into_iter().zip(answers) {
            let receipts = answer.map_err(|error| format!("a request failed: {error}"))?;
            for (envelope, receipt) in commands.into_iter().zip(receipts) {
                self.is_answered(school, envelope, receipt)?;
            }
        }
        for batch in self.server.publisher.committed() {
            self.pass_on(batch);
        }
        Ok(())
    }

    /// Checks that an acknowledged event is in the log.
    fn is_answered(
        &mut self,
        school: SchoolId,
        envelope: Envelope,
        receipt: Result<Receipt, CommandError>,
    ) -> Result<(), String> {
        let event = match receipt {
            // An earlier command of the request has changed the state.
            Err(CommandError::Rule(_)) | Ok(Receipt::Unchanged(_)) => return Ok(()),
            Ok(Receipt::Committed(event)) => event,
            other => return Err(format!("a new command is answered with {other:?}")),
        };
        let there = self.ledger.event(school, event.seq);
        if there.is_none_or(|there| there.place() != event.place()) {
            let seq = event.seq;
            return Err(format!(
                "{seq} is the answer to a command and not in the log"
            ));
        }
        if envelope.idempotency.is_some() {
            self.used.truncate(REPEATABLE - 1);
            let place = event.place();
            self.used.insert(
                0,
                Used {
                    school,
                    envelope,
                    place,
                },
            );
        }
        Ok(())
    }

    /// Checks that a failed commit has no effect.
    fn fails_to_publish(
        &mut self,
        submissions: Vec<(SchoolId, Vec<Envelope>)>,
    ) -> Result<(), String> {
        let heads = self.ledger.heads();
        self.ledger.disk.fails_next(true);
        let answers = self.server.publisher.append(submissions);
        self.ledger.disk.fails_next(false);
        let is_correct = |answer: &Result<Vec<_>, StoreError>| match answer {
            Err(error) => *error == StoreError::NotCommitted,
            // There was nothing to write.
            Ok(receipts) => !receipts
                .iter()
                .any(|receipt| matches!(receipt, Ok(Receipt::Committed(_)))),
        };
        if !answers.iter().all(is_correct) || self.ledger.heads() != heads {
            return Err("a commit that failed has had an effect".into());
        }
        Ok(())
    }

    /// Checks that a command that was carried out is not carried out again.
    fn repeat(&mut self) -> Result<(), String> {
        let Some(used) = self.rng.choice(&self.used) else {
            return Ok(());
        };
        let again = vec![(used.school, vec![used.envelope.clone()])];
        let answers = self.server.publisher.append(again);
        match &answers[..] {
            [Ok(receipts)] => match &receipts[..] {
                [Ok(Receipt::Repeated(event))] if event.place() == used.place => Ok(()),
                other => Err(format!("a repetition is answered with {other:?}")),
            },
            other => Err(format!("a repetition is answered with {other:?}")),
        }
    }

    fn pass_on(&mut self, batch: Vec<Arc<Event>>) {
        match self.rng.u8(0..10) {
            _ if !self.is_one_of_several => self.hint(batch),
            // Committed by another node: its hint never arrives, or arrives late.
            0 => {}
            1..=2 => self.hints.push(batch),
            _ => self.hint(batch),
        }
    }

    /// Publishes a milestone in each school, and passes on its hint.
    fn publish_the_last(&mut self) -> Result<(), String> {
        self.hints.clear();
        for school in schools() {
            let subject = SUBJECTS[0];
            let (verb, body) = match self.ledger.status(school, subject) {
                None => ("create", json!({"job_type": ledger::category(subject)})),
                Some("in_progress") => {
                    let error = json!({"error": {"code": "jam", "message": "paper"}});
                    ("fail", error)
                }
                Some("failed" | "cancelled") => ("retry", json!({})),
                Some(_) => ("start", json!({})),
            };
            let answers = self
                .server
                .publisher
                .append(vec![(school, vec![job(subject, verb, body)])]);
            if !matches!(&answers[0], Ok(receipts) if receipts[0].is_ok()) {
                return Err(format!("the last command is answered with {answers:?}"));
            }
            for batch in self.server.publisher.committed() {
                self.hint(batch);
            }
        }
        Ok(())
    }

    fn hint(&mut self, batch: Vec<Arc<Event>>) {
        // The queue has room for everything that can be pending here.
        let sent = self.server.committed.send(batch).now_or_never();
        sent.expect("there is room").unwrap();
    }

    /// Continues to pass committed events to the hub. Returns whether there were any.
    fn dispatch(&mut self) -> bool {
        if !self.hints.is_empty() && self.rng.u8(0..3) == 0 {
            let late = self.rng.usize(0..self.hints.len());
            let late = self.hints.swap_remove(late);
            self.hint(late);
        }
        let waits = self.server.committed.waiting() > 0;
        let following = self.server.following.as_mut();
        let polled = following.poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "somebody may still commit");
        waits
    }

    fn disk(&mut self) -> bool {
        let waiting = self.ledger.waiting();
        if waiting > 0 {
            self.ledger.turn(self.rng.usize(0..waiting));
        }
        waiting > 0
    }

    /// Ends the process between two steps and starts another one. Committed events survive, except for ticks if the
    /// power is lost.
    async fn crash(&mut self, with_power: bool) -> Result<(), String> {
        for reader in &mut self.readers {
            reader.leave();
        }
        self.server.tasks.cancel();
        self.ledger.forget_readers();
        self.hints.clear();
        self.used.retain(|_| with_power);
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
        self.receiver.note_new_process();
        self.ledger.disk.end_lease();
        if !with_power {
            self.lose_power()?;
        }
        self.server = start(&mut self.rng, &self.ledger, &self.receiver);
        Ok(())
    }

    fn lose_power(&mut self) -> Result<(), String> {
        let left = self.ledger.disk.left();
        if left == 0 {
            return Ok(());
        }
        let heads = self.ledger.disk.lose(self.rng.usize(0..left));
        let lost = self.ledger.cut(&heads);
        if let Some(event) = lost.iter().find(|event| !event.is_tick()) {
            return Err(format!("{} was acknowledged and is lost", event.seq));
        }
        for reader in &mut self.readers {
            reader.note_loss(&lost, &self.ledger);
        }
        Ok(())
    }

    /// Lets a reader receive everything that is pending. A task that a round has woken acts in the next one.
    async fn bring_up_to_date(&mut self, index: usize) -> Result<(), String> {
        let mut quiet = 0;
        while quiet < 2 {
            let mut busy = self.dispatch() | self.disk();
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
            busy |= self.readers[index].take(usize::MAX, &self.ledger)?;
            quiet = if busy { 0 } else { quiet + 1 };
        }
        Ok(())
    }

    /// Lets a multiplexed reader renew its token, and add or remove a channel.
    async fn change_channels(&mut self, index: usize) -> Result<(), String> {
        // Otherwise the reader may still wait for an earlier channel, and changes nothing.
        if self.rng.u8(0..4) > 0 {
            self.bring_up_to_date(index).await?;
        }
        if self.rng.u8(0..4) == 0 {
            self.readers[index].renew();
        }
        let channel = some_channel(&mut self.rng);
        self.readers[index].change(channel, &mut self.rng);
        // The channel may be added while events of the existing channels are pending: the reader has received one of
        // them, and others come before the channel is added.
        for _ in 0..self.rng.u8(0..=2) {
            self.publish()?;
            while self.dispatch() {}
            self.readers[index].take(1, &self.ledger)?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), String> {
        let index = self.rng.usize(0..self.readers.len());
        match self.rng.u8(0..100) {
            0..=19 => self.publish()?,
            20..=44 => {
                self.dispatch();
            }
            45..=59 => {
                self.disk();
            }
            60..=79 => {
                let limit = self.rng.usize(1..=4);
                for reader in &mut self.readers {
                    if !reader.is_stalled && reader.rings() {
                        reader.take(limit, &self.ledger)?;
                    }
                }
            }
            80..=88 if !self.readers[index].is_connected() => {
                self.ledger.note_stale_head(self.readers[index].school());
                // Something may be committed before the reader connects.
                if self.rng.bool() {
                    self.publish()?;
                    self.dispatch();
                }
                self.readers[index].connect(
                    &self.server.subscriber,
                    Some(&self.server.sessions),
                    &self.ledger,
                    &mut self.rng,
                );
            }
            82..=84 => self.readers[index].leave(),
            85 => {
                self.readers[index] = self.some_reader();
            }
            86..=88 => {
                let can_change = |index: &usize| {
                    self.readers[*index].is_multiplexed() && self.readers[*index].is_connected()
                };
                let multiplexed: Vec<usize> = (0..self.readers.len()).filter(can_change).collect();
                let Some(index) = self.rng.choice(multiplexed) else {
                    return Ok(());
                };
                for _ in 0..self.rng.u8(1..=MOST_CHANGES) {
                    self.change_channels(index).await?;
                }
            }
            89..=91 => {
                let reader = &mut self.readers[index];
                reader.is_stalled = !reader.is_stalled;
            }
            92..=96 => tokio::time::advance(Duration::from_millis(self.rng.u64(1..400))).await,
            97 => {
                let school = self.rng.choice(schools()).unwrap();
                let (floor, head) = (self.ledger.floor(school), self.ledger.head(school));
                self.ledger.sweep(school, self.rng.u64(floor..=head));
            }
            98 => self.crash(true).await?,
            99 if self.rng.bool() => self.crash(false).await?,
            _ => {}
        }
        self.receiver.check()
    }

    /// Completes everything that is pending, and checks that every reader and the notifier's receiver have everything.
    async fn settle(&mut self) -> Result<(), String> {
        for reader in &mut self.readers {
            reader.is_stalled = false;
        }
        let mut quiet = 0;
        // The last hint reveals any events that are missing before it.
        self.publish_the_last()?;
        for _ in 0..ROUNDS_TO_SETTLE {
            let mut busy = self.receiver.lacks().is_some();
            for reader in &mut self.readers {
                if !reader.is_connected() {
                    // A reader reconnects whenever its token has expired.
                    busy = true;
                    reader.connect(
                        &self.server.subscriber,
                        Some(&self.server.sessions),
                        &self.ledger,
                        &mut self.rng,
                    );
                }
            }
            while self.dispatch() {
                busy = true;
            }
            while self.disk() {
                busy = true;
                tokio::task::yield_now().await;
            }
            for reader in &mut self.readers {
                if reader.rings() {
                    busy |= reader.take(usize::MAX, &self.ledger)?;
                }
            }
            // Long enough for held ticks, but too short for a heartbeat in each round.
            tokio::time::advance(Duration::from_millis(120)).await;
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet == 4 {
                break;
            }
        }
        for reader in &self.readers {
            reader.must_be_up_to_date(&self.ledger)?;
        }
        self.receiver.check()?;
        self.receiver.lacks().map_or(Ok(()), Err)
    }

    async fn run(mut self) -> Result<usize, String> {
        for _ in 0..STEPS {
            self.step().await?;
            // Yield before Tokio's cooperative budget for the task is exhausted.
            tokio::task::yield_now().await;
        }
        self.settle().await?;
        if self.ledger.is_embedded && self.ledger.disk.alone() == 0 {
            return Err("no request has committed by itself".into());
        }
        let deliveries = self.readers.iter().map(|reader| reader.deliveries).sum();
        for reader in &mut self.readers {
            reader.leave();
        }
        self.server.tasks.cancel();
        self.server.hub.forget_idle(Duration::ZERO);
        match (self.server.hub.attached(), self.server.hub.schools()) {
            (0, 0) => Ok(deliveries),
            left => Err(format!("connections and schools are left: {left:?}")),
        }
    }
}

fn some_reader(rng: &mut Rng, is_multiplexed: bool, fault: Option<Fault>) -> Reader {
    let school = rng.choice(schools()).unwrap();
    let channels = match rng.u8(0..4) {
        0 => vec![some_channel(rng)],
        1 => vec![some_channel(rng), some_channel(rng)],
        2 => vec![Channel::School(school)],
        _ => vec![kind::channel("jobs").unwrap()],
    };
    let mut filter = Filter::default();
    if rng.u8(0..4) == 0 {
        let subject = rng.choice(SUBJECTS).unwrap();
        filter
            .categories
            .insert(ledger::category(subject).to_owned());
    }
    let tick = Duration::from_millis(rng.choice([0, 100]).unwrap());
    Reader::new(school, channels, filter, tick, is_multiplexed, fault)
}

fn some_channel(rng: &mut Rng) -> Channel {
    let subject = rng.choice(SUBJECTS).unwrap();
    kind::channel(&format!("jobs/{subject}")).unwrap()
}

/// Returns the next command for one of a school's jobs: mostly a tick, if the job's state allows one. Its event contains
/// the number if it is a tick.
fn command(rng: &mut Rng, ledger: &Ledger, school: SchoolId, number: u64) -> Envelope {
    let subject = rng.choice(SUBJECTS).unwrap();
    let (verb, body) = match ledger.status(school, subject) {
        None => {
            let job_type = ledger::category(subject);
            let body = json!({"job_type": job_type, "status": "in_progress"});
            ("create", body)
        }
        Some("in_progress") => match rng.u8(0..8) {
            0 => (
                "fail",
                json!({"error": {"code": "jam", "message": "paper"}}),
            ),
            1 => ("cancel", json!({})),
            _ => ("progress", json!({"message": number.to_string()})),
        },
        Some("failed" | "cancelled") => ("retry", json!({})),
        Some(_) => ("start", json!({})),
    };
    let mut envelope = job(subject, verb, body);
    if rng.u8(0..8) == 0 {
        envelope.idempotency = Some(Idempotency {
            key: number.to_string(),
            fingerprint: "f".into(),
        });
    }
    envelope
}

fn as_tick(event: &Arc<Event>) -> Arc<Event> {
    let mut draft = event.draft.clone();
    draft.class = Class::Tick;
    let (place, subject) = ((event.epoch, event.seq), event.subject.clone());
    Arc::new(Event::new(
        place,
        event.school,
        event.kind,
        subject,
        event.at,
        draft,
    ))
}

/// Runs a seed. Returns the number of deliveries, or what went wrong.
fn run(seed: u64, fault: Option<Fault>) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let run = || runtime.block_on(async { World::new(seed, fault).run().await });
    let outcome = catch_unwind(AssertUnwindSafe(run));
    outcome.unwrap_or_else(|_| Err(PANICKED.into()))
}

/// How many batches were dispatched where they were committed, in all runs.
static EXPRESSED: AtomicU64 = AtomicU64::new(0);

/// Runs these seeds, each of which must succeed.
fn run_all(seeds: Range<u64>) {
    let count = usize::try_from(seeds.end - seeds.start).unwrap();
    let deliveries = all_succeed(seeds, |seed| run(seed, None));
    assert!(deliveries > count * 25, "much was delivered: {deliveries}");
    let expressed = EXPRESSED.load(Ordering::Relaxed);
    assert!(expressed > 0 || count < 100, "some were dispatched at once");
}

/// Runs these seeds, and returns the sum of their results. Stops at the first that fails, unless the seeds were chosen.
fn all_succeed(seeds: Range<u64>, run: impl Fn(u64) -> Result<usize, String>) -> usize {
    let (mut sum, mut failures) = (0, Vec::new());
    for seed in seeds {
        match run(seed) {
            Ok(deliveries) => sum += deliveries,
            Err(fault) => failures.push(format!("TIDINGS_SEED={seed}: {fault}")),
        }
        if !failures.is_empty() && chosen_seeds().is_none() {
            break;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    sum
}

/// Returns the seeds that are to be run: `TIDINGS_SEED=7` or `TIDINGS_SEED=0..2000`.
fn chosen_seeds() -> Option<Range<u64>> {
    let chosen = std::env::var("TIDINGS_SEED").ok()?;
    let (first, end) = match chosen.split_once("..") {
        Some((first, end)) => (first.parse().unwrap(), end.parse().unwrap()),
        None => {
            let seed: u64 = chosen.parse().unwrap();
            (seed, seed + 1)
        }
    };
    Some(first..end)
}

#[test]
fn whatever_happens_every_reader_receives_events_in_order_once_and_without_a_gap() {
    run_all(chosen_seeds().unwrap_or(0..SEEDS_QUICK));
}

#[test]
#[ignore = "slow: thousands of histories"]
fn whatever_happens_in_thousands_of_histories_every_promise_is_kept() {
    if chosen_seeds().is_none() {
        run_all(SEEDS_QUICK..SEEDS);
    }
}

#[test]
#[ignore = "slow: searches many histories for each fault"]
fn the_simulation_sees_planted_faults() {
    for fault in [
        Fault::ReadBeforeListening,
        Fault::LostWakeUp,
        Fault::FoldedMilestone,
        Fault::OffByOne,
        Fault::StaleBounds,
        Fault::NumbersAlone,
        Fault::CursorOfNothing,
        Fault::LateAddition,
        Fault::OtherSchool,
        Fault::EndlessToken,
        Fault::LostCommit,
        Fault::HalfCommit,
        Fault::ForgottenKey,
        Fault::UnsyncedMilestone,
        Fault::PlaceTooFar,
    ] {
        // The model must see it: an assertion of the server's own is no proof of that.
        let seen = |seed: &u64| run(*seed, Some(fault)).is_err_and(|error| error != PANICKED);
        let found = (0..SEEDS_FOR_A_FAULT).find(seen);
        println!("{fault:?}: seed {found:?}");
        assert!(found.is_some(), "{fault:?} goes unseen");
    }
}
