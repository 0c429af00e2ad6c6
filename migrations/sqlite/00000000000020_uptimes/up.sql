-- The uptime at the last write to a school's log, in milliseconds: a commit writes it into a row that it writes anyway, rather
-- than into a page of its own. The newest of these and of `meta` counts.
ALTER TABLE schools ADD COLUMN uptime BIGINT NOT NULL DEFAULT 0;
