-- Events that everyone hears who listens to any subject of their kind.
ALTER TABLE events ADD COLUMN wide BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX events_wide ON events (school_id, kind, seq) WHERE wide;

CREATE TABLE enrollment_sessions (
    school_id BIGINT NOT NULL,
    session_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    student_id TEXT,
    status TEXT NOT NULL,
    progress BIGINT NOT NULL,
    message TEXT NOT NULL,
    attempt BIGINT,
    total_attempts BIGINT,
    quality_score DOUBLE,
    error_code TEXT,
    created_at BIGINT NOT NULL,
    heard_at BIGINT NOT NULL,
    finished_at BIGINT,
    lease_secs BIGINT NOT NULL,
    check_at BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, session_id)
);
-- Lists, newest first.
CREATE INDEX enrollments_by_creation ON enrollment_sessions (school_id, created_seq);
CREATE INDEX enrollments_by_status ON enrollment_sessions (school_id, status, created_seq);
-- Snapshots, in the order of the log. A row is in one of them.
CREATE INDEX enrollments_active ON enrollment_sessions (school_id, last_seq) WHERE finished_at IS NULL;
CREATE INDEX enrollments_ended ON enrollment_sessions (school_id, status, last_seq) WHERE finished_at IS NOT NULL;
-- Who has a device. The writer sees to it that there is one at a time; rows of one commit come in any order.
CREATE INDEX enrollments_by_device ON enrollment_sessions (school_id, device_id) WHERE finished_at IS NULL;
-- The watchdog, and retention.
CREATE INDEX enrollments_to_check ON enrollment_sessions (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX enrollments_finished ON enrollment_sessions (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE devices (
    school_id BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    name TEXT,
    status TEXT NOT NULL,
    last_seen BIGINT,
    lease_secs BIGINT NOT NULL,
    flapping BOOLEAN NOT NULL,
    -- When it last came or went: a JSON list of times.
    changes TEXT NOT NULL,
    info TEXT NOT NULL,
    -- The events that told its status and its info.
    status_seq BIGINT NOT NULL,
    status_at BIGINT NOT NULL,
    info_seq BIGINT,
    info_at BIGINT,
    created_at BIGINT NOT NULL,
    check_at BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, device_id)
);
-- Lists, newest first.
CREATE INDEX devices_by_creation ON devices (school_id, created_seq);
CREATE INDEX devices_by_status ON devices (school_id, status, created_seq);
-- Snapshots, in the order of the log.
CREATE INDEX devices_by_status_event ON devices (school_id, status_seq);
CREATE INDEX devices_by_info_event ON devices (school_id, info_seq) WHERE info_seq IS NOT NULL;
-- The watchdog.
CREATE INDEX devices_to_check ON devices (check_at) WHERE check_at IS NOT NULL;

CREATE TABLE characteristics (
    school_id BIGINT NOT NULL,
    characteristic_id TEXT NOT NULL,
    name TEXT,
    unit TEXT,
    status TEXT NOT NULL,
    subgroup_size BIGINT NOT NULL,
    -- JSON: numbers and severities of the rules that are switched on.
    rules TEXT NOT NULL,
    center_line DOUBLE,
    ucl DOUBLE,
    lcl DOUBLE,
    limits_method TEXT,
    limits_samples BIGINT NOT NULL,
    limits_version BIGINT NOT NULL,
    -- JSON: the baseline that is being collected, the points that the rules look at, the rules that are broken.
    baseline TEXT,
    recent TEXT NOT NULL,
    runs TEXT NOT NULL,
    sample_count BIGINT NOT NULL,
    violation_count BIGINT NOT NULL,
    -- The last sample, its event, and the fields of its message.
    sample_id TEXT,
    sample_seq BIGINT,
    sample_at BIGINT,
    sample_status TEXT,
    sample_fields TEXT,
    -- The event that told the limits.
    limits_seq BIGINT NOT NULL,
    limits_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, characteristic_id)
);
-- Lists, newest first.
CREATE INDEX characteristics_by_creation ON characteristics (school_id, created_seq);
CREATE INDEX characteristics_by_status ON characteristics (school_id, status, created_seq);
-- Snapshots, in the order of the log.
CREATE INDEX characteristics_by_limits_event ON characteristics (school_id, limits_seq);
CREATE INDEX characteristics_by_sample_event ON characteristics (school_id, sample_seq) WHERE sample_seq IS NOT NULL;

CREATE TABLE violations (
    school_id BIGINT NOT NULL,
    characteristic_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    sample_id TEXT,
    rule_id BIGINT NOT NULL,
    rule_name TEXT NOT NULL,
    severity TEXT NOT NULL,
    at BIGINT NOT NULL,
    -- The event that told it.
    seq BIGINT NOT NULL,
    ack_user TEXT,
    ack_reason TEXT,
    ack_at BIGINT,
    PRIMARY KEY (school_id, characteristic_id, number)
);
-- Lists, newest first, and snapshots of the open ones, in the order of the log.
CREATE INDEX violations_by_event ON violations (school_id, seq);
CREATE INDEX violations_of_characteristic ON violations (school_id, characteristic_id, seq);
CREATE INDEX violations_open ON violations (school_id, seq) WHERE ack_at IS NULL;
CREATE INDEX violations_open_of_characteristic ON violations (school_id, characteristic_id, seq) WHERE ack_at IS NULL;
-- Retention.
CREATE INDEX violations_by_age ON violations (ack_at) WHERE ack_at IS NOT NULL;

-- What the planner must know of a log to read one subject by the index on subjects, and wide events by theirs,
-- rather than the school's whole log: rough sizes, and how many rows share the first columns of each index.
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('events', 'events', '1000000 100000 1'),
    ('events', 'events_by_subject', '1000000 100000 50000 20 1'),
    ('events', 'events_wide', '1000 100 100 1'),
    ('violations', 'sqlite_autoindex_violations_1', '100000 10000 1000 1'),
    ('violations', 'violations_of_characteristic', '100000 10000 1000 1'),
    ('violations', 'violations_open_of_characteristic', '1000 100 5 1'),
    ('violations', 'violations_by_event', '100000 10000 1'),
    ('violations', 'violations_open', '1000 100 1');
ANALYZE sqlite_schema;
