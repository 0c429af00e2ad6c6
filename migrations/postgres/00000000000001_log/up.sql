-- The log and the states on Postgres, which several nodes share. Times are milliseconds, as everywhere. JSON is text, so
-- that it stays as it was written. Every key begins with the school.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- The ends of each log. `stamp` names the last write of any node: a node that has decided against another one is refused.
CREATE TABLE schools (
    school_id BIGINT PRIMARY KEY,
    stamp BIGINT NOT NULL,
    head BIGINT NOT NULL,
    head_tag BIGINT,
    floor BIGINT NOT NULL DEFAULT 0,
    floor_tag BIGINT,
    bytes BIGINT NOT NULL,
    answer_bytes BIGINT NOT NULL DEFAULT 0,
    -- The uptime of the last write.
    uptime BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE events (
    school_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    milestone BOOLEAN NOT NULL,
    wide BOOLEAN NOT NULL,
    status TEXT NOT NULL,
    category TEXT,
    at BIGINT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (school_id, seq)
);
CREATE INDEX events_by_subject ON events (school_id, kind, subject_id, seq);
CREATE INDEX events_wide ON events (school_id, kind, seq) WHERE wide;

-- The current state of each subject of any kind: JSON, and the columns by which it is looked for.
CREATE TABLE subjects (
    school_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    status TEXT NOT NULL,
    category TEXT,
    holds TEXT COLLATE "C",
    stalled BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    check_uptime BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_tag BIGINT,
    last_at BIGINT NOT NULL,
    -- The events that a snapshot repeats.
    told_seq BIGINT NOT NULL,
    also_told_seq BIGINT,
    -- JSON: the contribution to the history of the category.
    past TEXT,
    -- What a search compares, in lines; absent if it is too long to be kept, and looked up in the state.
    texts TEXT,
    state TEXT NOT NULL,
    PRIMARY KEY (school_id, kind, subject_id)
) WITH (fillfactor = 80);
CREATE INDEX subjects_by_creation ON subjects (school_id, kind, created_seq);
CREATE INDEX subjects_by_status ON subjects (school_id, kind, status, created_seq);
CREATE INDEX subjects_by_category ON subjects (school_id, kind, category, created_seq) WHERE category IS NOT NULL;
CREATE INDEX subjects_stalled ON subjects (school_id, kind, created_seq) WHERE stalled;
CREATE INDEX subjects_active ON subjects (school_id, kind, told_seq) WHERE finished_at IS NULL;
CREATE INDEX subjects_also_told ON subjects (school_id, kind, also_told_seq) WHERE also_told_seq IS NOT NULL;
CREATE INDEX subjects_ended ON subjects (school_id, kind, status, last_seq) WHERE finished_at IS NOT NULL;
CREATE INDEX subjects_finished ON subjects (school_id, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX subjects_holding ON subjects (school_id, kind, holds) WHERE holds IS NOT NULL;
CREATE INDEX subjects_past ON subjects (school_id, kind, category, finished_at) WHERE past IS NOT NULL;
-- Looked at over all schools, by one node at a time.
CREATE INDEX subjects_due ON subjects (check_uptime) WHERE check_uptime IS NOT NULL;

-- What belongs to a subject and has its own row, as a violation to a characteristic.
CREATE TABLE parts (
    school_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    own_id TEXT COLLATE "C",
    seq BIGINT NOT NULL,
    closed_at BIGINT,
    part TEXT NOT NULL,
    PRIMARY KEY (school_id, kind, subject_id, number)
);
CREATE INDEX parts_by_event ON parts (school_id, kind, seq);
CREATE INDEX parts_of_subject ON parts (school_id, kind, subject_id, seq);
CREATE INDEX parts_open ON parts (school_id, kind, seq) WHERE closed_at IS NULL;
CREATE INDEX parts_open_of_subject ON parts (school_id, kind, subject_id, seq) WHERE closed_at IS NULL;
CREATE INDEX parts_closed ON parts (school_id, closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX parts_by_own_id ON parts (school_id, kind, own_id) WHERE own_id IS NOT NULL;

-- How many subjects there are: by kind and status, stalled, and open parts.
CREATE TABLE counts (
    school_id BIGINT NOT NULL,
    what TEXT NOT NULL,
    status TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (school_id, what, status)
) WITH (fillfactor = 50);

-- How many subjects ended in each hour since 1970.
CREATE TABLE endings (
    school_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    hour BIGINT NOT NULL,
    status TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (school_id, kind, hour, status)
) WITH (fillfactor = 50);

-- Uses of idempotency keys. The answer is the event `seq` in the log, or, once that is gone or if there was none, `answer`:
-- the event as JSON.
CREATE TABLE idempotency_keys (
    school_id BIGINT NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    answer TEXT,
    PRIMARY KEY (school_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (school_id, created_at);
CREATE INDEX idempotency_keys_by_event ON idempotency_keys (school_id, seq) WHERE seq > 0;
CREATE INDEX idempotency_answers_by_age ON idempotency_keys (school_id, created_at) WHERE answer IS NOT NULL;

CREATE TABLE notifiers (
    name TEXT PRIMARY KEY,
    not_before BIGINT
);

CREATE TABLE notifier_cursors (
    school_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    seq BIGINT NOT NULL,
    delivered BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    dead BIGINT NOT NULL DEFAULT 0,
    tried_seq BIGINT,
    attempts BIGINT NOT NULL DEFAULT 0,
    delivered_at BIGINT,
    failed_at BIGINT,
    cause TEXT,
    PRIMARY KEY (school_id, name)
) WITH (fillfactor = 50);

CREATE TABLE notifier_set_aside (
    school_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    cause TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, name, kind, subject_id)
);

CREATE TABLE dead_letters (
    school_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    seq BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT COLLATE "C" NOT NULL,
    attempts BIGINT NOT NULL,
    cause TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (school_id, name, seq)
);

-- What only one node may do at a time. The time is the database's own.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    fence BIGINT NOT NULL,
    ends_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);
CREATE SEQUENCE fences;

-- The last two heartbeats of each device that any node has heard. Times are uptimes.
CREATE TABLE beats (
    school_id BIGINT NOT NULL,
    device_id TEXT COLLATE "C" NOT NULL,
    last_uptime BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    before_uptime BIGINT,
    PRIMARY KEY (school_id, device_id)
) WITH (fillfactor = 50);

-- The nodes that run over this database. The times are the database's own.
CREATE TABLE nodes (
    node_id TEXT PRIMARY KEY,
    report TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);
