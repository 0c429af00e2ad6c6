-- Silence is measured in uptime: milliseconds during which the server was up, over all its starts together. `meta` has
-- it as `uptime`, saved every second; without that row it is 0, which is now. So what there is counts as heard of now.
ALTER TABLE jobs ADD COLUMN heard_uptime BIGINT NOT NULL DEFAULT 0;
ALTER TABLE enrollment_sessions ADD COLUMN heard_uptime BIGINT NOT NULL DEFAULT 0;
-- The uptime from which a device's lease counts.
ALTER TABLE devices ADD COLUMN lease_uptime BIGINT NOT NULL DEFAULT 0;

-- Who has reported on a job, in its present attempt and in earlier ones: JSON.
ALTER TABLE jobs ADD COLUMN reporters TEXT;

-- When to look is an uptime, too. At 0 they are looked at once, and then when they need it.
ALTER TABLE jobs RENAME COLUMN check_at TO check_uptime;
UPDATE jobs SET check_uptime = 0 WHERE check_uptime IS NOT NULL;
ALTER TABLE enrollment_sessions RENAME COLUMN check_at TO check_uptime;
UPDATE enrollment_sessions SET check_uptime = 0 WHERE check_uptime IS NOT NULL;
ALTER TABLE devices RENAME COLUMN check_at TO check_uptime;
UPDATE devices SET check_uptime = 0 WHERE check_uptime IS NOT NULL;

-- So is when a device came or went. One that flaps is watched for as long again; of the others none changed just now.
UPDATE devices SET changes = CASE WHEN flapping THEN '[0,0,0,0]' ELSE '[]' END;
