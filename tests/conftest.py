"""What every test gets. Fixtures live in tests/support; this file only names them."""

pytest_plugins = ["tests.support.no_skips", "tests.support.database"]
