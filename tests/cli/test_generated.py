"""`build` and `check` of the alerts and of the dashboards: the same two commands for two bundles (D1, D5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tracekit.alerts.files import files as alerts
from tracekit.alerts.rule import Bases
from tracekit.cli.app import App
from tracekit.cli.commands import cli
from tracekit.cli.generated import StaleFiles
from tracekit.cli.output import to_json
from tracekit.dashboards.bundle import files as dashboards

BUNDLES = {"alerts": alerts(Bases()), "dashboards": dashboards()}


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest) -> str:
    """The name of the group of commands."""
    name: str = request.param
    return name


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], obj=App())


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in directory.iterdir()}


def test_d1_d5_build_writes_the_files_and_leaves_alone_what_is_so_already(bundle: str, tmp_path: Path) -> None:
    out, files = tmp_path / "new" / "directory", BUNDLES[bundle]
    built = run(bundle, "build", "--out", out)
    assert (built.exit_code, built.stdout) == (0, "".join(f"wrote {out / name}\n" for name in files))
    assert contents(out) == files
    for name in files:
        os.utime(out / name, (1, 1))
    first, *others = files
    (out / first).write_bytes(b"\xff")
    (out / "mine.json").write_text("{}")
    (out / "mine.yaml").write_text("{}")
    again = run(bundle, "build", "--out", out, "--json")
    assert again.stdout == to_json({"directory": out, "files": list(files), "written": [out / first]}, indent=2) + "\n"
    assert {(out / name).stat().st_mtime for name in others} == {1}
    assert contents(out) == {**files, "mine.json": "{}", "mine.yaml": "{}"}, "what is somebody else's stays"
    assert run(bundle, "build", "--out", out).stdout == f"{out} is up to date\n"


def test_d1_d5_check_names_what_is_stale_missing_or_foreign(bundle: str, tmp_path: Path) -> None:
    out, files = tmp_path / "my files", BUNDLES[bundle]
    hint = f"run: tracekit {bundle} build --out '{out}'"
    nothing = run(bundle, "check", "--out", out)
    assert isinstance(nothing.exception, StaleFiles)
    assert str(nothing.exception) == f"{out}: {'; '.join(f'{name} is missing' for name in files)}"
    assert (nothing.exception.exit_code, nothing.exception.hint) == (1, hint)

    run(bundle, "build", "--out", out)
    (out / "README.md").write_text("neither Prometheus nor Grafana reads it")
    fresh = run(bundle, "check", "--out", out)
    assert (fresh.exit_code, fresh.stdout) == (0, f"{out} is up to date\n")
    report = {"directory": out, "files": list(files), "faults": list[str]()}
    assert run(bundle, "check", "--out", out, "--json").stdout == to_json(report, indent=2) + "\n"

    stale, missing, *_ = files
    foreign = f"old{Path(stale).suffix}"
    (out / stale).write_bytes((out / stale).read_bytes() + b"\xff")
    (out / missing).unlink()
    (out / foreign).write_text("")
    faults = [f"{stale} is stale", f"{missing} is missing", f"{foreign} is not of the bundle"]
    found = run(bundle, "check", "--out", out, "--json")
    assert found.stdout == to_json({**report, "faults": faults}, indent=2) + "\n"
    assert isinstance(found.exception, StaleFiles)
    assert str(found.exception) == f"{out}: {'; '.join(faults)}"
    assert found.exception.hint == f"{hint} (and remove what is not of the bundle)"


def test_d5_the_way_out_keeps_the_addresses_that_were_asked_for(tmp_path: Path) -> None:
    bases = ("--grafana-url", "https://grafana.example.org", "--runbook-url", "https://r.example/p")
    found = run("alerts", "check", "--out", tmp_path, *bases)
    assert isinstance(found.exception, StaleFiles)
    assert found.exception.hint == f"run: tracekit alerts build --out {tmp_path} {' '.join(bases)}"
