DROP INDEX idempotency_keys_by_event;
DROP TABLE idempotency_answers;
