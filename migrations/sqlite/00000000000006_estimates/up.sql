-- The end is estimated from more than a rate, and with a range. What a job teaches of its type is kept with it.
ALTER TABLE jobs ADD COLUMN eta_low_at BIGINT;
ALTER TABLE jobs ADD COLUMN eta_high_at BIGINT;
ALTER TABLE jobs ADD COLUMN eta_source TEXT;
-- JSON: what the end is estimated from, of one that runs.
ALTER TABLE jobs ADD COLUMN estimator TEXT;
-- JSON: its duration in seconds and its course, of one that is completed.
ALTER TABLE jobs ADD COLUMN past TEXT;
UPDATE jobs SET past = json_object('secs', (finished_at - started_at) / 1000.0, 'course', NULL)
    WHERE status = 'completed' AND finished_at > started_at;
-- Estimates of the former kind had no range. The next report makes one.
UPDATE jobs SET eta_at = NULL;
ALTER TABLE jobs DROP COLUMN eta_by_history;
ALTER TABLE jobs DROP COLUMN typical_secs;
ALTER TABLE jobs DROP COLUMN rate_smoothed;
ALTER TABLE jobs DROP COLUMN rate_since;
ALTER TABLE jobs DROP COLUMN rate_progress;
ALTER TABLE jobs DROP COLUMN rate_at;
