"""How the demo tells what it does: headings, what is real and what is not, and whether it did what it said."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

PACE_S = 0.7
"""Between two things on a screen, so that eyes can follow. Nothing waits where nobody looks."""

_WIDEST = 110


@dataclass(slots=True)
class Check:
    """Something that was to be so, and whether it was."""

    what: str
    ok: bool
    detail: str = ""
    """What was seen instead."""


@dataclass(slots=True)
class Step:
    """One step of the demo."""

    name: str
    seconds: float = 0.0
    tasks: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it did what it said. A step that checked nothing did not."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The step for scripts."""
        return {**asdict(self), "ok": self.ok, "seconds": round(self.seconds, 2)}


class Telling:
    """Where the demo speaks: to stdout, or to stderr where stdout is for JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.stream = sys.stderr if as_json else sys.stdout
        self.console = Console(file=self.stream, highlight=False, markup=False, emoji=False)
        if not self.console.is_terminal:
            self.console.width = 100
        self.console.width = min(self.console.width, max(60, _WIDEST))

    @property
    def paced(self) -> bool:
        """Whether somebody looks at a screen."""
        return self.console.is_terminal

    def pause(self, times: float = 1.0) -> None:
        """A moment for whoever reads."""
        if self.paced:
            time.sleep(PACE_S * times)

    def title(self, text: str) -> None:
        """The first line."""
        self.console.print(Text(text, style="bold"))

    def heading(self, number: int, of: int, text: str) -> None:
        """A step begins."""
        self.console.print()
        self.console.rule(
            Text(f" {number}/{of}  {text} ", style="bold cyan"),
            align="left",
            style="cyan",
            characters="─",
        )
        self.pause()

    def fact(self, label: str, text: str) -> None:
        """`real` or `stand-in`, and what is."""
        style = {"real": "green", "stand-in": "yellow"}.get(label, "bright_black")
        line = Text(f"{label:>9}  ", style=style).append(text, "default")
        self._hanging(line, 11)

    def say(self, text: str) -> None:
        """A sentence."""
        self.console.print(Text(text))

    def note(self, text: str) -> None:
        """A sentence between checks."""
        self._hanging(Text("  · ", style="bright_black").append(text, "default"), 4)

    def quiet(self, text: str) -> None:
        """Something to be passed over."""
        self.console.print(Text(text, style="bright_black"), soft_wrap=True)

    def command(self, text: str, why: str = "") -> None:
        """A command that can be copied."""
        line = Text("  ").append(text, "bold")
        if why:
            line.append(f"   # {why}", "bright_black")
        self.console.print(line, soft_wrap=True)

    def box(self, title: str, text: str) -> None:
        """Something that a person sees elsewhere."""
        width = min(self.console.width, 90)
        self.console.print(Panel(Text(text), title=Text(title), title_align="left", width=width))

    def checked(self, check: Check) -> None:
        """Whether something was as it was to be."""
        line = Text("  ✓ ", style="green") if check.ok else Text("  ✗ ", style="bold red")
        line.append(check.what, "default" if check.ok else "bold red")
        if check.detail and not check.ok:
            line.append(f": {check.detail}", "red")
        self._hanging(line, 4)

    def blank(self) -> None:
        """An empty line."""
        self.console.print()

    def flush(self) -> None:
        """Before another process writes to the same place."""
        self.stream.flush()

    def _hanging(self, line: Text, indent: int) -> None:
        first, *rest = line.wrap(self.console, self.console.width)
        self.console.print(first)
        if rest:
            joined = Text(" ").join(rest)
            for part in joined.wrap(self.console, self.console.width - indent):
                self.console.print(Text(" " * indent).append_text(part))
