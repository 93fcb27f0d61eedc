"""Programs that pip cannot bring. Where one is missing, the tests that need it are skipped."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Program:
    """One program: the names it goes by, and the Debian package that has it."""

    executables: tuple[str, ...]
    package: str


PROGRAMS = {
    "alertmanager": Program(("alertmanager", "prometheus-alertmanager"), "prometheus-alertmanager"),
    "amtool": Program(("amtool",), "prometheus-alertmanager"),
    "curl": Program(("curl",), "curl"),
    "pgbouncer": Program(("pgbouncer",), "pgbouncer"),
    "prometheus": Program(("prometheus",), "prometheus"),
    "promtool": Program(("promtool",), "prometheus"),
}

# Debian keeps daemons in /usr/sbin, which is not on everybody's PATH.
ALSO_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")


def find_program(name: str) -> Path | None:
    """The program's path, or None where it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *ALSO_SEARCHED))
    for executable in PROGRAMS[name].executables:
        if found := shutil.which(executable, path=path):
            return Path(found)
    return None


def require_program(name: str) -> Path:
    """The program's path; where it is not installed, the test is skipped and told how to get it."""
    found = find_program(name)
    if found is None:
        package = PROGRAMS[name].package
        pytest.skip(f"{name} is not installed; on Debian or Ubuntu: apt-get install {package}")
    return found
