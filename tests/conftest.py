"""What every test gets. Fixtures live in tests/support; this file only names them."""

import os

# A test says by itself what it needs. What the developer's shell has set for a tracekit or a collector of theirs would
# change what is tested, and tests would write there.
for name in list(os.environ):
    if name.startswith(("TRACEKIT_", "OTEL_")) and name not in ("TRACEKIT_CI", "TRACEKIT_POSTGRES_BIN"):
        del os.environ[name]

pytest_plugins = ["tests.support.no_skips", "tests.support.database"]
