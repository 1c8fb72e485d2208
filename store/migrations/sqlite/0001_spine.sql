-- The spine: what was asked, what was answered, by which policy, and what it was worth.
--
-- Times are microseconds since 1970 in UTC. Token ids are little-endian u32, log-probabilities little-endian f32,
-- one after the other; the views at the end make them readable.

CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    status TEXT NOT NULL,               -- running, finished, interrupted or failed
    config TEXT NOT NULL,               -- the resolved config, as TOML
    program_version TEXT NOT NULL,
    model_hash TEXT NOT NULL,           -- identity of the base model
    out_dir TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT                  -- NULL while it runs
);
CREATE INDEX runs_by_name ON runs (name);

CREATE TABLE policies (
    id INTEGER PRIMARY KEY,
    run_id BIGINT NOT NULL REFERENCES runs (id),
    version BIGINT NOT NULL,            -- training steps that made it; 0 is the untouched model
    hash TEXT NOT NULL,                 -- SHA-256 of base model and adapter
    adapter TEXT,                       -- where the adapter's weights are, if they were kept
    created_at BIGINT NOT NULL,
    UNIQUE (run_id, version)
);

-- One row per question and tokenization of it: another model's template makes another row.
CREATE TABLE prompts (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL,                 -- SHA-256 of the JSON
    token_hash TEXT NOT NULL,           -- SHA-256 of the token ids
    question TEXT NOT NULL,             -- the last user turn, or the raw text
    answer TEXT,
    json TEXT NOT NULL,                 -- input, answer and metadata
    length BIGINT NOT NULL,             -- in tokens
    token_ids BLOB NOT NULL,
    CHECK (length(token_ids) = 4 * length),
    UNIQUE (hash, token_hash)
);

CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    run_id BIGINT NOT NULL REFERENCES runs (id),
    step BIGINT NOT NULL,
    place BIGINT NOT NULL,              -- in the step, from 0
    prompt_id BIGINT NOT NULL REFERENCES prompts (id),
    policy_id BIGINT NOT NULL REFERENCES policies (id),
    settings TEXT NOT NULL,             -- the sampler's settings, as JSON
    UNIQUE (run_id, step, place)
);
CREATE INDEX groups_by_policy ON groups (policy_id);
CREATE INDEX groups_by_prompt ON groups (prompt_id);

CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    group_id BIGINT NOT NULL REFERENCES groups (id),
    place BIGINT NOT NULL,              -- in the group, from 0
    length BIGINT NOT NULL,             -- in tokens
    finish TEXT NOT NULL,               -- eos, stop or length
    logprob_sum DOUBLE PRECISION,       -- over every token; NULL if it is not a number
    text TEXT NOT NULL,
    mask BLOB,                          -- one bit a token, lowest first; NULL if every token is trained on
    token_ids BLOB NOT NULL,
    logprobs BLOB NOT NULL,
    CHECK (length(token_ids) = 4 * length AND length(logprobs) = 4 * length),
    UNIQUE (group_id, place)
);

-- One row per part of a reward. A part that could not be judged has no value, and its status says why.
CREATE TABLE rewards (
    sample_id BIGINT NOT NULL REFERENCES samples (id),
    scoring BIGINT NOT NULL,            -- 0 is the judgement that training saw; later ones count up
    place BIGINT NOT NULL,              -- in the config's order, from 0
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    weight DOUBLE PRECISION NOT NULL,
    value DOUBLE PRECISION,             -- before weighting
    status TEXT NOT NULL,               -- 'judged', or 'unjudged: ' and the reason
    created_at BIGINT NOT NULL,
    PRIMARY KEY (sample_id, scoring, place)
) WITHOUT ROWID;

CREATE TABLE steps (
    run_id BIGINT NOT NULL REFERENCES runs (id),
    step BIGINT NOT NULL,
    groups BIGINT NOT NULL DEFAULT 0,
    samples BIGINT NOT NULL DEFAULT 0,
    tokens BIGINT NOT NULL DEFAULT 0,   -- of the samples
    metrics TEXT,                       -- JSON; NULL until the step is finished
    collected_at BIGINT,                -- when its samples were appended
    finished_at BIGINT,
    PRIMARY KEY (run_id, step)
) WITHOUT ROWID;

CREATE TABLE checkpoints (
    run_id BIGINT NOT NULL REFERENCES runs (id),
    step BIGINT NOT NULL,
    path TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (run_id, step)
) WITHOUT ROWID;

-- The reward of each sample: the weighted sum, or NULL if a part that has a weight could not be judged.
CREATE VIEW reward_view AS
SELECT s.id AS sample_id,
    (SELECT CASE
        WHEN COUNT(*) FILTER (WHERE r.weight <> 0) = COUNT(r.value) FILTER (WHERE r.weight <> 0)
        THEN SUM(r.weight * r.value) FILTER (WHERE r.weight <> 0)
     END
     FROM rewards r WHERE r.sample_id = s.id AND r.scoring = 0) AS reward
FROM samples s;

-- One row per sample, with everything in words and numbers. The last three columns are JSON lists.
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
    (SELECT json_group_object(r.name, r.value)
     FROM rewards r WHERE r.sample_id = s.id AND r.scoring = 0) AS parts,
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

-- One row per group. It has a signal if two of its judged samples differ in reward.
CREATE VIEW group_view AS
SELECT g.id AS group_id,
    g.run_id,
    runs.name AS run,
    g.step,
    g.place,
    p.version AS policy_version,
    q.question,
    q.answer,
    COUNT(*) AS samples,
    COUNT(t.reward) AS judged,
    SUM(s.length) AS tokens,
    AVG(t.reward) AS reward_mean,
    MIN(t.reward) AS reward_min,
    MAX(t.reward) AS reward_max,
    CASE WHEN MAX(t.reward) > MIN(t.reward) THEN 1 ELSE 0 END AS has_signal
FROM groups g
JOIN runs ON runs.id = g.run_id
JOIN policies p ON p.id = g.policy_id
JOIN prompts q ON q.id = g.prompt_id
JOIN samples s ON s.group_id = g.id
JOIN reward_view t ON t.sample_id = s.id
GROUP BY g.id, g.run_id, runs.name, g.step, g.place, p.version, q.question, q.answer;
