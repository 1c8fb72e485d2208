-- Keeping: where rows came from, whether they are still what was written, what was pruned, and later judgements.

ALTER TABLE runs ADD COLUMN kind TEXT NOT NULL DEFAULT 'training';      -- training or import

-- drawn: this policy drew the samples. imported: they came from elsewhere, and this policy computed the
-- log-probabilities that stand beside them.
ALTER TABLE policies ADD COLUMN origin TEXT NOT NULL DEFAULT 'drawn';

-- SHA-256 of finish, text, mask, token ids and log-probabilities; NULL for samples from before this column.
ALTER TABLE samples ADD COLUMN hash TEXT;

-- When the samples of this step were pruned; its row and its metrics stay, its three counts become 0.
ALTER TABLE steps ADD COLUMN pruned_at BIGINT;

-- The same prompt in some steps of a run: a walk through neighbours.
DROP INDEX groups_by_prompt;
CREATE INDEX groups_by_prompt ON groups (prompt_id, run_id, step);

-- Later judgements of stored samples. `rewards.scoring` counts as these ids do; 0 is what training saw.
CREATE TABLE scorings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id BIGINT REFERENCES runs (id), -- NULL if every run was judged
    config TEXT NOT NULL,               -- the [[reward]] tables, as TOML
    created_at BIGINT NOT NULL,
    finished_at BIGINT                  -- NULL while it goes on, or if it was broken off
);

-- One row per part of a sample's reward.
CREATE VIEW part_view AS
SELECT r.sample_id, r.place, r.name, r.version, r.weight, r.value, r.status
FROM rewards r WHERE r.scoring = 0;
