DROP TRIGGER jobs_indexed;
DROP TRIGGER jobs_reindexed;
DROP TRIGGER jobs_reopened;
DROP TRIGGER jobs_unindexed;
DROP TABLE job_texts;
DROP TABLE school_numbers;
