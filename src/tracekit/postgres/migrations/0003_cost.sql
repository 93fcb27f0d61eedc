-- Cost: what model calls spent (`usage`, the ledger), what may be spent (`budgets`), and what is about to be
-- (`reservations`).
--
-- A call is (task_id, key). Every report of it is a row of `usage` and none is ever changed or replaced: what is learnt
-- later (a provider's own bill, a renewed price table) is the next version of the same call, and counts in place of the
-- one before. `spend` shows each call as it is known now; the versions before it say what was believed, and since when.
--
-- Locks: whoever writes to the ledger holds the task's row in `queue` or, where the task has left it, its envelope's, as
-- 0001 says of all that is written of a task. So the lines of a task stay in the order of commits, usage among them, and
-- the total on a root span is that of all lines before the end. After it come the rows of `budget_counters`, in the order
-- of their ids, then those of `usage_totals`, in the order of their keys: no two writers wait for each other in a circle.

CREATE TABLE tracekit.usage (
    task_id             text COLLATE "C" NOT NULL,
    key                 text COLLATE "C" NOT NULL,  -- of the call, within its task
    version             integer NOT NULL,           -- 1 as first reported; the greatest counts
    seq                 bigint NOT NULL DEFAULT nextval('tracekit.record_seq'),
    hop                 integer NOT NULL,
    attempt             integer NOT NULL,
    mode                text NOT NULL,
    persona             text,
    requester           text NOT NULL,
    origin              text NOT NULL,
    provider            text NOT NULL,
    model               text NOT NULL,
    local               boolean NOT NULL,           -- it ran in the house
    -- Four disjoint counters: a token is in one of them. What a provider calls input may be the sum of three.
    input_tokens        bigint NOT NULL CHECK (input_tokens >= 0),
    cache_read_tokens   bigint NOT NULL CHECK (cache_read_tokens >= 0),
    cache_write_tokens  bigint NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens       bigint NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens    bigint NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND output_tokens),  -- inside the output
    requests            bigint NOT NULL CHECK (requests >= 0),
    seconds             numeric CHECK (seconds >= 0),  -- that the call took, where that is known
    details             jsonb NOT NULL DEFAULT '{}',   -- numbers that a price may depend on: tiers, kinds of tokens
    billed              numeric CHECK (billed >= 0),   -- what the provider or a proxy said, whoever has the last word
    billed_by           text,
    -- An exact number of US dollars. NULL: nobody knows the price, which is not the same as nothing.
    cost                numeric CHECK (cost >= 0),
    price_source        text NOT NULL CHECK (price_source IN ('provider', 'table', 'override', 'unpriced')),
    price_version       text,                       -- which table, which setting, or whose bill
    basis               text NOT NULL CHECK (basis IN ('reported', 'estimated', 'lost')),  -- of the counters
    held                boolean NOT NULL,           -- its lease was held when this was written
    span_id             text COLLATE "C",           -- of the call, in the task's trace
    repricing           bigint,                     -- that made this version
    synthetic           boolean NOT NULL DEFAULT false,
    at                  timestamptz NOT NULL,       -- when the call was made: the day that it counts in
    booked_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, key, version),
    CHECK ((cost IS NULL) = (price_source = 'unpriced'))
);
CREATE INDEX usage_at ON tracekit.usage (at);

-- The ledger as it is known now.
CREATE VIEW tracekit.spend AS
SELECT * FROM tracekit.usage AS u
WHERE NOT EXISTS (SELECT FROM tracekit.usage AS n
                  WHERE n.task_id = u.task_id AND n.key = u.key AND n.version = u.version + 1);

-- All that was ever booked, by what metrics are labelled with, so that they need not add the ledger up, and do not sink
-- when history is dropped. A counter may only grow: what a later version lowered is counted by itself, in the row that
-- has `lowered`. Booked less lowered is the ledger.
CREATE TABLE tracekit.usage_totals (
    mode                text NOT NULL,
    persona             text NOT NULL,              -- empty where there is none
    requester           text NOT NULL,
    provider            text NOT NULL,
    model               text NOT NULL,
    synthetic           boolean NOT NULL,
    lowered             boolean NOT NULL,
    calls               bigint NOT NULL DEFAULT 0,
    unpriced            bigint NOT NULL DEFAULT 0,
    requests            bigint NOT NULL DEFAULT 0,
    input_tokens        bigint NOT NULL DEFAULT 0,
    cache_read_tokens   bigint NOT NULL DEFAULT 0,
    cache_write_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    reasoning_tokens    bigint NOT NULL DEFAULT 0,
    cost                numeric NOT NULL DEFAULT 0,
    since               timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (mode, persona, requester, provider, model, synthetic, lowered)
) WITH (fillfactor = 50);

-- A renewal of prices, brought up to date with each task that it goes through: what it changed are the versions of calls
-- that name it.
CREATE TABLE tracekit.repricings (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at               timestamptz NOT NULL DEFAULT clock_timestamp(),
    by               text NOT NULL,
    since            timestamptz,                   -- calls made from then on were looked at; null: all
    price_version    text NOT NULL,                 -- the table that was asked
    finished_at      timestamptz,                   -- null: it is under way, or was broken off
    looked_at        bigint NOT NULL DEFAULT 0,
    changed          bigint NOT NULL DEFAULT 0,
    cost_before      numeric NOT NULL DEFAULT 0,    -- of the calls that changed
    cost_after       numeric NOT NULL DEFAULT 0,
    unpriced_before  bigint NOT NULL DEFAULT 0,
    unpriced_after   bigint NOT NULL DEFAULT 0
);

-- --- budgets ---

-- What may be spent: who said so and when. The newest row of a (scope, subject, period, unit) holds.
CREATE TABLE tracekit.budgets (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope         text NOT NULL CHECK (scope IN ('total', 'mode', 'persona', 'requester', 'model', 'task')),
    subject       text NOT NULL,                    -- which mode, persona, requester or model; else empty
    period        text NOT NULL CHECK (period IN ('day', 'week', 'task')),
    unit          text NOT NULL CHECK (unit IN ('usd', 'tokens', 'requests')),
    amount        numeric CHECK (amount >= 0),      -- null: withdrawn
    urgent_extra  numeric NOT NULL DEFAULT 0 CHECK (urgent_extra >= 0),  -- beyond it, for urgent tasks alone
    policy        text NOT NULL CHECK (policy IN ('downgrade', 'park', 'refuse')),  -- at the limit
    time_zone     text NOT NULL,                    -- whose days and weeks
    set_by        text NOT NULL,
    set_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    why           text NOT NULL DEFAULT '',
    basis         jsonb,                            -- what `suggest` gave for it, and from what
    CHECK ((scope = 'task') = (period = 'task')),
    CHECK ((scope IN ('total', 'task')) = (subject = ''))
);
CREATE INDEX budgets_newest ON tracekit.budgets (scope, subject, period, unit, id DESC);

-- One row for each budget and period, made when first needed. It is locked while a call is reserved or settled, so that
-- no number of callers can spend the same money. It outlives changes of the budget's amount.
CREATE TABLE tracekit.budget_counters (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope     text NOT NULL,
    subject   text NOT NULL,
    period    text NOT NULL,
    unit      text NOT NULL,
    task_id   text COLLATE "C" NOT NULL DEFAULT '',  -- whose cap, where the scope is `task`
    begins    timestamptz NOT NULL,
    ends      timestamptz NOT NULL,
    spent     numeric NOT NULL DEFAULT 0,            -- of calls made within it, as the ledger knows them
    reserved  numeric NOT NULL DEFAULT 0 CHECK (reserved >= 0),  -- by open reservations
    warned    numeric NOT NULL DEFAULT 0,            -- the share of the amount of which people have been told
    UNIQUE (scope, subject, period, unit, begins, task_id)
) WITH (fillfactor = 50);
CREATE INDEX budget_counters_task ON tracekit.budget_counters (task_id) WHERE task_id <> '';

-- What a call may cost at most, from before it is made until its usage is booked. It is as good as the lease under which
-- it was made: of a lease that is not held any more the sweep releases it.
CREATE TABLE tracekit.reservations (
    task_id    text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,           -- the call's, as in `usage`
    hop        integer NOT NULL,
    attempt    integer NOT NULL,
    token      bigint NOT NULL,
    mode       text NOT NULL,
    persona    text,
    requester  text NOT NULL,
    origin     text NOT NULL,
    provider   text NOT NULL,
    model      text NOT NULL,
    local      boolean NOT NULL,
    usd        numeric,                             -- null: the model has no price
    tokens     bigint NOT NULL,
    requests   bigint NOT NULL,
    counters   bigint[] NOT NULL,                   -- the rows of `budget_counters` that hold it, in order
    span_id    text COLLATE "C",
    synthetic  boolean NOT NULL DEFAULT false,
    made_at    timestamptz NOT NULL,
    closed_at  timestamptz,
    outcome    text CHECK (outcome IN ('settled', 'released', 'lost')),  -- lost: released, and a call may have been made
    PRIMARY KEY (task_id, key),
    CHECK ((closed_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX reservations_open ON tracekit.reservations (made_at) WHERE closed_at IS NULL;

-- What the operator allowed a task beyond its budgets, by the approval that says so.
CREATE TABLE tracekit.budget_grants (
    task_id     text COLLATE "C" NOT NULL,
    approval    text COLLATE "C" NOT NULL,          -- the key of the wait
    unit        text NOT NULL CHECK (unit IN ('usd', 'tokens', 'requests')),
    amount      numeric NOT NULL CHECK (amount > 0),
    granted_by  text NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task_id, approval, unit)
);

-- --- views of the record, with what was spent ---

-- What a task had spent when its line `before` was written: what its calls were known to have cost by then. Empty for
-- one that called no model.
CREATE FUNCTION tracekit.spent_by(task text, before bigint) RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT CASE WHEN count(*) = 0 THEN '{}' ELSE jsonb_build_object(
        'tracekit.cost.usd', coalesce(sum(cost), 0), 'tracekit.cost.unpriced_calls', count(*) FILTER (WHERE cost IS NULL),
        'tracekit.usage.calls', count(*), 'tracekit.usage.requests', sum(requests),
        'tracekit.usage.input_tokens', sum(input_tokens), 'tracekit.usage.cache_read_tokens', sum(cache_read_tokens),
        'tracekit.usage.cache_write_tokens', sum(cache_write_tokens), 'tracekit.usage.output_tokens', sum(output_tokens),
        'tracekit.usage.reasoning_tokens', sum(reasoning_tokens)) END
    FROM tracekit.usage AS u
    WHERE u.task_id = task AND u.seq < before AND NOT EXISTS (
        SELECT FROM tracekit.usage AS n
        WHERE n.task_id = u.task_id AND n.key = u.key AND n.version = u.version + 1 AND n.seq < before)
);

ALTER VIEW tracekit.spans RENAME TO recorded_spans;
CREATE VIEW tracekit.spans AS
SELECT xid, seq, trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time, status,
       status_message,
       -- Of the skeleton the root alone says where the task came from.
       CASE WHEN source = 'skeleton' AND attributes ? 'tracekit.origin'
            THEN attributes || tracekit.spent_by(task_id, seq) ELSE attributes END AS attributes,
       links, events
FROM tracekit.recorded_spans;

ALTER VIEW tracekit.events RENAME TO recorded_events;
CREATE VIEW tracekit.events AS
SELECT seq, task_id, at, kind, hop, mode, attempt, data FROM tracekit.recorded_events
UNION ALL
SELECT seq, task_id, booked_at, 'usage.booked', hop, mode, attempt,
       jsonb_strip_nulls(jsonb_build_object(
           'key', key, 'version', version, 'provider', provider, 'model', model, 'local', local,
           'input_tokens', input_tokens, 'cache_read_tokens', cache_read_tokens,
           'cache_write_tokens', cache_write_tokens, 'output_tokens', output_tokens,
           'reasoning_tokens', reasoning_tokens, 'requests', requests, 'cost', cost::text,
           'price_source', price_source, 'price_version', price_version, 'basis', basis, 'synthetic', synthetic))
FROM tracekit.usage;
