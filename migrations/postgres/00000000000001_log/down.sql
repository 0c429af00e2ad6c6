DROP SEQUENCE fences;
DROP TABLE nodes, beats, leases, dead_letters, notifier_set_aside, notifier_cursors, notifiers, idempotency_keys, endings, counts, parts, subjects, events, schools, meta;
