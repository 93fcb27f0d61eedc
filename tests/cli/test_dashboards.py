"""`tracekit dashboards preview`. `build` and `check` are in test_generated.py, `push` in tests/dashboards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.running import Cli
from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import accept, settle, take
from tests.support.ports import free_port
from tracekit.cli.preview import cell, sparkline
from tracekit.envelope import DataTier
from tracekit.queue import Done, Queue


def test_the_commands_are_there_without_the_sdk_that_makes_dashboards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, tracekit.cli.commands; print('grafana_foundation_sdk' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


async def test_a_task_is_previewed_by_its_id(queue: Queue, cli: Cli) -> None:
    task_id = await accept(queue, intent="summarize the week")
    at = await take(queue)
    await book(ledger_of(queue), at, usage(output=200))
    await settle(queue, at, Done(summary="it was quiet"))
    await accept(queue, intent="another")
    shown = (await cli.ok("dashboards", "preview", "task", "--task", task_id.lower())).out
    assert "== Outcome\nSTATE  NOW OR LAST IN\ndone   router\n" in shown
    assert "it was quiet" in shown
    assert "$0.0030" in shown
    assert "no data: nobody had to be asked." in shown
    assert "Tempo is not asked here: open it in Grafana" in shown
    assert "\x1b[" not in shown

    found = (await cli.ok("dashboards", "preview", "task", "tasks", "--from", "1h", "--json")).json
    [panel] = found
    [query] = panel["queries"]
    titles = [row[query["columns"].index("title")] for row in query["rows"]]
    assert titles == ["another", "summarize the week"], "the newest first"


async def test_a_variable_is_set_and_prometheus_is_not_needed(queue: Queue, cli: Cli) -> None:
    await accept(queue, intent="the secret of the safe", data_tier=DataTier.RESTRICTED)
    at = await take(queue)
    await book(ledger_of(queue), at, usage(), usage("unknown"))
    await settle(queue, at, Done())
    shown = (await cli.ok("dashboards", "preview", "budget", "by day", "--var", "by=requester")).out
    assert "== Cost by day\nSERIES  LAST      MOST\nrob     $0.00033\n" in shown
    shown = (await cli.ok("dashboards", "preview", "fleet")).out
    assert "no Prometheus is known: --prometheus-url, or prometheus.url" in shown
    assert "(restricted)" in shown
    assert "safe" not in shown


async def test_a_value_with_an_apostrophe_is_a_value(queue: Queue, cli: Cli) -> None:
    """The format of regular expressions escapes none: what a requester or a model is called must not end the text."""
    await accept(queue, intent="summarize the week")
    await settle(queue, await take(queue), Done())
    for requester, listed in (
        ("rob", True),
        ("o'brien", False),
        ("x' or true or 'a' ~ 'b", False),
        ("$$ or true", False),
    ):
        ran = await cli("dashboards", "preview", "task", "tasks", "--var", f"requester={requester}")
        assert ("summarize the week" in ran.out) == listed
        assert listed or "there is no task in the time range" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("queue", "nothing like it"), "queue has no panel 'nothing like it' — its panels: Waiting by mode"),
        (("fleet", "--var", "colour=red"), "--var colour=red: there is no such variable — one of job, mode"),
        (("task", "--task", "01K9GQ7F3M0000000000000000"), "there is no task 01K9GQ7F3M0000000000000000"),
        (("task",), "there is no task in the time range"),
        (("fleet", "--task", "x"), "only the dashboard task is about one task"),
    ],
)
async def test_what_is_not_there_is_said(queue: Queue, cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    ran = await cli("dashboards", "preview", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


async def test_a_prometheus_that_is_away_is_said(queue: Queue, cli: Cli) -> None:
    url = f"http://rob:hunter2@127.0.0.1:{free_port()}"
    ran = await cli("dashboards", "preview", "fleet", "--prometheus-url", url)
    assert (ran.code, ran.out) == (1, "")
    assert "hunter2" not in ran.err
    assert "is no Prometheus that answers" in ran.err


async def test_p7_dashboards_are_the_operator_s(queue: Queue, cli: Cli) -> None:
    ran = await cli("dashboards", "preview", "fleet", TRACEKIT_CLI_PRINCIPAL="renee")
    assert (ran.code, ran.out) == (2, "")
    assert "dashboards are an operator's" in ran.err


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (90, "s", "1 min 30 s"),
        (-3.0, "s", "-3.00 s"),
        (0.25, "percentunit", "25.0%"),
        (1536, "bytes", "1.5 KiB"),
        (float("nan"), "s", "–"),
        (None, "short", ""),
        (True, "short", "yes"),
        (12_300, "short", "12.3k"),
        (0.1234, "cpm", "0.123/min"),
        ("text", "s", "text"),
    ],
)
def test_a_cell_is_shown_in_its_unit(value: object, unit: str, shown: str) -> None:
    assert cell(value, unit) == shown


def test_a_sparkline_begins_at_zero_and_fits() -> None:
    assert sparkline([0, 1, 2, 4], 40) == "▁▂▄█"
    assert sparkline([0, 0], 40) == "▁▁"
    assert sparkline([], 40) == ""
    assert len(sparkline(list(range(100)), 40)) <= 40
