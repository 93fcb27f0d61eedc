"""Runs the console blocks of a document as printed, and compares what they print with what is printed below them.

In a block, `$ ` begins a command and `> ` goes on with it; the other lines must be in its output, in this order. What
differs from run to run may differ: numbers, times, spaces, a worker's name. An id is any id at first, and the same one
from then on, in commands too. `…` is anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import PATIENCE

_ID = r"\b(?:[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{16})\b"
_VARIABLE = re.compile(
    rf"(?P<id>{_ID})"
    r"|(?P<worker>\b[\w.]+-\d+-[0-9a-f]{4}\b)"
    r"|(?P<time>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)?)?)"
    r"|(?P<number>\d+(?:\.\d+)?(?: (?:ms|s|min|h))?)"
    r"|(?P<any>…)"
    r"|(?P<space>\s+)"
)
_LISTS = ("tracekit approvals list", "tracekit tasks", "tracekit dlq list", "curl -sS http://127.0.0.1:8420/v1/tasks/")
_END = "console-block-command-ended"


@dataclass(frozen=True)
class Command:
    text: str
    expected: tuple[str, ...]
    line: int


def commands(document: str) -> Iterator[Command]:
    """The commands of the ```console blocks."""
    inside = False
    text: list[str] = []
    expected: list[str] = []
    line = 0
    for number, read in enumerate([*document.splitlines(), "```"], 1):
        if read.startswith("```"):
            if text:
                yield Command("\n".join(text), tuple(expected), line)
            inside, text, expected = read == "```console", [], []
        elif inside and read.startswith("$ "):
            if text:
                yield Command("\n".join(text), tuple(expected), line)
            text, expected, line = [read[2:]], [], number
        elif inside and read.startswith("> "):
            text.append(read[2:])
        elif inside and read.strip():
            expected.append(read)


@dataclass
class Shell:
    """One bash for all commands, as a reader's terminal is."""

    directory: Path
    environment: Mapping[str, str]
    replaced: Mapping[str, str] = field(default_factory=dict)
    """What is printed, and what stands for it here, such as a port that is free."""
    ids: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=self.directory,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Whatever the document has started in the background is in this group.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._bash.pid, number)
                self._bash.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        for pipe in (self._bash.stdin, self._bash.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def run(self, command: Command, *, timeout: float = PATIENCE) -> None:
        """Run it, and fail where it fails or does not print what it should. A list may take a moment to be complete."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._once(command, timeout)
                return
            except AssertionError:
                if not command.text.startswith(_LISTS) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _once(self, command: Command, timeout: float) -> None:
        text = self._here(command.text)
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{text}\ncode_=$?; echo; echo {_END} $code_\n")
        self._bash.stdin.flush()
        waiting = threading.Timer(timeout, self._bash.kill)
        waiting.start()
        printed = []
        code = "it never ended"
        for line in self._bash.stdout:
            if line.startswith(_END):
                code = line.split()[1]
                break
            printed.append(line.rstrip())
        waiting.cancel()
        told = f"line {command.line}: $ {text}\n" + "\n".join(printed)
        assert code == "0", f"{told}\nexit code {code}"
        rest = iter(printed)
        for wanted in command.expected:
            assert any(self._matches(wanted, line) for line in rest), f"{told}\nlacks: {wanted}"

    def _here(self, text: str) -> str:
        for printed, here in {**self.replaced, **self.ids}.items():
            text = text.replace(printed, here)
        return text

    def _matches(self, wanted: str, line: str) -> bool:
        pattern, at, new = "", 0, []
        wanted = wanted.rstrip()
        for found in _VARIABLE.finditer(wanted):
            pattern += re.escape(self._here(wanted[at : found.start()]))
            at = found.end()
            match found.lastgroup:
                case "id" if found[0] in self.ids:
                    pattern += re.escape(self.ids[found[0]])
                case "id":
                    new.append(found[0])
                    pattern += f"({_ID})"
                case "worker":
                    pattern += r"[\w.-]+-\d+-[0-9a-f]{4}"
                case "time":
                    pattern += r"[\dT :.Z+-]+"
                case "number":
                    pattern += r"\d+(?:\.\d+)?(?: (?:ms|s|min|h))?"
                case "any":
                    pattern += ".*"
                case _:
                    pattern += r"\s+"
        pattern += re.escape(self._here(wanted[at:]))
        matched = re.fullmatch(pattern, line)
        if matched is None:
            return False
        self.ids.update(zip(new, matched.groups(), strict=True))
        return True
