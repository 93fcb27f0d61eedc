"""`tracekit top`: on a terminal of any size, on a pipe, as JSON, over a database that goes and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from tests.cli.running import Cli, Terminal, environment
from tests.cost.budgeting import let_hold, limit
from tests.queue.driving import accept, settle, take
from tests.support.postgres import ThrowawayServer
from tests.support.processes import eventually
from tracekit.envelope import DataTier, Priority
from tracekit.postgres import migrate, open_pool
from tracekit.queue import GiveUp, Park, Queue

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
"""The terminal's other screen."""

SHELL = ("sh", "-c", 'trap : INT TERM; stty -g; "$@"; echo "code $?"; stty -g; echo over', "sh")
"""Runs a command, and tells its exit code and how the terminal was before and after."""


def frames(terminal: Terminal) -> list[list[str]]:
    """Each screen that was drawn whole, without colours."""
    drawn = terminal.shown.split("\x1b[H")[1:-1]
    found = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).split("\r\n") for frame in drawn]
    return [frame for frame in found if len(frame) > 1]


async def busy(queue: Queue) -> str:
    """A bit of everything; the task that runs."""
    await accept(queue, "planner", intent="sort the \x1b[31mpost\x1b[0m")
    await accept(queue, "router", intent="the secret thing", data_tier=DataTier.RESTRICTED)
    await settle(queue, await take(queue, "router"), GiveUp("the secret reason"))
    await accept(queue, "guardian", intent="open the front door", priority=Priority.URGENT)
    await settle(queue, await take(queue, "guardian"), Park("approval", "k", timedelta(hours=3)))
    await let_hold(queue, limit("total", "day", "usd"), 5)
    running = await accept(queue, "executor", intent="turn on the kitchen light " + 10 * "and on ")
    await take(queue, "executor", worker="hearth-1")
    return running


async def test_on_a_pipe_it_is_one_look_whole_and_without_colour(cli: Cli, queue: Queue) -> None:
    running = await busy(queue)
    for arguments in (["top"], ["top", "--once"]):
        out = (await cli.ok(*arguments)).out
        assert "\x1b" not in out
        assert re.search(r"^MODE +READY +SCHED +RUN +PARKED +OLDEST +WORKERS +/MIN +FAILED$", out, re.MULTILINE)
        assert re.search(r"^planner +1 +0 +0 +0 +\d+s +0 +0 +0$", out, re.MULTILINE)
        assert re.search(r"^router +0 +0 +0 +0 +- +0 +1 +1$", out, re.MULTILINE)
        assert "! no worker serves planner: tracekit worker --modes planner" in out
        assert "DLQ         1: 1 given_up" in out
        assert "APPROVALS   1 pending, 1 urgent" in out
        assert "left urgent  rob  open the front door" in out
        assert "TODAY       no model was called" in out
        assert "$5.00 left of $5.00  total/day/usd" in out
        assert re.search(rf"^{running} +\d+s  executor  #1 +hearth-1  turn on the kitchen .*and on$", out, re.MULTILINE)


async def test_p8_a_restricted_title_is_shown_nowhere(cli: Cli, queue: Queue) -> None:
    await busy(queue)
    for arguments in (["top"], ["top", "--once", "--json"]):
        out = (await cli.ok(*arguments)).out
        assert "secret" not in out
        assert "(restricted)" in out


async def test_p7_it_is_the_operators(cli: Cli, queue: Queue) -> None:
    await busy(queue)
    ran = await cli("top", "--once", TRACEKIT_CLI_PRINCIPAL="renee")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "tracekit: renee is not an operator — overviews are an operator's\n"


async def test_wrong_intervals_are_refused(cli: Cli) -> None:
    ran = await cli("top", "--interval", "1e-3s")
    assert (ran.code, ran.out) == (2, "")
    ran = await cli("top", "--interval", "0.1s")
    assert (ran.code, ran.out) == (2, "")
    assert "must be 0.2s at least" in ran.err


async def test_json_is_a_line_for_each_look_until_somebody_leaves(cli: Cli, queue: Queue) -> None:
    await accept(queue, "planner")
    async with cli.started("top", "--json", "--interval", "0.2s") as process:
        assert process.stdout is not None
        first = json.loads(await process.stdout.readline())
        await accept(queue, "planner")
        while json.loads(await process.stdout.readline())["modes"][0]["ready"] != 2:
            pass
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert process.stderr is not None
        assert await process.stderr.read() == b""
    assert first["modes"][0] | {"oldest_ready_seconds": 0} == {
        "mode": "planner", "ready": 1, "scheduled": 0, "running": 0, "parked": 0, "oldest_ready_seconds": 0,
        "workers": 0, "attempts_per_minute": 0, "failures_per_minute": 0,
    }  # fmt: skip
    once = await cli.ok("top", "--json", "--once")
    [line] = once.lines
    assert set(line) == set(first)


async def test_a_reader_that_leaves_is_no_error(cli: Cli, queue: Queue) -> None:
    async with cli.started("top", "--json", "--interval", "0.2s") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 1


@pytest.mark.parametrize(("typed", "code"), [("q", 0), ("\x1b", 0), ("\x03", 130)])
async def test_leaving_gives_the_terminal_back_as_it_was(cli: Cli, queue: Queue, typed: str, code: int) -> None:
    await busy(queue)
    async with cli.on_terminal("top", "--interval", "0.2s", through=SHELL) as terminal:
        await terminal.see("RUNNING")
        assert ENTER in terminal.shown
        assert LEAVE not in terminal.shown
        # An arrow key begins with Escape, and is none.
        terminal.type("\x1b[A")
        await accept(queue, "reviewer")
        await terminal.see("reviewer")
        terminal.type(typed)
        await terminal.see("over")
    before, *_ = terminal.shown.splitlines()
    *_, told, after, _ = terminal.shown.split(LEAVE)[1].splitlines()
    assert told == f"code {code}"
    assert before == after
    assert "\x1b[?25h" in terminal.shown[terminal.shown.rindex("\x1b[?25l") :], "the cursor is shown again"


async def test_sigterm_gives_the_terminal_back_too(cli: Cli, queue: Queue) -> None:
    async with cli.on_terminal("top", through=SHELL) as terminal:
        await terminal.see("RUNNING")
        os.kill(child(terminal), signal.SIGTERM)
        await terminal.see("over")
    before, *_ = terminal.shown.splitlines()
    *_, told, after, _ = terminal.shown.split(LEAVE)[1].splitlines()
    assert (told, after) == ("code 0", before)


async def test_ctrl_z_lends_the_terminal_and_fg_comes_back(cli: Cli, queue: Queue) -> None:
    async with cli.on_terminal("top", "--interval", "0.2s", through=SHELL) as terminal:
        await terminal.see("RUNNING")
        pid = child(terminal)
        terminal.type("\x1a")
        await terminal.see(LEAVE)

        async def stopped() -> bool:
            return state(pid) == "T"

        await eventually(stopped, "it rests")
        rested = len(terminal.shown)
        os.kill(pid, signal.SIGCONT)
        await accept(queue, "reviewer")
        await terminal.see("reviewer")
        assert ENTER in terminal.shown[rested:]
        terminal.type("q")
        await terminal.see("code 0")


def state(pid: int) -> str:
    """Of a process, as proc(5) has it: T for one that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def child(terminal: Terminal) -> int:
    pid = terminal.process.pid
    [found] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


async def test_every_frame_fits_the_window_as_it_is_resized(cli: Cli, queue: Queue) -> None:
    await busy(queue)
    async with cli.on_terminal("top", "--interval", "60s", columns=120, rows=40) as terminal:
        await terminal.see("RUNNING")
        # No look comes for a minute: what is drawn is drawn for the new size.
        for columns, rows in ((80, 24), (50, 12), (20, 4), (100, 30)):
            drawn = len(terminal.shown)
            terminal.resize(columns, rows)

            async def fits(drawn: int = drawn, columns: int = columns, rows: int = rows) -> bool:
                frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.shown[drawn:].split("\x1b[H")[-1]).split("\r\n")
                return len(frame) == rows and {len(line) for line in frame} == {columns}

            await eventually(fits, f"a frame of {columns} × {rows}")
        terminal.type("q")
        assert await terminal.end() == 0
    at_80 = next(frame for frame in frames(terminal) if len(frame) == 24)
    shown = "\n".join(at_80)
    for told in ("planner", "executor", "DLQ", "APPROVALS", "TODAY", "BUDGETS", "RUNNING", "turn on the"):
        assert told in shown
    at_12 = next(frame for frame in frames(terminal) if len(frame) == 12)
    assert "in a taller window" in at_12[-1]
    assert "\x1b[31mpost" not in terminal.shown


async def test_no_color_is_respected(cli: Cli, queue: Queue) -> None:
    await busy(queue)
    for variables in ({}, {"NO_COLOR": "1"}):
        async with Cli({**cli.environment, **variables}).on_terminal("top", "--once") as terminal:
            assert await terminal.end() == 0
        coloured = re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", terminal.shown)
        assert bool(coloured) == (not variables)
        assert ENTER not in terminal.shown


async def test_q10_a_database_that_goes_is_said_to_be_away_and_comes_back(tmp_path: Path) -> None:
    with ThrowawayServer() as server:
        await migrate(server.dsn)
        cli = Cli(environment(tmp_path, server.dsn))
        pool = await open_pool(server.dsn, min_size=1, max_size=2, name="test", autocommit=True)
        queue = Queue(pool)
        await accept(queue, "planner")
        await pool.close()
        async with (
            cli.on_terminal("top", "--interval", "0.2s", columns=80, rows=24) as terminal,
            cli.started("top", "--json", "--interval", "0.2s") as process,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            await terminal.see("planner")
            await process.stdout.readline()
            await asyncio.to_thread(server.server.stop, mode="immediate")
            await terminal.see("THE DATABASE IS AWAY for")
            assert b"the database is away, waiting for it" in await process.stderr.readline()
            with await asyncio.to_thread(server.server.acquire):
                pool = await open_pool(server.dsn, min_size=1, max_size=2, name="test", autocommit=True)
                await accept(Queue(pool), "reviewer")
                await pool.close()
                await terminal.see("reviewer")
                assert await process.stderr.readline() == b"tracekit: the database is back\n"

                async def whole() -> bool:
                    return "AWAY" not in "".join(frames(terminal)[-1])

                await eventually(whole, "a frame without the warning")
                terminal.type("q")
                assert await terminal.end() == 0
        away = next(frame for frame in frames(terminal) if "AWAY" in frame[1])
        assert "what follows is the last that was seen" in away[2]
        assert any("planner" in line for line in away)
        assert {len(line) for line in away} == {80}


async def test_a_key_leaves_while_the_database_lets_a_look_wait(cli: Cli, queue: Queue) -> None:
    async with cli.on_terminal("top", "--interval", "0.2s") as terminal:
        await terminal.see("RUNNING")
        async with queue.connection() as connection, connection.transaction():
            await connection.execute("LOCK TABLE tracekit.queue")

            async def waits() -> bool:
                cursor = await connection.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
                return bool(((await cursor.fetchone()) or (False,))[0])

            await eventually(waits, "a look that waits")
            terminal.type("q")
            await terminal.see(LEAVE)
            assert await terminal.end() == 0
