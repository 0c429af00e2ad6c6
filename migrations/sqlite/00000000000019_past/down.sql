DROP INDEX jobs_past;
CREATE INDEX jobs_completed ON jobs (school_id, job_type, finished_at) WHERE status = 'completed';
