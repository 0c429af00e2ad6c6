DROP TABLE dead_letters;
DROP TABLE notifier_cursors;
DROP TABLE notifiers;
