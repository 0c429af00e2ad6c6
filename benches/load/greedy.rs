//! What greedy publishers cost others: eight clients, of one school or of eight schools, repeatedly send a batch that
//! produces two hundred megabytes, while another school reports.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;

use crate::pressure::compare;
use crate::server::{Connection, Server};
use crate::{histogram, mebibytes};

/// The argument that makes the program run as the greedy clients.
pub(crate) const GREEDY: &str = "be-greedy";
/// Number of greedy clients.
const CLIENTS: u32 = 8;
/// The id of the other school. The greedy clients use the schools from 1 on.
const OTHER: u32 = 99;
/// Duration of each measurement of the other school's reports.
const MEASURE_FOR: Duration = Duration::from_secs(15);
/// Number of workers of the other school.
const WORKERS: usize = 8;
/// Interval between two reports of a worker.
const REPORT_EACH: Duration = Duration::from_millis(100);
/// Lines of a batch, about 380 KB.
const LINES: usize = 6_300;
/// Size of the metadata of the job that they report on, in bytes.
const METADATA: usize = 16_000;
/// Pause of a client whose request was rejected without `Retry-After`.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the server has to release memory.
const CALM_AFTER: Duration = Duration::from_secs(10);

pub(crate) async fn greedy(schools: u32) {
    let server = Server::start_as_it_is().await;
    let tokens: Vec<String> = (0..CLIENTS)
        .map(|client| server.token(client % schools + 1))
        .collect();
    let text = "x".repeat(METADATA);
    for token in tokens.iter().take(schools as usize) {
        let job = json!({"job_id": "j", "job_type": "load", "status": "in_progress", "metadata": {"text": text}});
        let created = server.client(token).post("/api/jobs", &job).await;
        created.expect("a job");
    }
    let other_token = server.token(OTHER);
    let job = json!({"job_id": "j", "job_type": "load", "status": "in_progress"});
    let created = server.client(&other_token).post("/api/jobs", &job).await;
    created.expect("a job");
    let before = server.memory();
    let calm = report(&server, &other_token).await;
    let clients = Clients::start(&server, &tokens);
    let busy = report(&server, &other_token).await;
    drop(clients);
    let (peak, now) = (server.peak_memory(), server.memory());
    tokio::time::sleep(CALM_AFTER).await;
    println!(
        "greedy    {CLIENTS} clients of {schools} school(s), another's reports: {}; memory {} before, {} at most, {} at the end, {} after {CALM_AFTER:?}; database {}",
        compare(&calm, &busy),
        mebibytes(before),
        mebibytes(peak),
        mebibytes(now),
        mebibytes(server.memory()),
        mebibytes(server.database_bytes()),
    );
}

/// Measures the reports of several workers at a constant rate. The time of a late report counts from when it was due.
async fn report(server: &Server, token: &str) -> Histogram<u64> {
    let end = Instant::now() + MEASURE_FOR;
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let mut connection = Connection::open(&server.address, token).await;
        workers.spawn(async move {
            let mut times = histogram();
            let mut due = Instant::now();
            while due < end && Instant::now() < end {
                tokio::time::sleep_until(due.into()).await;
                let body = format!(r#"{{"message":"part {}"}}"#, times.len());
                connection.post("/api/jobs/j/progress", &body).await;
                times.saturating_record(due.elapsed().as_nanos() as u64);
                due += REPORT_EACH;
            }
            times
        });
    }
    let mut all = histogram();
    while let Some(times) = workers.join_next().await {
        all.add(times.expect("a worker ends well"))
            .expect("same digits");
    }
    all
}

/// The greedy clients, in a separate process with low priority.
struct Clients(Child);

impl Clients {
    fn start(server: &Server, tokens: &[String]) -> Clients {
        let this = std::env::current_exe().expect("a file");
        let process = Command::new("nice")
            .args(["-n", "19"])
            .arg(this)
            .args([GREEDY, &server.address])
            .args(tokens)
            .stdout(Stdio::null())
            .spawn();
        Clients(process.expect("`nice` is installed"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

/// Runs as the greedy clients.
pub(crate) async fn be_greedy(arguments: &[String]) {
    let [_, address, tokens @ ..] = arguments else {
        panic!("an address and tokens");
    };
    let line = |n| format!("{{\"op\":\"jobs.progress\",\"job_id\":\"j\",\"message\":\"{n}\"}}\n");
    let body: String = (0..LINES).map(line).collect();
    let mut clients = JoinSet::new();
    for token in tokens {
        clients.spawn(ask_on(address.clone(), token.clone(), body.clone()));
    }
    // They continue until they are killed.
    clients.join_next().await;
}

async fn ask_on(address: String, token: String, body: String) {
    let mut connection = Connection::open(&address, &token).await;
    loop {
        let wait = match connection.request("/api/batch", &body).await {
            Some(answer) if answer.status == 200 => continue,
            Some(answer) => answer.retry_after.map_or(PAUSE, Duration::from_secs),
            None => PAUSE,
        };
        tokio::time::sleep(wait).await;
        connection = Connection::open(&address, &token).await;
    }
}
