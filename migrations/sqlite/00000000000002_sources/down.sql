DROP TABLE violations;
DROP TABLE characteristics;
DROP TABLE devices;
DROP TABLE enrollment_sessions;
DROP INDEX events_wide;
ALTER TABLE events DROP COLUMN wide;
DELETE FROM sqlite_stat1;
