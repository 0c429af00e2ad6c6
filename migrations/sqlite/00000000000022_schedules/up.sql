-- What should have run and did not. The rest of a schedule's state is JSON: it is only read together with the row.
CREATE TABLE schedules (
    school_id BIGINT NOT NULL,
    schedule_id TEXT NOT NULL,
    status TEXT NOT NULL,
    cron TEXT,
    time_zone TEXT,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    check_uptime BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_tag BIGINT,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, schedule_id)
);
-- Lists, newest first.
CREATE INDEX schedules_by_creation ON schedules (school_id, created_seq);
CREATE INDEX schedules_by_status ON schedules (school_id, status, created_seq);
-- Snapshots, in the order of the log. A row is in one of them.
CREATE INDEX schedules_active ON schedules (school_id, last_seq) WHERE finished_at IS NULL;
CREATE INDEX schedules_ended ON schedules (school_id, status, last_seq) WHERE finished_at IS NOT NULL;
-- Those to be checked.
CREATE INDEX schedules_to_check ON schedules (check_uptime) WHERE check_uptime IS NOT NULL;
-- Retention.
CREATE INDEX schedules_finished ON schedules (finished_at) WHERE finished_at IS NOT NULL;

-- How many there are, by status.
CREATE TRIGGER schedules_counted AFTER INSERT ON schedules BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'schedules', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER schedules_recounted AFTER UPDATE OF status ON schedules WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'schedules', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'schedules', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER schedules_discounted AFTER DELETE ON schedules BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'schedules', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;
