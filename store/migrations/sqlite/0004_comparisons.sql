-- Comparisons: a table of their own. Up to version 3 they were weightless rows of `rewards`, named `beats_3` for the
-- sample at place 3 of the same group and `beats_opponent_3` for that of the opponent's group.

-- One row per sample and rival that a judge compared it with.
CREATE TABLE comparisons (
    sample_id BIGINT NOT NULL REFERENCES samples (id),
    scoring BIGINT NOT NULL,            -- as in rewards
    place BIGINT NOT NULL,              -- in the order in which they were made
    judge TEXT NOT NULL,                -- its name; 'unknown' in rows from before this table
    version TEXT NOT NULL,              -- of the judge
    rival TEXT NOT NULL,                -- whose sample the rival is: own (of the same group) or opponent
    rival_place BIGINT NOT NULL,        -- of the rival in its group, from 0
    win DOUBLE PRECISION,               -- the probability that the sample beats the rival
    status TEXT NOT NULL,               -- 'judged', or 'unjudged: ' and the reason
    created_at BIGINT NOT NULL,
    PRIMARY KEY (sample_id, scoring, place)
) WITHOUT ROWID;

-- A judge always gave a win rate, too: a reward of such a name without one is a reward.
INSERT INTO comparisons (sample_id, scoring, place, judge, version, rival, rival_place, win, status, created_at)
SELECT r.sample_id, r.scoring, r.place, 'unknown', r.version,
    CASE WHEN substr(r.name, 7, 9) = 'opponent_' THEN 'opponent' ELSE 'own' END,
    CAST(replace(substr(r.name, 7), 'opponent_', '') AS BIGINT), r.value, r.status, r.created_at
FROM rewards r
WHERE r.weight = 0 AND substr(r.name, 1, 6) = 'beats_'
    AND length(replace(substr(r.name, 7), 'opponent_', '')) BETWEEN 1 AND 9
    AND ltrim(replace(substr(r.name, 7), 'opponent_', ''), '0123456789') = ''
    AND EXISTS (SELECT 1 FROM rewards w
        WHERE w.sample_id = r.sample_id AND w.scoring = r.scoring AND w.name = 'win_rate');
DELETE FROM rewards WHERE EXISTS (SELECT 1 FROM comparisons c
    WHERE c.sample_id = rewards.sample_id AND c.scoring = rewards.scoring AND c.place = rewards.place);

-- One row per part of a sample's reward; and one per comparison, under the name that it had among them.
DROP VIEW part_view;
CREATE VIEW part_view AS
SELECT r.sample_id, r.place, r.name, r.version, r.weight, r.value, r.status
FROM rewards r WHERE r.scoring = 0
UNION ALL
SELECT r.sample_id, r.place, CASE r.rival WHEN 'own' THEN 'beats_' ELSE 'beats_opponent_' END || r.rival_place,
    r.version, CAST(0 AS DOUBLE PRECISION), r.win, r.status
FROM comparisons r WHERE r.scoring = 0;

-- As before, its parts with those of part_view.
DROP VIEW sample_view;
CREATE VIEW sample_view AS
SELECT s.id AS sample_id,
    g.run_id,
    runs.name AS run,
    g.step,
    p.version AS policy_version,
    p.hash AS policy_hash,
    s.group_id,
    s.place,
    q.question,
    q.answer,
    s.text,
    (SELECT t.reward FROM reward_view t WHERE t.sample_id = s.id) AS reward,
    (SELECT json_group_object(x.name, x.value) FROM
        (SELECT r.name, r.value FROM rewards r WHERE r.sample_id = s.id AND r.scoring = 0
        UNION ALL
        SELECT CASE r.rival WHEN 'own' THEN 'beats_' ELSE 'beats_opponent_' END || r.rival_place, r.win
        FROM comparisons r WHERE r.sample_id = s.id AND r.scoring = 0) x) AS parts,
    s.finish,
    s.length,
    s.logprob_sum,
    -- Four bytes at a time, in hexadecimal. instr() gives a digit's value: 0 where it finds none.
    (WITH RECURSIVE piece (i, h) AS (
        SELECT 0, hex(substr(s.token_ids, 1, 4)) WHERE s.length > 0
        UNION ALL
        SELECT i + 1, hex(substr(s.token_ids, 4 * i + 5, 4)) FROM piece WHERE i + 1 < s.length)
     SELECT json_group_array(
        instr('123456789ABCDEF', substr(h, 7, 1)) * 268435456 + instr('123456789ABCDEF', substr(h, 8, 1)) * 16777216 +
        instr('123456789ABCDEF', substr(h, 5, 1)) * 1048576 + instr('123456789ABCDEF', substr(h, 6, 1)) * 65536 +
        instr('123456789ABCDEF', substr(h, 3, 1)) * 4096 + instr('123456789ABCDEF', substr(h, 4, 1)) * 256 +
        instr('123456789ABCDEF', substr(h, 1, 1)) * 16 + instr('123456789ABCDEF', substr(h, 2, 1)))
     FROM piece) AS token_ids,
    -- IEEE 754 single precision: sign, 8 bits of exponent, 23 bits of fraction; infinities and NaN become null.
    -- Powers of two come from shifts, because not every SQLite has pow().
    (WITH RECURSIVE piece (i, h) AS (
        SELECT 0, hex(substr(s.logprobs, 1, 4)) WHERE s.length > 0
        UNION ALL
        SELECT i + 1, hex(substr(s.logprobs, 4 * i + 5, 4)) FROM piece WHERE i + 1 < s.length),
     bits (i, b) AS (
        SELECT i,
            instr('123456789ABCDEF', substr(h, 7, 1)) * 268435456 + instr('123456789ABCDEF', substr(h, 8, 1)) * 16777216 +
            instr('123456789ABCDEF', substr(h, 5, 1)) * 1048576 + instr('123456789ABCDEF', substr(h, 6, 1)) * 65536 +
            instr('123456789ABCDEF', substr(h, 3, 1)) * 4096 + instr('123456789ABCDEF', substr(h, 4, 1)) * 256 +
            instr('123456789ABCDEF', substr(h, 1, 1)) * 16 + instr('123456789ABCDEF', substr(h, 2, 1))
        FROM piece),
     fields (i, sign, e, m) AS (
        SELECT i, 1 - 2 * (b >> 31), (b >> 23) & 255, b & 8388607 FROM bits)
     SELECT json_group_array(CASE
        WHEN e = 255 THEN NULL
        WHEN e = 0 THEN sign * (m + 0.0) / (1 << 62) / (1 << 62) / (1 << 25)
        WHEN e < 26 THEN sign * (m + 8388608.0) / (1 << 62) / (1 << 62) / (1 << (26 - e))
        WHEN e < 88 THEN sign * (m + 8388608.0) / (1 << 62) / (1 << (88 - e))
        WHEN e < 150 THEN sign * (m + 8388608.0) / (1 << (150 - e))
        WHEN e < 212 THEN sign * (m + 8388608.0) * (1 << (e - 150))
        ELSE sign * (m + 8388608.0) * (1 << 61) * (1 << (e - 211))
     END)
     FROM fields) AS logprobs,
    (WITH RECURSIVE piece (i, h) AS (
        SELECT 0, hex(substr(q.token_ids, 1, 4)) WHERE q.length > 0
        UNION ALL
        SELECT i + 1, hex(substr(q.token_ids, 4 * i + 5, 4)) FROM piece WHERE i + 1 < q.length)
     SELECT json_group_array(
        instr('123456789ABCDEF', substr(h, 7, 1)) * 268435456 + instr('123456789ABCDEF', substr(h, 8, 1)) * 16777216 +
        instr('123456789ABCDEF', substr(h, 5, 1)) * 1048576 + instr('123456789ABCDEF', substr(h, 6, 1)) * 65536 +
        instr('123456789ABCDEF', substr(h, 3, 1)) * 4096 + instr('123456789ABCDEF', substr(h, 4, 1)) * 256 +
        instr('123456789ABCDEF', substr(h, 1, 1)) * 16 + instr('123456789ABCDEF', substr(h, 2, 1)))
     FROM piece) AS prompt_token_ids
FROM samples s
JOIN groups g ON g.id = s.group_id
JOIN runs ON runs.id = g.run_id
JOIN policies p ON p.id = g.policy_id
JOIN prompts q ON q.id = g.prompt_id;
