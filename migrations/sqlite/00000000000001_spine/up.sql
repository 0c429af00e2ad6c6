-- Times are milliseconds since 1970, UTC: datetime(at / 1000, 'unixepoch') shows one.

-- The database's own facts: its epoch, and in which boot of the machine it is open.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- A school's place in its log: events 1..head were written, those up to floor have been swept.
CREATE TABLE schools (
    school_id BIGINT NOT NULL PRIMARY KEY,
    head BIGINT NOT NULL,
    floor BIGINT NOT NULL
);

CREATE TABLE events (
    school_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    name TEXT NOT NULL,
    milestone BOOLEAN NOT NULL,
    status TEXT NOT NULL,
    category TEXT,
    at BIGINT NOT NULL,
    -- The kind's own fields: a JSON object.
    fields TEXT NOT NULL,
    PRIMARY KEY (school_id, seq)
) WITHOUT ROWID;
CREATE INDEX events_by_subject ON events (school_id, kind, subject_id, seq);

CREATE TABLE jobs (
    school_id BIGINT NOT NULL,
    job_id TEXT NOT NULL,
    job_type TEXT NOT NULL,
    status TEXT NOT NULL,
    progress DOUBLE,
    message TEXT NOT NULL,
    metadata TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    eta_at BIGINT,
    eta_by_history BOOLEAN NOT NULL,
    stalled BOOLEAN NOT NULL,
    cancel_requested BOOLEAN NOT NULL,
    result TEXT,
    error_code TEXT,
    error_message TEXT,
    created_at BIGINT NOT NULL,
    heard_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    stall_after_secs BIGINT NOT NULL,
    timeout_secs BIGINT NOT NULL,
    check_at BIGINT,
    typical_secs DOUBLE,
    rate_smoothed DOUBLE,
    rate_since BIGINT,
    rate_progress DOUBLE,
    rate_at BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, job_id)
);
-- Lists, newest first.
CREATE INDEX jobs_by_creation ON jobs (school_id, created_seq);
CREATE INDEX jobs_by_status ON jobs (school_id, status, created_seq);
CREATE INDEX jobs_by_type ON jobs (school_id, job_type, created_seq);
-- Snapshots, in the order of the log: of what goes on, and of what has ended. A row is in one of them.
CREATE INDEX jobs_active ON jobs (school_id, last_seq) WHERE finished_at IS NULL;
CREATE INDEX jobs_ended ON jobs (school_id, status, last_seq) WHERE finished_at IS NOT NULL;
-- The watchdog.
CREATE INDEX jobs_to_check ON jobs (check_at) WHERE check_at IS NOT NULL;
-- Median durations.
CREATE INDEX jobs_completed ON jobs (school_id, job_type, finished_at) WHERE status = 'completed';
-- Retention.
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE idempotency_keys (
    school_id BIGINT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
