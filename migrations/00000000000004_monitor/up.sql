-- Jobs that have not been heard of for too long: few, and looked for first.
CREATE INDEX jobs_stalled ON jobs (school_id, created_seq) WHERE stalled;
-- What ended by the hour.
CREATE INDEX jobs_endings ON jobs (school_id, status, finished_at) WHERE finished_at IS NOT NULL;
