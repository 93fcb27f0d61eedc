"""How many processes run the tests: `pytest -n auto`, as `make test` and CI do it.

Each process has its own servers, so that tests of different processes share nothing. For a debugger there is `-n 0`, or
nothing at all.
"""

import os

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

TOGETHER = ("tests/dashboards/", "tests/deploy/test_stack.py")
"""Places whose tests look at one world, which takes longer to make than to look at: one process runs all of a place. By
place, as pytest 9.2 has no room for the suffix to a test's id with which xdist 3.8 tells `xdist_group` on.
"""

MOST = 8
"""More would rather test how the machine shares itself out: each has servers and processes of its own."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: much of the time a test waits for a process, a timeout or the disk."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST)


class _ByPlace(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Each test by itself to whoever is free, and those of a place together."""
    return _ByPlace(config, log)
