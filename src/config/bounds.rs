//! Bounds that nobody needs to set, each named with its unit.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Most `workers`: threads of the runtime.
pub const WORKERS_MAX: usize = 1_024;
/// Most `max_blocking`: threads for what blocks.
pub const BLOCKING_MAX: usize = 16_384;
/// Most `reader_connections`: each is open files and a cache.
pub const READER_CONNECTIONS_MAX: u64 = 1_024;
/// Most `read_timeout_ms`.
pub const READ_TIMEOUT_MAX_MS: u64 = 3_600_000;
/// Most `mailbox_capacity`, in events.
pub const MAILBOX_CAPACITY_MAX: u64 = 1_000_000;
/// Most `window_events`.
pub const WINDOW_EVENTS_MAX: u64 = 100_000_000;
/// Largest `?tick_ms=`.
pub const TICK_MAX_MS: u64 = 60_000;
/// How long a poll waits for a message when it does not say, in seconds.
pub const POLL_WAIT_DEFAULT_SECS: u64 = 25;
/// How long a poll may wait, in seconds.
pub const POLL_WAIT_MAX_SECS: u64 = 60;
/// Most `body_limit_bytes`, `batch_limit_bytes` and `batch_event_bytes`.
pub const BATCH_BYTES_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Smallest `?max_event_bytes=`.
pub const EVENT_LIMIT_MIN_BYTES: usize = 1_024;
/// Largest file of public keys that tokens are verified with, in bytes.
pub const JWKS_FILE_MAX_BYTES: usize = 256 * 1024;
/// Keys in that file.
pub const JWKS_KEYS_MAX: usize = 64;
/// Keys that one token is tried with: a signature costs up to a millisecond to check, and anybody may send a token that
/// names none.
pub const JWKS_TRIES_MAX: usize = 4;
/// Time between two looks at whether it has changed.
pub const JWKS_PERIOD: Duration = Duration::from_secs(1);
/// Refused credentials that the log tells of in a period; the others are counted.
pub const REFUSALS_TOLD: usize = 20;
/// The period.
pub const REFUSALS_PERIOD: Duration = Duration::from_secs(10);
/// Upper bounds of the buckets in which durations are counted, in seconds.
pub const DURATION_BUCKETS_SECS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Longest path of a request that the log tells, in characters.
pub const ROUTE_MAX_CHARS: usize = 200;
/// How many subjects of a kind a school may have if no setting says so.
pub const SUBJECTS_PER_SCHOOL: u64 = 1_000_000;
/// Schools that a token may name.
pub const SCHOOLS_PER_TOKEN_MAX: usize = 1_000;
/// Largest `max_token_secs`: some 317 years. Logins whose tokens are never to end write an `exp` of 9999999999; one in
/// milliseconds by mistake lies 50,000 years ahead.
pub const TOKEN_MAX_SECS: u64 = 10_000_000_000;
/// Largest `?padding=`, in bytes.
pub const PADDING_MAX_BYTES: usize = 64 * 1024;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_MAX_BYTES: usize = 128;
/// Longest `?q=`, in bytes.
pub const QUERY_TEXT_MAX_BYTES: usize = 256;
/// Items on a page of a list when a request does not say.
pub const PAGE_DEFAULT: usize = 50;
/// Most items on a page of a list.
pub const PAGE_MAX: usize = 500;
/// The longest head of a request, in bytes of its headers' names and values. Common proxies pass on 32 KiB.
pub const HEADERS_MAX_BYTES: usize = 64 * 1024;
/// The longest token or ticket, in bytes. A login that writes groups into its tokens stays below 8 KiB.
pub const TOKEN_MAX_BYTES: usize = 16 * 1024;
/// The longest `Origin`, in bytes: a scheme, the longest name of a host, and a port.
pub const ORIGIN_MAX_BYTES: usize = 512;
/// The longest key of a handshake that is remembered until it is routed, in bytes. A sound one has 24.
pub const HANDSHAKE_KEY_MAX_BYTES: usize = 64;
/// The longest address that signing in leads back to, in bytes.
pub const RETURN_MAX_BYTES: usize = 2_048;
/// The longest `Accept`, in bytes, over all of its lines. Browsers send some 200; its ranges are compared with one another.
pub const ACCEPT_MAX_BYTES: usize = 1_024;
/// Parameters that a query may have. It is walked once for each name that is looked for.
pub const QUERY_FIELDS_MAX: usize = 1_024;
/// Values that a repeatable filter may have.
pub const FILTER_VALUES_MAX: usize = 20;
/// Submissions that may wait for the writer to see to whose turn it is. Beyond them a publisher waits for a place.
pub const WRITER_QUEUE: usize = 4_096;
/// Commands in one transaction, of all schools together; what is left waits for the next.
pub const GROUP_MAX_COMMANDS: usize = 512;
/// Bytes of events in one transaction, in addition to those of the last command.
pub const GROUP_MAX_BYTES: usize = 512 * 1024;
/// How long what a commit carries out should take to be judged and written, without what it waits for the disk. Other schools
/// wait for it.
pub const COMMIT_WORK: Duration = Duration::from_millis(4);
/// How often what a commit may carry out is halved at most, if that takes longer. Each commit costs some 0.3 ms, however small.
pub const GROUP_HALVINGS_MAX: u32 = 2;
/// Equal shares of it, of which a school has one while others wait as well.
pub const TURNS_PER_GROUP: usize = 4;
/// Least time between two lines in the log about commits that fail one after the other.
pub const FAILURES_LOG_PERIOD: Duration = Duration::from_secs(10);
/// How long a request that writes waits for memory.
pub const RESERVE_WAIT: Duration = Duration::from_secs(5);
/// Memory that a command takes in addition to its own bytes and those of its event.
pub const COMMAND_BASE_BYTES: u64 = 1_024;
/// Bytes of the events that a command is expected to lead to at most, in addition to its own bytes, its subject's metadata
/// and its message.
pub const COMMAND_EVENT_BYTES: u64 = 8 * 1024;
/// The shortest line of a batch, in bytes, as far as memory is reserved for lines before they are read.
pub const BATCH_LINE_MIN_BYTES: u64 = 32;
/// Bytes of a batch that are read, or of its answer that are written, before other tasks get a turn; each line counts for
/// [`COMMAND_BASE_BYTES`] more.
pub const BATCH_SLICE_BYTES: usize = 64 * 1024;
/// Schools of one batch whose commands are carried out at a time.
pub const BATCH_SCHOOLS_AT_ONCE: usize = 32;
/// Committed batches that may wait for the dispatcher. Beyond them the writer waits.
pub const DISPATCH_QUEUE: usize = 64;
/// Events of a segment: a part of a log that those who come back from behind share.
pub const SEGMENT_EVENTS: u64 = 256;
/// Bytes of a segment's events. One that has more is read by each for itself, a page at a time.
pub const SEGMENT_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of the events of all segments that are kept. Each encoding of them that is asked for comes in addition.
pub const SEGMENTS_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Segments that are kept, and schools of which it is known who asks where their log ends.
pub const SEGMENTS_MAX: usize = 4_096;
/// How long events that are missing before others are waited for, until they are read.
pub const HOLE_WAIT: Duration = Duration::from_millis(50);
/// Pause before they are read again if that failed.
pub const HOLE_PAUSE: Duration = Duration::from_secs(1);
/// Events of a school that wait for others that are missing. What comes beyond them is read afterwards, too.
pub const HOLE_MAX_EVENTS: usize = 1_024;
/// Events offered to their readers before other tasks get a turn.
pub const DISPATCH_SLICE: usize = 64;
/// Readers of one event that are woken before other tasks get a turn.
pub const WAKE_AT_ONCE: usize = 64;
/// Subject states that the writer keeps, so that it need not read before each write.
pub const STATE_CACHE: usize = 20_000;
/// And of so many bytes, in which each counts for its texts and [`STATE_BASE_BYTES`].
pub const STATE_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of a state without its texts.
pub const STATE_BASE_BYTES: usize = 1_024;
/// Schools whose log position, and categories whose history, the writer keeps.
pub const SCHOOL_CACHE: usize = 10_000;
/// Finished subjects that foretell how the next one goes.
pub const HISTORY_SAMPLE: usize = 20;
/// Events or subjects read from the store at a time.
pub const READ_PAGE: usize = 256;
/// Bytes of events' fields read from the store at a time, in addition to the first event's.
pub const READ_PAGE_BYTES: usize = 1024 * 1024;
/// Bytes of the texts of a page of a list, in addition to those of its last subject: after them it ends, and `next` leads on.
pub const LIST_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Rows of a window that are read together, of those that fit.
pub const SEARCH_PART_ROWS: usize = 64;
/// How long a window of rows should take that are scanned for those that fit. Others have their turn after it.
pub const READ_WINDOW: Duration = Duration::from_millis(1);
/// Most rows of a window.
pub const READ_WINDOW_ROWS: usize = 1_000;
/// Least rows of a window, however large they are.
pub const READ_WINDOW_ROWS_MIN: usize = 16;
/// Places of the log that the index of texts is asked about for each row of a window: it has few of their jobs to tell.
pub const INDEX_SPAN: usize = 1_000;
/// Trigrams by which a text is looked for, spread over it: what the index tells is looked at anyway.
pub const INDEX_TERMS_MAX: usize = 16;
/// Most bytes of a job's texts that the index takes. A job that has more is looked at by every search.
pub const INDEXED_TEXT_MAX_BYTES: usize = 4 * 1024;
/// How many bytes of an event each byte of them counts for in a commit: texts of which no two have a trigram in common take the
/// index that much time.
pub const INDEXED_TEXT_WEIGHT: usize = 8;
/// Short reads in a row that come before a window that waits.
pub const SHORT_READS_PER_WALK: usize = 16;
/// Events of a subject, the newest, that are scanned for those of one type.
pub const SUBJECT_EVENTS_SEARCHED: usize = 5_000;
/// Time between two signs of life on a stream that is being brought up to date and has nothing to tell: it is found out by
/// them whether anyone listens.
pub const CATCH_UP_SIGN: Duration = Duration::from_secs(1);
/// Events deleted in one transaction of the retention sweep.
pub const SWEEP_BATCH: usize = 500;
/// Bytes of events deleted in one transaction of the retention sweep, in addition to those of the last one.
pub const SWEEP_BATCH_BYTES: i64 = 1024 * 1024;
/// Schools visited in one transaction of the retention sweep.
pub const SWEEP_SCHOOLS: usize = 100;
/// Time between two moments at which the uptime is saved, if no commit saves it: the most of it that a kill may lose.
pub const UPTIME_PERIOD: Duration = Duration::from_secs(1);
/// Time between two looks at the uptime, by which the server knows that it runs.
pub const UPTIME_TICK: Duration = Duration::from_millis(100);
/// Between looks that are further apart, the process did not run: that time is no silence of anybody's. Below a second, the
/// shortest time-out and lease that there are.
pub const UPTIME_GAP: Duration = Duration::from_millis(500);
/// After such a gap nobody is judged for as long as it was, and for so long at most: what was said meanwhile is heard first.
pub const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// The wall clock has been set if it moved by so much more or less than the time that passed: less changes no retention.
pub const CLOCK_STEP_MIN: Duration = Duration::from_secs(60);
/// Time between two looks for silent subjects.
pub const WATCHDOG_PERIOD: Duration = Duration::from_secs(1);
/// Time between two rounds that write down when devices were last heard of.
pub const PRESENCE_FLUSH_PERIOD: Duration = Duration::from_secs(10);
/// Time between two looks for leases that are over.
pub const PRESENCE_PERIOD: Duration = Duration::from_millis(250);
/// Devices written down or read at a time, so that others get a turn in between.
pub const PRESENCE_BATCH: usize = 500;
/// Time between two retention sweeps.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(10);
/// Overdue jobs looked at in one round of the watchdog.
pub const WATCHDOG_BATCH: usize = 500;
/// How long a window without subscribers stays in memory after its last event.
pub const WINDOW_IDLE: Duration = Duration::from_secs(60);
/// Largest window, in bytes of events' fields.
pub const WINDOW_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Ticks that a stream holds back at a time; one more lets them all go.
pub const HELD_TICKS_MAX: usize = 1_024;
/// Bytes that are still read from a WebSocket client after it has broken the protocol, so that it can read why it is closed.
pub const DEAF_MAX_BYTES: usize = 1024 * 1024;
/// Handshakes over HTTP/1.0 that are remembered until they are routed, at most.
pub const OLD_HANDSHAKES: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is not 0");
/// How long `/readyz` waits for the database and the dispatcher.
pub const READY_WAIT: Duration = Duration::from_secs(2);
/// Panics in a row after which a task keeps failing: `/readyz` names it.
pub const TASK_FAILURES: u32 = 3;
/// A task that has run for so long is well again.
pub const TASK_STEADY: Duration = Duration::from_secs(5);
/// How long a task that has panicked waits for its restart. Each further panic in a row doubles it.
pub const TASK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// And how long at most.
pub const TASK_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long the server's tasks may take to end. A notifier may say goodbye within it.
pub const TASKS_STOP_MAX: Duration = Duration::from_secs(6);
/// Time between two looks at whether those who wait for a search are still there.
pub const CALLER_LOOK_PERIOD: Duration = Duration::from_millis(250);
/// How long a closing handshake may take.
pub const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Bytes of messages after which a poll is answered, though more wait.
pub const POLL_FULL_BYTES: usize = 1024 * 1024;
/// Messages of a WebSocket client that wait while one before them is being answered. Beyond them nothing is read.
pub const WAITING_MESSAGES: usize = 64;
/// Bytes read from a WebSocket at a time.
pub const SOCKET_READ_BYTES: usize = 4 * 1024;
/// How long a server that ends goes on accepting connections while its streams are told to close. Afterwards what is left
/// of them has the `grace` of Rocket.
pub const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How long the connections of a server that ends are waited for in all, before it lets go of the database.
pub const CLOSE_STREAMS_MAX: Duration = Duration::from_secs(10);
/// Time between two looks at whether the connections that a server's end waits for are gone.
pub const DRAIN_PERIOD: Duration = Duration::from_millis(20);
/// Frames handed to the socket in one write, and deliveries that wait for it.
pub const WRITE_MAX_FRAMES: usize = 64;
/// Frames that may wait in addition to them: answers to a client that is heard although it is slow to read.
pub const ANSWER_FRAMES: usize = 16;
/// How long a WebSocket that takes no byte at all is kept: it may be gone without a word. A reader that takes
/// some is slow, and may be for as long as it likes.
pub const WRITE_STALL: Duration = Duration::from_secs(120);
/// Least and most time between two looks for connections whose peers are dead.
pub const DEAD_PEER_LOOK_MIN: Duration = Duration::from_millis(250);
/// See [`DEAD_PEER_LOOK_MIN`].
pub const DEAD_PEER_LOOK_MAX: Duration = Duration::from_secs(5);
/// Retransmissions of the same bytes that stay unanswered before a peer counts as dead.
pub const DEAD_PEER_RETRANSMISSIONS: u8 = 3;
/// Probes, of an idle connection or of a closed window, that stay unanswered before a peer counts as dead.
pub const DEAD_PEER_PROBES: u8 = 2;
/// Active jobs that `initial_state` names on `/ws/upload-progress`; the others' snapshots follow unannounced.
pub const INITIAL_STATE_MAX: usize = 1_000;
/// And as many as have fields of so many bytes together.
pub const INITIAL_STATE_MAX_BYTES: usize = 1024 * 1024;
/// Parts of the log that a notifier may still be asked about; beyond them it reads the log itself.
pub const NOTIFY_INBOX: usize = 64;
/// And so many bytes of their fields.
pub const NOTIFY_INBOX_BYTES: usize = 1024 * 1024;
/// Events of a school that a notifier delivers before others get a turn.
pub const NOTIFY_TURN_EVENTS: usize = 32;
/// Subjects of a school that a notifier sets aside. While there are so many, the school waits for the next one.
pub const NOTIFY_SET_ASIDE_MAX: usize = 100;
/// Attempts after which a subject is set aside when the receiver may be at fault as well as the event.
pub const NOTIFY_UNCERTAIN_ATTEMPTS: u32 = 2;
/// Subjects of a school that are set aside so without a delivery in between. After them the receiver is taken to be down.
pub const NOTIFY_UNCERTAIN_MAX: u32 = 10;
/// Longest time that a receiver's `Retry-After` is heeded for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// Longest attempt to deliver. The media that there are end sooner.
pub const DELIVERY_MAX: Duration = Duration::from_secs(150);
/// How long a notifier may take to say goodbye.
pub const NOTIFIER_STOP_MAX: Duration = Duration::from_secs(3);
/// Longest pause between two attempts to deliver.
pub const NOTIFY_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Time between two looks at schools where nothing happened that a notifier wants: its place moves on there, too.
pub const NOTIFY_ROUND: Duration = Duration::from_secs(30);
/// Dead letters of a notifier that are kept for a school; older ones leave first.
pub const DEAD_LETTERS_MAX: usize = 1_000;
/// Longest cause of a failed delivery that is remembered, in characters.
pub const DELIVERY_CAUSE_MAX_CHARS: usize = 200;
/// Longest title of a subject in a notification, in characters. With it the subject of an e-mail stays below the 998
/// bytes of a line (RFC 5322), and below what [`DELIVERY_CAUSE_MAX_CHARS`] lets through.
pub const NOTIFICATION_TITLE_MAX_CHARS: usize = 100;
/// Time between two lines in the log about a check of the database.
pub const CHECK_LOG_PERIOD: Duration = Duration::from_secs(5);
/// Bytes of the database that are read ahead of its check at a time.
pub const READ_AHEAD_BYTES: usize = 1024 * 1024;
/// Bytes of the database that are read ahead of its check, at most: more may not stay in memory.
pub const READ_AHEAD_MAX_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// How long the database may take to be opened before the server listens, to say that it is being opened.
pub const OPENING_IS_LONG: Duration = Duration::from_secs(1);
/// Those whose pace is remembered.
pub const THROTTLED_MAX: usize = 10_000;
/// Schools on a page of the monitor's choice of them.
pub const MONITOR_SCHOOLS: usize = 50;
/// Rows of each list on the overview of a school; the others are counted.
pub const OVERVIEW_ROWS: usize = 10;
/// Longest title of a job that the monitor shows, in characters.
pub const MONITOR_TITLE_CHARS: usize = 120;
/// Connections that the monitor shows, the newest of each school first; the others are counted.
pub const MONITOR_CONNECTIONS: usize = 200;
/// Channels of a connection that the monitor names.
pub const MONITOR_CHANNELS: usize = 4;
/// Seconds for which a school's events are counted, one by one.
pub const RATE_SECS: usize = 60;
/// Seconds for which the server's own figures are kept.
pub const VITALS_SECS: usize = 300;
/// Longest name of a reader that is remembered with a connection, in characters.
pub const READER_MAX_CHARS: usize = 256;
/// Samples on a control chart.
pub const CHART_SAMPLES: usize = 100;
/// Reports on a chart of a job's progress.
pub const CHART_REPORTS: usize = 500;
/// Milestones that the page of a job shows, the newest.
pub const CHART_MILESTONES: usize = 100;
/// Changes of a device's status that its strip looks at.
pub const UPTIME_EVENTS: usize = 50;
/// Hours that a device's strip goes back.
pub const UPTIME_HOURS: i64 = 24;
/// Hours for which it is shown how jobs ended.
pub const ENDINGS_HOURS: i64 = 24;
