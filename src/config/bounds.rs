//! Bounds that are not settings. The doc comment of each states its unit.

use std::num::NonZeroUsize;
use std::time::Duration;

/// The maximum number of connections that wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
pub const ACCEPT_QUEUE: i32 = 65_535;

/// Maximum of `workers`, the runtime's worker threads.
pub const WORKERS_MAX: usize = 1_024;
/// Maximum of `max_blocking`, the runtime's threads for blocking work.
pub const BLOCKING_MAX: usize = 16_384;
/// Maximum of `reader_connections`. Each connection costs open files and a page cache.
pub const READER_CONNECTIONS_MAX: u64 = 1_024;
/// Maximum of `read_timeout_ms`.
pub const READ_TIMEOUT_MAX_MS: u64 = 3_600_000;
/// Maximum of `mailbox_capacity`, in events.
pub const MAILBOX_CAPACITY_MAX: u64 = 1_000_000;
/// Maximum of `window_events`.
pub const WINDOW_EVENTS_MAX: u64 = 100_000_000;
/// Maximum of `?tick_ms=`.
pub const TICK_MAX_MS: u64 = 60_000;
/// How long a poll waits for a message by default, in seconds.
pub const POLL_WAIT_DEFAULT_SECS: u64 = 25;
/// Maximum time that a poll waits for a message, in seconds.
pub const POLL_WAIT_MAX_SECS: u64 = 60;
/// Maximum of `body_limit_bytes`, `batch_limit_bytes` and `batch_event_bytes`.
pub const BATCH_BYTES_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Minimum of `?max_event_bytes=`.
pub const EVENT_LIMIT_MIN_BYTES: usize = 1_024;
/// Maximum size of the file of public keys that verify tokens, in bytes.
pub const JWKS_FILE_MAX_BYTES: usize = 256 * 1024;
/// Maximum number of keys in the file of public keys.
pub const JWKS_KEYS_MAX: usize = 64;
/// Maximum number of keys that one token is checked against. Checking a signature costs up to a millisecond, and anyone
/// can send a token that names no key.
pub const JWKS_TRIES_MAX: usize = 4;
/// Interval between two checks for changes to the file of public keys.
pub const JWKS_PERIOD: Duration = Duration::from_secs(1);
/// Number of rejected credentials that are logged in each [`REFUSALS_PERIOD`]. The others are only counted.
pub const REFUSALS_LOGGED: usize = 20;
/// Period for [`REFUSALS_LOGGED`].
pub const REFUSALS_PERIOD: Duration = Duration::from_secs(10);
/// Upper bounds of the histogram buckets for durations, in seconds.
pub const DURATION_BUCKETS_SECS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Maximum length of a request path in the log, in characters.
pub const ROUTE_MAX_CHARS: usize = 200;
/// Maximum number of subjects of a kind in a school, for kinds that have no setting.
pub const SUBJECTS_PER_SCHOOL: u64 = 1_000_000;
/// Maximum number of schools that a token can name.
pub const SCHOOLS_PER_TOKEN_MAX: usize = 1_000;
/// Maximum of `max_token_secs`: about 317 years. Login systems whose tokens never expire write an `exp` of 9999999999.
/// An `exp` that is in milliseconds by mistake is 50,000 years ahead.
pub const TOKEN_MAX_SECS: u64 = 10_000_000_000;
/// Maximum of `?padding=`, in bytes.
pub const PADDING_MAX_BYTES: usize = 64 * 1024;
/// Maximum length of `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_MAX_BYTES: usize = 128;
/// Maximum length of `?q=`, in bytes.
pub const QUERY_TEXT_MAX_BYTES: usize = 256;
/// Default number of items on a page of a list.
pub const PAGE_DEFAULT: usize = 50;
/// Maximum number of items on a page of a list.
pub const PAGE_MAX: usize = 500;
/// Maximum size of a request's head, in bytes of header names and values. Common proxies forward up to 32 KiB.
pub const HEADERS_MAX_BYTES: usize = 64 * 1024;
/// Maximum length of a token or ticket, in bytes. Login systems that write groups into their tokens stay below 8 KiB.
pub const TOKEN_MAX_BYTES: usize = 16 * 1024;
/// Number of verified tokens that are cached, so that a caller's next request does not verify the signature again.
pub const VERIFIED_TOKENS: usize = 4_096;
/// Maximum length of a token that is cached, in bytes. The permissions that are cached for it take several times as much
/// memory.
pub const VERIFIED_TOKEN_MAX_BYTES: usize = 2_048;
/// Maximum length of `Origin`, in bytes: a scheme, the longest host name and a port.
pub const ORIGIN_MAX_BYTES: usize = 512;
/// Maximum length of a handshake key that is kept until the request is routed, in bytes. A valid key has 24 bytes.
pub const HANDSHAKE_KEY_MAX_BYTES: usize = 64;
/// Maximum length of the address that a client returns to after signing in, in bytes.
pub const RETURN_MAX_BYTES: usize = 2_048;
/// Maximum length of `Accept`, in bytes, over all of its lines. Browsers send about 200. Its ranges are compared
/// pairwise.
pub const ACCEPT_MAX_BYTES: usize = 1_024;
/// Maximum number of parameters in a query. The query is scanned once for each name that is looked up.
pub const QUERY_FIELDS_MAX: usize = 1_024;
/// Maximum number of values of a repeatable filter.
pub const FILTER_VALUES_MAX: usize = 20;
/// Number of submissions that can wait until the writer assigns them to their school's queue. Beyond it, publishers wait.
pub const WRITER_QUEUE: usize = 4_096;
/// Maximum number of commands in one transaction, over all schools. The others wait for the next transaction. See also
/// [`BULK_MAX_COMMANDS`].
pub const GROUP_MAX_COMMANDS: usize = 512;
/// Maximum size of the events in one transaction, in bytes. The last command may exceed it.
pub const GROUP_MAX_BYTES: usize = 512 * 1024;
/// Target time for deciding and writing the commands of one commit, without waiting for the disk. Other schools wait
/// meanwhile.
pub const COMMIT_WORK: Duration = Duration::from_millis(4);
/// Maximum number of commands in one transaction while nothing but large batches is submitted. They may be about at most
/// [`GROUP_MAX_COMMANDS`] subjects.
pub const BULK_MAX_COMMANDS: usize = 2_048;
/// A submission of more commands than this is a large batch. The client libraries send up to 500 reports together.
pub const BULK_ABOVE: usize = 512;
/// What [`COMMIT_WORK`] is while nothing but large batches is submitted.
pub const BULK_WORK: Duration = Duration::from_millis(16);
/// How long nothing but large batches must have been submitted.
pub const BULK_AFTER: Duration = Duration::from_secs(10);
/// Maximum number of times that the size of a commit is halved when commits exceed their target time. Each commit costs
/// about 0.3 ms, however small it is.
pub const GROUP_HALVINGS_MAX: u32 = 2;
/// A commit's capacity is divided into this many equal shares. A school gets one share while other schools wait.
pub const TURNS_PER_GROUP: usize = 4;
/// How long several schools count as publishing after the writer has switched from one school to another.
pub const SCHOOLS_SHARE_FOR: Duration = Duration::from_secs(1);
/// How many bytes of events a school may produce beyond its share of `batch_bytes_per_sec` before it counts as a school
/// with a batch. This is more than a turn.
pub const HEAVY_BYTES: usize = GROUP_MAX_BYTES / 2;
/// Minimum of `batch_bytes_per_sec`, unless it is 0: a full commit per second.
pub const BATCH_BYTES_MIN: u32 = 512 * 1024;
/// Minimum interval between two log lines about consecutive failed commits.
pub const FAILURES_LOG_PERIOD: Duration = Duration::from_secs(10);
/// Size of SQLite's pages, in bytes.
pub const PAGE_BYTES: i64 = 4_096;
/// A checkpoint begins, on its own thread, when this many pages of SQLite's write-ahead log are not yet copied into the
/// database.
pub const CHECKPOINT_PAGES: i64 = 1_000;
/// Maximum number of passes in which that thread copies what the writer has added meanwhile. It stops earlier if at
/// most [`CHECKPOINT_LEFT_PAGES`] are left.
pub const CHECKPOINT_PASSES: u32 = 8;
/// Number of uncopied pages that the thread leaves to the writer. The writer may have added some more when it copies
/// them.
pub const CHECKPOINT_LEFT_PAGES: i64 = 32;
/// Maximum number of pages that the writer itself copies between two commits, so that SQLite can restart the log. Also
/// the number of pages written after which the writer checks the state of the log.
pub const CHECKPOINT_REST_PAGES: i64 = 250;
/// Size of the log, in pages, above which the writer copies these last pages. Searching the index of the log is cheap up to
/// about this size.
pub const WAL_RESTART_PAGES: i64 = 4_000;
/// Number of pages in the log at which the writer waits for the checkpoint: about 63 MiB.
pub const WAL_MAX_PAGES: i64 = 16_000;
/// Size to which the file of the log is truncated when SQLite restarts the log, in bytes: somewhat more than
/// [`WAL_RESTART_PAGES`] pages.
pub const WAL_KEPT_BYTES: u32 = 20 * 1024 * 1024;
/// Size of the cache of database pages of the writer's connection, in KiB. It should hold what a commit changes, because SQLite
/// writes to the log what does not fit, some of it twice. But SQLite goes through all of it at the end of each commit that
/// put the pages of an index or a table in order, so a larger cache makes commits slower, even if it avoids reads (from the
/// operating system's cache).
pub const WRITER_CACHE_KIB: u32 = 8 * 1024;
/// Approximate number of pages that a commit writes in addition to one for each event.
pub const COMMIT_BASE_PAGES: i64 = 8;
/// How long a request that writes waits for memory.
pub const RESERVE_WAIT: Duration = Duration::from_secs(5);
/// Memory that a command takes in addition to its own bytes and those of its event.
pub const COMMAND_BASE_BYTES: u64 = 1_024;
/// Expected maximum size of the events that a command produces, in bytes, in addition to the command itself, its
/// subject's metadata and its message.
pub const COMMAND_EVENT_BYTES: u64 = 8 * 1024;
/// Minimum size of a batch line, in bytes. It determines how much memory is reserved for lines before they are read.
pub const BATCH_LINE_MIN_BYTES: u64 = 32;
/// Bytes of a batch that are read, or bytes of its answer that are written, before other tasks get a turn. Each line
/// counts for another [`COMMAND_BASE_BYTES`].
pub const BATCH_SLICE_BYTES: usize = 64 * 1024;
/// Maximum number of schools in one batch whose commands are executed concurrently.
pub const BATCH_SCHOOLS_AT_ONCE: usize = 32;
/// Number of commands of one connection that can be unanswered at a time: waiting, being committed, or with an answer that
/// the client has not read. Beyond it, nothing more is read.
pub const PIPELINE_COMMANDS: usize = 256;
/// Maximum number of commands of one connection that are submitted together. Other commands of their school may have to
/// wait for them.
pub const PIPELINE_ROUND: usize = 128;
/// Maximum size of a connection's commands that wait to be submitted, in bytes. The last one may exceed it.
pub const PIPELINE_BYTES: usize = 64 * 1024;
/// How long a connection that ends waits for the answers to the commands that are being committed.
pub const PIPELINE_END_WAIT: Duration = Duration::from_secs(5);
/// Maximum length of the `id` of a `publish`, in bytes.
pub const PUBLISH_ID_MAX_BYTES: usize = 128;
/// Number of committed batches that can wait for the dispatcher. Beyond it, the writer waits.
pub const DISPATCH_QUEUE: usize = 64;
/// Number of groups of one command in a row after which a request that comes alone commits by itself again.
pub const CALM_GROUPS: u32 = 16;
/// Number of commits of such requests after which the writer's thread does the work that follows them.
pub const OWED_MAX: u32 = 16;
/// Number of events in a segment, which is a part of a log that replays share.
pub const SEGMENT_EVENTS: u64 = 256;
/// Maximum size of a segment's events, in bytes. A larger segment is not shared: each replay reads it, one page at a
/// time.
pub const SEGMENT_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Maximum size of the events of all cached segments, in bytes. The cached encodings of these events are not included.
pub const SEGMENTS_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of cached segments, and of schools for which concurrent reads of the log's bounds are shared.
pub const SEGMENTS_MAX: usize = 4_096;
/// How long to wait for missing events before reading them from the log.
pub const HOLE_WAIT: Duration = Duration::from_millis(50);
/// Pause before missing events are read again after a failed read.
pub const HOLE_PAUSE: Duration = Duration::from_secs(1);
/// Number of consecutive reads without a missing event after which events that are not in the log are discarded.
pub const HOLE_READS_MAX: u32 = 3;
/// Number of hints of other nodes' commits that can wait for the dispatcher. Beyond it, the log is checked instead.
pub const HINT_QUEUE: usize = 1_024;
/// Maximum size of the events in the hints that wait, in bytes.
pub const HINT_QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Maximum number of individual schools whose logs are marked to be checked. Beyond it, every log is checked.
pub const HINT_CHECKS_MAX: usize = 1_024;
/// Interval between two comparisons of the logs' heads with what was offered to the streams. A lost message between
/// nodes delays an event by at most this.
pub const HEADS_PERIOD: Duration = Duration::from_millis(1_500);
/// Minimum time between two such comparisons, however often one is requested.
pub const HEADS_PAUSE: Duration = Duration::from_millis(50);
/// Number of schools in one query for the heads of logs.
pub const HEADS_BATCH: usize = 1_000;
/// Maximum size of a message between nodes, in bytes. Events that do not fit are read from the log.
pub const BUS_MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// Maximum size of the committed events that wait to be published to other nodes, in bytes. Beyond it, only their
/// numbers wait.
pub const BUS_OUTBOX_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of schools with events that wait to be published to other nodes. For further schools, other nodes
/// read the log.
pub const BUS_OUTBOX_SCHOOLS: usize = 10_000;
/// Size of the events that are published together, in bytes.
pub const BUS_PUBLISH_BYTES: usize = 512 * 1024;
/// Number of messages of other nodes that can wait. Beyond it, the log is checked instead.
pub const BUS_INBOX: usize = 1_024;
/// Maximum size of the messages of other nodes that wait, in bytes.
pub const BUS_INBOX_BYTES: usize = 16 * 1024 * 1024;
/// Maximum time for connecting to the bus, and for an answer from it.
pub const BUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two checks that a silent bus still answers.
pub const BUS_PING_PERIOD: Duration = Duration::from_secs(5);
/// How long the epoch of a node's database stays at the bus, so that a node with another database finds it. Longer than the
/// period of the checks: otherwise two nodes might each find only their own.
pub const BUS_DATABASE_KEPT: Duration = Duration::from_secs(7);
/// Pause before reconnecting to the bus. Each further consecutive failure doubles it.
pub const BUS_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Maximum pause before reconnecting to the bus.
pub const BUS_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Maximum size of a notification of Postgres between nodes, in bytes. Postgres accepts less than 8,000.
pub const BUS_NOTIFY_MAX_BYTES: usize = 7_900;
/// Minimum time between two transactions of notifications.
pub const BUS_NOTIFY_PAUSE: Duration = Duration::from_millis(4);
/// Number of partitions of the schools' channels. A Redis Cluster keeps the channels of a partition on one of its
/// servers. All nodes must use the same number.
pub const BUS_PARTITIONS: u64 = 64;
/// Number of channels in one request to subscribe.
pub const BUS_CHANNELS_AT_ONCE: usize = 256;
/// Number of unreadable messages for each log line about them. The first one is logged.
pub const BUS_UNREADABLE_PER_LINE: u64 = 1_000;
/// Number of events of a school that wait in memory for missing earlier ones. Further events are read from the log later.
pub const HOLE_MAX_EVENTS: usize = 1_024;
/// Maximum number of remembered positions of a school up to which readers of a shared log have read beyond what was
/// offered.
pub const READ_AHEAD_MAX: usize = 1_024;
/// Number of events offered to readers before other tasks get a turn.
pub const DISPATCH_SLICE: usize = 64;
/// Maximum size of a chunk of a streamed response, in bytes. Each chunk is one write, so that a reader that lags receives
/// many events at once. Each stream has a buffer of this size, of which an idle one uses a few pages.
pub const CHUNK_BYTES: usize = 16 * 1024;
/// Number of readers of one event that are woken before other tasks get a turn.
pub const WAKE_AT_ONCE: usize = 64;
/// Maximum number of deliveries that the thread of a commit makes itself, and of events in such a commit. More are left to the
/// dispatcher.
pub const EXPRESS_MAX: usize = 8;
/// One task that wakes readers is started for each this many waiting readers, up to one for each processor.
pub const WAKE_PART: usize = 512;
/// Number of subject states that the writer caches, so that most writes need no read.
pub const STATE_CACHE: usize = 20_000;
/// Maximum size of the cached subject states, in bytes. Each state counts as its texts and [`STATE_BASE_BYTES`].
pub const STATE_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Size of a state without its texts, in bytes.
pub const STATE_BASE_BYTES: usize = 1_024;
/// Number of schools whose log position the writer caches and whose oldest event the retention sweep remembers, and of categories whose history
/// the writer caches.
pub const SCHOOL_CACHE: usize = 10_000;
/// Number of finished subjects on which the estimate for the next one is based.
pub const HISTORY_SAMPLE: usize = 20;
/// Number of events or subjects that are read from the store at a time.
pub const READ_PAGE: usize = 256;
/// Bytes of event fields that are read from the store at a time, in addition to those of the first event.
pub const READ_PAGE_BYTES: usize = 1024 * 1024;
/// Maximum size of the texts on a page of a list, in bytes. The last subject may exceed it. `next` continues after it.
pub const LIST_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Number of matching rows of a window that are read together.
pub const SEARCH_PART_ROWS: usize = 64;
/// Target time for scanning one window of rows. Other reads get their turn after each window.
pub const READ_WINDOW: Duration = Duration::from_millis(1);
/// Maximum number of rows in a window.
pub const READ_WINDOW_ROWS: usize = 1_000;
/// Minimum number of rows in a window, however large the rows are.
pub const READ_WINDOW_ROWS_MIN: usize = 16;
/// Number of log positions that one query of the text index covers for each row of a window. Usually, few of them match.
pub const INDEX_SPAN: usize = 1_000;
/// Maximum number of trigrams, spread over a text, that the index is searched for. Each match is then checked against
/// the whole text.
pub const INDEX_TERMS_MAX: usize = 16;
/// Maximum size of a job's indexed texts, in bytes. A job with longer texts is not indexed: every search checks it.
pub const INDEXED_TEXT_MAX_BYTES: usize = 4 * 1024;
/// Weight of each indexed byte of an event in the size of a commit. Indexing takes this many times as long if no two
/// texts have a trigram in common.
pub const INDEXED_TEXT_WEIGHT: usize = 8;
/// Number of consecutive short reads after which a waiting window gets its turn.
pub const SHORT_READS_PER_WINDOW: usize = 16;
/// Number of a subject's newest events that are scanned for events of one type.
pub const SUBJECT_EVENTS_SEARCHED: usize = 5_000;
/// Interval between two heartbeats on a stream that is catching up and has nothing to deliver. A failed write shows
/// that the client has disconnected.
pub const CATCH_UP_HEARTBEAT: Duration = Duration::from_secs(1);
/// Maximum number of events deleted in one transaction of the retention sweep.
pub const SWEEP_BATCH: usize = 500;
/// Maximum size of the events deleted in one transaction of the retention sweep, in bytes. The last event may exceed
/// it.
pub const SWEEP_BATCH_BYTES: i64 = 1024 * 1024;
/// Maximum number of schools visited in one step of the retention sweep.
pub const SWEEP_SCHOOLS: usize = 100;
/// Interval at which the uptime is saved if no commit saves it. A kill loses at most this much uptime.
pub const UPTIME_PERIOD: Duration = Duration::from_secs(1);
/// Interval at which the uptime clock is read to notice whether the process is running.
pub const UPTIME_TICK: Duration = Duration::from_millis(100);
/// If two readings of the uptime clock are further apart, the process was not running. That time does not count as
/// silence. It is shorter than a second, which is the shortest timeout and lease.
pub const UPTIME_GAP: Duration = Duration::from_millis(500);
/// After such a gap, no timeout is applied for as long as the gap lasted, and for at most this time: messages that
/// arrived meanwhile are processed first.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// The wall clock counts as adjusted if it moved by this much more or less than the time that passed. Smaller steps do
/// not affect retention.
pub const CLOCK_STEP_MIN: Duration = Duration::from_secs(60);
/// Interval between two checks for silent subjects.
pub const WATCHDOG_PERIOD: Duration = Duration::from_secs(1);
/// Interval at which the time of each device's last message is saved.
pub const PRESENCE_FLUSH_PERIOD: Duration = Duration::from_secs(10);
/// Interval between two checks for expired leases.
pub const PRESENCE_PERIOD: Duration = Duration::from_millis(250);
/// Interval at which a node shares the heartbeats of devices with other nodes.
pub const PRESENCE_SHARE_PERIOD: Duration = Duration::from_secs(1);
/// How long after the end of a lease a node waits for heartbeats that other nodes have received: two more attempts to
/// share them.
pub const PRESENCE_GRACE: Duration = Duration::from_secs(3);
/// Interval at which one node reads which devices are not offline, to check those from which no node receives
/// heartbeats any more.
pub const PRESENCE_SCAN: Duration = Duration::from_secs(10);
/// Interval at which a node reports to the others.
pub const NODE_PERIOD: Duration = Duration::from_secs(2);
/// The same while a node has just started, or has returned from a suspension.
pub const NODE_CATCH_UP_PERIOD: Duration = Duration::from_millis(250);
/// A node that has not reported for this long is shown as gone.
pub const NODE_GONE: Duration = Duration::from_secs(10);
/// A setting of two nodes must have differed for this long to be logged. Longer than [`BUS_PING_PERIOD`] and two reports.
pub const NODE_DIFFERS: Duration = Duration::from_secs(15);
/// A node that has not reported for this long is forgotten.
pub const NODE_FORGOTTEN: Duration = Duration::from_secs(3_600);
/// Number of devices that are saved or read at a time. Other work gets a turn in between.
pub const PRESENCE_BATCH: usize = 500;
/// How long a lease lasts if its holder does not renew it. After that, another node takes over.
pub const LEASE_TERM: Duration = Duration::from_secs(10);
/// Interval between two renewals of a lease. Two of them can fail.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(3);
/// Interval between two attempts to acquire a lease that another node holds.
pub const LEASE_RETRY: Duration = Duration::from_secs(2);
/// Interval between two retention sweeps.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(10);
/// Number of overdue jobs that are checked in one round of the watchdog.
pub const WATCHDOG_BATCH: usize = 500;
/// How long a window without subscribers stays in memory after its last event.
pub const WINDOW_IDLE: Duration = Duration::from_secs(60);
/// Maximum size of a window, in bytes of event fields.
pub const WINDOW_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of ticks that a stream holds back. One more releases all of them.
pub const HELD_TICKS_MAX: usize = 1_024;
/// Held ticks of WebSockets that are due within the same interval of this length are sent together, at its end. Otherwise each of
/// many small groups would wake a thread of the server.
pub const HELD_TICKS_SLOT: Duration = Duration::from_millis(4);
/// Maximum number of ticks that a WebSocket holds back while its connection's task sleeps. They may wait for the socket in addition
/// to [`WRITE_MAX_FRAMES`].
pub const LENT_TICKS_MAX: usize = 16;
/// Bytes that are still read from a WebSocket client after a protocol error, so that the client can read the close
/// reason.
pub const AFTER_ERROR_MAX_BYTES: u32 = 1024 * 1024;
/// Maximum number of HTTP/1.0 handshakes that are kept until they are routed.
pub const OLD_HANDSHAKES: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is not 0");
/// How long `/readyz` waits for the database and the dispatcher.
pub const READY_WAIT: Duration = Duration::from_secs(2);
/// Number of consecutive panics after which a task counts as failing. `/readyz` then names the task.
pub const TASK_FAILURES: u32 = 3;
/// A task that has run for this long counts as healthy again.
pub const TASK_STEADY: Duration = Duration::from_secs(5);
/// Pause before a task is restarted after a panic. Each further consecutive panic doubles it.
pub const TASK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Maximum pause before a task is restarted.
pub const TASK_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Maximum time that the server's tasks get to end. It includes the time for notifiers to disconnect.
pub const TASKS_STOP_MAX: Duration = Duration::from_secs(6);
/// Interval between two checks that the clients that wait for a search are still connected.
pub const CALLER_CHECK_PERIOD: Duration = Duration::from_millis(250);
/// Maximum time of a closing handshake.
pub const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Size of the messages after which a poll is answered even if more messages wait, in bytes.
pub const POLL_FULL_BYTES: usize = 1024 * 1024;
/// Number of messages of a WebSocket client that can wait while an earlier one is answered. Beyond it, nothing more is
/// read.
pub const WAITING_MESSAGES: usize = 64;
/// Number of bytes that are read from a WebSocket at a time.
pub const SOCKET_READ_BYTES: usize = 4 * 1024;
/// How long a server that shuts down continues to accept connections while its streams close. Streams that remain
/// afterwards have Rocket's `grace` period.
pub const CLOSE_MESSAGES_MAX: Duration = Duration::from_secs(2);
/// Maximum time that a server that shuts down waits for its connections before it closes the database.
pub const CLOSE_STREAMS_MAX: Duration = Duration::from_secs(10);
/// Interval between two checks for open connections of a server that shuts down.
pub const DRAIN_PERIOD: Duration = Duration::from_millis(20);
/// Maximum number of frames in one write to the socket, and of deliveries that wait for it.
pub const WRITE_MAX_FRAMES: usize = 64;
/// Number of additional frames that can wait: answers to a client that sends messages but is slow to read.
pub const ANSWER_FRAMES: usize = 16;
/// How long a WebSocket that accepts no byte at all stays open, since its client may have disappeared. A slow client
/// that accepts some bytes is never closed for this reason.
pub const WRITE_STALL: Duration = Duration::from_secs(120);
/// Minimum interval between two checks for connections with dead peers.
pub const DEAD_PEER_CHECK_MIN: Duration = Duration::from_millis(250);
/// Maximum interval between two checks for connections with dead peers.
pub const DEAD_PEER_CHECK_MAX: Duration = Duration::from_secs(5);
/// Minimum average rate at which a client must receive an answer of known length, in bytes per second.
pub const RESPONSE_RATE_MIN: u64 = 8 * 1024;
/// Maximum time between two checks for connections without a request.
pub const IDLE_CHECK_MAX: Duration = Duration::from_secs(15);
/// Number of unanswered retransmissions of the same bytes after which a peer counts as dead.
pub const DEAD_PEER_RETRANSMISSIONS: u8 = 3;
/// Number of unanswered probes, of an idle connection or of a closed window, after which a peer counts as dead.
pub const DEAD_PEER_PROBES: u8 = 2;
/// Number of active jobs that `initial_state` lists on `/ws/upload-progress`. The snapshots of the others follow without
/// being listed.
pub const INITIAL_STATE_MAX: usize = 1_000;
/// Maximum size of the fields of the jobs that `initial_state` lists, in bytes.
pub const INITIAL_STATE_MAX_BYTES: usize = 1024 * 1024;
/// Number of batches of events in a notifier's inbox. Beyond it, the notifier reads the log itself.
pub const NOTIFY_INBOX: usize = 64;
/// Maximum size of the event fields in a notifier's inbox, in bytes.
pub const NOTIFY_INBOX_BYTES: usize = 1024 * 1024;
/// Number of events of a school that a notifier delivers before other schools get a turn.
pub const NOTIFY_TURN_EVENTS: usize = 32;
/// Maximum number of subjects of a school that a notifier sets aside. At this number, the school waits instead.
pub const NOTIFY_SET_ASIDE_MAX: usize = 100;
/// Number of attempts after which a subject is set aside if either the receiver or the event may be at fault.
pub const NOTIFY_UNCERTAIN_ATTEMPTS: u32 = 2;
/// Number of consecutive subjects of a school that are set aside in this way without a delivery in between. After them,
/// the receiver counts as down.
pub const NOTIFY_UNCERTAIN_MAX: u32 = 10;
/// Maximum `Retry-After` of a receiver that is honoured.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// Maximum time of a delivery attempt. The existing media end their attempts sooner.
pub const DELIVERY_MAX: Duration = Duration::from_secs(150);
/// Maximum time that a notifier gets to disconnect.
pub const NOTIFIER_STOP_MAX: Duration = Duration::from_secs(3);
/// Maximum pause between two delivery attempts.
pub const NOTIFY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Interval at which a notifier's offset moves forward in schools that have no matching events.
pub const NOTIFY_ROUND: Duration = Duration::from_secs(30);
/// Interval at which a notifier looks for events that other nodes have committed.
pub const NOTIFY_LOOK: Duration = Duration::from_secs(1);
/// Pause of a notifier whose progress the store has rejected.
pub const NOTIFY_REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Number of dead letters that a notifier keeps for each school. The oldest are deleted first.
pub const DEAD_LETTERS_MAX: usize = 1_000;
/// Maximum length of a saved delivery error, in characters.
pub const DELIVERY_CAUSE_MAX_CHARS: usize = 200;
/// Maximum length of a subject's title in a notification, in characters. It keeps the subject line of an e-mail below
/// the 998 bytes of a line (RFC 5322) and below [`DELIVERY_CAUSE_MAX_CHARS`].
pub const NOTIFICATION_TITLE_MAX_CHARS: usize = 100;
/// Interval between two log lines about the progress of a database check.
pub const CHECK_LOG_PERIOD: Duration = Duration::from_secs(5);
/// Bytes of the database that are read ahead of its check at a time.
pub const READ_AHEAD_BYTES: usize = 1024 * 1024;
/// Maximum number of bytes of the database that are read ahead of its check. A larger part might be evicted from memory
/// before it is checked.
pub const READ_AHEAD_MAX_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// If opening the database takes longer, the server listens meanwhile and reports that it is opening the database.
pub const OPENING_NOTICE_AFTER: Duration = Duration::from_secs(1);
/// Pause after the first attempt to start a server whose database could not be reached. Each further pause is twice as long.
pub const START_PAUSE_MIN: Duration = Duration::from_millis(250);
/// Maximum pause between two attempts to start.
pub const START_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Maximum number of publishers and schools whose rate is tracked.
pub const THROTTLED_MAX: usize = 10_000;
/// Number of schools on a page of the monitor's school list.
pub const MONITOR_SCHOOLS: usize = 50;
/// Number of rows of each list on a school's overview. The others are counted.
pub const OVERVIEW_ROWS: usize = 10;
/// Number of links on the overview to the subjects to which a token is limited.
pub const OVERVIEW_ONLY_MAX: usize = 100;
/// Maximum length of a job's title in the monitor, in characters.
pub const MONITOR_TITLE_CHARS: usize = 120;
/// Number of connections that the monitor shows. The others are counted.
pub const MONITOR_CONNECTIONS: usize = 50;
/// Number of channels of a connection that the monitor lists.
pub const MONITOR_CHANNELS: usize = 4;
/// Number of seconds for which a school's events are counted, with one count for each second.
pub const RATE_SECS: usize = 60;
/// Seconds over which a rate of the server is averaged.
pub const METRICS_MEAN_SECS: usize = 10;
/// Number of seconds for which the server keeps its own metrics.
pub const METRICS_SECS: usize = 300;
/// Maximum length of a reader's name that is kept with a connection, in characters.
pub const READER_MAX_CHARS: usize = 256;
/// Number of samples on a control chart.
pub const CHART_SAMPLES: usize = 100;
/// Number of reports on a chart of a job's progress.
pub const CHART_REPORTS: usize = 500;
/// Number of violations on a page of a characteristic.
pub const CHARACTERISTIC_VIOLATIONS: usize = 10;
/// Number of a job's newest milestones that its page shows.
pub const CHART_MILESTONES: usize = 100;
/// Number of changes of a device's status that its uptime strip takes into account.
pub const UPTIME_EVENTS: usize = 50;
/// Number of hours that a device's uptime strip covers.
pub const UPTIME_HOURS: i64 = 24;
/// Number of hours for which the monitor shows how jobs ended.
pub const ENDINGS_HOURS: i64 = 24;
/// Number of writers of a node on Postgres, each with its own connection. A school always has the same writer.
pub const POSTGRES_WRITERS: usize = 4;
/// How long to wait for an answer from Postgres before the connection counts as broken.
pub const POSTGRES_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may pause between two statements of a transaction before Postgres ends the transaction. Other nodes that wait for its locks
/// must not reach [`POSTGRES_TIMEOUT`] first.
pub const POSTGRES_PAUSE_MAX: Duration = Duration::from_secs(4);
/// How long a connection to Postgres may take to be established.
pub const POSTGRES_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long Postgres uses one plan of a writer's statements.
pub const POSTGRES_PLAN_AGE: Duration = Duration::from_secs(1);
/// Pause between two attempts to find out whether a commit took effect after its connection broke.
pub const POSTGRES_RETRY: Duration = Duration::from_millis(200);
/// How long to try to find that out. After that, the response says that the outcome is not known.
pub const POSTGRES_UNKNOWN_WAIT: Duration = Duration::from_secs(20);
/// How many consecutive times another node may write to a school between a decision and its commit, before the school
/// is locked for the decision.
pub const MISSES_MAX: u32 = 2;
/// Number of connections of a node to Postgres for small writes outside the log.
pub const POSTGRES_ASIDE_CONNECTIONS: usize = 2;
/// Number of rows that `tidings copy` copies at a time.
pub const COPY_PAGE: usize = 500;
/// Number of subjects that `tidings copy` copies at a time. They can be large.
pub const COPY_SUBJECTS: usize = 100;
/// Interval at which `tidings copy` reports its progress, if its output is not a terminal.
pub const COPY_REPORT_PERIOD: Duration = Duration::from_secs(5);
/// Minimum burst of pings with one key.
pub const PING_BURST: u32 = 60;
/// Rate limit for pings from one address to one school, per second. It also limits how many guessed keys are looked up.
pub const PINGS_PER_ADDRESS: u32 = 100;
/// Burst of pings from one address to one school. Many machines start their jobs at the full hour, and can share an
/// address.
pub const PING_ADDRESS_BURST: u32 = 2_000;
/// Maximum of `ping_keys_per_school`: a school's keys are listed on one page.
pub const PING_KEYS_MAX: u64 = 10_000;
/// Maximum length of the `rid` of a ping, in bytes.
pub const PING_RID_MAX_BYTES: usize = 48;
/// Within this time, the same ping without `rid` counts as a repetition: the longest time between the first and the last
/// attempt of `curl -m 10 --retry 3` is 37 seconds.
pub const PING_REPEAT: Duration = Duration::from_secs(45);
/// Maximum number of attempts at a ping if other pings of the same run are carried out first.
pub const PING_TRIES: usize = 4;
/// Interval between two rounds of checks of the schedules.
pub const SCHEDULE_PERIOD: Duration = Duration::from_secs(1);
/// Maximum number of schedules that are remembered between two rounds because their jobs have started or ended. Others
/// are found at their next check.
pub const SCHEDULE_HINTS_MAX: usize = 10_000;
/// Number of schedules that are checked concurrently.
pub const SCHEDULES_AT_ONCE: usize = 8;
/// Number of newest jobs of a type that are searched for the run that started last. Older jobs wait for a worker or were
/// started before.
pub const SCHEDULE_RUNS: usize = 20;
/// If the wall clock gets this many seconds ahead of the uptime between two rounds, the server was suspended.
pub const SCHEDULE_DRIFT_SECS: i64 = 5;
/// Maximum length of a link's signature that is checked, in bytes. SHA-256 in base64url has 43.
pub const LINK_SIGNATURE_MAX_BYTES: usize = 64;
/// Maximum time until a link expires, in seconds: a century, as for a token of `tidings token`.
pub const LINK_MAX_SECS: u64 = 3_155_760_000;
/// How long a badge may be cached, in seconds. During this time, a link costs one read, however often it is requested.
pub const BADGE_AGE_SECS: u64 = 5;
/// Maximum number of cached badges, over all schools.
pub const BADGES_MAX: usize = 1_024;
/// Maximum length of each half of a badge, in characters. The rest is left out.
pub const BADGE_TEXT_CHARS: usize = 40;
/// Maximum number of subjects whose last delivery a notifier with `every` remembers. For any other subject, the next
/// tick is delivered.
pub const NOTIFY_PACED_SUBJECTS_MAX: usize = 10_000;
