ALTER TABLE notifiers DROP COLUMN not_before;
DROP TABLE notifier_set_aside;
