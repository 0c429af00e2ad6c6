-- The publisher's verdict on the last sample, if it came with one.
ALTER TABLE characteristics ADD COLUMN publisher_in_control BOOLEAN;

-- The publisher's own id of a violation.
ALTER TABLE violations ADD COLUMN own_id TEXT;
CREATE UNIQUE INDEX violations_own ON violations (school_id, own_id) WHERE own_id IS NOT NULL;

-- A session need not have a device. SQLite cannot drop NOT NULL from a column: the table is made anew.
CREATE TABLE enrollment_sessions_new (
    school_id BIGINT NOT NULL,
    session_id TEXT NOT NULL,
    device_id TEXT,
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
INSERT INTO enrollment_sessions_new SELECT * FROM enrollment_sessions;
DROP TABLE enrollment_sessions;
ALTER TABLE enrollment_sessions_new RENAME TO enrollment_sessions;
CREATE INDEX enrollments_by_creation ON enrollment_sessions (school_id, created_seq);
CREATE INDEX enrollments_by_status ON enrollment_sessions (school_id, status, created_seq);
CREATE INDEX enrollments_active ON enrollment_sessions (school_id, last_seq) WHERE finished_at IS NULL;
CREATE INDEX enrollments_ended ON enrollment_sessions (school_id, status, last_seq) WHERE finished_at IS NOT NULL;
CREATE INDEX enrollments_by_device ON enrollment_sessions (school_id, device_id) WHERE finished_at IS NULL;
CREATE INDEX enrollments_to_check ON enrollment_sessions (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX enrollments_finished ON enrollment_sessions (finished_at) WHERE finished_at IS NOT NULL;
