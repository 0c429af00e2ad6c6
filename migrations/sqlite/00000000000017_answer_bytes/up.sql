-- When the key was used, so that the oldest answers leave first; and how many bytes the answers of a school take, as each counts:
-- its fields, its key, and 128 for the rest of its row.
ALTER TABLE idempotency_answers ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;
UPDATE idempotency_answers SET created_at = COALESCE((
    SELECT idempotency_keys.created_at
    FROM idempotency_keys
    WHERE idempotency_keys.school_id = idempotency_answers.school_id AND idempotency_keys.key = idempotency_answers.key
), 0);
CREATE INDEX idempotency_answers_by_age ON idempotency_answers (school_id, created_at);
ALTER TABLE schools ADD COLUMN answer_bytes BIGINT NOT NULL DEFAULT 0;
UPDATE schools SET answer_bytes = (
    SELECT COALESCE(SUM(octet_length(fields) + octet_length(key) + 128), 0)
    FROM idempotency_answers
    WHERE idempotency_answers.school_id = schools.school_id
);
CREATE TRIGGER idempotency_answer_kept AFTER INSERT ON idempotency_answers BEGIN
    UPDATE schools SET answer_bytes = answer_bytes + octet_length(NEW.fields) + octet_length(NEW.key) + 128
    WHERE school_id = NEW.school_id;
END;
CREATE TRIGGER idempotency_answer_dropped AFTER DELETE ON idempotency_answers BEGIN
    UPDATE schools SET answer_bytes = answer_bytes - octet_length(OLD.fields) - octet_length(OLD.key) - 128
    WHERE school_id = OLD.school_id;
END;
