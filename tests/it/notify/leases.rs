//! Notifiers on several nodes: one delivers, and another takes over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tidings::config::Settings;
use tidings::event::Event;
use tidings::feed::Feed;
use tidings::id::SchoolId;
use tidings::kind::{self, job};
use tidings::lease::Terms;
use tidings::log::{Envelope, Log, Store};
use tidings::notify::notification::{DeliveryError, Notification};
use tidings::notify::{Notifier, Notifiers};
use tidings::tasks::Tasks;
use tokio::runtime::Handle;

use crate::support::nodes::SharedDatabase;
use crate::support::{PATIENCE, until};

const NODES: usize = 2;

/// Which node has delivered which subject's event.
type Heard = Arc<Mutex<Vec<(usize, String)>>>;

/// The receiver as one node sees it.
struct Recording {
    node: usize,
    heard: Heard,
    /// Whether it was started and not stopped since, as a connection to a broker is.
    is_started: AtomicBool,
    /// Whether the next attempt suspends the node before it is over.
    suspends: AtomicBool,
    resumes: Mutex<mpsc::Receiver<()>>,
}

#[async_trait]
impl Notifier for Recording {
    fn name(&self) -> &str {
        "ops"
    }

    fn medium(&self) -> &'static str {
        "test"
    }

    fn wants(&self, event: &Event) -> bool {
        !event.is_tick()
    }

    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError> {
        assert!(self.is_started.load(Ordering::SeqCst));
        let heard = (self.node, notification.subject.clone());
        self.heard.lock().unwrap().push(heard);
        if self.suspends.swap(false, Ordering::SeqCst) {
            // Blocks the only thread of the node, so that nothing of it runs.
            self.resumes.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }

    fn start(&self) {
        assert!(!self.is_started.swap(true, Ordering::SeqCst));
    }

    async fn stop(&self) {
        self.is_started.store(false, Ordering::SeqCst);
    }
}

/// A node with a thread of its own.
struct Node {
    notifier: Arc<Recording>,
    notifiers: Arc<Notifiers>,
    tasks: Tasks,
    resume: mpsc::Sender<()>,
    _ends: tokio::sync::oneshot::Sender<()>,
}

struct Cluster {
    /// The store of a node that has no notifiers.
    store: Arc<dyn Store>,
    nodes: Vec<Node>,
    heard: Heard,
    _database: SharedDatabase,
}

fn school() -> SchoolId {
    1.try_into().unwrap()
}

fn runtime() -> (Handle, tokio::sync::oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(ended));
    (handle, ends)
}

impl Cluster {
    fn start(terms: Terms) -> Cluster {
        let database = SharedDatabase::new(Settings::default(), &["ops"]);
        let heard = Heard::default();
        let node = |number| {
            let own = database.node();
            let feed = Feed::new(Arc::clone(&own.store) as Arc<dyn Log>, own.committed);
            let feed = Arc::new(feed);
            let (resume, resumes) = mpsc::channel();
            let notifier = Arc::new(Recording {
                node: number,
                heard: Arc::clone(&heard),
                is_started: AtomicBool::new(false),
                suspends: AtomicBool::new(false),
                resumes: Mutex::new(resumes),
            });
            let shared = Arc::clone(&notifier) as Arc<dyn Notifier>;
            let notifiers = Notifiers::with_terms(&own.store, &feed, vec![shared], terms);
            let (runtime, ends) = runtime();
            let tasks = Tasks::default();
            let guard = runtime.enter();
            notifiers.start(&tasks);
            drop(guard);
            Node {
                notifier,
                notifiers: Arc::new(notifiers),
                tasks,
                resume,
                _ends: ends,
            }
        };
        let nodes: Vec<Node> = (0..NODES).map(node).collect();
        for node in &nodes {
            let notifiers = Arc::clone(&node.notifiers);
            database.observe(move |events| notifiers.observe(events));
        }
        Cluster {
            store: database.node().store,
            nodes,
            heard,
            _database: database,
        }
    }

    async fn publish(&self, id: &str) {
        let body = json!({"job_type": "t", "status": "in_progress"});
        let create = job::Command::Create(serde_json::from_value(body).unwrap());
        let envelope = Envelope::new(id.parse().unwrap(), kind::Command::Job(create));
        let answers = self.store.append(school(), vec![envelope]).await.unwrap();
        answers.into_iter().for_each(|answer| {
            answer.unwrap();
        });
    }

    /// Waits until this is delivered. Returns by which node it was delivered last.
    async fn delivered(&self, id: &str) -> usize {
        let by = || {
            let heard = self.heard.lock().unwrap();
            let last = heard.iter().rev().find(|(_, subject)| subject == id);
            last.map(|(node, _)| *node)
        };
        until(id, async || by().is_some()).await;
        by().unwrap()
    }

    /// Waits until the cursor is at this place.
    async fn is_at(&self, seq: u64) {
        until("the cursor moves", async || {
            let offset = self.store.notifier_offset("ops", school()).await;
            offset.unwrap().seq == seq
        })
        .await;
    }

    fn heard_by(&self, node: usize) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let of_node = heard.iter().filter(|(by, _)| *by == node);
        of_node.map(|(_, subject)| subject.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: real seconds pass"]
async fn one_node_delivers_and_another_takes_over_from_one_that_is_suspended() {
    let cluster = Cluster::start(Terms {
        term: Duration::from_millis(1_500),
        renewal: Duration::from_millis(300),
        retry: Duration::from_millis(100),
    });
    cluster.publish("a").await;
    let first = cluster.delivered("a").await;
    let other = 1 - first;
    cluster.publish("b").await;
    cluster.is_at(2).await;
    assert_eq!(cluster.heard_by(other), Vec::<String>::new(), "one of them");
    let node = &cluster.nodes[first];
    node.notifier.suspends.store(true, Ordering::SeqCst);
    for id in ["c", "d", "e"] {
        cluster.publish(id).await;
    }
    assert_eq!(cluster.delivered("e").await, other, "after the term");
    cluster.is_at(5).await;
    // It returns in the middle of its attempt, and does not know that time has passed.
    node.resume.send(()).unwrap();
    cluster.publish("f").await;
    assert_eq!(cluster.delivered("f").await, other);
    cluster.is_at(6).await;
    // It has noticed, and is connected no longer.
    let is_started = || node.notifier.is_started.load(Ordering::SeqCst);
    until("it stops", async || !is_started()).await;
    assert_eq!(cluster.heard_by(first), ["a", "b", "c"]);
    assert_eq!(
        cluster.heard_by(other),
        ["c", "d", "e", "f"],
        "none is lost"
    );
    let (standings, _) = cluster.store.notifiers(school()).await.unwrap();
    assert_eq!(
        standings[0].delivered, 6,
        "its own write counts for nothing"
    );
    assert_eq!(standings[0].seq, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_in_order_hands_its_notifiers_over_at_once() {
    let cluster = Cluster::start(Terms {
        term: 4 * PATIENCE,
        renewal: PATIENCE,
        retry: Duration::from_millis(50),
    });
    cluster.publish("a").await;
    let first = cluster.delivered("a").await;
    cluster.is_at(1).await;
    assert!(cluster.nodes[first].tasks.end(PATIENCE).await);
    cluster.publish("b").await;
    assert_eq!(cluster.delivered("b").await, 1 - first);
    cluster.is_at(2).await;
    assert_eq!(cluster.heard_by(first), ["a"]);
}
