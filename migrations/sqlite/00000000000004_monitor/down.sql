DROP INDEX jobs_endings;
DROP INDEX events_milestones;
DROP INDEX jobs_stalled;
