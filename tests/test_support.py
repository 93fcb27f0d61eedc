"""The suite's own rules: a missing program skips with a reason, and CI lets no skip pass."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.processes import patience

pytest_plugins = ["pytester"]

SKIPS = {
    "at run time": "import pytest\ndef test_one(): pytest.skip('away')",
    "by mark": "import pytest\n@pytest.mark.skip(reason='away')\ndef test_one(): pass",
    "in a fixture": ("import pytest\n@pytest.fixture\ndef server(): pytest.skip('away')\ndef test_one(server): pass"),
    "as a module": "import pytest\npytest.skip('away', allow_module_level=True)",
}


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS.keys())
def test_a_skip_fails_the_run_in_ci_only(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    pytester.makepyfile(source)

    monkeypatch.setenv("TRACEKIT_CI", "1")
    in_ci = run_with_rule(pytester, monkeypatch)
    assert in_ci.ret == pytest.ExitCode.TESTS_FAILED
    in_ci.stdout.fnmatch_lines(["*skipped, which TRACEKIT_CI=1 forbids*", "*.py*: *away"])

    monkeypatch.delenv("TRACEKIT_CI")
    elsewhere = run_with_rule(pytester, monkeypatch)
    assert elsewhere.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    elsewhere.stdout.no_fnmatch_line("*forbids*")


def test_a_skip_in_any_of_several_processes_fails_the_run_and_is_said_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(**{f"test_{number}": source for number, source in enumerate(SKIPS.values())})
    pytester.makepyfile(test_fine="def test_one(): pass")
    monkeypatch.setenv("TRACEKIT_CI", "1")
    ran = run_with_rule(pytester, monkeypatch, "-p", "xdist", "-n2")
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    ran.assert_outcomes(passed=1, skipped=len(SKIPS))
    said = ran.outlines[ran.outlines.index(next(line for line in ran.outlines if "forbids" in line)) :]
    assert sum(line.endswith(": away") or line.endswith(": Skipped: away") for line in said) == len(SKIPS)


def test_an_expected_failure_is_no_skip(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.xfail\ndef test_one(): assert False")
    monkeypatch.setenv("TRACEKIT_CI", "1")
    assert run_with_rule(pytester, monkeypatch).ret == pytest.ExitCode.OK


async def test_a_time_in_which_nothing_ran_does_not_count_as_waiting() -> None:
    async with patience(3):
        await asyncio.sleep(0.01)
        time.sleep(3.1)  # noqa: ASYNC251 - the machine stands still
        await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        async with patience(1):
            await asyncio.Event().wait()


def test_a_program_is_found_in_sbin_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    daemon = tmp_path / "pgbouncer"
    daemon.touch(mode=0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs, "ALSO_SEARCHED", (str(tmp_path),))
    assert programs.require_program("pgbouncer") == daemon


def test_a_missing_program_skips_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(programs, "ALSO_SEARCHED", ())
    with pytest.raises(pytest.skip.Exception, match=r"apt-get install prometheus$"):
        programs.require_program("promtool")


def run_with_rule(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    # What else is installed has no part in this, and takes a second to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester.runpytest_subprocess("-p", "tests.support.no_skips", "-p", "no:cacheprovider", *arguments)
