-- How many there are, kept by triggers, so that nobody need count them: subjects of a kind by status, stalled jobs, open
-- violations. A school's row is written anew only when a status changes.
CREATE TABLE counts (
    school_id BIGINT NOT NULL,
    what TEXT NOT NULL,
    -- Empty for what is not counted by status.
    status TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (school_id, what, status)
) WITHOUT ROWID;

INSERT INTO counts SELECT school_id, 'jobs', status, COUNT(*) FROM jobs GROUP BY school_id, status;
CREATE TRIGGER jobs_counted AFTER INSERT ON jobs BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'jobs', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER jobs_recounted AFTER UPDATE OF status ON jobs WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'jobs', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'jobs', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER jobs_discounted AFTER DELETE ON jobs BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'jobs', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

INSERT INTO counts SELECT school_id, 'enrollments', status, COUNT(*) FROM enrollment_sessions GROUP BY school_id, status;
CREATE TRIGGER enrollment_sessions_counted AFTER INSERT ON enrollment_sessions BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'enrollments', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER enrollment_sessions_recounted AFTER UPDATE OF status ON enrollment_sessions WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'enrollments', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'enrollments', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER enrollment_sessions_discounted AFTER DELETE ON enrollment_sessions BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'enrollments', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

INSERT INTO counts SELECT school_id, 'devices', status, COUNT(*) FROM devices GROUP BY school_id, status;
CREATE TRIGGER devices_counted AFTER INSERT ON devices BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'devices', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER devices_recounted AFTER UPDATE OF status ON devices WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'devices', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'devices', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER devices_discounted AFTER DELETE ON devices BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'devices', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

INSERT INTO counts SELECT school_id, 'characteristics', status, COUNT(*) FROM characteristics GROUP BY school_id, status;
CREATE TRIGGER characteristics_counted AFTER INSERT ON characteristics BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'characteristics', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER characteristics_recounted AFTER UPDATE OF status ON characteristics WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'characteristics', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'characteristics', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER characteristics_discounted AFTER DELETE ON characteristics BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'characteristics', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

INSERT INTO counts SELECT school_id, 'stalled jobs', '', COUNT(*) FROM jobs WHERE stalled GROUP BY school_id;
CREATE TRIGGER stalled_jobs_counted AFTER INSERT ON jobs WHEN NEW.stalled BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'stalled jobs', '', 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER stalled_jobs_recounted AFTER UPDATE OF stalled ON jobs WHEN (NEW.stalled) <> (OLD.stalled) BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'stalled jobs', '', CASE WHEN NEW.stalled THEN 1 ELSE -1 END)
        ON CONFLICT DO UPDATE SET count = count + (CASE WHEN NEW.stalled THEN 1 ELSE -1 END);
END;
CREATE TRIGGER stalled_jobs_discounted AFTER DELETE ON jobs WHEN OLD.stalled BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'stalled jobs', '', -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

INSERT INTO counts SELECT school_id, 'open violations', '', COUNT(*) FROM violations WHERE ack_at IS NULL GROUP BY school_id;
CREATE TRIGGER open_violations_counted AFTER INSERT ON violations WHEN NEW.ack_at IS NULL BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'open violations', '', 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER open_violations_recounted AFTER UPDATE OF ack_at ON violations WHEN (NEW.ack_at IS NULL) <> (OLD.ack_at IS NULL) BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'open violations', '', CASE WHEN NEW.ack_at IS NULL THEN 1 ELSE -1 END)
        ON CONFLICT DO UPDATE SET count = count + (CASE WHEN NEW.ack_at IS NULL THEN 1 ELSE -1 END);
END;
CREATE TRIGGER open_violations_discounted AFTER DELETE ON violations WHEN OLD.ack_at IS NULL BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'open violations', '', -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;

-- How many jobs ended in each way, by the hour since 1970.
CREATE TABLE job_endings (
    school_id BIGINT NOT NULL,
    hour BIGINT NOT NULL,
    status TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (school_id, hour, status)
) WITHOUT ROWID;
INSERT INTO job_endings SELECT school_id, finished_at / 3600000, status, COUNT(*) FROM jobs
    WHERE finished_at IS NOT NULL GROUP BY school_id, finished_at / 3600000, status;
CREATE TRIGGER job_endings_counted AFTER INSERT ON jobs WHEN NEW.finished_at IS NOT NULL BEGIN
    INSERT INTO job_endings VALUES (NEW.school_id, NEW.finished_at / 3600000, NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER job_endings_recounted AFTER UPDATE OF status, finished_at ON jobs
    WHEN NEW.finished_at IS NOT OLD.finished_at OR (NEW.finished_at IS NOT NULL AND NEW.status <> OLD.status) BEGIN
    UPDATE job_endings SET count = count - 1
        WHERE school_id = OLD.school_id AND hour = OLD.finished_at / 3600000 AND status = OLD.status;
    INSERT INTO job_endings SELECT NEW.school_id, NEW.finished_at / 3600000, NEW.status, 1 WHERE NEW.finished_at IS NOT NULL
        ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER job_endings_discounted AFTER DELETE ON jobs WHEN OLD.finished_at IS NOT NULL BEGIN
    UPDATE job_endings SET count = count - 1
        WHERE school_id = OLD.school_id AND hour = OLD.finished_at / 3600000 AND status = OLD.status;
    DELETE FROM job_endings
        WHERE school_id = OLD.school_id AND hour = OLD.finished_at / 3600000 AND status = OLD.status AND count = 0;
END;

-- Acknowledged violations, however many are open.
CREATE INDEX violations_acknowledged ON violations (school_id, seq) WHERE ack_at IS NOT NULL;
CREATE INDEX violations_acknowledged_of_characteristic ON violations (school_id, characteristic_id, seq) WHERE ack_at IS NOT NULL;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('violations', 'violations_acknowledged', '1000 100 1'),
    ('violations', 'violations_acknowledged_of_characteristic', '1000 100 5 1');
ANALYZE sqlite_schema;
