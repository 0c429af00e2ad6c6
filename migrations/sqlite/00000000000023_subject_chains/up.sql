-- An event names the event of its subject before it, so the index on subjects needs to contain only some ticks: writing an
-- entry for each cost as much as everything else of a tick. The events from before remain in the index. See `subject_log.rs`.
ALTER TABLE events ADD COLUMN previous_seq BIGINT;
ALTER TABLE events ADD COLUMN indexed BOOLEAN NOT NULL DEFAULT TRUE;
DROP INDEX events_by_subject;
-- With `indexed` at its end, a search needs no row.
CREATE INDEX events_by_subject ON events (school_id, kind, subject_id, seq, indexed) WHERE indexed;

-- What the planner must know of it, which was deleted with the index.
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('events', 'events_by_subject', '100000 10000 5000 5 1 1');
ANALYZE sqlite_schema;
