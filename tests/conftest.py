"""What every test gets. Fixtures live in tests/support; this file only names them."""

import os

import pytest
from hypothesis import settings

from tests.support.logs import plain_logs

# What passes once passes again: a run of the checks looks at the same examples each time, so that it tells of the
# commit and not of luck. Luck has its own run: pytest --hypothesis-profile=search.
settings.register_profile("check", derandomize=True, database=None)
settings.register_profile("search", derandomize=False)
settings.load_profile("check")

# A test says by itself what it needs. What the developer's shell has set for a tracekit or a collector of theirs would
# change what is tested, and tests would write there.
for name in list(os.environ):
    if name.startswith(("TRACEKIT_", "OTEL_")) and name not in ("TRACEKIT_CI", "TRACEKIT_POSTGRES_BIN"):
        del os.environ[name]

# Its assertions say what they saw.
pytest.register_assert_rewrite("tests.faults.aftermath")

# Showing a traceback costs as much as a hundred hops otherwise.
plain_logs()

pytest_plugins = ["tests.support.no_skips", "tests.support.parallel", "tests.support.database"]
