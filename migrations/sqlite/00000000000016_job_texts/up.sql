-- The index of texts: each three characters in a row of the texts of each job that has ended, so that a search reads only
-- jobs that may fit. Of jobs that go on it has nothing: they are few, and their texts change.

-- Small numbers of the schools that have jobs in the index. A row of it is (number << 40) | created_seq: those of a school
-- are a range, in the order of lists.
CREATE TABLE school_numbers (
    number INTEGER NOT NULL PRIMARY KEY,
    school_id BIGINT NOT NULL UNIQUE
);
INSERT INTO school_numbers (school_id) SELECT school_id FROM schools ORDER BY school_id;

-- `job_text` is a function of the program: it folds the texts, which the index need not do again.
CREATE VIRTUAL TABLE job_texts USING fts5(
    text, content = '', contentless_delete = 1, detail = none, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO job_texts (rowid, text)
    SELECT (number << 40) | created_seq,
        job_text(job_id, job_type, status, message, metadata, error_code, error_message)
    FROM school_numbers CROSS JOIN jobs INDEXED BY jobs_by_creation ON jobs.school_id = school_numbers.school_id
    WHERE finished_at IS NOT NULL
    ORDER BY number, created_seq;
-- In one piece: searches are several times faster, and the next writes have no merges to make up for.
INSERT INTO job_texts (job_texts) VALUES ('optimize');

-- Triggers keep it, so that nothing changes without it. An upsert overrides OR IGNORE and OR REPLACE within them.
CREATE TRIGGER jobs_indexed AFTER INSERT ON jobs WHEN NEW.finished_at IS NOT NULL BEGIN
    INSERT INTO school_numbers (school_id) VALUES (NEW.school_id) ON CONFLICT DO NOTHING;
    INSERT INTO job_texts (rowid, text)
        SELECT (number << 40) | NEW.created_seq,
            job_text(NEW.job_id, NEW.job_type, NEW.status, NEW.message, NEW.metadata, NEW.error_code, NEW.error_message)
        FROM school_numbers WHERE school_id = NEW.school_id;
END;
CREATE TRIGGER jobs_reindexed AFTER UPDATE OF status, message, metadata, error_code, error_message, finished_at ON jobs
    WHEN NEW.finished_at IS NOT NULL AND (
        OLD.finished_at IS NULL OR NEW.status <> OLD.status OR NEW.message <> OLD.message OR NEW.metadata <> OLD.metadata
        OR NEW.error_code IS NOT OLD.error_code OR NEW.error_message IS NOT OLD.error_message
    ) BEGIN
    INSERT INTO school_numbers (school_id) VALUES (NEW.school_id) ON CONFLICT DO NOTHING;
    DELETE FROM job_texts
        WHERE rowid = (SELECT (number << 40) | NEW.created_seq FROM school_numbers WHERE school_id = NEW.school_id);
    INSERT INTO job_texts (rowid, text)
        SELECT (number << 40) | NEW.created_seq,
            job_text(NEW.job_id, NEW.job_type, NEW.status, NEW.message, NEW.metadata, NEW.error_code, NEW.error_message)
        FROM school_numbers WHERE school_id = NEW.school_id;
END;
CREATE TRIGGER jobs_reopened AFTER UPDATE OF finished_at ON jobs
    WHEN NEW.finished_at IS NULL AND OLD.finished_at IS NOT NULL BEGIN
    DELETE FROM job_texts
        WHERE rowid = (SELECT (number << 40) | OLD.created_seq FROM school_numbers WHERE school_id = OLD.school_id);
END;
CREATE TRIGGER jobs_unindexed AFTER DELETE ON jobs WHEN OLD.finished_at IS NOT NULL BEGIN
    DELETE FROM job_texts
        WHERE rowid = (SELECT (number << 40) | OLD.created_seq FROM school_numbers WHERE school_id = OLD.school_id);
END;
