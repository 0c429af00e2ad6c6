UPDATE devices SET changes = '[]', flapping = FALSE, check_uptime = NULL;
ALTER TABLE devices RENAME COLUMN check_uptime TO check_at;
ALTER TABLE devices DROP COLUMN lease_uptime;
ALTER TABLE enrollment_sessions RENAME COLUMN check_uptime TO check_at;
ALTER TABLE enrollment_sessions DROP COLUMN heard_uptime;
ALTER TABLE jobs RENAME COLUMN check_uptime TO check_at;
ALTER TABLE jobs DROP COLUMN reporters;
ALTER TABLE jobs DROP COLUMN heard_uptime;
DELETE FROM meta WHERE key = 'uptime';
