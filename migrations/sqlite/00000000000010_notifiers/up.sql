-- Subjects whose next event a receiver refuses. Their events wait in the log, in order, while the cursor goes on.
CREATE TABLE notifier_set_aside (
    name TEXT NOT NULL,
    school_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    -- Everything of the subject before it is delivered, given up, or not wanted.
    seq BIGINT NOT NULL,
    -- Of the event at seq: its type, how often it was tried, and why that failed.
    event_type TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    cause TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    PRIMARY KEY (name, school_id, kind, subject_id)
) WITHOUT ROWID;
CREATE INDEX notifier_set_aside_by_school ON notifier_set_aside (school_id, name);

-- When the receiver asked to be tried again (Retry-After).
ALTER TABLE notifiers ADD COLUMN not_before BIGINT;
