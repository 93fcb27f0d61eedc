"""Every alert, in groups.

What holds for the expressions: metrics read from the database are the same in every process, so they are taken once; a
database that is away takes them with it, and says so by another metric, so nothing here fires for want of a series but
what looks for exactly that. Spending that was made up (`synthetic`) is nobody's money.
"""

from __future__ import annotations

from tracekit import metrics
from tracekit.alerts.recording import (
    BUDGET_PACE,
    BUDGET_USED,
    DATABASE_SEEN,
    DEAD_LETTERS_BY_MODE,
    UNPRICED_BY_MODEL,
    Recording,
)
from tracekit.alerts.rule import Alert, Group
from tracekit.promql import (
    UP,
    Vector,
    absent,
    all_of,
    any_of,
    increase,
    max_by,
    min_by,
    once,
    select,
    sum_by,
    unless,
)

JOB = "tracekit"
"""The name of the scrape job, as docs/observability.md and the compose file have it."""

ABSENT = "TracekitAbsent"
DATABASE_UNREACHABLE = "TracekitDatabaseUnreachable"

FAILING = ("database-away", "internal", "queue-full")
"""Reasons of refusals for which the caller can do nothing."""
MISTAKEN = ("unauthenticated", "forbidden", "malformed", "invalid", "too-large", "unsupported-media-type", "too-slow")
"""Reasons that say that a surface is configured wrongly. Unknown paths are what scanners ask for, and decisions that
come too late are people's.
"""


def grown(recording: Recording, window: str) -> Vector:
    """By how much it is greater than it was a `window` ago. Unlike `increase` this sees a series that begins, since one
    that was not there was 0; unless nothing was, as nobody looked or the database was away: then there is no answer.
    """
    before = any_of(recording.before(window), recording.now * 0)
    return all_of(recording.now - before, DATABASE_SEEN.before(window).equals(1), on=())


_HEALTH = Group(
    "tracekit.health",
    (
        Alert(
            ABSENT,
            "critical",
            absent(select(metrics.DATABASE_UP)),
            "2m",
            "No tracekit process is seen",
            "Prometheus has nothing from any tracekit process: none runs, none can be reached, or their /metrics"
            " refuses the token. Until one is back no other alert about tracekit can fire.",
            "tracekit-fleet",
        ),
        Alert(
            "TracekitProcessDown",
            "warning",
            select(UP, job=JOB).equals(0),
            "5m",
            "The tracekit process {{ $labels.instance }} is down",
            "Prometheus cannot scrape {{ $labels.instance }}. What it was working on is taken up by others when its"
            " leases end; what only it serves waits.",
            "tracekit-fleet",
            ("job",),
            keep="5m",
        ),
        Alert(
            DATABASE_UNREACHABLE,
            "critical",
            max_by(select(metrics.DATABASE_UP)).equals(0),
            "1m",
            "PostgreSQL cannot be reached by any tracekit process",
            "Nothing is accepted, claimed or finished until it is back. What was accepted is safe, and the processes"
            " reconnect by themselves.",
            "tracekit-queue",
            keep="1m",
        ),
        Alert(
            "TracekitProcessWithoutDatabase",
            "warning",
            select(metrics.DATABASE_UP).equals(0),
            "2m",
            "{{ $labels.instance }} cannot reach PostgreSQL",
            "Others can, or another alert would say so. Its hops are taken up by others when their leases end.",
            "tracekit-queue",
            ("job",),
            keep="2m",
            follows_from=(DATABASE_UNREACHABLE,),
        ),
        Alert(
            "TracekitListenerPolling",
            "warning",
            select(metrics.LISTENER_STATE, state="polling").equals(1),
            "5m",
            "{{ $labels.instance }} hears no notifications and polls",
            "Work is found by the poll, up to a second later than by LISTEN, and each poll costs the database. Behind a"
            " pooler in transaction mode listen_dsn is missing or leads to the pooler.",
            "tracekit-queue",
            ("job",),
            keep="5m",
            follows_from=(DATABASE_UNREACHABLE,),
        ),
        Alert(
            "TracekitSpansNotShipped",
            "warning",
            max_by(select(metrics.SPAN_OLDEST_UNSHIPPED_AGE)) > 600,
            "5m",
            "Spans have waited for {{ $value | humanizeDuration }} to be sent to the collector",
            "Traces of the last tasks are missing or not whole in the tracing backend. Nothing is lost: the spans are"
            " in the database and are sent when the collector takes them.",
            "tracekit-queue",
            keep="5m",
            follows_from=(DATABASE_UNREACHABLE,),
        ),
        Alert(
            "TracekitNotificationsNotDelivered",
            "critical",
            max_by(select(metrics.NOTIFICATION_OLDEST_UNDELIVERED_AGE)) > 300,
            "5m",
            "A notification has waited for {{ $value | humanizeDuration }} to be delivered",
            "People are not told what waits for them: approvals run out unseen. Decide in the meantime with"
            " `tracekit approvals`.",
            "tracekit-people",
            keep="5m",
            follows_from=(DATABASE_UNREACHABLE,),
        ),
        Alert(
            "TracekitNotificationsGivenUp",
            "warning",
            sum_by(increase(select(metrics.NOTIFICATIONS_GIVEN_UP), "1h")) > 0,
            "1m",
            'Notifications given up within an hour: {{ $value | printf "%.0f" }}',
            "They were tried for hours and are not tried again: nobody has been told. What they were about has to be"
            " looked up.",
            "tracekit-people",
        ),
    ),
)

_READY = sum_by(once(select(metrics.HOPS, state="ready")), "mode")

_QUEUE = Group(
    "tracekit.queue",
    (
        Alert(
            "TracekitDeadLetters",
            "warning",
            DEAD_LETTERS_BY_MODE.now > 0,
            "1m",
            "Dead in mode {{ $labels.mode }}: {{ $value }}",
            "Tasks of {{ $labels.mode }} ran out of attempts or were given up, and wait for the operator in the DLQ:"
            " redrive or abandon them.",
            "tracekit-queue",
            ("mode",),
            keep="5m",
        ),
        Alert(
            "TracekitDeadLettersGrowing",
            "critical",
            grown(DEAD_LETTERS_BY_MODE, "1h") >= 5,
            "5m",
            "More dead in mode {{ $labels.mode }} than an hour ago: {{ $value }}",
            "It is not one bad task: something that {{ $labels.mode }} needs is broken, and every task that comes by"
            " dies of it.",
            "tracekit-queue",
            ("mode",),
            keep="15m",
        ),
        Alert(
            "TracekitHopTooOld",
            "warning",
            max_by(select(metrics.HOP_OLDEST_AGE, state="ready"), "mode") > 600,
            "5m",
            "The oldest hop of {{ $labels.mode }} has been ready for {{ $value | humanizeDuration }}",
            "{{ $labels.mode }} is not worked off: too few workers, slow handlers, or more work than it can do.",
            "tracekit-queue",
            ("mode",),
            keep="5m",
        ),
        Alert(
            "TracekitUrgentHopTooOld",
            "critical",
            max_by(select(metrics.HOP_OLDEST_AGE, state="ready", priority=("high", "urgent")), "mode") > 120,
            "2m",
            "An urgent hop of {{ $labels.mode }} has been ready for {{ $value | humanizeDuration }}",
            "High and urgent tasks go before all others, so {{ $labels.mode }} has not taken anything up for minutes.",
            "tracekit-queue",
            ("mode",),
            keep="5m",
        ),
        Alert(
            "TracekitNoWorker",
            "critical",
            unless(_READY > 0, select(metrics.WORKERS) > 0, on=("mode",)),
            "2m",
            "No worker serves {{ $labels.mode }}, where hops are ready: {{ $value }}",
            "No worker that serves {{ $labels.mode }} has been seen for two minutes. Its hops wait until one starts.",
            "tracekit-queue",
            ("mode",),
            keep="2m",
        ),
        Alert(
            "TracekitLeasesLost",
            "warning",
            sum_by(increase(select(metrics.LEASES_LOST), "1h"), "mode") >= 3,
            "1m",
            'Leases of {{ $labels.mode }} lost within an hour: {{ $value | printf "%.0f" }}',
            "Workers that live lost their hops: they stood still for longer than a lease, or the database did. What"
            " they did may be done twice.",
            "tracekit-queue",
            ("mode",),
            follows_from=(DATABASE_UNREACHABLE,),
        ),
    ),
)

_PEOPLE = Group(
    "tracekit.people",
    (
        Alert(
            "TracekitApprovalNearDeadline",
            "warning",
            min_by(select(metrics.APPROVAL_NEXT_DEADLINE)) < 900,
            "1m",
            "An approval expires in {{ $value | humanizeDuration }}",
            "A plan waits for a person. If nobody decides, it expires and does not run.",
            "tracekit-people",
        ),
        Alert(
            "TracekitDestructiveTaskExpired",
            "warning",
            sum_by(increase(select(metrics.TASKS_ENDED, state="expired", destructive="true"), "1h")) > 0,
            "1m",
            'Destructive tasks that expired within an hour: {{ $value | printf "%.0f" }}',
            "Nobody decided in time. They were not run, and who asked for them still waits for what they were to do.",
            "tracekit-people",
        ),
    ),
)

_INGRESS = Group(
    "tracekit.ingress",
    (
        Alert(
            "TracekitIngressFailing",
            "critical",
            sum_by(increase(select(metrics.INGRESS_REFUSALS, reason=FAILING), "15m"), "surface", "reason") >= 3,
            "2m",
            "tracekit cannot take what {{ $labels.surface }} sends: {{ $labels.reason }}",
            "Requests are refused for a fault that is not the caller's. Some surfaces send again, others do not: look"
            " whether something was lost.",
            "tracekit-queue",
            keep="5m",
            follows_from=(DATABASE_UNREACHABLE,),
        ),
        Alert(
            "TracekitIngressRefusing",
            "warning",
            sum_by(increase(select(metrics.INGRESS_REFUSALS, reason=MISTAKEN), "15m"), "surface", "reason") >= 10,
            "5m",
            "Requests of {{ $labels.surface }} are refused: {{ $labels.reason }}",
            "A surface is configured wrongly, or somebody tries what they may not do. What it asked for is not done.",
            "tracekit-queue",
            keep="5m",
        ),
    ),
)

_COST = Group(
    "tracekit.cost",
    (
        Alert(
            "TracekitSpendAbovePace",
            "warning",
            all_of(BUDGET_PACE.now > 1, BUDGET_USED.now >= 0.5),
            "10m",
            "The {{ $labels.scope }} budget{{ with $labels.subject }} of {{ . }}{{ end }} a {{ $labels.period }} in"
            " {{ $labels.unit }} does not last",
            "At this pace {{ $value | humanizePercentage }} of it is spent at the end of the {{ $labels.period }}.",
            "tracekit-budget",
            keep="30m",
            follows_from=("TracekitBudgetUsedUp",),
        ),
        Alert(
            "TracekitBudgetUsedUp",
            "warning",
            once(select(metrics.BUDGET_USED_UP)).equals(1),
            "1m",
            "The {{ $labels.scope }} budget{{ with $labels.subject }} of {{ . }}{{ end }} a {{ $labels.period }} in"
            " {{ $labels.unit }} is used up",
            "A call found no room in it, or all of it is spent. Calls that are beyond it are parked, refused or asked"
            " of the local model, as its policy says, until it begins anew.",
            "tracekit-budget",
        ),
        Alert(
            "TracekitUnpricedCalls",
            "info",
            grown(UNPRICED_BY_MODEL, "1h") > 0,
            "5m",
            "Calls of {{ $labels.provider }}/{{ $labels.model }} without a price, of the last hour: {{ $value }}",
            "What they cost is in no sum and in no budget of dollars. Say the price, or that it is free, in [[prices]]"
            " and run `tracekit cost reprice`.",
            "tracekit-budget",
        ),
    ),
)

GROUPS = (_HEALTH, _QUEUE, _PEOPLE, _INGRESS, _COST)
"""All groups."""

ALERTS = tuple(alert for group in GROUPS for alert in group.alerts)
"""All alerts."""
