-- Drawing elsewhere: jobs that workers lease, the policies that they draw from, and who they are.

-- One row per piece of a step's sampling. A worker leases it until some moment and extends that while it draws; what it
-- drew is appended in the transaction that makes the job done, so that a job has one result or none.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    run_id BIGINT NOT NULL REFERENCES runs (id),
    step BIGINT NOT NULL,               -- the step that will learn from it
    place BIGINT NOT NULL,              -- of its first group in the step
    groups BIGINT NOT NULL,             -- how many it draws
    min_version BIGINT NOT NULL,        -- the oldest policy version that may draw it
    state TEXT NOT NULL,                -- ready, leased or done
    request TEXT,                       -- what to draw, as JSON; NULL once it is done
    digest TEXT NOT NULL,               -- SHA-256 of the request, which stays
    worker TEXT,                        -- who has it, or did it
    leased_until BIGINT,                -- by the store's clock
    attempts BIGINT NOT NULL DEFAULT 0, -- how often it was leased
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    UNIQUE (run_id, step, place)
);
CREATE INDEX jobs_by_state ON jobs (state, step, id);

-- The policy versions that workers may draw from, newest last; older ones go when no job asks for them.
CREATE TABLE publications (
    run_id BIGINT NOT NULL REFERENCES runs (id),
    version BIGINT NOT NULL,
    hash TEXT NOT NULL,                 -- as in policies.hash
    adapter TEXT NOT NULL,              -- where its weights are
    created_at BIGINT NOT NULL,
    PRIMARY KEY (run_id, version)
) WITHOUT ROWID;

-- Who draws, and when it was last heard of.
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    model_hash TEXT NOT NULL,           -- of the base model that it has
    jobs BIGINT NOT NULL,               -- that it has done
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL             -- by the store's clock
) WITHOUT ROWID;
