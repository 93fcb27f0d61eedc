"""`tracekit worker` itself, serving the modes of the tests as those of an installed package."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.faults.modes import LEDGER
from tests.support.processes import Process, eventually
from tracekit.config import WorkerSettings
from tracekit.workers.mode import Mode


def install(directory: Path, *modes: type[Mode[Any]]) -> None:
    """In `directory`, which is for PYTHONPATH: what pip leaves of a package that brings these modes."""
    package = directory / "bad_days-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-days\nVersion: 1.0\n")
    lines = [f"{mode.name} = {mode.__module__}:{mode.__name__}" for mode in modes]
    (package / "entry_points.txt").write_text("\n".join(["[tracekit.modes]", *lines, ""]))


@asynccontextmanager
async def program(
    dsn: str, settings: WorkerSettings, *modes: type[Mode[Any]], directory: Path, ledger: Path
) -> AsyncIterator[Process]:
    """The program, ready to work, with what it needs in `directory`; killed after the block if it is still there."""
    install(directory / "installed", *modes)
    chosen = settings.model_dump(exclude_unset=True)
    env = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(directory / "installed"), os.environ.get("PYTHONPATH", "")])),
        "TRACEKIT_DSN": dsn,
        "TRACEKIT_HOME": str(directory / "home"),
        LEDGER: str(ledger),
        **{
            f"TRACEKIT_WORKER__{name.upper()}": str(value.total_seconds() if isinstance(value, timedelta) else value)
            for name, value in chosen.items()
        },
    }
    arguments = ("worker", "--modes", ",".join(mode.name for mode in modes))
    async with await Process.start("tracekit", *arguments, log=directory / "log", env=env) as process:

        async def ready() -> bool:
            assert process.returncode is None, process.log[-4000:]
            return "process.ready" in process.log

        await eventually(ready, "the program is ready")
        yield process
