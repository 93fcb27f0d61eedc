"""A clock that is wrong. Not to be imported: copied as `sitecustomize.py` to a directory of PYTHONPATH it shifts what
Python says of the time by TRACEKIT_TEST_CLOCK seconds, before anything else in the process has looked.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

VARIABLE = "TRACEKIT_TEST_CLOCK"


def shift(seconds: float) -> None:
    right_time, right_time_ns, right_datetime = time.time, time.time_ns, datetime.datetime

    class Meta(type):
        """What C code makes are datetimes too."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, right_datetime)

    class Wrong(datetime.datetime, metaclass=Meta):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return right_datetime.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: right_time() + seconds
    time.time_ns = lambda: right_time_ns() + int(seconds * 1_000_000_000)
    datetime.datetime = Wrong  # type: ignore[misc]


if __name__ == "sitecustomize":
    shift(float(os.environ[VARIABLE]))
