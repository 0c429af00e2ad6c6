CREATE TABLE parcels (
    school_id BIGINT NOT NULL,
    parcel_id TEXT NOT NULL,
    recipient TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    created_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    last_tag BIGINT,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (school_id, parcel_id)
);
-- Lists, newest first.
CREATE INDEX parcels_by_creation ON parcels (school_id, created_seq);
CREATE INDEX parcels_by_status ON parcels (school_id, status, created_seq);
-- Snapshots, in the order of the log. A row is in one of them.
CREATE INDEX parcels_active ON parcels (school_id, last_seq) WHERE finished_at IS NULL;
CREATE INDEX parcels_ended ON parcels (school_id, status, last_seq) WHERE finished_at IS NOT NULL;
-- Retention.
CREATE INDEX parcels_finished ON parcels (finished_at) WHERE finished_at IS NOT NULL;

-- How many there are, by status.
CREATE TRIGGER parcels_counted AFTER INSERT ON parcels BEGIN
    INSERT INTO counts VALUES (NEW.school_id, 'parcels', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER parcels_recounted AFTER UPDATE OF status ON parcels WHEN NEW.status <> OLD.status BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'parcels', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
    INSERT INTO counts VALUES (NEW.school_id, 'parcels', NEW.status, 1)
        ON CONFLICT DO UPDATE SET count = count + (1);
END;
CREATE TRIGGER parcels_discounted AFTER DELETE ON parcels BEGIN
    INSERT INTO counts VALUES (OLD.school_id, 'parcels', OLD.status, -1)
        ON CONFLICT DO UPDATE SET count = count + (-1);
END;
