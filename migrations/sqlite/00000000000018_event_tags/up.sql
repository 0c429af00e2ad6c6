-- The tags of events that are named after they have left the log, or without reading it: where a log ends and begins, and
-- each subject's last event. Those from before are looked up in the log.
ALTER TABLE schools ADD COLUMN head_tag BIGINT;
ALTER TABLE schools ADD COLUMN floor_tag BIGINT;
ALTER TABLE jobs ADD COLUMN last_tag BIGINT;
ALTER TABLE enrollment_sessions ADD COLUMN last_tag BIGINT;
ALTER TABLE devices ADD COLUMN last_tag BIGINT;
ALTER TABLE characteristics ADD COLUMN last_tag BIGINT;
-- Of an answer that is a present state.
ALTER TABLE idempotency_answers ADD COLUMN tag BIGINT;
