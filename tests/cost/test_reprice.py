"""Repricing: calls keep their tokens and get the prices that are known now, and what changed is on record (C1)."""

from __future__ import annotations

from decimal import Decimal

from tests.cost.driving import PRICES, all_counted, all_spent, book, ledger_of, rows, spent, usage
from tests.queue.driving import accept, settle, take
from tracekit.config import PriceSettings
from tracekit.cost import Ledger, PriceBook
from tracekit.cost.reprice import Change, reprice, repricings
from tracekit.queue import Done, Queue

DEARER = (
    PriceSettings.model_validate({"model": "m-*", "input": "6", "output": "30"}),
    PriceSettings.model_validate({"model": "new", "input": "1", "output": "1"}),
)


async def test_c1_repricing_changes_what_has_another_price_now_and_says_what(queue: Queue) -> None:
    ledger = ledger_of(queue)
    ended, running = await accept(queue), await accept(queue, "running")
    at = await take(queue)
    await book(ledger, at, usage(key="dearer"), usage("new", key="priced"), usage("other", key="unknown"))
    await settle(queue, at, Done())
    at = await take(queue, "running")
    await book(ledger, at, usage("new", key="billed", cost=Decimal("0.5"), billed_by="litellm"), usage(key="late"))
    before = await all_spent(queue)

    renewed = Ledger(queue, PriceBook(DEARER))
    tried, changes = await reprice(renewed, "rob", dry_run=True)
    assert (tried.id, tried.looked_at, tried.changed) == (0, 5, 4)
    assert await all_spent(queue) == before
    assert await rows(queue, "SELECT FROM tracekit.repricings") == []

    done, changed = await reprice(renewed, "rob")
    assert changed == changes
    assert Change(ended, "dearer", "test", "m-1", Decimal("0.00033"), Decimal("0.00066"), "override") in changed
    assert Change(ended, "priced", "test", "new", None, Decimal("0.00003"), "override") in changed
    # The operator's word goes before the bill.
    assert Change(running, "billed", "test", "new", Decimal("0.5"), Decimal("0.00003"), "override") in changed
    assert (done.looked_at, done.changed, done.by) == (5, 4, "rob")
    assert (done.cost_before, done.cost_after) == (Decimal("0.50066"), Decimal("0.00138"))
    assert (done.unpriced_before, done.unpriced_after) == (1, 0)
    assert done.finished_at is not None
    async with queue.connection() as connection:
        assert await repricings(connection, 10) == [done]
    # Each change names it, keeps whose call it was, and does not touch what was believed before.
    versions = await rows(
        queue,
        "SELECT key, version, cost, repricing, mode, output_tokens FROM tracekit.usage WHERE key = 'dearer' ORDER BY 2",
    )
    assert versions == [
        ("dearer", 1, Decimal("0.00033"), None, "router", 20),
        ("dearer", 2, Decimal("0.00066"), done.id, "router", 20),
    ]
    assert await all_counted(queue) == await all_spent(queue)
    assert (await spent(queue, ended)).unpriced == 1

    again, nothing = await reprice(renewed, "rob")
    assert (again.changed, nothing) == (0, [])


async def test_c1_the_bill_counts_again_when_the_operator_takes_his_word_back(queue: Queue) -> None:
    task_id = await accept(queue)
    at = await take(queue)
    ledger = ledger_of(queue)
    await book(ledger, at, usage(key="k", cost=Decimal("0.5"), billed_by="litellm"))
    assert (await spent(queue, task_id)).cost == Decimal("0.00033")
    await reprice(Ledger(queue, PriceBook()), "rob")
    [row] = await rows(queue, "SELECT cost, price_source, price_version, provider FROM tracekit.spend")
    assert row == (Decimal("0.5"), "provider", "litellm", "test")


async def test_c1_only_what_was_made_since_is_priced_anew(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(key="old"))
    [[now]] = await rows(queue, "SELECT clock_timestamp()")
    await book(ledger, at, usage(key="young"))
    done, changes = await reprice(Ledger(queue, PriceBook(DEARER)), "rob", since=now)
    assert ([change.key for change in changes], done.looked_at, done.since) == (["young"], 1, now)


async def test_c1_the_same_prices_change_nothing(queue: Queue) -> None:
    await accept(queue)
    await book(ledger_of(queue), await take(queue), usage(key="k"), usage("unknown", key="u"))
    done, _ = await reprice(Ledger(queue, PriceBook(PRICES)), "rob")
    assert (done.looked_at, done.changed) == (2, 0)
