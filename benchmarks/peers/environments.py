"""The peers' environments: made once under a cache directory, made anew when the versions change."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

VERSIONS = Path(__file__).with_name("versions.toml")
_LONGEST = 600


def requirements() -> dict[str, list[str]]:
    """By peer."""
    return {name: peer["requirements"] for name, peer in tomllib.loads(VERSIONS.read_text()).items()}


def prepare(cache: Path, say: Callable[[str], None]) -> dict[str, str]:
    """The interpreter of each peer that could be installed. What could not is said plainly, and left out."""
    pythons = {}
    for name, wanted in requirements().items():
        try:
            pythons[name] = str(_environment(cache / name, wanted, say))
        except (subprocess.SubprocessError, OSError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            say(f"{name} is left out: it could not be installed ({(said or '').strip().splitlines()[-1:]})")
    return pythons


def _environment(home: Path, wanted: list[str], say: Callable[[str], None]) -> Path:
    python, stamp = home / "bin" / "python", home / "installed"
    label = "\n".join([sys.version, *wanted])
    if stamp.exists() and stamp.read_text() == label:
        return python
    say(f"installing {' '.join(wanted)} into {home}")
    # Without pip of its own: plain Debian has no ensurepip, and this environment's pip can install into another.
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(home)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True, capture_output=True, text=True, timeout=_LONGEST)
    stamp.write_text(label)
    return python
