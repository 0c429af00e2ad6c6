//! A running node: the real parts of one, over the simulated database and bus, on a runtime of its own.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tidings::config::{Bounded, Settings};
use tidings::event::Event;
use tidings::feed::{self, Feed};
use tidings::hub::Hub;
use tidings::log::decide::Rules;
use tidings::log::writer::{Handle, Pace, Writer};
use tidings::log::{CommitMetrics, Committed, Log, Store};
use tidings::notify::{Notifier, Notifiers};
use tidings::relay::Relay;
use tidings::store::shared::Backend;
use tidings::subscribe::Subscriber;
use tidings::tasks::Tasks;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use super::super::consumer::Receiver;
use super::super::{REPLAY_MAX, SEGMENT};
use super::bus::Exchange;
use super::database::{Client, NodeWriter, Shared};

const STATE_CACHE_BYTES: usize = 1_000_000;

/// A running node.
pub(super) struct Node {
    // Before the runtime, which drops the tasks.
    pub(super) subscriber: Subscriber,
    pub(super) handle: Arc<Handle<Backend<Client>>>,
    pub(super) writer: NodeWriter,
    pub(super) hub: Arc<Hub>,
    _relay: Arc<Relay>,
    _tasks: Tasks,
    pub(super) is_frozen: bool,
    /// The time that has passed while it was frozen.
    owed: Duration,
    pub(super) runtime: Runtime,
}

impl Node {
    /// Starts a node. `id` distinguishes it from those that ran before it.
    pub(super) fn start(
        rng: &mut Rng,
        shared: &Arc<Shared>,
        exchange: &Arc<Exchange>,
        receiver: &Arc<Receiver>,
        (number, id): (usize, u64),
    ) -> Node {
        let ledger = &shared.ledger;
        let settings = Settings {
            window_events: Bounded::new(rng.usize(1..=12)).unwrap(),
            mailbox_capacity: Bounded::new(rng.usize(2..=8)).unwrap(),
            replay_max_events: Bounded::of::<REPLAY_MAX>(),
            heartbeat_secs: Bounded::of::<1>(),
            ..Settings::default()
        };
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let hub = Hub::new(
            settings.window_events.get(),
            settings.mailbox_capacity.get(),
        );
        let hub = Arc::new(hub.of_shared_logs());
        let (committed, mut batches) = Committed::channel(1_024);
        let log = Arc::clone(ledger) as Arc<dyn Log>;
        let feed = Feed::with_segments(Arc::clone(&log), committed.clone(), SEGMENT);
        let feed = Arc::new(feed);
        let subscriber = Subscriber::new(Arc::clone(&feed), Arc::clone(&hub), &settings);
        let tasks = Tasks::default();
        let store = Arc::clone(ledger) as Arc<dyn Store>;
        let receiver = Arc::clone(receiver) as Arc<dyn Notifier>;
        Notifiers::new(&store, &feed, vec![receiver]).start(&tasks);
        let bus = exchange.join(number);
        let (log_of_relay, hub_of_relay) = (Arc::clone(&log), Arc::clone(&hub));
        let id = format!("{id:x}").parse().unwrap();
        let relay = Relay::new(bus, id, log_of_relay, hub_of_relay, &committed);
        relay.start(&tasks);
        let offered = Arc::clone(&hub);
        runtime.spawn(async move {
            let deliver = |events: &[Arc<Event>]| offered.offer(events).wake();
            feed::follow(&mut batches, &offered, log, deliver, pending()).await;
        });
        let client = Client {
            shared: Arc::clone(shared),
            holds_locks: false,
            stale: HashMap::new(),
        };
        let rules = Rules {
            epoch: ledger.epoch(),
            limits: settings.limits(),
            max_subjects: settings.max_subjects(),
        };
        let backend = Backend::new(client, STATE_CACHE_BYTES);
        let (writer, handle) = Writer::new(
            backend,
            rules,
            committed,
            Arc::<CommitMetrics>::default(),
            Arc::new(Pace::new(0)),
        );
        drop(_entered);
        Node {
            subscriber,
            handle: Arc::new(handle),
            writer: Arc::new(Mutex::new(writer)),
            hub,
            _relay: relay,
            _tasks: tasks,
            is_frozen: false,
            owed: Duration::ZERO,
            runtime,
        }
    }

    /// Gives the node's tasks some turns.
    pub(super) fn drive(&self, turns: usize) {
        if !self.is_frozen {
            self.runtime.block_on(async {
                for _ in 0..turns {
                    yield_now().await;
                }
            });
        }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        match self.is_frozen {
            true => self.owed += by,
            false => self.runtime.block_on(tokio::time::advance(by)),
        }
    }

    /// Lets the node go on. For it, the time jumps.
    pub(super) fn thaw(&mut self) {
        self.is_frozen = false;
        let owed = std::mem::take(&mut self.owed);
        self.runtime.block_on(tokio::time::advance(owed));
    }
}
