DROP TRIGGER idempotency_answer_dropped;
DROP TRIGGER idempotency_answer_kept;
ALTER TABLE schools DROP COLUMN answer_bytes;
DROP INDEX idempotency_answers_by_age;
ALTER TABLE idempotency_answers DROP COLUMN created_at;
