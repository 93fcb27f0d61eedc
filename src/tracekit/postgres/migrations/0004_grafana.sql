-- What dashboards read: the views of schema `grafana`, and the role `tracekit_grafana` that may read them and no more.
--
-- The views run with their owner's rights, so that the role needs none on what they are made of. Of a restricted task
-- they hide all text: what was asked, what came of it, what went wrong. Times are timestamptz, durations float8
-- seconds, money is numeric US dollars.
--
-- Panels filter by `task_id = ANY(grafana.tasks_of(trace_id))` or by a range of time. What a view adds to a row it looks
-- up by a key, LATERAL with a LIMIT or as an aggregate: it cannot be turned into a join that reads a table whole.

DO $$ BEGIN
    -- CREATE SCHEMA IF NOT EXISTS asks for the right to create even if there is nothing to do.
    IF to_regnamespace('grafana') IS NULL THEN
        CREATE SCHEMA grafana;
    END IF;
END $$;

-- What is accepted and what happens is added in the order of time, and goes by age: a summary of each few pages finds a
-- range of it, and costs the writer next to nothing.
CREATE INDEX envelopes_created ON tracekit.envelopes USING brin (created_at)
    WITH (pages_per_range = 16, autosummarize = on);
CREATE INDEX record_at ON tracekit.record USING brin (at) WITH (pages_per_range = 16, autosummarize = on);
CREATE INDEX waits_opened ON tracekit.waits (opened_at);
CREATE INDEX outbox_created ON tracekit.outbox (created_at);
CREATE INDEX effects_links ON tracekit.effects (finished_at) WHERE result ? 'url';

-- --- what may be shown ---

-- A text of a task, unless its data is restricted. What is not there says nothing.
CREATE FUNCTION tracekit.shown(what text, data_tier text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN what IS NULL THEN NULL WHEN data_tier = 'restricted' THEN '(restricted)' ELSE what END;

-- The same in one line of at most 120 characters.
CREATE FUNCTION tracekit.title(intent text, data_tier text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT CASE WHEN data_tier = 'restricted' THEN '(restricted)'
                WHEN length(line) > 120 THEN left(line, 119) || '…' ELSE line END
    FROM (SELECT btrim(regexp_replace(left(intent, 1000), '\s+', ' ', 'g')) AS line) AS l
);

-- Whether an attempt repeats what went wrong before. One that goes on after an approval or a drain repeats nothing. A
-- view's functions run with the rights of who asks, hence the definer's.
CREATE FUNCTION tracekit.retried(task text, of_hop integer, of_attempt integer) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN of_attempt > 1 AND EXISTS (
    SELECT FROM tracekit.record AS r
    WHERE r.task_id = task AND r.hop = of_hop AND r.attempt < of_attempt AND r.claimed_at IS NOT NULL
      AND r.data ? 'error');

-- The tasks of traces: those that continue one, and the one that it began with, whose id it is in hex (`tracekit.ids`).
-- So a trace is found without an index on its id, which every enqueue would have to write. It reads with its owner's
-- rights, and gives away ids alone. What is no trace id has no tasks.
CREATE FUNCTION grafana.tasks_of(VARIADIC traces text[]) RETURNS text[] LANGUAGE sql STABLE PARALLEL SAFE
SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT e.id FROM tracekit.envelopes AS e WHERE e.trace_id = ANY(traces) AND e.parent_span_id IS NOT NULL
    UNION ALL
    SELECT (SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + digit::bit(5)::integer, 1), '' ORDER BY n)
            FROM generate_series(0, 25) AS n,
                 substring(B'00' || ('x' || trace)::bit(128) FROM 1 + 5 * n FOR 5) AS digit)
    FROM unnest(traces) AS trace WHERE trace ~ '^[0-9a-f]{32}$'
);

-- --- tasks, and what happened to them ---

CREATE VIEW grafana.tasks AS
SELECT e.id AS task_id, e.trace_id, tracekit.title(e.intent, e.data_tier) AS title, e.origin, e.surface, e.requester,
       (ARRAY['low', 'normal', 'high', 'urgent'])[e.priority + 1] AS priority, e.destructive, e.data_tier, e.tags,
       CASE WHEN r.end_state IS NOT NULL THEN r.end_state WHEN d.mode IS NOT NULL THEN 'dead' ELSE 'open' END AS state,
       coalesce(q.mode, r.mode, d.mode) AS mode, p.persona, q.state AS queue_state, e.created_at, r.at AS ended_at,
       extract(epoch FROM coalesce(r.at, now()) - e.created_at)::float8 AS seconds,
       1 + l.hops AS hops, l.attempts + (q.state IS NOT DISTINCT FROM 'running')::int AS attempts,
       l.retries + (q.state IS NOT DISTINCT FROM 'running' AND tracekit.retried(q.task_id, q.hop, q.attempt))::int
           AS retries,
       l.queue_seconds + CASE q.state WHEN 'ready' THEN greatest(0, extract(epoch FROM now() - q.ready_at))
                                      WHEN 'running' THEN greatest(0, extract(epoch FROM q.claimed_at - q.ready_at))
                                      ELSE 0 END::float8 AS queue_seconds,
       l.run_seconds + CASE q.state WHEN 'running' THEN greatest(0, extract(epoch FROM now() - q.claimed_at))
                                    ELSE 0 END::float8 AS run_seconds,
       w.seconds AS approval_seconds, u.calls, u.unpriced_calls, u.tokens, u.cost_usd,
       tracekit.shown(r.summary, e.data_tier) AS summary, e.surface = 'demo-week' AS synthetic
FROM tracekit.envelopes AS e
LEFT JOIN tracekit.queue AS q ON q.task_id = e.id
LEFT JOIN LATERAL (
    SELECT at, mode, end_state, summary FROM tracekit.record WHERE task_id = e.id AND end_state IS NOT NULL LIMIT 1
) AS r ON true
LEFT JOIN LATERAL (
    SELECT mode FROM tracekit.dead_letters WHERE task_id = e.id AND resolved_at IS NULL LIMIT 1
) AS d ON true
LEFT JOIN LATERAL (
    SELECT coalesce(next_persona, persona) AS persona FROM tracekit.record
    WHERE task_id = e.id AND coalesce(next_persona, persona) IS NOT NULL ORDER BY seq DESC LIMIT 1
) AS p ON true
LEFT JOIN LATERAL (
    SELECT count(next_hop)::int AS hops, count(claimed_at)::int AS attempts,
           count(claimed_at) FILTER (WHERE tracekit.retried(task_id, hop, attempt))::int AS retries,
           coalesce(sum(greatest(0, extract(epoch FROM coalesce(claimed_at, at) - ready_at))), 0)::float8
               AS queue_seconds,
           coalesce(sum(greatest(0, extract(epoch FROM at - claimed_at))), 0)::float8 AS run_seconds
    FROM tracekit.record WHERE task_id = e.id
) AS l ON true
LEFT JOIN LATERAL (
    SELECT coalesce(sum(extract(epoch FROM coalesce(closed_at, now()) - opened_at)), 0)::float8 AS seconds
    FROM tracekit.waits WHERE task_id = e.id AND kind = 'approval'
) AS w ON true
LEFT JOIN LATERAL (
    SELECT count(*)::int AS calls, count(*) FILTER (WHERE cost IS NULL)::int AS unpriced_calls,
           coalesce(sum(input_tokens + cache_read_tokens + cache_write_tokens + output_tokens), 0)::bigint AS tokens,
           sum(cost) AS cost_usd
    FROM tracekit.spend WHERE task_id = e.id
) AS u ON true;

CREATE VIEW grafana.hops AS
SELECT id AS task_id, trace_id, 1 AS hop, mode, NULL::text AS persona, created_at FROM tracekit.envelopes
UNION ALL
SELECT r.task_id, e.trace_id, r.next_hop, r.next_mode, r.next_persona, r.at
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id WHERE r.next_hop IS NOT NULL;

-- A row for each change, as a state timeline wants it: an end of an attempt after which the hop is ready again is no
-- change of its own, since it is ready from then on.
CREATE VIEW grafana.timeline AS
SELECT r.task_id, e.trace_id, r.ready_at AS at, r.hop, r.mode, 'ready' AS state
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id WHERE r.ready_at IS NOT NULL
UNION ALL
SELECT r.task_id, e.trace_id, r.claimed_at, r.hop, r.mode, 'running'
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id WHERE r.claimed_at IS NOT NULL
UNION ALL
SELECT r.task_id, e.trace_id, r.at, r.hop, r.mode,
       CASE WHEN r.end_state IS NOT NULL THEN r.end_state WHEN r.kind = 'task.dead' THEN 'dead'
            WHEN r.outcome = 'parked' THEN 'parked' ELSE 'scheduled' END
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.end_state IS NOT NULL OR r.kind = 'task.dead' OR r.outcome = 'parked' OR r.data ? 'due_at'
UNION ALL
SELECT q.task_id, e.trace_id, q.ready_at, q.hop, q.mode, 'ready'
FROM tracekit.queue AS q JOIN tracekit.envelopes AS e ON e.id = q.task_id WHERE q.state IN ('ready', 'running')
UNION ALL
SELECT q.task_id, e.trace_id, q.claimed_at, q.hop, q.mode, 'running'
FROM tracekit.queue AS q JOIN tracekit.envelopes AS e ON e.id = q.task_id WHERE q.state = 'running';

CREATE VIEW grafana.attempts AS
SELECT r.task_id, e.trace_id, r.hop, r.mode, r.persona, r.attempt, r.worker, r.ready_at, r.claimed_at,
       r.at AS ended_at, greatest(0, extract(epoch FROM r.claimed_at - r.ready_at))::float8 AS queue_seconds,
       greatest(0, extract(epoch FROM r.at - r.claimed_at))::float8 AS run_seconds, r.outcome,
       r.data #>> '{error,type}' AS error_type, tracekit.shown(r.data #>> '{error,message}', e.data_tier) AS error
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id WHERE r.claimed_at IS NOT NULL
UNION ALL
SELECT q.task_id, e.trace_id, q.hop, q.mode, h.next_persona, q.attempt, q.worker, q.ready_at, q.claimed_at, NULL,
       greatest(0, extract(epoch FROM q.claimed_at - q.ready_at))::float8,
       greatest(0, extract(epoch FROM now() - q.claimed_at))::float8, 'running', NULL, NULL
FROM tracekit.queue AS q JOIN tracekit.envelopes AS e ON e.id = q.task_id
LEFT JOIN LATERAL (
    SELECT next_persona FROM tracekit.record WHERE q.hop > 1 AND task_id = q.task_id AND next_hop = q.hop LIMIT 1
) AS h ON true
WHERE q.state = 'running';

-- A line of the record each, as `tracekit.events` numbers them, and calls. `detail` says in words what else it tells.
CREATE VIEW grafana.events AS
SELECT e.id AS task_id, e.trace_id, e.seq, e.created_at AS at, 'task.accepted'::text AS kind, 1 AS hop, e.mode,
       NULL::integer AS attempt, NULL::text AS outcome,
       tracekit.shown(concat_ws(' ', 'from', e.requester, 'over', e.surface), e.data_tier) AS detail
FROM tracekit.envelopes AS e
UNION ALL
SELECT r.task_id, e.trace_id, r.seq, r.at, r.kind, r.hop, r.mode, r.attempt,
       CASE r.kind WHEN 'task.ended' THEN r.end_state ELSE r.outcome END,
       tracekit.shown(nullif(concat_ws('; ',
           'to ' || r.next_mode,
           (r.data #>> '{error,type}') || coalesce(': ' || (r.data #>> '{error,message}'), ''),
           r.data->>'reason', r.data->>'error_type', CASE r.kind WHEN 'task.ended' THEN r.summary END,
           'for ' || (r.data #>> '{wait,kind}') || coalesce(' until ' || (r.data #>> '{wait,deadline}'), ''),
           CASE r.kind WHEN 'wait.closed' THEN
               concat_ws(' ', r.data->>'wait', 'ended by', r.data->>'resolution', 'from ' || (r.data->>'sent_by')) END,
           'not before ' || (r.data->>'due_at'), r.data->>'step', 'by ' || (r.data->>'by')), ''), e.data_tier)
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
UNION ALL
SELECT r.task_id, e.trace_id, r.seq + 1, r.at, 'task.ended'::text, r.hop, r.mode, r.attempt, r.end_state,
       tracekit.shown(r.summary, e.data_tier)
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.end_state IS NOT NULL AND r.kind <> 'task.ended'
UNION ALL
SELECT u.task_id, e.trace_id, u.seq, u.booked_at, 'usage.booked'::text, u.hop, u.mode, u.attempt, NULL::text,
       tracekit.shown(concat_ws(
           ' ', u.provider, u.model, u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens,
           'tokens,', coalesce(round(u.cost, 6) || ' USD', 'unpriced')), e.data_tier)
FROM tracekit.usage AS u JOIN tracekit.envelopes AS e ON e.id = u.task_id;

-- --- cost ---

CREATE VIEW grafana.spend AS
SELECT u.task_id, e.trace_id, u.at, u.mode, u.persona, u.requester, u.origin, u.provider, u.model, u.local, u.synthetic,
       u.input_tokens, u.cache_read_tokens, u.cache_write_tokens, u.output_tokens, u.reasoning_tokens,
       u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens AS tokens, u.requests,
       u.cost AS cost_usd, u.price_source, u.basis, tracekit.retried(u.task_id, u.hop, u.attempt) AS retry
FROM tracekit.spend AS u LEFT JOIN tracekit.envelopes AS e ON e.id = u.task_id;

-- Of a cap of tasks nothing is spent: each task has its own.
CREATE VIEW grafana.budgets AS
SELECT b.scope, b.subject, b.period, b.unit, b.amount, b.policy, b.time_zone,
       coalesce(c.begins, t.begins) AS begins, coalesce(c.ends, t.ends) AS ends,
       CASE WHEN b.scope <> 'task' THEN coalesce(c.spent, 0) END AS spent,
       CASE WHEN b.scope <> 'task' THEN coalesce(c.reserved, 0) END AS reserved,
       CASE WHEN b.scope <> 'task' THEN b.amount - coalesce(c.spent, 0) - coalesce(c.reserved, 0) END AS remaining,
       -- A call found no room in it, of which people have been told, or all of it is spent.
       coalesce(c.warned >= 1 OR (c.spent >= b.amount AND b.amount > 0), false) AS used_up
FROM (SELECT DISTINCT ON (scope, subject, period, unit) * FROM tracekit.budgets
      ORDER BY scope, subject, period, unit, id DESC) AS b
LEFT JOIN LATERAL (
    SELECT begins, ends, spent, reserved, warned FROM tracekit.budget_counters AS n
    WHERE (n.scope, n.subject, n.period, n.unit) = (b.scope, b.subject, b.period, b.unit) AND n.task_id = ''
      AND n.begins > now() - interval '9 days' AND n.begins <= now() AND now() < n.ends LIMIT 1
) AS c ON b.scope <> 'task'
-- The local day or week of now, for one in which nothing was spent yet.
LEFT JOIN LATERAL (
    SELECT l.begins AT TIME ZONE b.time_zone AS begins,
           (l.begins + CASE b.period WHEN 'week' THEN interval '7 days' ELSE interval '1 day' END)
               AT TIME ZONE b.time_zone AS ends
    FROM (SELECT date_trunc(CASE b.period WHEN 'week' THEN 'week' ELSE 'day' END, now() AT TIME ZONE b.time_zone)
              AS begins) AS l
) AS t ON b.scope <> 'task'
WHERE b.amount IS NOT NULL;

-- --- people ---

CREATE VIEW grafana.approvals AS
SELECT w.task_id, e.trace_id,
       tracekit.title(e.intent, CASE WHEN w.data->>'data_tier' = 'restricted' THEN 'restricted' ELSE e.data_tier END)
           AS title,
       e.requester, e.priority = 3 AS urgent, e.destructive, w.opened_at,
       CASE WHEN w.closed_at IS NULL THEN least(w.deadline, q.expires_at) ELSE w.deadline END AS deadline, w.closed_at,
       extract(epoch FROM coalesce(w.closed_at, now()) - w.opened_at)::float8 AS wait_seconds,
       CASE WHEN w.closed_at IS NULL THEN 'pending'
            -- At the deadline of what asks for money the budget begins anew, and nobody is asked any more.
            WHEN w.resolution = 'deadline' THEN CASE w.on_deadline WHEN 'expire' THEN 'expired' ELSE 'cancelled' END
            WHEN w.resolution = 'signal' THEN
                CASE s.payload->>'decision' WHEN 'approve' THEN 'approved' WHEN 'reject' THEN 'rejected'
                     WHEN 'defer' THEN 'deferred' WHEN 'edit' THEN 'edited' ELSE 'cancelled' END
            ELSE 'cancelled' END AS decision,
       s.sent_by AS decided_by
FROM tracekit.waits AS w JOIN tracekit.envelopes AS e ON e.id = w.task_id
LEFT JOIN tracekit.queue AS q ON q.task_id = w.task_id
LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id
WHERE w.kind = 'approval';

CREATE VIEW grafana.dead_letters AS
SELECT d.task_id, d.trace_id, tracekit.title(e.intent, e.data_tier) AS title, d.hop, d.mode, d.reason, d.error_type,
       tracekit.shown(d.error, e.data_tier) AS error, d.attempts, d.died_at, d.resolution, d.resolved_at, d.resolved_by,
       d.review_task_id
FROM tracekit.dead_letters AS d JOIN tracekit.envelopes AS e ON e.id = d.task_id;

CREATE VIEW grafana.notifications AS
SELECT o.task_id, e.trace_id, o.recipient, o.kind, o.urgent, o.created_at, o.delivered_at, o.attempts,
       extract(epoch FROM coalesce(o.delivered_at, now()) - o.created_at)::float8 AS seconds,
       CASE WHEN o.delivered_at IS NOT NULL THEN 'delivered' WHEN o.due_at IS NULL THEN 'given_up' ELSE 'waiting' END
           AS state,
       tracekit.shown(o.last_error, e.data_tier) AS last_error
FROM tracekit.outbox AS o JOIN tracekit.envelopes AS e ON e.id = o.task_id;

-- --- the world outside ---

-- What a task did to a repository and what came of it: waits for it, whose signal has the last word, and effects that
-- say where it is to be seen.
CREATE VIEW grafana.changes AS
SELECT w.task_id, e.trace_id, w.opened_at AS at, w.closed_at AS ended_at, w.kind,
       tracekit.shown(coalesce(s.payload->>'title', w.data->>'title'), e.data_tier) AS title,
       CASE WHEN e.data_tier <> 'restricted' THEN coalesce(s.payload->>'url', w.data->>'url') END AS url,
       tracekit.shown(coalesce(s.payload->>'state', w.data->>'state',
                               CASE WHEN w.closed_at IS NULL THEN 'open' ELSE w.resolution END), e.data_tier) AS state
FROM tracekit.waits AS w JOIN tracekit.envelopes AS e ON e.id = w.task_id
LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id
WHERE w.kind IN ('pull_request', 'ci', 'flux') AND coalesce(s.payload->>'url', w.data->>'url') ~ '^https?://\S+$'
UNION ALL
SELECT f.task_id, e.trace_id, f.finished_at, f.finished_at, k.kind,
       tracekit.shown(coalesce(f.result->>'title', f.step), e.data_tier),
       CASE WHEN e.data_tier <> 'restricted' THEN f.result->>'url' END,
       tracekit.shown(coalesce(f.result->>'state', 'done'), e.data_tier)
FROM tracekit.effects AS f JOIN tracekit.envelopes AS e ON e.id = f.task_id
CROSS JOIN LATERAL (
    SELECT CASE WHEN f.result->>'kind' IN ('pull_request', 'ci', 'flux') THEN f.result->>'kind'
                WHEN f.result->>'url' ~ '/(pull|pulls|merge_requests)/[0-9]+' THEN 'pull_request'
                WHEN f.result->>'url' ~ '/(actions/runs|pipelines)/[0-9]+' THEN 'ci' END AS kind
) AS k
WHERE f.result ? 'url' AND f.result->>'url' ~ '^https?://\S+$' AND k.kind IS NOT NULL;

-- A resolved alert is a task too, and no incident of its own.
CREATE VIEW grafana.incidents AS
SELECT e.id AS task_id, e.trace_id, tracekit.title(e.intent, e.data_tier) AS title, e.created_at AS at,
       r.at AS ended_at
FROM tracekit.envelopes AS e
LEFT JOIN LATERAL (
    SELECT at FROM tracekit.record WHERE task_id = e.id AND end_state IS NOT NULL LIMIT 1
) AS r ON true
WHERE e.surface = 'alertmanager' AND e.input #>> '{alert,status}' IS DISTINCT FROM 'resolved';

-- --- the substrate itself ---

CREATE VIEW grafana.workers AS
SELECT w.id AS worker, m.mode, w.started_at, w.seen_at, w.listener, w.seen_at > now() - interval '2 minutes' AS alive
FROM tracekit.workers AS w CROSS JOIN LATERAL unnest(w.modes) AS m(mode);

-- A partitioned table is the sum of its partitions.
CREATE VIEW grafana.tables AS
SELECT c.relname::text AS "table", sum(pg_total_relation_size(s.relid))::bigint AS bytes,
       sum(s.n_live_tup)::bigint AS live_rows, sum(s.n_dead_tup)::bigint AS dead_rows,
       max(greatest(s.last_vacuum, s.last_autovacuum)) AS last_vacuum
FROM pg_stat_user_tables AS s
LEFT JOIN pg_inherits AS i ON i.inhrelid = s.relid
JOIN pg_class AS c ON c.oid = coalesce(i.inhparent, s.relid)
WHERE s.schemaname = 'tracekit'
GROUP BY c.relname;

-- --- who may read them ---

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA grafana FROM PUBLIC;

-- Roles are the server's, not the database's: another database's migration may have made it, or be making it now. Who
-- migrates need not be allowed to make roles; `tracekit db grafana`, as somebody who is, makes up for it.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tracekit_grafana') THEN
        CREATE ROLE tracekit_grafana NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'there is no role tracekit_grafana, and this role may not make it: see `tracekit db grafana`';
END $$;

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tracekit_grafana') THEN
        GRANT USAGE ON SCHEMA grafana TO tracekit_grafana;
        GRANT SELECT ON ALL TABLES IN SCHEMA grafana TO tracekit_grafana;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA grafana TO tracekit_grafana;
    END IF;
END $$;
