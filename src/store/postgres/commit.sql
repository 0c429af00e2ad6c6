WITH
input AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
        AS input (school_id, expected, stamp, head, head_tag, bytes, answer_bytes)
),
locked AS (
    SELECT school_id, stamp FROM schools WHERE school_id = ANY ($1) ORDER BY school_id FOR UPDATE
),
made AS (
    INSERT INTO schools (school_id, stamp, head, head_tag, bytes, answer_bytes, uptime)
    SELECT school_id, stamp, head, head_tag, bytes, answer_bytes, $58 FROM input WHERE expected IS NULL ORDER BY school_id
    ON CONFLICT DO NOTHING
    RETURNING school_id
),
moved AS (
    UPDATE schools SET stamp = input.stamp, head = input.head, head_tag = input.head_tag,
        bytes = schools.bytes + input.bytes, answer_bytes = schools.answer_bytes + input.answer_bytes,
        uptime = GREATEST(schools.uptime, $58)
    FROM input JOIN locked USING (school_id)
    WHERE schools.school_id = input.school_id AND locked.stamp = input.expected
    RETURNING schools.school_id
),
-- Existing rows are locked before new ones are inserted, here and elsewhere, so that two nodes cannot deadlock.
written AS MATERIALIZED (
    SELECT school_id FROM moved UNION ALL SELECT school_id FROM made
),
new_events AS (
    INSERT INTO events (school_id, seq, kind, subject_id, name, milestone, wide, status, category, at, fields)
    SELECT e.* FROM unnest($8::bigint[], $9::bigint[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::boolean[],
        $15::text[], $16::text[], $17::bigint[], $18::text[])
        AS e (school_id, seq, kind, subject_id, name, milestone, wide, status, category, at, fields)
    WHERE e.school_id IN (SELECT school_id FROM written)
),
states AS MATERIALIZED (
    SELECT s.* FROM unnest($19::bigint[], $20::text[], $21::text[], $22::text[], $23::text[], $24::text[], $25::boolean[],
        $26::bigint[], $27::bigint[], $28::bigint[], $29::bigint[], $30::bigint[], $31::bigint[], $32::bigint[],
        $33::bigint[], $34::bigint[], $35::text[], $36::text[], $37::text[], $38::text[], $39::boolean[], $40::bigint[])
        AS s (school_id, kind, subject_id, status, category, holds, stalled, created_at, finished_at, check_uptime,
            created_seq, last_seq, last_tag, last_at, told_seq, also_told_seq, past, texts, state,
            old_status, old_stalled, old_finished_at)
    WHERE s.school_id IN (SELECT school_id FROM written)
),
-- The node sends the old values that it has decided with. The unchanged stamp proves that they need no lookup.
old_states AS (
    SELECT school_id, kind, old_status AS status, old_stalled AS stalled, old_finished_at AS finished_at
    FROM states WHERE old_status IS NOT NULL
),
new_states AS (
    INSERT INTO subjects (school_id, kind, subject_id, status, category, holds, stalled, created_at, finished_at,
        check_uptime, created_seq, last_seq, last_tag, last_at, told_seq, also_told_seq, past, texts, state)
    SELECT school_id, kind, subject_id, status, category, holds, stalled, created_at, finished_at,
        check_uptime, created_seq, last_seq, last_tag, last_at, told_seq, also_told_seq, past, texts, state
    FROM states
    ON CONFLICT (school_id, kind, subject_id) DO UPDATE SET
        status = excluded.status, category = excluded.category, holds = excluded.holds, stalled = excluded.stalled,
        created_at = excluded.created_at, finished_at = excluded.finished_at, check_uptime = excluded.check_uptime,
        created_seq = excluded.created_seq, last_seq = excluded.last_seq, last_tag = excluded.last_tag,
        last_at = excluded.last_at, told_seq = excluded.told_seq, also_told_seq = excluded.also_told_seq,
        past = excluded.past, texts = excluded.texts, state = excluded.state
),
own_parts AS MATERIALIZED (
    SELECT p.* FROM unnest($41::bigint[], $42::text[], $43::text[], $44::bigint[], $45::text[], $46::bigint[], $47::bigint[],
        $48::text[])
        AS p (school_id, kind, subject_id, number, own_id, seq, closed_at, part)
    WHERE p.school_id IN (SELECT school_id FROM written)
),
old_parts AS MATERIALIZED (
    -- The first row from the key on: see lookup.rs.
    SELECT o.school_id, o.kind, o.closed_at FROM own_parts AS w
    JOIN LATERAL (
        SELECT * FROM parts AS p
        WHERE (p.school_id, p.kind, p.subject_id, p.number) >= (w.school_id, w.kind, w.subject_id, w.number)
        ORDER BY p.school_id, p.kind, p.subject_id, p.number LIMIT 1
    ) AS o ON (o.school_id, o.kind, o.subject_id, o.number) = (w.school_id, w.kind, w.subject_id, w.number)
),
new_parts AS (
    INSERT INTO parts (school_id, kind, subject_id, number, own_id, seq, closed_at, part)
    SELECT * FROM own_parts
    ON CONFLICT (school_id, kind, subject_id, number) DO UPDATE SET
        own_id = excluded.own_id, seq = excluded.seq, closed_at = excluded.closed_at, part = excluded.part
),
new_keys AS (
    INSERT INTO idempotency_keys (school_id, key, fingerprint, kind, subject_id, seq, answer, created_at)
    SELECT k.*, $56 FROM unnest($49::bigint[], $50::text[], $51::text[], $52::text[], $53::text[], $54::bigint[], $55::text[])
        AS k (school_id, key, fingerprint, kind, subject_id, seq, answer)
    WHERE k.school_id IN (SELECT school_id FROM written)
    ON CONFLICT (school_id, key) DO UPDATE SET
        fingerprint = excluded.fingerprint, kind = excluded.kind, subject_id = excluded.subject_id, seq = excluded.seq,
        answer = excluded.answer, created_at = excluded.created_at
),
changed AS (
    SELECT school_id, kind AS what, status, 1 AS by FROM states
    UNION ALL SELECT school_id, kind, status, -1 FROM old_states
    UNION ALL SELECT school_id, 'stalled ' || kind, '', 1 FROM states WHERE stalled
    UNION ALL SELECT school_id, 'stalled ' || kind, '', -1 FROM old_states WHERE stalled
    UNION ALL SELECT school_id, 'open ' || kind, '', 1 FROM own_parts WHERE closed_at IS NULL
    UNION ALL SELECT school_id, 'open ' || kind, '', -1 FROM old_parts WHERE closed_at IS NULL
),
new_counts AS (
    INSERT INTO counts (school_id, what, status, count)
    SELECT school_id, what, status, sum(by) FROM changed GROUP BY school_id, what, status HAVING sum(by) <> 0
    ON CONFLICT (school_id, what, status) DO UPDATE SET count = counts.count + excluded.count
),
ended AS (
    SELECT school_id, kind, finished_at / 3600000 AS hour, status, 1 AS by FROM states WHERE finished_at IS NOT NULL
    UNION ALL SELECT school_id, kind, finished_at / 3600000, status, -1 FROM old_states WHERE finished_at IS NOT NULL
),
new_endings AS (
    INSERT INTO endings (school_id, kind, hour, status, count)
    SELECT school_id, kind, hour, status, sum(by) FROM ended GROUP BY school_id, kind, hour, status HAVING sum(by) <> 0
    ON CONFLICT (school_id, kind, hour, status) DO UPDATE SET count = endings.count + excluded.count
)
-- If nothing is written, there is no reason to wait for the disk. The first row is always there, so that the setting always applies.
SELECT written.school_id, durability.mode
FROM (SELECT set_config('synchronous_commit', CASE WHEN EXISTS (SELECT FROM written) THEN $57 ELSE 'off' END, true) AS mode) AS durability
LEFT JOIN written ON true
