DROP INDEX jobs_endings;
DROP INDEX jobs_stalled;
