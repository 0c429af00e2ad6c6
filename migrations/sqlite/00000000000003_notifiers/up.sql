-- Notifiers that have begun, also those that are not configured any more.
CREATE TABLE notifiers (
    name TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

-- How far each has come in a school's log, and what came of it.
CREATE TABLE notifier_cursors (
    name TEXT NOT NULL,
    school_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    delivered BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    dead BIGINT NOT NULL,
    -- The event that is being tried again, and how often it was.
    tried_seq BIGINT,
    attempts BIGINT NOT NULL,
    delivered_at BIGINT,
    failed_at BIGINT,
    cause TEXT,
    PRIMARY KEY (name, school_id)
) WITHOUT ROWID;
CREATE INDEX notifier_cursors_by_school ON notifier_cursors (school_id, name);

-- Events that were given up.
CREATE TABLE dead_letters (
    name TEXT NOT NULL,
    school_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    cause TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (name, school_id, seq)
) WITHOUT ROWID;
