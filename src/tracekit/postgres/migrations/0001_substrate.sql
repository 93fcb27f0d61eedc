-- The substrate: tasks, their hops, the live queue, waits and signals, and the record (events and spans).
--
-- Identity: a task is a ULID; a hop is (task_id, hop), counted from 1; an attempt is (task_id, hop, attempt). Nothing
-- here waits for the database to give out an id, so a whole transition is known before its transaction begins.
--
-- Locks: a task is in one place at a time, its one row in `queue`. Whoever changes anything of a live task holds that
-- row's lock, and takes it after the advisory lock of a wait's key. A task that has no row in `queue` has ended or lies
-- in the DLQ; there the lock of its row in `tasks` takes over. Because events are written under that lock, the order
-- of `events.seq` within a task is the order of commits, and a reader that resumes after a seq misses nothing.
--
-- There are no foreign keys between these tables: history is dropped by age, and a key check is a row lock more for
-- each write of the hot path. `tracekit audit` checks what the keys would.

CREATE TABLE tracekit.tasks (
    id               text COLLATE "C" PRIMARY KEY,
    trace_id         text COLLATE "C" NOT NULL,
    parent_span_id   text COLLATE "C",             -- the caller's span, where a trace was continued
    trace_state      text NOT NULL DEFAULT '',
    origin           text NOT NULL,
    surface          text NOT NULL,
    requester        text NOT NULL,
    intent           text NOT NULL,
    priority         smallint NOT NULL,            -- 0 low, 1 normal, 2 high, 3 urgent
    destructive      boolean NOT NULL,
    idempotency_key  text NOT NULL,
    expires_at       timestamptz,
    retry_policy     jsonb NOT NULL,
    data_tier        text NOT NULL,
    tags             text[] NOT NULL DEFAULT '{}',
    review_of        text COLLATE "C",             -- the dead task that this one asks the operator about
    state            text NOT NULL DEFAULT 'open'
                     CHECK (state IN ('open', 'dead', 'done', 'failed', 'expired', 'rejected', 'abandoned')),
    summary          text,
    created_at       timestamptz NOT NULL,
    ended_at         timestamptz,
    UNIQUE (origin, idempotency_key)
);
CREATE INDEX tasks_trace ON tracekit.tasks (trace_id);
CREATE INDEX tasks_open ON tracekit.tasks (id) WHERE state IN ('open', 'dead');
CREATE INDEX tasks_ended ON tracekit.tasks (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE tracekit.hops (
    task_id     text COLLATE "C" NOT NULL,
    hop         integer NOT NULL,
    mode        text NOT NULL,
    persona     text,
    input       jsonb NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (task_id, hop)
);

-- The hot table: one narrow row for each live task, gone when it ends.
CREATE TABLE tracekit.queue (
    task_id       text COLLATE "C" PRIMARY KEY,
    hop           integer NOT NULL,
    mode          text NOT NULL,
    priority      smallint NOT NULL,
    state         text NOT NULL CHECK (state IN ('ready', 'scheduled', 'running', 'parked')),
    created_at    timestamptz NOT NULL,            -- of the hop: first in, first out
    ready_at      timestamptz NOT NULL,            -- since when a worker may take it
    due_at        timestamptz,                     -- when time acts on it: a scheduled hop becomes ready, a running
                                                   -- one's lease ends, a parked one's deadline comes
    expires_at    timestamptz,                     -- the task's ttl, while it still binds
    attempt       integer NOT NULL DEFAULT 0,      -- claims so far; only grows
    max_attempts  integer NOT NULL,                -- grows by one for each claim that is not held against the task
    token         bigint NOT NULL DEFAULT 0,       -- the lease's fencing token
    worker        text,
    claimed_at    timestamptz,
    wait_attempt  integer                          -- the attempt that parked it: its wait is (task_id, hop, wait_attempt)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_ready ON tracekit.queue (mode, priority DESC, created_at) WHERE state = 'ready';
CREATE INDEX queue_ready_by_age ON tracekit.queue (mode, created_at) WHERE state = 'ready';
CREATE INDEX queue_due ON tracekit.queue (due_at) WHERE state <> 'ready';
CREATE INDEX queue_expiring ON tracekit.queue (expires_at) WHERE expires_at IS NOT NULL AND state <> 'running';

-- Fencing tokens: one sequence, so that a later claim always has the greater one.
CREATE SEQUENCE tracekit.lease_token;

CREATE TABLE tracekit.waits (
    task_id      text COLLATE "C" NOT NULL,
    hop          integer NOT NULL,
    attempt      integer NOT NULL,                 -- the attempt that parked
    kind         text NOT NULL,
    key          text COLLATE "C" NOT NULL,
    data         jsonb NOT NULL,
    deadline     timestamptz NOT NULL,
    on_deadline  text NOT NULL CHECK (on_deadline IN ('resume', 'expire')),
    opened_at    timestamptz NOT NULL,
    closed_at    timestamptz,
    resolution   text CHECK (resolution IN ('signal', 'deadline', 'cancelled')),
    signal_id    bigint,
    PRIMARY KEY (task_id, hop, attempt)
);
CREATE INDEX waits_open ON tracekit.waits (key) WHERE closed_at IS NULL;

-- A signal is a fact about a key. It is kept, so one that comes before its wait is found by it.
CREATE TABLE tracekit.signals (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key          text COLLATE "C" NOT NULL,
    dedupe_key   text COLLATE "C" NOT NULL,
    payload      jsonb NOT NULL,
    sent_by      text NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (key, dedupe_key)
);

CREATE TABLE tracekit.effects (
    task_id      text COLLATE "C" NOT NULL,
    step         text COLLATE "C" NOT NULL,
    hop          integer NOT NULL,
    attempt      integer NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz,                      -- null: begun, and nobody knows whether it happened
    result       jsonb,
    PRIMARY KEY (task_id, step)
);

CREATE TABLE tracekit.dead_letters (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id         text COLLATE "C" NOT NULL,
    hop             integer NOT NULL,
    mode            text NOT NULL,
    reason          text NOT NULL,
    error_type      text,
    error           text,
    attempts        integer NOT NULL,
    trace_id        text COLLATE "C" NOT NULL,
    died_at         timestamptz NOT NULL,
    review_task_id  text COLLATE "C",
    resolution      text CHECK (resolution IN ('redriven', 'abandoned')),
    resolved_at     timestamptz,
    resolved_by     text,
    UNIQUE (task_id, hop)
);
CREATE INDEX dead_letters_open ON tracekit.dead_letters (died_at) WHERE resolved_at IS NULL;

-- What people must be told, written with the state change it tells of, delivered after it.
CREATE TABLE tracekit.outbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id       text COLLATE "C" NOT NULL,
    recipient     text NOT NULL,
    kind          text NOT NULL,
    urgent        boolean NOT NULL,
    title         text NOT NULL,
    body          text NOT NULL,
    data          jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL,
    due_at        timestamptz,                     -- next try; null once delivered or given up
    attempts      integer NOT NULL DEFAULT 0,
    delivered_at  timestamptz,
    receipt       jsonb,
    last_error    text
);
CREATE INDEX outbox_due ON tracekit.outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX outbox_task ON tracekit.outbox (task_id);

CREATE TABLE tracekit.events (
    seq      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id  text COLLATE "C" NOT NULL,
    at       timestamptz NOT NULL,
    kind     text NOT NULL,
    hop      integer,
    mode     text,
    attempt  integer,
    data     jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX events_task ON tracekit.events (task_id, seq);

-- Finished spans. (xid, seq) is the order in which they can be shipped: a row whose transaction is older than every
-- running one cannot be joined by an earlier row any more, so one cursor passes each row exactly once.
CREATE TABLE tracekit.spans (
    xid             xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq             bigint GENERATED ALWAYS AS IDENTITY,
    trace_id        text COLLATE "C" NOT NULL,
    span_id         text COLLATE "C" NOT NULL,
    parent_span_id  text COLLATE "C",
    task_id         text COLLATE "C",              -- null: a span that belongs to no task, such as a refusal's
    source          text NOT NULL DEFAULT 'skeleton' CHECK (source IN ('skeleton', 'sdk')),
    name            text NOT NULL,
    kind            smallint NOT NULL,             -- OTLP's SpanKind: 1 internal, 2 server, 3 client, 4 producer, 5 consumer
    start_time      timestamptz NOT NULL,
    end_time        timestamptz NOT NULL,
    status          smallint NOT NULL DEFAULT 0,   -- OTLP's StatusCode: 0 unset, 1 ok, 2 error
    status_message  text NOT NULL DEFAULT '',
    attributes      jsonb NOT NULL DEFAULT '{}',
    links           jsonb NOT NULL DEFAULT '[]',   -- [{"trace_id", "span_id", "attributes"}]
    events          jsonb NOT NULL DEFAULT '[]',   -- [{"name", "time", "attributes"}]
    PRIMARY KEY (xid, seq)
);
CREATE UNIQUE INDEX spans_id ON tracekit.spans (trace_id, span_id);
CREATE INDEX spans_task ON tracekit.spans (task_id) WHERE task_id IS NOT NULL;

CREATE TABLE tracekit.span_shipping (
    destination  text PRIMARY KEY,
    xid          xid8 NOT NULL DEFAULT '0',
    seq          bigint NOT NULL DEFAULT 0,
    shipped      bigint NOT NULL DEFAULT 0,
    shipped_at   timestamptz
);

-- Who serves which mode: what the metrics and the operator read; no claim depends on it.
CREATE TABLE tracekit.workers (
    id          text PRIMARY KEY,
    modes       text[] NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    listener    text NOT NULL DEFAULT 'starting'
);

-- What the upstream-watcher last heard of each address (for conditional requests).
CREATE TABLE tracekit.upstreams (
    url         text PRIMARY KEY,
    etag        text,
    state       jsonb NOT NULL DEFAULT '{}',
    checked_at  timestamptz NOT NULL
);
