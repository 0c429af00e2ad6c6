-- A tick of a job that goes on changes its message, but none of the columns that this trigger now names, so SQLite need not run the trigger
-- only to find that the job has not ended. All other statements that write `message` also set these columns.
DROP TRIGGER jobs_reindexed;
CREATE TRIGGER jobs_reindexed AFTER UPDATE OF status, metadata, error_code, error_message, finished_at ON jobs
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
