"""A document's commands, run in a home of their own."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from tests.docs.console import Shell, commands
from tests.support.programs import require_program
from tracekit.postgres import EmbeddedServer


def run_document(page: Path, tmp_path: Path, **more: str) -> None:
    """Run all its console blocks in order, as one reader would. `more` goes into the environment."""
    require_program("curl")
    # Short enough for a socket, and open to the server's user when root runs the tests.
    data = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))
    data.chmod(0o711)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TRACEKIT_", "OTEL_", "XDG_"))},
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TRACEKIT_HOME": str(data),
        "TRACEKIT_INGRESS__PORT": str(free_port()),
        "TRACEKIT_POSTGRES_LINGER": "1",
        **more,
    }
    replaced = {
        "8420": environment["TRACEKIT_INGRESS__PORT"],
        "8123": str(free_port()),
        "/tmp/tracekit-practice": str(data),
    }
    work = tmp_path / "work"
    work.mkdir()
    try:
        with Shell(work, environment, replaced) as shell:
            for command in commands(page.read_text()):
                shell.run(command)
    finally:
        EmbeddedServer(data).stop(mode="immediate")
        shutil.rmtree(data, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
