-- The record: what was accepted and what happened since, in two tables that are only ever added to. Everything else that
-- tells of the past (tasks, hops, events, spans) is a view of them. A step of a task is one row, and its lines in the
-- record, its hop and its spans cannot disagree.
--
-- Identity, locks and the missing foreign keys are as 0001 says; in place of a task's row the locks mean its envelope.

-- One number for every line of the record, in the order of commits within a task. By two: a step that ends the task is
-- two events, and the second has the number that follows.
CREATE SEQUENCE tracekit.record_seq INCREMENT BY 2 START WITH 2;

-- What was accepted. Only the flags that may be raised (destructive, tags, expires_at) ever change.
CREATE TABLE tracekit.envelopes (
    id               text COLLATE "C" PRIMARY KEY,
    trace_id         text COLLATE "C" NOT NULL,     -- the id in hex, unless a caller's trace is continued
    parent_span_id   text COLLATE "C",              -- the caller's span, where one is
    trace_state      text NOT NULL DEFAULT '',
    origin           text NOT NULL,
    surface          text NOT NULL,
    requester        text NOT NULL,
    intent           text NOT NULL,
    priority         smallint NOT NULL,             -- 0 low, 1 normal, 2 high, 3 urgent
    destructive      boolean NOT NULL,
    idempotency_key  text NOT NULL,
    expires_at       timestamptz,
    retry_policy     json NOT NULL,                 -- as text it is neither parsed nor printed; so is the input
    data_tier        text NOT NULL,
    tags             text[] NOT NULL DEFAULT '{}',
    review_of        text COLLATE "C",              -- the dead task that this one asks the operator about
    link             jsonb,                         -- {"trace_id", "span_id"} of what this task is about
    received         jsonb,                         -- the request that brought it: {"name", "duration", "attributes"}
    mode             text NOT NULL,                 -- of the first hop
    input            json NOT NULL,
    created_at       timestamptz NOT NULL,
    xid              xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq              bigint NOT NULL DEFAULT nextval('tracekit.record_seq'),
    CONSTRAINT envelopes_key UNIQUE (idempotency_key, origin)  -- what differs comes first: one comparison, not two
);
-- A trace that began here is found by its task's id, which it is.
CREATE INDEX envelopes_continued ON tracekit.envelopes (trace_id) WHERE parent_span_id IS NOT NULL;
CREATE INDEX envelopes_shipping ON tracekit.envelopes (xid, seq);

-- What happened: a row for each step of a task. History is dropped by age, and a task's id begins with the time of its
-- making: so whole partitions go (`tracekit.queue.retention`). What has no partition of its own is in the rest.
--
-- (xid, seq) is the order of shipping, as for spans in 0001.
CREATE TABLE tracekit.record (
    task_id       text COLLATE "C" NOT NULL,
    seq           bigint NOT NULL DEFAULT nextval('tracekit.record_seq'),
    xid           xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- 1: spans of version 1, which are in kept_spans
    at            timestamptz NOT NULL,
    kind          text NOT NULL,
    hop           integer NOT NULL,
    mode          text NOT NULL,
    attempt       integer NOT NULL,
    persona       text,
    worker        text,
    outcome       text,                             -- of the attempt that ended with this step
    ready_at      timestamptz,                      -- since when the hop had waited for a worker, where that ended
    claimed_at    timestamptz,                      -- when the attempt began, where one ended
    next_hop      integer,                          -- the hop that this step made
    next_mode     text,
    next_persona  text,
    next_input    json,
    end_state     text CHECK (end_state IN ('done', 'failed', 'expired', 'rejected', 'abandoned')),
    summary       text,
    data          jsonb,
    PRIMARY KEY (task_id, seq)
) PARTITION BY RANGE (task_id);
CREATE TABLE tracekit.record_rest PARTITION OF tracekit.record DEFAULT;
CREATE INDEX record_shipping ON tracekit.record (xid, seq);
CREATE UNIQUE INDEX record_end ON tracekit.record (task_id) WHERE end_state IS NOT NULL;

-- Who sleeps and wants to be told: of ready hops in one of `modes`, or of whatever happens to `task_id`.
CREATE TABLE tracekit.sleepers (
    id       text PRIMARY KEY,
    modes    text[] NOT NULL DEFAULT '{}',
    task_id  text COLLATE "C",
    seen_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- --- what there was ---

INSERT INTO tracekit.envelopes
SELECT t.id, t.trace_id, t.parent_span_id, t.trace_state, t.origin, t.surface, t.requester, t.intent, t.priority,
       t.destructive, t.idempotency_key, t.expires_at, t.retry_policy, t.data_tier, t.tags, t.review_of, NULL, NULL,
       h.mode, h.input, t.created_at, '1', 2 * e.seq
FROM tracekit.tasks AS t
JOIN tracekit.hops AS h ON (h.task_id, h.hop) = (t.id, 1)
JOIN tracekit.events AS e ON e.task_id = t.id AND e.kind = 'task.accepted';

INSERT INTO tracekit.record
SELECT e.task_id, 2 * e.seq, '1', e.at, e.kind, e.hop, e.mode, coalesce(e.attempt, 0), e.data->>'persona',
       e.data->>'worker', CASE e.kind WHEN 'attempt.ended' THEN e.data->>'outcome' END,
       (e.data->>'ready_at')::timestamptz, (e.data->>'claimed_at')::timestamptz, h.hop, h.mode, h.persona, h.input,
       CASE e.kind WHEN 'task.ended' THEN e.data->>'outcome' END,
       CASE e.kind WHEN 'task.ended' THEN e.data->>'summary' END,
       nullif(e.data - '{persona,worker,outcome,ready_at,claimed_at,summary,next}'::text[], '{}')
FROM tracekit.events AS e
LEFT JOIN tracekit.hops AS h ON h.task_id = e.task_id
    AND (h.hop = (e.data->'next'->>'hop')::int OR e.kind = 'task.redriven' AND h.hop > e.hop AND h.created_at = e.at)
WHERE e.kind <> 'task.accepted';

SELECT setval('tracekit.record_seq', 2 + greatest((SELECT coalesce(max(seq), 0) FROM tracekit.record),
                                                  (SELECT coalesce(max(seq), 0) FROM tracekit.envelopes)));

-- The oldest hops whatever their priority are found priority by priority.
DROP INDEX tracekit.queue_ready_by_age;

DROP TABLE tracekit.tasks, tracekit.hops, tracekit.events;

-- A program of version 1 that nobody stopped has lost its leases, and can claim no more: its claims name this sequence.
UPDATE tracekit.queue SET token = nextval('tracekit.lease_token') WHERE state = 'running';
ALTER SEQUENCE tracekit.lease_token RENAME TO lease_tokens;

-- Spans that no step of a task is: what the SDK hands over while there is no collector, and refused requests.
ALTER TABLE tracekit.spans RENAME TO kept_spans;
ALTER TABLE tracekit.kept_spans ALTER COLUMN source SET DEFAULT 'sdk';
ALTER INDEX tracekit.spans_id RENAME TO kept_spans_id;
ALTER INDEX tracekit.spans_task RENAME TO kept_spans_task;

CREATE INDEX outbox_undelivered ON tracekit.outbox (id) WHERE delivered_at IS NULL;

-- --- views of the record ---

CREATE VIEW tracekit.tasks AS
SELECT e.id, e.trace_id, e.parent_span_id, e.trace_state, e.origin, e.surface, e.requester, e.intent, e.priority,
       e.destructive, e.idempotency_key, e.expires_at, e.retry_policy, e.data_tier, e.tags, e.review_of,
       CASE WHEN r.end_state IS NOT NULL THEN r.end_state
            WHEN EXISTS (SELECT FROM tracekit.dead_letters AS d WHERE d.task_id = e.id AND d.resolved_at IS NULL)
            THEN 'dead' ELSE 'open' END AS state,
       r.summary, e.created_at, r.at AS ended_at
FROM tracekit.envelopes AS e
LEFT JOIN tracekit.record AS r ON r.task_id = e.id AND r.end_state IS NOT NULL;

CREATE VIEW tracekit.hops AS
SELECT id AS task_id, 1 AS hop, mode, NULL::text AS persona, input::jsonb, created_at FROM tracekit.envelopes
UNION ALL
SELECT task_id, next_hop, next_mode, next_persona, coalesce(next_input::jsonb, 'null'), at
FROM tracekit.record WHERE next_hop IS NOT NULL;

CREATE VIEW tracekit.events AS
SELECT seq, id AS task_id, created_at AS at, 'task.accepted' AS kind, 1 AS hop, mode, NULL::integer AS attempt,
       jsonb_build_object('origin', origin, 'surface', surface, 'requester', requester) AS data
FROM tracekit.envelopes
UNION ALL
SELECT seq, task_id, at, kind, hop, mode, attempt,
       jsonb_strip_nulls(jsonb_build_object(
           'outcome', CASE kind WHEN 'task.ended' THEN end_state ELSE outcome END, 'worker', worker,
           'persona', persona, 'ready_at', ready_at, 'claimed_at', claimed_at,
           'next', CASE WHEN next_hop IS NOT NULL THEN jsonb_build_object('hop', next_hop, 'mode', next_mode) END,
           'summary', CASE kind WHEN 'task.ended' THEN summary END))
       || coalesce(data, '{}')
FROM tracekit.record
UNION ALL
SELECT seq + 1, task_id, at, 'task.ended', hop, mode, attempt,
       jsonb_strip_nulls(jsonb_build_object('outcome', end_state, 'summary', summary))
FROM tracekit.record WHERE end_state IS NOT NULL AND kind <> 'task.ended';

-- The id of a span follows from what it is the span of (`tracekit.ids`). A cast, which the planner can inline and
-- `convert_to` not: that takes twice as long. There are no backslashes in it.
CREATE FUNCTION tracekit.span_id(what text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN left(encode(sha256(what::bytea), 'hex'), 16);

CREATE FUNCTION tracekit.span_link(trace_id text, span_id text, why text) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN jsonb_build_object('trace_id', trace_id, 'span_id', span_id,
                          'attributes', jsonb_build_object('tracekit.link', why));

-- The skeleton of every trace, and what was kept. Names and attributes follow the semantic conventions for messaging:
-- `send` is a hop's creation (PRODUCER), `process` an attempt (CONSUMER), whose parent is the creation, and which is
-- linked to it. Every hop hangs under the root; waiting is a child of the hop's creation.
CREATE VIEW tracekit.spans AS
-- the creation of the first hop
SELECT e.xid, e.seq, e.trace_id, tracekit.span_id(e.id || '/send/1') AS span_id,
       tracekit.span_id(e.id || '/root') AS parent_span_id, e.id AS task_id, 'skeleton' AS source,
       'send ' || e.mode AS name, 4::smallint AS kind, e.created_at AS start_time, e.created_at AS end_time,
       0::smallint AS status, '' AS status_message,
       jsonb_build_object(
           'messaging.system', 'tracekit', 'messaging.operation.name', 'send', 'messaging.operation.type', 'send',
           'messaging.destination.name', e.mode, 'messaging.message.id', e.id || '/1',
           'tracekit.task.id', e.id, 'tracekit.hop', 1, 'tracekit.mode', e.mode) AS attributes,
       CASE WHEN e.link IS NULL THEN '[]'
            ELSE jsonb_build_array(tracekit.span_link(e.link->>'trace_id', e.link->>'span_id', 'review_of')) END AS links,
       '[]'::jsonb AS events
FROM tracekit.envelopes AS e WHERE e.xid > '2'
UNION ALL
-- the request that brought the task
SELECT e.xid, e.seq, e.trace_id, tracekit.span_id(e.id || '/receive'), tracekit.span_id(e.id || '/root'), e.id,
       'skeleton', e.received->>'name', 2::smallint,
       e.created_at - make_interval(secs => (e.received->>'duration')::float8), e.created_at, 0::smallint, '',
       jsonb_build_object('tracekit.task.id', e.id) || (e.received->'attributes'), '[]', '[]'
FROM tracekit.envelopes AS e WHERE e.xid > '2' AND e.received IS NOT NULL
UNION ALL
-- the creation of a later hop
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/send/' || r.next_hop), tracekit.span_id(e.id || '/root'),
       e.id, 'skeleton', 'send ' || r.next_mode, 4::smallint, r.at, r.at, 0::smallint, '',
       jsonb_build_object(
           'messaging.system', 'tracekit', 'messaging.operation.name', 'send', 'messaging.operation.type', 'send',
           'messaging.destination.name', r.next_mode, 'messaging.message.id', e.id || '/' || r.next_hop,
           'tracekit.task.id', e.id, 'tracekit.hop', r.next_hop, 'tracekit.mode', r.next_mode),
       jsonb_build_array(tracekit.span_link(
           e.trace_id, tracekit.span_id(e.id || '/attempt/' || r.hop || '/' || r.attempt), 'handed_off_by')), '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.xid > '2' AND r.next_hop IS NOT NULL
UNION ALL
-- the time that a hop was ready and no worker had it: up to a claim, or to the task's expiry
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/queue/' || r.hop || '/' || q.attempt),
       tracekit.span_id(e.id || '/send/' || r.hop), e.id, 'skeleton', 'wait queue ' || r.mode, 1::smallint,
       r.ready_at, greatest(r.ready_at, coalesce(r.claimed_at, r.at)), 0::smallint, '',
       jsonb_strip_nulls(jsonb_build_object(
           'tracekit.task.id', e.id, 'tracekit.hop', r.hop, 'tracekit.mode', r.mode, 'tracekit.persona', r.persona,
           'tracekit.wait.kind', 'queue', 'tracekit.attempt', q.attempt)), '[]', '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
CROSS JOIN LATERAL (SELECT CASE WHEN r.claimed_at IS NULL THEN r.attempt + 1 ELSE r.attempt END AS attempt) AS q
WHERE r.xid > '2' AND r.ready_at IS NOT NULL
UNION ALL
-- one claim, from its beginning to its end. What went wrong may quote what the task is about: of a restricted task the
-- trace gets the error's type alone.
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/attempt/' || r.hop || '/' || r.attempt),
       tracekit.span_id(e.id || '/send/' || r.hop), e.id, 'skeleton', 'process ' || r.mode, 5::smallint,
       r.claimed_at, greatest(r.claimed_at, r.at), CASE WHEN r.data ? 'error' THEN 2 ELSE 0 END::smallint,
       CASE WHEN e.data_tier = 'restricted' THEN ''
            WHEN length(r.data #>> '{error,message}') > 500 THEN left(r.data #>> '{error,message}', 499) || '…'
            ELSE coalesce(r.data #>> '{error,message}', '') END,
       jsonb_strip_nulls(jsonb_build_object(
           'tracekit.task.id', e.id, 'tracekit.hop', r.hop, 'tracekit.mode', r.mode, 'tracekit.persona', r.persona,
           'tracekit.attempt', r.attempt, 'messaging.system', 'tracekit', 'messaging.operation.name', 'process',
           'messaging.operation.type', 'process', 'messaging.destination.name', r.mode,
           'messaging.message.id', e.id || '/' || r.hop, 'messaging.client.id', r.worker,
           'tracekit.outcome', r.outcome, 'error.type', r.data #>> '{error,type}')),
       jsonb_build_array(tracekit.span_link(e.trace_id, tracekit.span_id(e.id || '/send/' || r.hop), 'creation'))
       || CASE WHEN r.attempt > 1 THEN tracekit.span_link(
           e.trace_id, tracekit.span_id(e.id || '/attempt/' || r.hop || '/' || r.attempt - 1), 'retry_of')
          ELSE '[]' END, '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.xid > '2' AND r.claimed_at IS NOT NULL
UNION ALL
-- a wait, from its opening to its end. One whose signal had come before it took no time.
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/wait/' || r.hop || '/' || (r.data->>'parked_by')),
       tracekit.span_id(e.id || '/send/' || r.hop), e.id, 'skeleton', 'wait ' || (r.data->>'wait'), 1::smallint,
       w.opened_at, greatest(w.opened_at, r.at), 0::smallint, '',
       jsonb_strip_nulls(jsonb_build_object(
           'tracekit.task.id', e.id, 'tracekit.hop', r.hop, 'tracekit.mode', r.mode, 'tracekit.persona', r.persona,
           'tracekit.wait.kind', r.data->>'wait', 'tracekit.wait.resolution', r.data->>'resolution')),
       jsonb_build_array(tracekit.span_link(
           e.trace_id, tracekit.span_id(e.id || '/attempt/' || r.hop || '/' || (r.data->>'parked_by')), 'parked_by')),
       '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
CROSS JOIN LATERAL (SELECT (r.data->>'opened_at')::timestamptz AS opened_at) AS w
WHERE r.xid > '2' AND r.kind = 'wait.closed' AND r.data ? 'opened_at'
UNION ALL
-- the time that a dead hop lay in the DLQ
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/dlq/' || r.hop),
       tracekit.span_id(e.id || '/send/' || r.hop), e.id, 'skeleton', 'wait dlq', 1::smallint,
       d.since, greatest(d.since, r.at), 0::smallint, '',
       jsonb_strip_nulls(jsonb_build_object(
           'tracekit.task.id', e.id, 'tracekit.hop', r.hop, 'tracekit.mode', r.mode, 'tracekit.persona', r.persona,
           'tracekit.wait.kind', 'dlq', 'tracekit.wait.resolution',
           CASE r.kind WHEN 'task.redriven' THEN 'redriven' ELSE 'abandoned' END)),
       jsonb_build_array(tracekit.span_link(
           e.trace_id, tracekit.span_id(e.id || '/attempt/' || r.hop || '/' || r.attempt), 'parked_by')), '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
CROSS JOIN LATERAL (SELECT (r.data->>'dead_since')::timestamptz AS since) AS d
WHERE r.xid > '2' AND r.data ? 'dead_since'
UNION ALL
-- the whole task, once, at its end. One that a person or the clock stopped did as it was told: no error, no success.
SELECT r.xid, r.seq, e.trace_id, tracekit.span_id(e.id || '/root'), e.parent_span_id, e.id, 'skeleton',
       'task ' || e.origin, 1::smallint, e.created_at, greatest(e.created_at, r.at),
       CASE r.end_state WHEN 'done' THEN 1 WHEN 'failed' THEN 2 WHEN 'abandoned' THEN 2 ELSE 0 END::smallint, '',
       jsonb_build_object(
           'tracekit.task.id', e.id, 'tracekit.origin', e.origin, 'tracekit.surface', e.surface,
           'tracekit.requester', e.requester,
           'tracekit.priority', (ARRAY['low', 'normal', 'high', 'urgent'])[e.priority + 1],
           'tracekit.data_tier', e.data_tier, 'tracekit.outcome', r.end_state), '[]', '[]'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.xid > '2' AND r.end_state IS NOT NULL
UNION ALL
SELECT xid, seq, trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time, status,
       status_message, attributes, links, events
FROM tracekit.kept_spans;
