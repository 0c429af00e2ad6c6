-- How many bytes the events take that are kept, as each counts: its fields, its subject's id, and 128 for the rest of its row.
ALTER TABLE schools ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
UPDATE schools SET bytes = (
    SELECT COALESCE(SUM(octet_length(fields) + octet_length(subject_id) + 128), 0)
    FROM events
    WHERE events.school_id = schools.school_id
);
