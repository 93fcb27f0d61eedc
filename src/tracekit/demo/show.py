"""The demo's steps. Each checks that what it says has happened, so the demo is a test as well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import psycopg

from tracekit import ids
from tracekit.demo.phone import NtfyStandIn
from tracekit.demo.stage import LEASE_S, START_S, Process, Stage, StageError
from tracekit.demo.telling import Check, Step, Telling
from tracekit.errors import TracekitError
from tracekit.postgres import EmbeddedServer

STEPS = 5
INTERRUPTED = 130

_QUICK_S = 20.0


def run(*, keep: bool, as_json: bool) -> int:
    """The whole demo. Ctrl-C and SIGTERM end it, and all that it began."""
    with _ended_by(signal.SIGTERM, signal.SIGHUP):
        try:
            return Show(Telling(as_json=as_json), keep=keep, as_json=as_json).run()
        except KeyboardInterrupt:
            sys.stderr.write("\nThe demo was stopped; its processes and its directory are gone.\n")
            return INTERRUPTED


class Show:
    """One run of the demo."""

    def __init__(self, telling: Telling, *, keep: bool, as_json: bool) -> None:
        self.telling = telling
        self.keep = keep
        self.as_json = as_json
        self.steps: list[Step] = []

    def run(self) -> int:
        """All steps in order; those after a failed one are done all the same, as far as they can be."""
        began = time.monotonic()
        self.telling.title(
            "tracekit: a request becomes a task, the task runs through its modes, one trace shows it all"
        )
        directory: Path | None = None
        with NtfyStandIn() as phone, Stage(ntfy_url=phone.url, keep=self.keep) as stage:
            self.stage, self.phone = stage, phone
            directory = stage.directory if self.keep else None
            started = self._step("start", self._start)
            if started:
                self._step("alert", self._alert)
                self._step("light", self._light)
                self._step("lock", self._lock)
                self._step("kill", self._kill)
                self._step("audit", self._audit)
            self.telling.blank()
            if not all(step.ok for step in self.steps):
                self._logs()
            self.telling.quiet("Stopping what the demo started …")
        seconds = time.monotonic() - began
        ok = all(step.ok for step in self.steps)
        self._end(ok, seconds, directory)
        if self.as_json:
            result = {
                "ok": ok,
                "seconds": round(seconds, 2),
                "directory": str(directory) if directory else None,
                "steps": [step.as_json() for step in self.steps],
            }
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return 0 if ok else 1

    # --- the steps ------------------------------------------------------------------------------------------------

    def _start(self, step: Step) -> None:
        stage, telling = self.stage, self.telling
        self.house = stage.start(
            "home-assistant-stand-in", "tracekit.demo.home_assistant", "--port", str(stage.house_port),
            "--token", stage.house_token,
        )  # fmt: skip
        telling.quiet(f"Starting in {stage.directory} …")
        self.up = stage.start("up", "tracekit", "up")
        self.worker = stage.start("worker", "tracekit", "worker")
        stage.wait("it was ready", stage.ready, timeout=START_S, needs=(self.up, self.house))
        stage.wait(
            "the house answered",
            lambda: stage.house_state("light.kitchen"),
            timeout=_QUICK_S,
            needs=(self.house,),
        )
        stage.wait("it was ready", lambda: self.worker.says("process.ready"), timeout=START_S, needs=(self.worker,))
        with psycopg.connect(EmbeddedServer(stage.home).dsn) as connection:
            version = connection.info.server_version // 10_000
        telling.fact("real", f"PostgreSQL {version} of its own, in {stage.home}")
        telling.fact("real", f"`tracekit up`, process {self.up.pid}: HTTP on {stage.url}, all modes, the sweeper")
        telling.fact("real", f"`tracekit worker`, process {self.worker.pid}: a second worker for all modes")
        telling.fact("stand-in", f"Home Assistant, process {self.house.pid}: a made-up house that speaks its REST API")
        telling.fact("stand-in", "ntfy, in this process: what would be on the operator's phone is shown here")
        for process in (self.up, self.worker, self.house):
            self._check(step, f"{process.name} runs", process.alive, say=False)

    def _alert(self, step: Step) -> None:
        telling = self.telling
        telling.heading(1, STEPS, "An alert comes in from Alertmanager")
        telling.fact("real", "the webhook, as Alertmanager 0.25 sent it; the endpoint, its token, the modes")
        telling.fact("stand-in", "no pod crashes here, and there is no Prometheus to ask about it")
        body = files(__package__).joinpath("alertmanager_webhook.json").read_bytes()

        def post() -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            return self.stage.ask("POST", "/ingress/alertmanager", "alertmanager", content=body, headers=headers)

        answer = post()
        said = answer.json()
        self._check(
            step,
            "two alerts of one group were accepted as two tasks",
            answer.status_code == 200 and said.get("accepted") == 2,
            f"{answer.status_code} {answer.text[:200]}",
        )
        again = post().json()
        self._check(
            step,
            "the same webhook once more, as Alertmanager repeats it, made no further task",
            again.get("accepted") == 0 and again.get("tasks") == said.get("tasks"),
            str(again)[:200],
        )
        telling.pause()
        for task_id in said["tasks"]:
            self._follow(step, task_id)
            self._check_written(step, task_id)

    def _light(self, step: Step) -> None:
        stage, telling = self.stage, self.telling
        telling.heading(2, STEPS, "Renee wants light in the kitchen")
        telling.fact("real", "POST /v1/tasks with renee's token; the allowlist, which has lights, so no one is asked")
        telling.fact("stand-in", "the house; the reviewer reads the light's state back from it")
        before = stage.house_state("light.kitchen")
        self._check(step, "the light in the kitchen is off", before == "off", str(before))
        task_id = self._submit(step, "renee", "Turn on the kitchen light")
        self._follow(step, task_id)
        after = stage.house_state("light.kitchen")
        self._check(step, "the light in the kitchen is on", after == "on", str(after))
        status = stage.ask("GET", f"/v1/tasks/{task_id}", "renee").json().get("status")
        self._check(step, f"all that renee is told: “{status}”", status == "It is done.", str(status))

    def _lock(self, step: Step) -> None:
        stage, telling = self.stage, self.telling
        telling.heading(3, STEPS, "Renee wants the front door unlocked, which rob must approve")
        telling.fact("real", "the guardian's wait, the signed link, the decision bound to exactly this plan")
        telling.fact("stand-in", "the phone (ntfy) and the lock, which takes a second to turn")
        task_id = self._submit(step, "renee", "Unlock the front door")
        message = self.phone.wait_for(task_id, timeout=_QUICK_S)
        self._check(step, "rob's phone was told", message is not None, "no notification came", say=False)
        if message is None:
            return
        buttons = "  ".join(f"[ {action['label']} ]" for action in message["actions"])
        telling.box(f"ntfy · {message['title']}", f"{message['message']}\n\n{buttons}")
        telling.pause(2)
        link = next(action["url"] for action in message["actions"] if action["label"] == "Approve")
        page = stage.ask("GET", link, headers={"Accept": "text/html"})
        waits = self._task(task_id)
        self._check(
            step,
            "opening the link shows the exact plan and changes nothing: the task waits, the door is locked",
            page.status_code == 200
            and "lock.front_door" in page.text
            and waits["hop_state"] == "parked"
            and stage.house_state("lock.front_door") == "locked",
            f"{page.status_code}, {waits['hop_state']}, {stage.house_state('lock.front_door')}",
        )
        forged = stage.ask("POST", link[:-4] + ("AAAA" if link[-4:] != "AAAA" else "BBBB"))
        self._check(step, "a forged link is refused", forged.status_code == 403, str(forged.status_code))
        deadline = next(
            datetime.fromisoformat(one["deadline"])
            for one in stage.ask("GET", "/v1/approvals", "rob").json()["approvals"]
            if one["task_id"] == task_id
        )
        telling.note(
            f"If nobody answers by {deadline:%Y-%m-%d %H:%M} UTC, the task expires: the door stays locked, nothing is"
            " executed, and rob gets a summary."
        )
        telling.pause(2)
        with _watching(lambda: stage.house_state("lock.front_door")) as states:
            tap = stage.ask("POST", link)
            said = tap.json()
            self._check(
                step,
                f"rob taps Approve: {said.get('decision')} by {said.get('by')}",
                tap.status_code == 200 and said.get("decision") == "approve",
                f"{tap.status_code} {tap.text[:200]}",
            )
            self._follow(step, task_id)
        self._check(
            step,
            f"the lock turned: {' → '.join(states)}",
            states == ["locked", "unlocking", "unlocked"],
            "expected locked → unlocking → unlocked",
        )
        repeated, contrary = stage.ask("POST", link), stage.ask("POST", link, json={"decision": "reject"})
        self._check(
            step,
            "a second tap changes nothing (200), and a contrary one comes too late (409)",
            (repeated.status_code, contrary.status_code) == (200, 409),
            f"{repeated.status_code}, {contrary.status_code}",
        )

    def _kill(self, step: Step) -> None:
        stage, telling = self.stage, self.telling
        telling.heading(4, STEPS, "A worker is killed in the middle of its work")
        telling.fact("real", f"kill -9, the lease ({LEASE_S} s here, 60 s by default), the sweep, the second worker")
        telling.fact("stand-in", "the house, which we freeze (SIGSTOP) so that the executor waits in mid-call")
        self.house.send(signal.SIGSTOP)
        try:
            task_id = self._submit(step, "renee", "Turn on the living room light")
            task = stage.wait("the executor had the task", lambda: self._running(task_id, "executor"), timeout=_QUICK_S)
            # Now its request is on its way.
            time.sleep(0.3)
            victim = self._of(task["worker"])
            telling.note(f"{task['worker']} (`tracekit {victim.name}`) is in the executor, waiting for the house.")
            telling.pause()
            telling.command(f"$ kill -9 {victim.pid}")
            status = victim.kill()
        finally:
            self.house.send(signal.SIGCONT)
        killed = time.time()
        self._check(step, f"process {victim.pid} is dead", status == -signal.SIGKILL, str(status))
        if victim is self.up:
            telling.note("It served HTTP too, which is gone with it. The queue, and what is in it, is not.")
        self._follow(step, task_id)
        light = stage.house_state("light.living_room")
        self._check(step, "the light in the living room is on", light == "on", str(light))
        attempts = [
            event for event in self._record(task_id) if event["kind"] == "attempt.ended" and event["mode"] == "executor"
        ]
        outcomes = [event["data"]["outcome"] for event in attempts]
        workers = [event["data"]["worker"] for event in attempts]
        self._check(
            step,
            "the dead attempt was closed, and the other worker did the work in a second one",
            outcomes == ["lease_expired", "handed_off"] and workers[0] == task["worker"] != workers[-1],
            f"{outcomes} by {workers}",
        )
        if len(attempts) > 1:
            back = datetime.fromisoformat(attempts[1]["data"]["claimed_at"]).timestamp() - killed
            self._check(
                step,
                f"it went on {back:.1f} s after the kill, within its lease and a sweep",
                back < LEASE_S + 3,
                f"{back:.1f} s",
            )
        with psycopg.connect(EmbeddedServer(stage.home).dsn) as connection:
            row = connection.execute(
                "SELECT status, attributes ->> 'error.type', name FROM tracekit.spans"
                " WHERE task_id = %s AND span_id = %s",
                [task_id, ids.attempt_span_id(task_id, task["hop"], 1)],
            ).fetchone()
        self._check(
            step,
            "its trace has the dead attempt's span, closed for it with error.type=lease_expired",
            row is not None and tuple(row[:2]) == (2, "lease_expired"),
            str(row),
        )

    def _audit(self, step: Step) -> None:
        telling = self.telling
        telling.heading(5, STEPS, "The audit: is every trace whole?")
        telling.fact("real", "one root a task, a span for each hop, attempt and wait, and none without its parent")
        code, _ = self._shown("audit")
        self._check(step, "everything holds together", code == 0, f"exit code {code}")

    # --- their parts ----------------------------------------------------------------------------------------------

    def _step(self, name: str, part: Callable[[Step], None]) -> bool:
        step = Step(name)
        self.steps.append(step)
        began = time.monotonic()
        try:
            part(step)
        except (TracekitError, httpx.HTTPError, psycopg.Error, ValueError, LookupError, TypeError, OSError) as error:
            self._check(step, f"the step “{name}” went through", False, f"{type(error).__name__}: {error}")
        finally:
            step.seconds = time.monotonic() - began
        return step.ok

    def _check(self, step: Step, what: str, ok: bool, detail: str = "", *, say: bool = True) -> None:
        check = Check(what, ok, "" if ok else detail)
        step.checks.append(check)
        if say or not ok:
            self.telling.checked(check)

    def _submit(self, step: Step, holder: str, intent: str) -> str:
        body = {"intent": intent, "idempotency_key": f"demo-{step.name}"}
        answer = self.stage.ask("POST", "/v1/tasks", holder, json=body)
        said = answer.json()
        self._check(
            step, f"{holder} asked: “{intent}”", answer.status_code == 202, f"{answer.status_code} {answer.text[:300]}"
        )
        return str(said["task_id"])

    def _follow(self, step: Step, task_id: str) -> None:
        self.telling.pause()
        code, _ = self._shown("follow", task_id)
        step.tasks.append({"task_id": task_id, "exit_code": code})
        self._check(step, "the task is done (exit code 0)", code == 0, f"`tracekit follow` ended with {code}")

    def _shown(self, *arguments: str) -> tuple[int, str]:
        """A command of tracekit's own, as the reader would run it."""
        telling = self.telling
        telling.blank()
        telling.quiet(f"$ tracekit {' '.join(arguments)}")
        telling.flush()
        answer = self.stage.run(*arguments, stdout=telling.stream.fileno())
        telling.blank()
        return answer

    def _task(self, task_id: str) -> dict[str, Any]:
        task = self.stage.ask("GET", f"/v1/tasks/{task_id}", "rob").json()["task"]
        assert isinstance(task, dict)
        return task

    def _running(self, task_id: str, mode: str) -> dict[str, Any] | None:
        task = self._task(task_id)
        if task["state"] != "open":
            raise StageError(f"the task is {task['state']} already")
        return task if (task["mode"], task["hop_state"]) == (mode, "running") else None

    def _of(self, worker: str) -> Process:
        """The process of a worker, whose name is host, process, and a random part."""
        pid = int(worker.rsplit("-", 2)[1])
        for process in (self.up, self.worker):
            if process.pid == pid:
                return process
        raise StageError(f"{worker} is no process of the demo")

    def _record(self, task_id: str) -> list[dict[str, Any]]:
        _, printed = self.stage.run("follow", task_id, "--json", stdout=PIPE)
        return [json.loads(line) for line in printed.splitlines()]

    def _check_written(self, step: Step, task_id: str) -> None:
        written = sorted(str(path.relative_to(self.stage.vault)) for path in self.stage.vault.rglob(f"*{task_id}.md"))
        self._check(
            step,
            f"the vault has {' and '.join(written) or 'nothing'}",
            len(written) == 2,
            "expected the alert's note and the historian's summary",
        )

    # --- the end --------------------------------------------------------------------------------------------------

    def _logs(self) -> None:
        for process in self.stage.processes:
            lines = process.log.read_text(errors="replace").splitlines()[-12:]
            self.telling.say(f"The end of {process.log}:")
            for line in lines:
                self.telling.quiet(f"  {line[:300]}")

    def _end(self, ok: bool, seconds: float, directory: Path | None) -> None:
        telling = self.telling
        shown = [step for step in self.steps if step.name != "start"]
        done = sum(step.ok for step in shown)
        checks = sum(len(step.checks) for step in self.steps)
        telling.blank()
        if ok:
            telling.title(f"All {done} steps did what they said ({checks} checks) in {seconds:.0f} s.")
        else:
            telling.title(f"{done} of {STEPS} steps did what they said; see the lines marked ✗.")
        telling.blank()
        telling.say("What to try next:")
        name = _program()
        if directory is None:
            telling.command(f"{name} demo --keep", "the same, and it stays to be looked at")
            telling.command(f"{name} up", "run it for yourself")
            telling.command(f'{name} submit "note: my first task" --follow', "in another terminal")
            return
        telling.command(f"export TRACEKIT_CONFIG={directory / 'tracekit.toml'}", "what the demo did is kept there")
        tasks = {step.name: step.tasks[-1]["task_id"] for step in self.steps if step.tasks}
        if "kill" in tasks:
            telling.command(f"{name} follow {tasks['kill']}", "the killed worker's task once more")
        if "lock" in tasks:
            telling.command(f"{name} tasks show {tasks['lock']} --json", "the record of the door's")
        telling.command(f"{name} tasks", "all of them")
        telling.command(f"{name} up", "and go on with it; there is no house any more")
        telling.command(f"rm -r {directory}", "when you have seen enough")


def _program() -> str:
    """How the reader called tracekit, to be copied."""
    called = sys.argv[0]
    if os.path.basename(called) == "tracekit" and os.access(called, os.X_OK):
        return _copied(called)
    return f"{_copied(sys.executable)} -m tracekit"


def _copied(program: str) -> str:
    """A program's name where that is enough, else the shorter of its paths."""
    found = shutil.which(os.path.basename(program))
    if found and os.path.samefile(found, program):
        return os.path.basename(program)
    return min(os.path.relpath(program), os.path.abspath(program), key=len)


@contextmanager
def _watching(look: Callable[[], str | None]) -> Iterator[list[str]]:
    """The different states that `look` sees while this is entered, in order."""
    states: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            state = look()
            if state is not None and states[-1:] != [state]:
                states.append(state)
            over.wait(0.03)

    first = look()
    states += [first] if first else []
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield states
    finally:
        over.set()
        thread.join(5)


@contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[None]:
    """These signals end the block as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
