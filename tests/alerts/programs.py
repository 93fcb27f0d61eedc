"""Alertmanager as a process of a test."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.ports import free_port
from tests.support.processes import eventually
from tests.support.programs import require_program


@contextmanager
def running(program: str, *arguments: str, log: Path) -> Iterator[None]:
    """The program, killed after the block."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [require_program(program), *arguments], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def answers(url: str) -> bool:
    """Whether it says 200."""
    async with httpx.AsyncClient() as http:
        try:
            return (await http.get(url)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def alertmanager(home: Path, config: dict[str, Any]) -> AsyncIterator[str]:
    """An Alertmanager that is ready; its address."""
    address = f"127.0.0.1:{free_port()}"
    (home / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    with running(
        "alertmanager",
        f"--config.file={home / 'alertmanager.yaml'}",
        f"--storage.path={home / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        log=home / "alertmanager.log",
    ):
        await eventually(lambda: answers(f"http://{address}/-/ready"), "Alertmanager is ready")
        yield address
