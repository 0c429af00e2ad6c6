//! A request that comes alone commits on its own thread, if that takes only a moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};

use diesel::connection::{Connection, SimpleConnection};
use diesel::sqlite::SqliteConnection;
use serde_json::json;
use tidings::config::{CALM_GROUPS, Settings};
use tidings::event::Event;
use tidings::log::decide::Rules;
use tidings::log::writer::{Answer, Handle, Pace, Writer};
use tidings::log::{
    Allowance, Batches, CommitMetrics, Committed, Envelope, Incoming, Receipt, StoreError,
};

use crate::support::commands::job;
use crate::support::memory::Memory;
use crate::support::store::is_a_file;
use crate::support::{server, viewer, worker};

type Thread = JoinHandle<Option<Answer<()>>>;

fn start(memory: Memory, dispatch_queue: usize) -> (Arc<Handle<Memory>>, Thread, Batches) {
    let settings = Settings::default();
    let rules = Rules {
        epoch: "00000001".parse().unwrap(),
        limits: settings.limits(),
        max_subjects: settings.max_subjects(),
    };
    let (committed, batches) = Committed::channel(dispatch_queue);
    let metrics = Arc::<CommitMetrics>::default();
    let pace = Arc::new(Pace::new(0));
    let (writer, handle) = Writer::new(memory, rules, committed, metrics, pace);
    let thread = thread::spawn(|| writer.run());
    (Arc::new(handle), thread, batches)
}

async fn append(
    handle: &Handle<Memory>,
    commands: Vec<Envelope>,
) -> Result<Vec<Arc<Event>>, StoreError> {
    let school = 1.try_into().unwrap();
    let receipts = handle
        .append(school, commands, Arc::<Allowance>::default())
        .await?;
    let event = |receipt| match receipt {
        Ok(Receipt::Committed(event)) => event,
        other => panic!("{other:?}"),
    };
    Ok(receipts.into_iter().map(event).collect())
}

/// Creates and starts a job.
async fn begin(handle: &Handle<Memory>, id: &str) {
    for (verb, body) in [
        ("create", json!({"job_type": "scan"})),
        ("start", json!({})),
    ] {
        append(handle, vec![job(id, verb, body)]).await.unwrap();
    }
}

fn tick(id: &str, number: u32) -> Envelope {
    job(id, "progress", json!({"message": number.to_string()}))
}

/// Sends ticks, one at a time, until one is committed on another thread than the writer's, which may still be busy after it
/// has answered. Returns their number.
async fn until_alone(
    handle: &Handle<Memory>,
    id: &str,
    threads: &Mutex<Vec<ThreadId>>,
    writers: ThreadId,
    mut committed: impl AsyncFnMut(),
) -> u64 {
    for number in 0..100_000 {
        append(handle, vec![tick(id, number)]).await.unwrap();
        committed().await;
        if threads.lock().unwrap().last() != Some(&writers) {
            return u64::from(number) + 1;
        }
    }
    panic!("the writer is idle in between");
}

async fn close(handle: Arc<Handle<Memory>>, thread: Thread) {
    let closing = tokio::spawn(async move { handle.close().await });
    let answer = tokio::task::spawn_blocking(|| thread.join().unwrap());
    let answer = answer.await.unwrap().expect("somebody waits");
    answer.send(Ok(())).unwrap();
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_tick_that_comes_alone_is_committed_on_its_own_thread_and_a_milestone_is_not() {
    let memory = Memory {
        is_embedded: true,
        ..Memory::default()
    };
    let threads = Arc::clone(&memory.threads);
    let (handle, thread, _batches) = start(memory, 200_000);
    begin(&handle, "a").await;
    let (own, writers) = (thread::current().id(), thread.thread().id());
    until_alone(&handle, "a", &threads, writers, async || {}).await;
    let is_own = || threads.lock().unwrap().last() == Some(&own);
    assert!(is_own());
    append(&handle, vec![job("a", "complete", json!({}))])
        .await
        .unwrap();
    assert!(!is_own());
    close(handle, thread).await;
}

#[tokio::test]
async fn a_commit_that_may_take_long_is_never_made_on_the_thread_of_the_request() {
    let memory = Memory::default();
    let threads = Arc::clone(&memory.threads);
    let (handle, thread, _batches) = start(memory, 64);
    begin(&handle, "a").await;
    append(&handle, vec![tick("a", 1)]).await.unwrap();
    let own = thread::current().id();
    assert!(threads.lock().unwrap().iter().all(|thread| *thread != own));
    close(handle, thread).await;
}

/// The thread of a request must not wait for the dispatcher, either.
#[tokio::test]
async fn a_tick_waits_for_the_dispatcher_on_the_writers_thread() {
    const ROOM: u32 = 30;
    let memory = Memory {
        is_embedded: true,
        ..Memory::default()
    };
    let threads = Arc::clone(&memory.threads);
    let (handle, thread, mut batches) = start(memory, ROOM as usize);
    begin(&handle, "a").await;
    let writers = thread.thread().id();
    for _ in 0..2 {
        batches.recv().await.unwrap();
    }
    let sent = until_alone(&handle, "a", &threads, writers, async || {
        batches.recv().await.unwrap();
    });
    let sent = usize::try_from(sent.await).unwrap();
    for number in 0..ROOM {
        append(&handle, vec![tick("a", number)]).await.unwrap();
    }
    let waits = {
        let handle = Arc::clone(&handle);
        tokio::spawn(async move { append(&handle, vec![tick("a", ROOM)]).await })
    };
    while threads.lock().unwrap().len() <= 2 + sent + ROOM as usize {
        tokio::task::yield_now().await;
    }
    assert!(!waits.is_finished(), "there is no room for its event");
    assert!(batches.recv().await.is_some());
    waits.await.unwrap().unwrap();
    assert_eq!(threads.lock().unwrap().last(), Some(&writers));
    close(handle, thread).await;
}

/// Its delivery, too, wakes no other thread, unless an earlier one is in progress.
#[tokio::test]
async fn a_tick_that_comes_alone_is_dispatched_where_it_is_committed() {
    let memory = Memory {
        is_embedded: true,
        ..Memory::default()
    };
    let threads = Arc::clone(&memory.threads);
    let (handle, thread, mut batches) = start(memory, 64);
    let expressed = Arc::new(Mutex::new(Vec::new()));
    let accepts = Arc::new(AtomicBool::new(true));
    let (kept, is_accepted) = (Arc::clone(&expressed), Arc::clone(&accepts));
    batches.express_to(Box::new(move |events| {
        let is_accepted = is_accepted.load(Ordering::Relaxed);
        if is_accepted {
            let seqs = events.iter().map(|event| event.seq);
            kept.lock()
                .unwrap()
                .extend(seqs.map(|seq| (seq, thread::current().id())));
        }
        is_accepted
    }));
    begin(&handle, "a").await;
    let (own, writers) = (thread::current().id(), thread.thread().id());
    let report = async || {
        let events = append(&handle, vec![tick("a", 0)]).await.unwrap();
        events[0].seq
    };
    // What the writer's thread commits, and what follows before that is dispatched, is sent to the dispatcher.
    let mut last = 2;
    while expressed.lock().unwrap().is_empty() {
        assert!(last < 100_000, "the writer is idle in between");
        last = report().await;
        while batches.try_recv().is_some() {}
    }
    assert_eq!(threads.lock().unwrap().last(), Some(&own));
    assert_eq!(*expressed.lock().unwrap(), [(last, own)]);

    accepts.store(false, Ordering::Relaxed);
    let mut sent = Vec::new();
    sent.push(report().await);
    accepts.store(true, Ordering::Relaxed);
    sent.push(report().await);
    assert_eq!(
        expressed.lock().unwrap().len(),
        1,
        "the one before it waits"
    );
    for seq in sent {
        let batch = batches.recv().await.unwrap();
        assert_eq!(batch[0].seq, seq);
        last = seq;
    }
    // The last one is still being dispatched.
    let next = report().await;
    assert_eq!(next, last + 1);
    assert_eq!(expressed.lock().unwrap().len(), 1);
    assert_eq!(batches.recv().await.unwrap()[0].seq, next);
    batches.done();
    while expressed.lock().unwrap().len() == 1 {
        assert!(last < 100_000, "nothing is in flight");
        last = report().await;
        while batches.try_recv().is_some() {}
    }
    assert_eq!(expressed.lock().unwrap().last(), Some(&(last, own)));
    let by_writer = expressed
        .lock()
        .unwrap()
        .iter()
        .any(|(_, on)| *on == writers);
    assert!(!by_writer);
    close(handle, thread).await;
}

/// Whichever thread commits, the events are dispatched in the order of the log, and each publisher's reports are carried out in the
/// order in which it sent them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lone_and_grouped_commits_keep_one_order() {
    const REPORTS: u32 = 200;
    let memory = Memory {
        is_embedded: true,
        ..Memory::default()
    };
    let threads = Arc::clone(&memory.threads);
    let (handle, thread, mut batches) = start(memory, 64);
    let dispatched = Arc::new(Mutex::new(Vec::new()));
    let dispatch = {
        let dispatched = Arc::clone(&dispatched);
        move |events: &[Arc<Event>]| {
            let seqs = events.iter().map(|event| event.seq);
            dispatched.lock().unwrap().extend(seqs);
        }
    };
    let at_once = dispatch.clone();
    batches.express_to(Box::new(move |events| {
        at_once(events);
        true
    }));
    let dispatching = tokio::spawn(async move {
        while let Some(Incoming::Committed(batch)) = batches.next().await {
            dispatch(&batch);
            batches.dispatched(&batch);
            batches.done();
        }
    });
    let publishers = (0..4).map(|publisher| {
        let handle = Arc::clone(&handle);
        tokio::spawn(async move {
            let id = format!("job-{publisher}");
            begin(&handle, &id).await;
            let mut last = 0;
            for number in (0..REPORTS).step_by(2) {
                // Like a connection that sends the next command before it has an answer.
                let (one, two) = tokio::join!(
                    biased;
                    append(&handle, vec![tick(&id, number)]),
                    append(&handle, vec![tick(&id, number + 1)]),
                );
                for event in [one, two].map(|events| Arc::clone(&events.unwrap()[0])) {
                    assert!(event.seq > last, "{} after {last}", event.seq);
                    last = event.seq;
                }
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    begin(&handle, "alone").await;
    let writers = thread.thread().id();
    let alone = until_alone(&handle, "alone", &threads, writers, async || {}).await;
    assert!(threads.lock().unwrap().contains(&writers));
    close(handle, thread).await;
    dispatching.await.unwrap();
    let seqs = std::mem::take(&mut *dispatched.lock().unwrap());
    let all = 4 * (2 + u64::from(REPORTS)) + 2 + alone;
    assert_eq!(seqs, (1..=all).collect::<Vec<_>>());
}

/// As if the writer's thread had panicked: nothing is committed any more, and nobody waits forever.
#[tokio::test]
async fn a_panic_of_a_lone_commit_ends_the_writer() {
    let memory = Memory {
        is_embedded: true,
        ..Memory::default()
    };
    let panics_on = Arc::clone(&memory.panics_on);
    let (handle, thread, mut batches) = start(memory, 64);
    begin(&handle, "a").await;
    *panics_on.lock().unwrap() = Some(thread::current().id());
    let mut numbers = 0..10_000;
    // The thread may still be busy after it has answered.
    let error = loop {
        let number = numbers.next().expect("the writer is idle in between");
        if let Err(error) = append(&handle, vec![tick("a", number)]).await {
            break error;
        }
        batches.recv().await.unwrap();
    };
    assert_eq!(error, StoreError::Stopped);
    let answer = append(&handle, vec![tick("a", 0)]).await;
    assert_eq!(answer.unwrap_err(), StoreError::Stopped);
    let ended = tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
    assert!(ended.is_err(), "the panic is counted where the thread ends");
}

/// A runtime with one thread does everything else meanwhile. Were it blocked, the report would be answered first, with an error.
#[tokio::test]
async fn a_report_alone_blocks_no_other_request_while_another_program_has_locked_the_database() {
    if !is_a_file("locks it") {
        return;
    }
    let server = server().await;
    server.running_job("a").await;
    let report = async |number: u32| {
        let body = json!({"message": number.to_string()});
        server.post("/api/jobs/a/progress", &worker(1), body).await
    };
    // Enough for the writer to be calm.
    for number in 0..2 * CALM_GROUPS {
        assert_eq!(report(number).await.0, 200);
    }
    let path = server.folder.path().join("tidings.db");
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let waits = report(1_000);
    tokio::pin!(waits);
    let token = viewer(1);
    for _ in 0..3 {
        let reads = server.get("/api/jobs/a", &token);
        let (status, _) = tokio::select! {
            read = reads => read,
            answer = &mut waits => panic!("{answer:?} although the database is locked"),
        };
        assert_eq!(status, 200);
    }
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(waits.await.0, 200);
}
