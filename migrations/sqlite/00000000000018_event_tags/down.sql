ALTER TABLE idempotency_answers DROP COLUMN tag;
ALTER TABLE characteristics DROP COLUMN last_tag;
ALTER TABLE devices DROP COLUMN last_tag;
ALTER TABLE enrollment_sessions DROP COLUMN last_tag;
ALTER TABLE jobs DROP COLUMN last_tag;
ALTER TABLE schools DROP COLUMN floor_tag;
ALTER TABLE schools DROP COLUMN head_tag;
