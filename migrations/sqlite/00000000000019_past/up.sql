-- Median durations. SQLite compiles a query that compares `status` with a bound value again at each execution if an index depends
-- on such a comparison, so this one depends on what is read from it.
DROP INDEX jobs_completed;
CREATE INDEX jobs_past ON jobs (school_id, job_type, finished_at) WHERE past IS NOT NULL;
