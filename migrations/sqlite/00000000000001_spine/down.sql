DROP TABLE idempotency_keys;
DROP TABLE jobs;
DROP TABLE events;
DROP TABLE schools;
DROP TABLE meta;
