"""A document's commands, run in a home of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.docs.console import Shell, commands
from tests.support.ports import free_port
from tests.support.postgres import make_home, remove_home
from tests.support.programs import require_program


def run_document(page: Path, tmp_path: Path, **more: str) -> None:
    """Run all its console blocks in order, as one reader would. `more` goes into the environment."""
    require_program("curl")
    data = make_home()
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
        "8124": str(free_port()),
        "/tmp/tracekit-practice": str(data),
        "/tmp/tracekit-money": str(data),
    }
    work = tmp_path / "work"
    work.mkdir()
    try:
        with Shell(work, environment, replaced) as shell:
            for command in commands(page.read_text()):
                shell.run(command)
    finally:
        remove_home(data)
