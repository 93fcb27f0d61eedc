"""Waiting for what another process does."""

import time
from collections.abc import Callable

from tests.support.processes import PATIENCE


def wait_until(holds: Callable[[], object], what: str, *, timeout: float = PATIENCE) -> None:
    """Looks again and again, for up to `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)
