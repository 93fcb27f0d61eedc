"""What a supervisor is told by the process that starts it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from .account import Account
from .layout import Layout


@dataclass(frozen=True)
class Orders:
    """What the supervisor is told on its command line; `linger` in seconds."""

    layout: Layout
    bin_dir: Path
    account: Account
    linger: float
    lock_fd: int

    def command(self) -> list[str]:
        """The command line of a supervisor with these orders."""
        return [
            sys.executable, "-m", "tracekit.postgres.supervisor",
            f"--home={self.layout.home}", f"--bin-dir={self.bin_dir}",
            f"--linger={self.linger}", f"--lock-fd={self.lock_fd}",
        ]  # fmt: skip

    @classmethod
    def parse(cls, argv: list[str]) -> Orders:
        """Reads what `command` wrote. The data directory has to exist: its owner runs the server."""
        parser = argparse.ArgumentParser(
            prog="tracekit.postgres.supervisor", description="Keeps an embedded PostgreSQL server."
        )
        parser.add_argument("--home", type=Path, required=True)
        parser.add_argument("--bin-dir", type=Path, required=True)
        parser.add_argument("--linger", type=float, required=True)
        parser.add_argument("--lock-fd", type=int, required=True)
        args = parser.parse_args(argv)
        layout = Layout(args.home)
        return cls(layout, args.bin_dir, Account.for_data(layout.data), args.linger, args.lock_fd)
