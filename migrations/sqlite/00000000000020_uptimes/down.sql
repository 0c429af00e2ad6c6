ALTER TABLE schools DROP COLUMN uptime;
