-- Sessions without a device keep an empty one.
UPDATE enrollment_sessions SET device_id = '' WHERE device_id IS NULL;
DROP INDEX violations_own;
ALTER TABLE violations DROP COLUMN own_id;
ALTER TABLE characteristics DROP COLUMN publisher_in_control;
