"""Upgrades with programs at work: this tracekit, and a copy of it that has one migration more, as processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

import tracekit
from tests.cli.running import environment
from tests.faults.modes import LEDGER, Slow, read_ledger
from tests.queue.driving import accept, take
from tests.support.pooler import Pooler
from tests.support.postgres import ThrowawayServer, make_home, remove_home
from tests.support.processes import ROOT, Process, eventually
from tracekit.config import Settings, WorkerSettings
from tracekit.postgres import SchemaTooNewError, migrate, open_pool, read_migrations
from tracekit.queue import Queue
from tracekit.workers.mode import Services
from tracekit.workers.substrate import open_substrate
from tracekit.workers.worker import Worker

PRESENT = read_migrations()[-1].version

_NEXT = """
-- Tells of each write after it, and of who wrote.
CREATE TABLE tracekit.written_since (program text, what text);
CREATE FUNCTION tracekit.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tracekit.written_since VALUES (current_setting('application_name'), TG_TABLE_NAME || ' ' || TG_OP);
    RETURN NULL;
END $$;
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT relname FROM pg_class WHERE relnamespace = 'tracekit'::regnamespace AND relkind IN ('r', 'p')
        AND NOT relispartition AND relname NOT IN ('written_since', 'schema_migrations')
    LOOP
        EXECUTE format('CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON tracekit.%I EXECUTE FUNCTION'
                       ' tracekit.tell()', name);
    END LOOP;
END $$;
"""


@dataclass(frozen=True)
class Version:
    """A program: this one or the next."""

    environment: Mapping[str, str]

    async def start(self, *arguments: str, log: Path, **more: str) -> Process:
        return await Process.start("tracekit", *arguments, log=log, env={**self.environment, **more})

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tracekit", *arguments,
            env=self.environment, cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture(scope="session")
def next_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version's code, to be found before this one's."""
    source = tmp_path_factory.mktemp("next")
    ours = Path(tracekit.__file__).parent
    shutil.copytree(ours, source / "tracekit", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tracekit" / "postgres" / "migrations" / f"{PRESENT + 1:04}_next.sql").write_text(_NEXT)
    return source


@pytest.fixture
def fresh(shared_server: ThrowawayServer) -> str:
    return shared_server.create_database()


@pytest.fixture
def this(fresh: str, tmp_path: Path) -> Version:
    return Version(environment(tmp_path, fresh))


@pytest.fixture
def following(this: Version, next_source: Path) -> Version:
    return next_version(this, next_source)


def next_version(this: Version, next_source: Path) -> Version:
    return Version({**this.environment, "PYTHONPATH": str(next_source)})


async def ready(process: Process) -> dict[str, Any]:
    """The line of the log that says that it serves."""

    async def said() -> list[dict[str, Any]]:
        assert process.returncode is None, process.log
        lines = [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == "process.ready"]

    return (await eventually(said, "the process is ready"))[0]


@asynccontextmanager
async def at_work(this: Version, tmp_path: Path) -> AsyncIterator[dict[str, Process]]:
    """A worker, a server, and somebody who follows a task that waits for a mode nobody serves."""
    dsn = this.environment["TRACEKIT_DSN"]
    async with await open_pool(dsn, min_size=1, max_size=1, name="test", autocommit=True) as pool:
        task_id = await accept(Queue(pool), mode="nobody-serves-this")
    async with AsyncExitStack() as stack:
        processes = {
            "worker": await this.start("worker", log=tmp_path / "worker.log"),
            "serve": await this.start("serve", "--port=0", log=tmp_path / "serve.log"),
            "follow": await this.start("follow", task_id, log=tmp_path / "follow.log"),
        }
        for process in processes.values():
            await stack.enter_async_context(process)
        await ready(processes["worker"])
        await ready(processes["serve"])
        await processes["follow"].prints()
        yield processes


async def test_a_program_refuses_another_versions_schema_at_its_start(
    this: Version, following: Version, fresh: str
) -> None:
    """Both ways, with exit code 5 and one line that says what to do; a refused program changes nothing."""
    assert (await this.run("db", "migrate"))[0] == 0
    commands = (["worker"], ["serve", "--port=0"], ["submit", "x"])
    for ran in await asyncio.gather(*(following.run(*command) for command in commands)):
        assert ran == (
            5,
            "",
            f"tracekit: the database's schema is at version {PRESENT}; this tracekit needs version {PRESENT + 1}"
            " — Run: tracekit db migrate\n",
        )
    assert (await following.run("db", "migrate"))[1] == f"applied {PRESENT + 1:04}_next\n"
    for code, out, err in await asyncio.gather(*(this.run(*command) for command in (*commands, ["db", "migrate"]))):
        assert (code, out, err.count("\n")) == (5, "", 1), err
        assert err.startswith(
            f"tracekit: the database's schema is at version {PRESENT + 1}, and this tracekit knows {PRESENT} — Upgrade"
        )
    assert written_since(fresh) == set()
    assert (await following.run("submit", "x"))[0] == 0
    assert written_since(fresh) == {"tracekit submit"}


def written_since(dsn: str) -> set[str]:
    """The programs that have written anything since the next version's migration."""
    with psycopg.connect(dsn) as connection:
        return {row[0] for row in connection.execute("SELECT program FROM tracekit.written_since").fetchall()}


async def test_programs_at_work_are_left_alone_or_cut_off_and_end_by_themselves_Q13(
    this: Version, following: Version, fresh: str, tmp_path: Path
) -> None:
    """The next version's `db migrate` names them. With --force each ends with exit code 5 and says why, and none of
    them has written anything after the migration.
    """
    assert (await this.run("db", "migrate"))[0] == 0
    async with at_work(this, tmp_path) as processes:
        code, out, err = await following.run("db", "migrate")
        assert (code, out, err.count("\n")) == (5, "", 1)
        for name in processes:
            assert f"tracekit {name} (" in err
        assert all(process.returncode is None for process in processes.values())
        url = (await ready(processes["serve"]))["url"]
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/readyz")).status_code == 200

        began = time.monotonic()
        ran = await following.run("db", "migrate", "--force")
        assert ran == (0, f"applied {PRESENT + 1:04}_next\n", "")
        migrated = time.monotonic()

        async def ends(name: str, process: Process) -> None:
            assert await process.gone() == 5
            print(f"{name}: ended {time.monotonic() - migrated:.1f} s after the migration")
            last = process.log.splitlines()[-1]
            assert last.startswith(f"tracekit: the database's schema is at version {PRESENT + 1}, and this"), name

        await asyncio.gather(*(ends(*each) for each in processes.items()))
        print(f"the migration took {migrated - began:.1f} s, its program's start included")
    assert written_since(fresh) == set()


async def test_what_was_under_way_is_taken_up_by_the_next_program_when_its_lease_ends_Q2_Q3(
    fresh: str, next_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is cut off in the middle of a hop writes nothing more of it, not even that it gives it back."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    await migrate(fresh)
    second = timedelta(seconds=1)
    brief = WorkerSettings(lease=3 * second, heartbeat=second, grace=0.2 * second, poll_interval=0.2 * second)
    settings = Settings(dsn=SecretStr(fresh), worker=brief)
    stop = asyncio.Event()
    async with open_substrate(settings, name="tracekit worker") as old, httpx.AsyncClient() as http:
        services = Services(settings, old.queue, http)
        working = asyncio.create_task(Worker(services, [Slow(services)], brief).run(stop))
        watching = asyncio.create_task(old.watch_schema(stop))
        task_id = await accept(old.queue, mode="slow", input={"seconds": 600})

        async def begun() -> bool:
            return bool(read_ledger(tmp_path / "ledger"))

        await eventually(begun, "the hop is under way")
        migrations = next_source / "tracekit" / "postgres" / "migrations"
        assert len(await migrate(fresh, directory=migrations, force=True)) == 1
        with pytest.raises(SchemaTooNewError):
            await watching
        stop.set()
        await working
    assert written_since(fresh) == set()
    async with await open_pool(fresh, min_size=1, max_size=1, name="next", autocommit=True) as pool:
        queue = Queue(pool)
        await eventually(queue.sweep, "its lease ends")
        again = await take(queue, "slow")
    assert (again.task_id, again.attempt) == (task_id, 2)


async def test_a_program_behind_a_pooler_notices_by_looking(
    this: Version, following: Version, fresh: str, tmp_path: Path
) -> None:
    """In transaction mode a lock of the session would stay with the pooler: there is none, and so nobody to cut off."""
    assert (await this.run("db", "migrate"))[0] == 0
    async with Pooler(fresh) as pooler:
        pooled = {"TRACEKIT_DSN": pooler.dsn, "TRACEKIT_POOLER": "transaction"}
        async with await this.start("worker", log=tmp_path / "log", **pooled) as worker:
            await ready(worker)
            assert (await following.run("db", "migrate"))[0] == 0
            began = time.monotonic()
            assert await worker.gone() == 5
            print(f"ended {time.monotonic() - began:.1f} s after the migration")
            assert "schema is at version" in worker.log.splitlines()[-1]


async def test_the_embedded_server_is_not_migrated_under_a_program_at_work(next_source: Path, tmp_path: Path) -> None:
    """The package was upgraded and `tracekit up` was not restarted: the next command says so. Then it migrates."""
    home = make_home()
    try:
        this = Version({**environment(home), "TRACEKIT_LOG_FORMAT": "json"})
        following = next_version(this, next_source)
        async with await this.start("up", "--port=0", log=tmp_path / "log") as up:
            await ready(up)
            code, out, err = await following.run("tasks")
            assert (code, out) == (5, "")
            assert f"has to go from version {PRESENT} to {PRESENT + 1}, and programs are at work on it" in err
            assert "tracekit up (" in err
            up.send(signal.SIGTERM)
            assert await up.gone() == 0
        assert (await following.run("tasks"))[0] == 0
        assert (await this.run("tasks"))[0] == 5
    finally:
        remove_home(home)
