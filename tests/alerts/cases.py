"""When each alert fires, and the nearest states in which it does not (D5)."""

from __future__ import annotations

from tests.alerts.promtool import Case, Firing

A, B = 'instance="a",job="tracekit"', 'instance="b",job="tracekit"'
AT_A = {"instance": "a", "job": "tracekit"}
UP_AT_BOTH = {f"tracekit_database_up{{{A}}}": "1x200", f"tracekit_database_up{{{B}}}": "1x200"}


def both(name: str, labels: str, values: str) -> dict[str, str]:
    """What two processes show alike of the database."""
    return {f"{name}{{{at},{labels}}}" if labels else f"{name}{{{at}}}": values for at in (A, B)}


# --- health -----------------------------------------------------------------------------------------------------------

_VAR_JOB = "?var-job=tracekit"
_ABSENT = Firing("No tracekit process is seen")
_DOWN = Firing(
    "The tracekit process a is down",
    AT_A,
    "Prometheus cannot scrape a. What it was working on is taken up by others when its leases end; what only it serves"
    " waits.",
    _VAR_JOB,
)
_UNREACHABLE = Firing("PostgreSQL cannot be reached by any tracekit process")
_CUT_OFF = Firing("a cannot reach PostgreSQL", AT_A, variables=_VAR_JOB)
_POLLING = Firing("a hears no notifications and polls", {**AT_A, "state": "polling"}, variables=_VAR_JOB)
_SPANS, _NOTIFICATIONS = (
    "tracekit_span_oldest_unshipped_age_seconds",
    "tracekit_notification_oldest_undelivered_age_seconds",
)

HEALTH = [
    Case("TracekitAbsent", "nothing is scraped", {}, 2, (_ABSENT,)),
    Case("TracekitAbsent", "not for long enough", {}, 1),
    Case("TracekitAbsent", "one process is left, without its database", {f"tracekit_database_up{{{A}}}": "0x9"}, 9),
    Case("TracekitAbsent", "the last one went", {f"tracekit_database_up{{{A}}}": "1x9 stale"}, 12, (_ABSENT,)),
    Case("TracekitProcessDown", "it cannot be scraped", {f"up{{{A}}}": "0x9"}, 5, (_DOWN,)),
    Case("TracekitProcessDown", "not for long enough", {f"up{{{A}}}": "0x9"}, 4),
    Case("TracekitProcessDown", "it can", {f"up{{{A}}}": "1x9"}, 9),
    Case("TracekitProcessDown", "it is somebody else's", {'up{instance="a",job="node"}': "0x9"}, 9),
    Case("TracekitProcessDown", "it was until just now", {f"up{{{A}}}": "0x6 1x20"}, 11, (_DOWN,)),
    Case("TracekitProcessDown", "it was a while ago", {f"up{{{A}}}": "0x6 1x20"}, 12),
    Case(
        "TracekitDatabaseUnreachable", "nobody reaches it", both("tracekit_database_up", "", "0x9"), 1, (_UNREACHABLE,)
    ),
    Case("TracekitDatabaseUnreachable", "not for long enough", both("tracekit_database_up", "", "0x9"), 0),
    Case(
        "TracekitDatabaseUnreachable",
        "one does",
        {f"tracekit_database_up{{{A}}}": "0x9", f"tracekit_database_up{{{B}}}": "1x9"},
        9,
    ),
    Case("TracekitDatabaseUnreachable", "nothing is scraped", {}, 9),
    Case("TracekitDatabaseUnreachable", "until now", both("tracekit_database_up", "", "0x5 1x9"), 6, (_UNREACHABLE,)),
    Case("TracekitDatabaseUnreachable", "a while ago", both("tracekit_database_up", "", "0x5 1x9"), 7),
    Case(
        "TracekitProcessWithoutDatabase",
        "one of two",
        {f"tracekit_database_up{{{A}}}": "0x9", f"tracekit_database_up{{{B}}}": "1x9"},
        2,
        (_CUT_OFF,),
    ),
    Case("TracekitProcessWithoutDatabase", "not for long enough", {f"tracekit_database_up{{{A}}}": "0x9"}, 1),
    Case("TracekitProcessWithoutDatabase", "both reach it", both("tracekit_database_up", "", "1x9"), 9),
    Case("TracekitProcessWithoutDatabase", "until now", {f"tracekit_database_up{{{A}}}": "0x5 1x9"}, 7, (_CUT_OFF,)),
    Case("TracekitProcessWithoutDatabase", "a while ago", {f"tracekit_database_up{{{A}}}": "0x5 1x9"}, 8),
    Case(
        "TracekitListenerPolling",
        "it polls",
        {f'tracekit_listener_state{{{A},state="polling"}}': "1x9"},
        5,
        (_POLLING,),
    ),
    Case(
        "TracekitListenerPolling", "not for long enough", {f'tracekit_listener_state{{{A},state="polling"}}': "1x9"}, 4
    ),
    Case(
        "TracekitListenerPolling",
        "it listens",
        {
            f'tracekit_listener_state{{{A},state="polling"}}': "0x9",
            f'tracekit_listener_state{{{A},state="listening"}}': "1x9",
        },
        9,
    ),
    Case(
        "TracekitListenerPolling",
        "until now",
        {f'tracekit_listener_state{{{A},state="polling"}}': "1x6 0x20"},
        11,
        (_POLLING,),
    ),
    Case("TracekitListenerPolling", "a while ago", {f'tracekit_listener_state{{{A},state="polling"}}': "1x6 0x20"}, 12),
    Case(
        "TracekitSpansNotShipped",
        "for eleven minutes",
        both(_SPANS, "", "660x9"),
        5,
        (Firing("Spans have waited for 11m 0s to be sent to the collector"),),
    ),
    Case("TracekitSpansNotShipped", "for ten", both(_SPANS, "", "600x9"), 9),
    Case("TracekitSpansNotShipped", "not for long enough", both(_SPANS, "", "660x9"), 4),
    Case(
        "TracekitSpansNotShipped",
        "until now",
        both(_SPANS, "", "660x6 0x20"),
        11,
        (Firing("Spans have waited for 11m 0s to be sent to the collector"),),
    ),
    Case("TracekitSpansNotShipped", "a while ago", both(_SPANS, "", "660x6 0x20"), 12),
    Case(
        "TracekitNotificationsNotDelivered",
        "for more than five minutes",
        both(_NOTIFICATIONS, "", "301x9"),
        5,
        (Firing("A notification has waited for 5m 1s to be delivered"),),
    ),
    Case("TracekitNotificationsNotDelivered", "for five", both(_NOTIFICATIONS, "", "300x9"), 9),
    Case("TracekitNotificationsNotDelivered", "not for long enough", both(_NOTIFICATIONS, "", "301x9"), 4),
    Case(
        "TracekitNotificationsNotDelivered",
        "until now",
        both(_NOTIFICATIONS, "", "301x6 0x20"),
        11,
        (Firing("A notification has waited for 5m 1s to be delivered"),),
    ),
    Case("TracekitNotificationsNotDelivered", "a while ago", both(_NOTIFICATIONS, "", "301x6 0x20"), 12),
]


def given_up(values: str, at: str = A) -> dict[str, str]:
    return {f"tracekit_notifications_given_up_total{{{at}}}": values}


_GIVEN_UP = Firing("Notifications given up within an hour: 1")

HEALTH += [
    Case("TracekitNotificationsGivenUp", "one", given_up("0x70 1x90"), 72, (_GIVEN_UP,)),
    Case(
        "TracekitNotificationsGivenUp",
        "one at either process",
        {**given_up("0x70 1x90"), **given_up("0x71 1x90", B)},
        73,
        (Firing("Notifications given up within an hour: 2"),),
    ),
    Case("TracekitNotificationsGivenUp", "almost an hour ago", given_up("0x70 1x90"), 129, (_GIVEN_UP,)),
    Case("TracekitNotificationsGivenUp", "more than an hour ago", given_up("0x70 1x90"), 131),
    Case("TracekitNotificationsGivenUp", "not for long enough", given_up("0x70 1x90"), 71),
    Case("TracekitNotificationsGivenUp", "none", given_up("0x90"), 80),
]

# --- the queue --------------------------------------------------------------------------------------------------------

_EXECUTOR, _VAR = {"mode": "executor"}, "?var-mode=executor"


def dead(values: str, reason: str = "attempts_exhausted", mode: str = "executor") -> dict[str, str]:
    return both("tracekit_dead_letters", f'mode="{mode}",reason="{reason}"', values)


def dying(number: int, mode: str = "executor") -> Firing:
    return Firing(f"Dead in mode {mode}: {number}", {"mode": mode}, dies(mode), f"?var-mode={mode}")


def dies(mode: str) -> str:
    return (
        f"Tasks of {mode} ran out of attempts or were given up, and wait for the operator in the DLQ: redrive or"
        " abandon them."
    )


_GROWING = Firing(
    "More dead in mode executor than an hour ago: 5",
    _EXECUTOR,
    "It is not one bad task: something that executor needs is broken, and every task that comes by dies of it.",
    _VAR,
)


def age(values: str, state: str = "ready", priority: str = "normal") -> dict[str, str]:
    labels = f'mode="executor",state="{state}",priority="{priority}"'
    return both("tracekit_hop_oldest_age_seconds", labels, values)


def hops(values: str, state: str = "ready", priority: str = "normal", mode: str = "executor") -> dict[str, str]:
    return both("tracekit_hops", f'mode="{mode}",state="{state}",priority="{priority}"', values)


def workers(values: str, mode: str = "executor") -> dict[str, str]:
    return both("tracekit_workers", f'mode="{mode}"', values)


_OLD = Firing(
    "The oldest hop of executor has been ready for 11m 0s",
    _EXECUTOR,
    "executor is not worked off: too few workers, slow handlers, or more work than it can do.",
    _VAR,
)
_URGENT = Firing(
    "An urgent hop of executor has been ready for 2m 1s",
    _EXECUTOR,
    "High and urgent tasks go before all others, so executor has not taken anything up for minutes.",
    _VAR,
)


def idle(number: int) -> Firing:
    return Firing(
        f"No worker serves executor, where hops are ready: {number}",
        _EXECUTOR,
        "No worker that serves executor has been seen for two minutes. Its hops wait until one starts.",
        _VAR,
    )


def lost(at: str, values: str, mode: str = "executor") -> dict[str, str]:
    return {f'tracekit_leases_lost_total{{{at},mode="{mode}"}}': values}


_LOST = Firing(
    "Leases of executor lost within an hour: 3",
    _EXECUTOR,
    variables=_VAR,
)

QUEUE = [
    Case("TracekitDeadLetters", "one is dead", dead("1x9"), 1, (dying(1),)),
    Case("TracekitDeadLetters", "of two reasons", {**dead("1x9"), **dead("2x9", "given_up")}, 1, (dying(3),)),
    Case(
        "TracekitDeadLetters",
        "in two modes",
        {**dead("1x9"), **dead("2x9", mode="router")},
        1,
        (dying(1), dying(2, "router")),
    ),
    Case(
        "TracekitDeadLetters",
        "in a mode whose name an address cannot hold",
        dead("1x9", mode="a b&c"),
        1,
        (Firing("Dead in mode a b&c: 1", {"mode": "a b&c"}, dies("a b&c"), "?var-mode=a+b%26c"),),
    ),
    Case("TracekitDeadLetters", "not for long enough", dead("1x9"), 0),
    Case("TracekitDeadLetters", "none is", dead("0x9"), 9),
    Case("TracekitDeadLetters", "nothing is known of it", {}, 9),
    Case("TracekitDeadLetters", "redriven just now", dead("1x5 stale"), 10, (dying(1),)),
    Case("TracekitDeadLetters", "redriven a while ago", dead("1x5 stale"), 11),
    Case("TracekitDeadLettersGrowing", "five within an hour", {**UP_AT_BOTH, **dead("_x70 5x30")}, 75, (_GROWING,)),
    Case(
        "TracekitDeadLettersGrowing",
        "one of two processes had no database an hour ago",
        {
            f"tracekit_database_up{{{A}}}": "1x200",
            f"tracekit_database_up{{{B}}}": "0x60 1x200",
            **dead("_x70 5x30"),
        },
        75,
        (_GROWING,),
    ),
    Case("TracekitDeadLettersGrowing", "55 minutes ago", {**UP_AT_BOTH, **dead("_x70 5x90")}, 125, (_GROWING,)),
    Case("TracekitDeadLettersGrowing", "five more", {**UP_AT_BOTH, **dead("7x70 12x30")}, 76, (_GROWING,)),
    Case(
        "TracekitDeadLettersGrowing",
        "of two reasons",
        {**UP_AT_BOTH, **dead("_x70 3x30"), **dead("_x70 2x30", "given_up")},
        75,
        (_GROWING,),
    ),
    Case("TracekitDeadLettersGrowing", "not for long enough", {**UP_AT_BOTH, **dead("_x70 5x30")}, 74),
    Case("TracekitDeadLettersGrowing", "four", {**UP_AT_BOTH, **dead("_x70 4x30")}, 90),
    Case("TracekitDeadLettersGrowing", "three of each process are three", {**UP_AT_BOTH, **dead("_x70 3x30")}, 90),
    Case(
        "TracekitDeadLettersGrowing",
        "three of each mode",
        {**UP_AT_BOTH, **dead("_x70 3x30"), **dead("_x70 3x30", mode="router")},
        90,
    ),
    Case("TracekitDeadLettersGrowing", "they are old", {**UP_AT_BOTH, **dead("5x150")}, 90),
    Case(
        "TracekitDeadLettersGrowing",
        "nobody looked an hour ago",
        {f"tracekit_database_up{{{A}}}": "_x70 1x100", **dead("_x70 5x100")},
        90,
    ),
    Case(
        "TracekitDeadLettersGrowing",
        "the database was away an hour ago",
        {f"tracekit_database_up{{{A}}}": "1x9 0x30 1x100", **dead("5x9 stale _x30 5x100")},
        85,
    ),
    Case("TracekitDeadLettersGrowing", "until now", {**UP_AT_BOTH, **dead("_x70 5x9 0x50")}, 94, (_GROWING,)),
    Case("TracekitDeadLettersGrowing", "a while ago", {**UP_AT_BOTH, **dead("_x70 5x9 0x50")}, 95),
    Case("TracekitHopTooOld", "for eleven minutes", age("660x9"), 5, (_OLD,)),
    Case("TracekitHopTooOld", "the oldest of two", {**age("660x9"), **age("5x9", priority="low")}, 5, (_OLD,)),
    Case("TracekitHopTooOld", "for ten", age("600x9"), 9),
    Case("TracekitHopTooOld", "not for long enough", age("660x9"), 4),
    Case("TracekitHopTooOld", "it is parked", age("9000x9", "parked"), 9),
    Case("TracekitHopTooOld", "until now", age("660x6 1x20"), 11, (_OLD,)),
    Case("TracekitHopTooOld", "a while ago", age("660x6 1x20"), 12),
    Case("TracekitUrgentHopTooOld", "urgent", age("121x9", priority="urgent"), 2, (_URGENT,)),
    Case("TracekitUrgentHopTooOld", "high", age("121x9", priority="high"), 2, (_URGENT,)),
    Case("TracekitUrgentHopTooOld", "for two minutes", age("120x9", priority="urgent"), 9),
    Case("TracekitUrgentHopTooOld", "not for long enough", age("121x9", priority="urgent"), 1),
    Case("TracekitUrgentHopTooOld", "normal", age("9000x9"), 9),
    Case("TracekitUrgentHopTooOld", "it runs", age("9000x9", "running", "urgent"), 9),
    Case("TracekitUrgentHopTooOld", "until now", age("121x6 1x20", priority="urgent"), 11, (_URGENT,)),
    Case("TracekitUrgentHopTooOld", "a while ago", age("121x6 1x20", priority="urgent"), 12),
    Case("TracekitNoWorker", "nobody serves it", {**hops("1x9"), **workers("1x9", "router")}, 2, (idle(1),)),
    Case(
        "TracekitNoWorker", "nobody serves anything", {**hops("1x9"), **hops("2x9", priority="urgent")}, 2, (idle(3),)
    ),
    Case("TracekitNoWorker", "not any more", {**hops("1x20"), **workers("1x9 stale")}, 12, (idle(1),)),
    Case("TracekitNoWorker", "none is left", {**hops("1x20"), **workers("1x9 0x9")}, 12, (idle(1),)),
    Case("TracekitNoWorker", "not for long enough", hops("1x9"), 1),
    Case("TracekitNoWorker", "one does", {**hops("1x9"), **workers("1x9")}, 9),
    Case("TracekitNoWorker", "there is no work", {**hops("0x9"), **workers("1x9", "router")}, 9),
    Case("TracekitNoWorker", "the work waits for a person", hops("1x9", "parked"), 9),
    Case("TracekitNoWorker", "until now", {**hops("1x20"), **workers("_x6 1x9")}, 7, (idle(1),)),
    Case("TracekitNoWorker", "a while ago", {**hops("1x20"), **workers("_x6 1x9")}, 8),
    Case("TracekitLeasesLost", "three", lost(A, "0x70 3x20"), 72, (_LOST,)),
    Case(
        "TracekitLeasesLost", "three of two processes", {**lost(A, "0x70 2x20"), **lost(B, "0x70 1x20")}, 72, (_LOST,)
    ),
    Case("TracekitLeasesLost", "over most of an hour", lost(A, "0x70 1x20 2x20 3x20"), 114, (_LOST,)),
    Case("TracekitLeasesLost", "two", lost(A, "0x70 2x20"), 80),
    Case("TracekitLeasesLost", "two of each mode", {**lost(A, "0x70 2x20"), **lost(A, "0x70 2x20", "router")}, 80),
    Case("TracekitLeasesLost", "more than an hour ago", lost(A, "0x70 3x90"), 140),
    Case("TracekitLeasesLost", "not for long enough", lost(A, "0x70 3x20"), 71),
]

# --- people -----------------------------------------------------------------------------------------------------------


def deadline(values: str) -> dict[str, str]:
    return both("tracekit_approval_next_deadline_seconds", "", values)


def ended(values: str, state: str = "expired", destructive: str = "true", at: str = A) -> dict[str, str]:
    return {f'tracekit_tasks_ended_total{{{at},state="{state}",destructive="{destructive}"}}': values}


_EXPIRED = Firing("Destructive tasks that expired within an hour: 1")

PEOPLE = [
    Case(
        "TracekitApprovalNearDeadline",
        "in 13 minutes",
        deadline("1800-60x30"),
        17,
        (Firing("An approval expires in 13m 0s"),),
    ),
    Case(
        "TracekitApprovalNearDeadline",
        "it is over, and nobody swept",
        deadline("-60x9"),
        1,
        (Firing("An approval expires in -1m 0s"),),
    ),
    Case("TracekitApprovalNearDeadline", "in 14, not for long enough", deadline("1800-60x30"), 16),
    Case("TracekitApprovalNearDeadline", "in 15", deadline("900x9"), 9),
    Case("TracekitApprovalNearDeadline", "none is pending", {}, 9),
    Case("TracekitDestructiveTaskExpired", "one", ended("0x70 1x90"), 72, (_EXPIRED,)),
    Case(
        "TracekitDestructiveTaskExpired",
        "one at either process",
        {**ended("0x70 1x90"), **ended("0x71 1x90", at=B)},
        73,
        (Firing("Destructive tasks that expired within an hour: 2"),),
    ),
    Case("TracekitDestructiveTaskExpired", "almost an hour ago", ended("0x70 1x90"), 129, (_EXPIRED,)),
    Case("TracekitDestructiveTaskExpired", "more than an hour ago", ended("0x70 1x90"), 131),
    Case("TracekitDestructiveTaskExpired", "one that was not destructive", ended("0x70 1x20", destructive="false"), 80),
    Case("TracekitDestructiveTaskExpired", "one that was done", ended("0x70 1x20", "done"), 80),
    Case("TracekitDestructiveTaskExpired", "not for long enough", ended("0x70 1x20"), 71),
]

# --- ingress ----------------------------------------------------------------------------------------------------------


def refused(reason: str, values: str, at: str = A, surface: str = "voice") -> dict[str, str]:
    return {f'tracekit_ingress_refusals_total{{{at},surface="{surface}",reason="{reason}"}}': values}


def failing(reason: str) -> Firing:
    return Firing(f"tracekit cannot take what voice sends: {reason}", {"surface": "voice", "reason": reason})


def refusing(reason: str) -> Firing:
    return Firing(f"Requests of voice are refused: {reason}", {"surface": "voice", "reason": reason})


INGRESS = [
    *(
        Case("TracekitIngressFailing", f"three times {reason}", refused(reason, "0x30 3x20"), 33, (failing(reason),))
        for reason in ("database-away", "internal", "queue-full")
    ),
    Case(
        "TracekitIngressFailing",
        "three times at two processes",
        {**refused("internal", "0x30 2x20"), **refused("internal", "0x30 1x20", B)},
        33,
        (failing("internal"),),
    ),
    Case("TracekitIngressFailing", "twice", refused("internal", "0x30 2x20"), 40),
    Case(
        "TracekitIngressFailing",
        "twice for two reasons at two surfaces",
        {
            **refused("internal", "0x30 2x20"),
            **refused("queue-full", "0x30 2x20"),
            **refused("internal", "0x30 2x20", surface="zulip"),
        },
        40,
    ),
    Case("TracekitIngressFailing", "the caller's fault", refused("invalid", "0x30 30x20"), 40),
    Case("TracekitIngressFailing", "not for long enough", refused("internal", "0x30 3x20"), 32),
    Case("TracekitIngressFailing", "until now", refused("internal", "0x30 3x90"), 50, (failing("internal"),)),
    Case("TracekitIngressFailing", "a while ago", refused("internal", "0x30 3x90"), 51),
    *(
        Case("TracekitIngressRefusing", f"ten times {reason}", refused(reason, "0x30 10x20"), 36, (refusing(reason),))
        for reason in (
            "unauthenticated",
            "forbidden",
            "malformed",
            "invalid",
            "too-large",
            "unsupported-media-type",
            "too-slow",
        )
    ),
    Case(
        "TracekitIngressRefusing",
        "ten times at two processes",
        {**refused("invalid", "0x30 5x20"), **refused("invalid", "0x30 5x20", B)},
        36,
        (refusing("invalid"),),
    ),
    Case("TracekitIngressRefusing", "nine times", refused("invalid", "0x30 9x20"), 42),
    Case(
        "TracekitIngressRefusing",
        "nine times for two reasons at two surfaces",
        {
            **refused("invalid", "0x30 9x20"),
            **refused("forbidden", "0x30 9x20"),
            **refused("invalid", "0x30 9x20", surface="zulip"),
        },
        42,
    ),
    Case("TracekitIngressRefusing", "a scanner", refused("not-found", "0x30 900x20"), 42),
    Case("TracekitIngressRefusing", "decisions that come too late", refused("expired", "0x30 900x20"), 42),
    Case("TracekitIngressRefusing", "not for long enough", refused("invalid", "0x30 10x20"), 35),
    Case("TracekitIngressRefusing", "until now", refused("invalid", "0x30 10x90"), 50, (refusing("invalid"),)),
    Case("TracekitIngressRefusing", "a while ago", refused("invalid", "0x30 10x90"), 51),
]

# --- cost -------------------------------------------------------------------------------------------------------------

_BUDGET = {"scope": "total", "subject": "", "period": "week", "unit": "usd"}


def of_week(subject: str) -> str:
    return f'scope="{"requester" if subject else "total"}",subject="{subject}",period="week",unit="usd"'


def used_up(values: str, subject: str = "") -> dict[str, str]:
    return both("tracekit_budget_used_up", of_week(subject), values)


def budget(amount: str, spent: str, elapsed: str = "", subject: str = "") -> dict[str, str]:
    labels = of_week(subject)
    made = {
        **both("tracekit_budget_amount", labels, amount),
        **both("tracekit_budget_spent", labels, spent),
    }
    return {**made, **both("tracekit_budget_period_elapsed_ratio", labels, elapsed)} if elapsed else made


def ahead(percent: str, who: str = "total budget", scope: str = "total", subject: str = "") -> Firing:
    return Firing(
        f"The {who} a week in usd does not last",
        {"scope": scope, "period": "week", "unit": "usd", **({"subject": subject} if subject else {})},
        f"At this pace {percent} of it is spent at the end of the week.",
    )


_USED_UP = Firing(
    "The total budget a week in usd is used up",
    {"scope": "total", "period": "week", "unit": "usd"},
    "A call found no room in it, or all of it is spent. Calls that are beyond it are parked, refused or asked of the"
    " local model, as its policy says, until it begins anew.",
)


def unpriced(
    values: str, *, synthetic: str = "false", lowered: bool = False, mode: str = "executor", requester: str = "rob"
) -> dict[str, str]:
    name = "tracekit_unpriced_calls_lowered_total" if lowered else "tracekit_unpriced_calls_total"
    labels = f'mode="{mode}",persona="p",requester="{requester}",provider="x",model="m",synthetic="{synthetic}"'
    return both(name, labels, values)


def without_price(number: int) -> Firing:
    return Firing(f"Calls of x/m without a price, of the last hour: {number}", {"provider": "x", "model": "m"})


COST = [
    Case(
        "TracekitSpendAbovePace", "60 % in 40 % of the time", budget("100x20", "60x20", "0.4x20"), 10, (ahead("150%"),)
    ),
    Case(
        "TracekitSpendAbovePace",
        "somebody's",
        budget("100x20", "60x20", "0.4x20", "rené e&co"),
        10,
        (
            Firing(
                "The requester budget of rené e&co a week in usd does not last",
                {"scope": "requester", "subject": "rené e&co", "period": "week", "unit": "usd"},
                "At this pace 150% of it is spent at the end of the week.",
            ),
        ),
    ),
    Case("TracekitSpendAbovePace", "50 %", budget("100x20", "50x20", "0.4x20"), 10, (ahead("125%"),)),
    Case("TracekitSpendAbovePace", "not for long enough", budget("100x20", "60x20", "0.4x20"), 9),
    Case("TracekitSpendAbovePace", "60 % in 60 % of the time", budget("100x20", "60x20", "0.6x20"), 20),
    Case("TracekitSpendAbovePace", "49 % in no time", budget("100x20", "49x20", "0.01x20"), 20),
    Case("TracekitSpendAbovePace", "a budget of nothing, and nothing spent", budget("0x20", "0x20", "0.4x20"), 20),
    Case("TracekitSpendAbovePace", "until now", budget("100x60", "60x60", "0.4x20 0.9x40"), 50, (ahead("150%"),)),
    Case("TracekitSpendAbovePace", "a while ago", budget("100x60", "60x60", "0.4x20 0.9x40"), 51),
    Case("TracekitBudgetUsedUp", "it is", used_up("1x9"), 1, (_USED_UP,)),
    Case(
        "TracekitBudgetUsedUp",
        "a call found no room, and some is left",
        {**used_up("1x9"), **budget("100x9", "99x9", "0.99x9")},
        1,
        (_USED_UP,),
    ),
    Case(
        "TracekitBudgetUsedUp",
        "one person's of two",
        {**used_up("1x9", "rob"), **used_up("0x9", "ann")},
        1,
        (
            Firing(
                "The requester budget of rob a week in usd is used up",
                {"scope": "requester", "subject": "rob", "period": "week", "unit": "usd"},
                _USED_UP.description,
            ),
        ),
    ),
    Case("TracekitBudgetUsedUp", "it is not", used_up("0x9"), 9),
    Case("TracekitBudgetUsedUp", "not for long enough", used_up("1x9"), 0),
    Case("TracekitBudgetUsedUp", "it began anew", used_up("1x5 0x9"), 6),
    Case("TracekitUnpricedCalls", "the first", {**UP_AT_BOTH, **unpriced("_x70 1x30")}, 75, (without_price(1),)),
    Case(
        "TracekitUnpricedCalls",
        "six more, of which three have a price by now",
        {
            **UP_AT_BOTH,
            **unpriced("7x70 9x30"),
            **unpriced("_x70 3x30", mode="router"),
            **unpriced("_x70 1x30", lowered=True),
            **unpriced("_x70 1x30", lowered=True, mode="router"),
            **unpriced("_x70 1x30", requester="ann"),
            **unpriced("_x70 1x30", lowered=True, requester="ann"),
        },
        77,
        (without_price(3),),
    ),
    Case("TracekitUnpricedCalls", "not for long enough", {**UP_AT_BOTH, **unpriced("_x70 1x30")}, 74),
    Case(
        "TracekitUnpricedCalls",
        "priced since",
        {**UP_AT_BOTH, **unpriced("_x70 1x30"), **unpriced("_x72 1x30", lowered=True)},
        90,
    ),
    Case("TracekitUnpricedCalls", "55 minutes ago", {**UP_AT_BOTH, **unpriced("_x70 1x90")}, 125, (without_price(1),)),
    Case(
        "TracekitUnpricedCalls",
        "those that are new were made up",
        {**UP_AT_BOTH, **unpriced("1x150"), **unpriced("_x70 9x30", synthetic="true")},
        90,
    ),
    Case(
        "TracekitUnpricedCalls",
        "those that have a price by now were made up",
        {**UP_AT_BOTH, **unpriced("_x70 1x30"), **unpriced("_x70 1x30", lowered=True, synthetic="true")},
        90,
        (without_price(1),),
    ),
    Case(
        "TracekitUnpricedCalls",
        "the database was away an hour ago",
        {f"tracekit_database_up{{{A}}}": "1x9 0x30 1x100", **unpriced("5x9 stale _x30 5x100")},
        85,
    ),
    Case(
        "TracekitUnpricedCalls",
        "one of two processes had no database an hour ago",
        {
            f"tracekit_database_up{{{A}}}": "1x200",
            f"tracekit_database_up{{{B}}}": "0x60 1x200",
            **unpriced("_x70 1x30"),
        },
        75,
        (without_price(1),),
    ),
    Case("TracekitUnpricedCalls", "more than an hour ago", {**UP_AT_BOTH, **unpriced("1x150")}, 90),
    Case(
        "TracekitUnpricedCalls",
        "nobody looked an hour ago",
        {f"tracekit_database_up{{{A}}}": "_x70 1x100", **unpriced("_x70 1x100")},
        90,
    ),
]

CASES = [*HEALTH, *QUEUE, *PEOPLE, *INGRESS, *COST]
