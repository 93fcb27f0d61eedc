"""A full screen that is drawn on, and the keys that are typed at it. Whoever leaves gets their terminal as it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from tracekit.cli.output import console

_LEAVE = frozenset("qQ\x1b\x04")
"""Keys that end it: q, Escape, Ctrl-D."""


class Screen:
    """The terminal's other screen, while it is entered. Where stdin is no terminal, no key is heard."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set where there is a reason to draw: the window's size, or `over`. To be cleared by whoever draws."""
        self.over = False
        """Whether somebody wants to leave."""
        self._console = console()
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._take()
        if self._keys is not None:
            loop.add_reader(self._keys, self._hear)
        loop.add_signal_handler(signal.SIGWINCH, self.changed.set)
        loop.add_signal_handler(signal.SIGTSTP, self._rest)
        for ending in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(ending, self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for handled in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(handled)
        if self._keys is not None:
            loop.remove_reader(self._keys)
        self._give_back()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        return self._console.width, self._console.height

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines, and nothing else."""
        self._live.update(Group(*lines), refresh=True)

    def _take(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._live.start()

    def _give_back(self) -> None:
        self._live.stop()
        if self._keys is not None and self._before is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _rest(self) -> None:
        """Ctrl-Z: the shell gets its screen, and this one comes back with `fg`."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.changed.set()

    def _hear(self) -> None:
        assert self._keys is not None, "it is read"
        try:
            typed = os.read(self._keys, 1024).decode(errors="replace")
        except OSError:
            typed = ""
        # An arrow key is an Escape with more after it. Nothing at all: the terminal is gone.
        if not typed or typed in _LEAVE:
            self._leave()

    def _leave(self) -> None:
        self.over = True
        self.changed.set()
