"""The demo does what it says, and leaves nothing behind. It is run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import PATIENCE

COMMAND = [sys.executable, "-m", "tracekit", "demo", "--json"]
DIRECTORY = re.compile(r"Starting in (\S*tracekit-demo-\S+)")


@contextmanager
def demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The running demo, and the file that it tells its story to."""
    told = tmp_path / "told"
    # What is set here must not lead the demo to another database, or to a collector.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["TRACEKIT_DSN"] = "host=/nowhere"
    environment["TRACEKIT_WORKER__LEASE"] = "3600"
    with (
        told.open("w") as sink,
        subprocess.Popen(
            COMMAND, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink, text=True
        ) as process,
    ):
        try:
            yield process, told
        finally:
            process.send_signal(signal.SIGTERM)


def left_behind(directory: str) -> list[str]:
    """The command lines of processes that know the demo's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if directory in command or directory.encode() in (process / "environ").read_bytes():
                found.append(command)
        except OSError:
            continue
    return found


def test_every_step_does_what_it_says(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, told):
        printed, _ = process.communicate(timeout=500)
        story = told.read_text()
    assert process.returncode == 0, story
    result = json.loads(printed)
    assert result["ok"] is True
    assert result["directory"] is None
    steps = {step["name"]: step for step in result["steps"]}
    assert list(steps) == ["start", "alert", "light", "lock", "kill", "audit"]
    for step in steps.values():
        assert step["ok"], step
        assert step["checks"]
        assert all(check["ok"] for check in step["checks"])
    followed = {name: [task["exit_code"] for task in step["tasks"]] for name, step in steps.items()}
    assert followed == {"start": [], "alert": [0, 0], "light": [0], "lock": [0], "kill": [0], "audit": []}

    # What the reader is shown: what stands in for what, and each task followed by tracekit's own command.
    assert len(re.findall(r"stand-in  ", story)) == 6
    assert "stand-in  Home Assistant" in story
    for step in steps.values():
        for task in step["tasks"]:
            assert f"$ tracekit follow {task['task_id']}" in story
    assert "wait for approval ended: signal by rob (link)" in story
    assert re.search(r"executor: attempt 1 lost its worker: lease_expired: .*\n(.*\n)*?.* executor: attempt 2", story)
    assert "everything holds together" in story
    assert "\x1b[" not in story, "colours are for a terminal"

    found = DIRECTORY.search(story)
    assert found is not None
    assert not Path(found[1]).exists()
    assert left_behind(found[1]) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path) as (process, told):
        deadline = time.monotonic() + PATIENCE
        # By now all its processes run, and one of them is at a task.
        while "$ tracekit follow" not in told.read_text():
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.05)
        found = DIRECTORY.search(told.read_text())
        assert found is not None
        assert len(left_behind(found[1])) >= 4
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert printed == ""
    assert "its processes and its directory are gone" in told.read_text()
    assert not Path(found[1]).exists()
    assert left_behind(found[1]) == []
