"""Files that are made from the code, and never by hand: what `build` and `check` do for alerts and for dashboards."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from tracekit.cli.output import Command, print_json
from tracekit.errors import TracekitError


class StaleFiles(TracekitError):
    """Files are not what the code makes."""


def out_option(default: str) -> Callable[[Command], Command]:
    """`--out`, as `out`."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        help="The directory of the files.",
    )


def write(directory: Path, files: Mapping[str, str], *, as_json: bool) -> None:
    """Write the files, by name, into a directory that is made if it is not there, and say which were not so already.
    What else is in the directory stays.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files.items():
        path = directory / name
        if not _is(path, text):
            path.write_bytes(text.encode())
            written.append(path)
    if as_json:
        print_json({"directory": directory, "files": list(files), "written": written})
        return
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo(f"{directory} is up to date")


def check(directory: Path, files: Mapping[str, str], command: Sequence[str], *, as_json: bool) -> None:
    """Say that the files are so, or raise `StaleFiles`, which names each that is stale, missing or not of the bundle,
    and the command that writes them. As JSON the faults are printed, too.

    Only what Prometheus or Grafana would read along with the bundle is not of it: files of the same kinds.
    """
    faults = [
        f"{name} is {'stale' if (directory / name).is_file() else 'missing'}"
        for name, text in files.items()
        if not _is(directory / name, text)
    ]
    kinds = {Path(name).suffix for name in files}
    found = sorted(path.name for path in directory.glob("*") if path.suffix in kinds)
    foreign = [f"{name} is not of the bundle" for name in found if name not in files]
    faults += foreign
    if as_json:
        print_json({"directory": directory, "files": list(files), "faults": faults})
    if faults:
        raise StaleFiles(
            f"{directory}: {'; '.join(faults)}",
            hint=f"run: {shlex.join(command)}{' (and remove what is not of the bundle)' if foreign else ''}",
        )
    if not as_json:
        click.echo(f"{directory} is up to date")


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
