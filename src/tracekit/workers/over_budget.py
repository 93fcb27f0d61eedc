"""A call for which a budget has no room: what becomes of the attempt that wanted to make it.

By the budget's policy it is refused, or the operator is asked, in the way in which plans are (`workers.asking`):
what they are shown is this one call and why there is no room for it. Their yes is a grant for one such call of this
task. A call that could be *downgraded* has been, where it was asked (`workers.models`); one that comes here is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, LiteralString

from tracekit.cost import OverBudget
from tracekit.cost.limits import UNITS, shown
from tracekit.queue import Done, GiveUp, LeaseLost, Outcome
from tracekit.queue.model import Json
from tracekit.workers.approvals import KIND, read_verdict
from tracekit.workers.asking import Question, ask, because, deferred
from tracekit.workers.mode import Hop
from tracekit.workers.models import restricted

# Under the lease's token, as all that an attempt writes. The same approval once more grants nothing more.
_GRANT: LiteralString = """
WITH held AS (
    SELECT FROM tracekit.queue WHERE task_id = %(task)s AND token = %(token)s AND worker IS NOT NULL
), granted AS (
    INSERT INTO tracekit.budget_grants (task_id, approval, unit, amount, granted_by)
    SELECT %(task)s, %(key)s, g.unit, g.amount, %(by)s
    FROM held, jsonb_to_recordset(%(grants)s::jsonb) AS g(unit text, amount numeric)
    ON CONFLICT (task_id, approval, unit) DO NOTHING
)
SELECT count(*) FROM held
"""


async def answer(hop: Hop[Any], over: OverBudget) -> Outcome:
    """What becomes of the attempt."""
    if over.policy != "park":
        hop.log.warning("budget.refused", model=over.model, why=str(over))
        return GiveUp(f"{over}; {over.hint}")
    hop.log.info("budget.asks", model=over.model, why=str(over))
    return await ask(hop, _question(hop, over))


async def decided(hop: Hop[Any]) -> Outcome | None:
    """What follows from the decision that the attempt comes back with, where it waited for one on its budget: its end,
    or None where it goes on.
    """
    resumption = hop.resumption
    if resumption is None or resumption.kind != KIND or resumption.signal is None:
        return None
    call = resumption.data
    if not isinstance(call, dict) or "over_budget" not in call:
        return None
    verdict, by = read_verdict(resumption.signal.payload), resumption.signal.sent_by
    if verdict is None or verdict.plan_hash != call.get("plan_hash"):
        hop.log.warning("budget.decision_refused", key=resumption.key)
        return None
    match verdict.decision:
        case "approve":
            await _grant(hop, resumption.key, call.get("plan"), by)
            return None
        case "reject":
            return Done("rejected", f"{by} rejected spending more than the budget has{because(verdict)}.")
        case "defer":
            # After the rest it tries, and asks again.
            return deferred(verdict, by)


def _question(hop: Hop[Any], over: OverBudget) -> Question:
    call = _call(hop, over)
    return Question(
        plan=call,
        plan_hash=hashlib.sha256(json.dumps(call, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        what=(_what(over),),
        why=tuple(f"{one.words[0].upper()}{one.words[1:]}" for one in over.exceeded),
        restricted=restricted(hop),
        title="Spend more?",
        restricted_title="A restricted task waits for your decision on money",
        unanswered="is not asked",
        # When the budget begins anew before anybody has answered there is room again.
        again_at=over.begins_anew,
        again_why="when the budget begins anew",
        data={"over_budget": [one.limit.name for one in over.exceeded]},
    )


def _call(hop: Hop[Any], over: OverBudget) -> dict[str, Json]:
    """The call, as it is shown and as its hash stands for it."""
    return {
        "mode": hop.task.mode,
        "provider": over.provider,
        "model": over.model,
        "usd": None if over.usd is None else str(over.usd),
        "tokens": over.tokens,
        "requests": over.requests,
        "over": [one.limit.name for one in over.exceeded],
    }


def _what(over: OverBudget) -> str:
    price = "at a price that nobody knows" if over.usd is None else f"for {shown('usd', over.usd)} at most"
    return f"spend beyond its budget: ask the model {over.model}, {price}, with {over.tokens:,} tokens at most"


async def _grant(hop: Hop[Any], key: str, call: Json, by: str) -> None:
    grants = [{"unit": unit, "amount": str(amount)} for unit in UNITS if (amount := _amount(call, unit)) > 0]
    parameters = {"task": hop.task.task_id, "token": hop.task.token, "key": key, "by": by, "grants": json.dumps(grants)}
    async with hop.services.queue.connection() as connection:
        row = await (await connection.execute(_GRANT, parameters)).fetchone()
    if row is None or row[0] == 0:
        raise LeaseLost(hop.task.task_id)
    hop.log.info("budget.granted", by=by, key=key)


def _amount(call: Json, unit: str) -> Decimal:
    try:
        return Decimal(str(call[unit])) if isinstance(call, Mapping) and call.get(unit) is not None else Decimal(0)
    except InvalidOperation:
        return Decimal(0)
