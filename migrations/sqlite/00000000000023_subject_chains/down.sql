DROP INDEX events_by_subject;
ALTER TABLE events DROP COLUMN indexed;
ALTER TABLE events DROP COLUMN previous_seq;
CREATE INDEX events_by_subject ON events (school_id, kind, subject_id, seq);
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('events', 'events_by_subject', '1000000 100000 50000 20 1');
ANALYZE sqlite_schema;
