-- Answers to requests with a key whose events have left the log before the key did, or never were in it: a repetition is
-- told them as they were.
CREATE TABLE idempotency_answers (
    school_id BIGINT NOT NULL,
    key TEXT NOT NULL,
    seq BIGINT NOT NULL,
    -- Whether it was the present state, because the request changed nothing.
    snapshot BOOLEAN NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    at BIGINT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (school_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_event ON idempotency_keys (school_id, seq);
