"""The package's names, which are imported on first use."""

import subprocess
import sys

import tracekit.postgres


def test_every_public_name_is_there() -> None:
    for name in tracekit.postgres.__all__:
        assert getattr(tracekit.postgres, name) is not None
    assert sorted(tracekit.postgres.__all__) == sorted(tracekit.postgres._HOME_OF)


def test_supervisor_stays_small() -> None:
    code = "import sys, tracekit.postgres.supervisor; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
