-- Jobs that have not been heard of for too long: few, and looked for first.
CREATE INDEX jobs_stalled ON jobs (school_id, created_seq) WHERE stalled;
-- The milestones of a subject, however many ticks lie between.
CREATE INDEX events_milestones ON events (school_id, kind, subject_id, seq) WHERE milestone;
-- What ended by the hour.
CREATE INDEX jobs_endings ON jobs (school_id, status, finished_at) WHERE finished_at IS NOT NULL;
