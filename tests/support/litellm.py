"""LiteLLM's proxy, the real one, with models that answer without a provider.

It has requirements of its own, so it lives in an environment of its own: made once under the user's cache directory
(about a minute and 750 MB), and used by every run after that.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.ports import free_port

REQUIREMENT = "litellm[proxy]==1.106.2"
KEY = "sk-not-a-secret-in-tests"

_LONGEST = 600
_STARTS_S = 90


def environment() -> Path:
    """The directory of the environment's programs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracekit-tests"
    base.mkdir(parents=True, exist_ok=True)
    home, label = base / "litellm", f"{sys.version}\n{REQUIREMENT}"
    # Several runs may want it at once.
    with (base / "litellm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = home / "installed"
        if not (stamp.exists() and stamp.read_text() == label):
            # Without pip of its own: plain Debian has no ensurepip, and this one's can install into another.
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(home)
            pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
            subprocess.run([*pip, REQUIREMENT], check=True, capture_output=True, text=True, timeout=_LONGEST)
            stamp.write_text(label)
    return home / "bin"


MODELS = {
    "planner": {"model": "openai/gpt-4o-mini", "mock_response": "hello from mock"},
    "unknown": {"model": "openai/a-model-of-nowhere", "mock_response": "who knows"},
}


@contextmanager
def litellm_proxy(home: Path) -> Iterator[str]:
    """The address of a running proxy, up to `/v1`."""
    config = home / "litellm.yaml"
    models = [{"model_name": name, "litellm_params": {**of, "api_key": "none"}} for name, of in MODELS.items()]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
    port = free_port()
    programs = environment()
    with (home / "litellm.log").open("w") as log:
        process = subprocess.Popen(
            [programs / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
        )
    try:
        _await(f"http://127.0.0.1:{port}/health/liveliness", process, home / "litellm.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _STARTS_S
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, f"not up within {_STARTS_S} s:\n{log.read_text(errors='replace')[-4000:]}"
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
