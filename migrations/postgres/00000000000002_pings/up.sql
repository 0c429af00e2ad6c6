-- Keys for pings. Only a digest of each is stored, by which a ping is looked up.
CREATE TABLE ping_keys (
    school_id BIGINT NOT NULL,
    key_id TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    job_type TEXT NOT NULL,
    numbers TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    -- The number of the last run that its pings began without an id of their own.
    run BIGINT NOT NULL,
    PRIMARY KEY (school_id, key_id)
);
CREATE UNIQUE INDEX ping_keys_by_digest ON ping_keys (school_id, digest);
