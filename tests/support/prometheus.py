"""A real Prometheus for a test: it scrapes what it is told, and answers queries."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.programs import require_program


@dataclass(frozen=True)
class Prometheus:
    """One that runs, at `url`."""

    url: str

    @classmethod
    @contextmanager
    def scraping(
        cls,
        jobs: Mapping[str, Sequence[str]],
        home: Path,
        *,
        interval: float,
        token: str = "",
        more: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
    ) -> Iterator[Prometheus]:
        """One that scrapes each job's targets (`host:port`) every so many seconds, from `with` to its end. With a
        `token` it shows that. `more` of its configuration: rules, and who is told of alerts.
        """
        home.mkdir()
        authorization = {"authorization": {"credentials": token}} if token else {}
        config = {
            "global": {"scrape_interval": f"{interval * 1000:.0f}ms", "scrape_timeout": f"{interval * 1000:.0f}ms"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}], **authorization}
                for job, targets in jobs.items()
            ],
            **(more or {}),
        }
        (home / "prometheus.yml").write_text(json.dumps(config))
        process = subprocess.Popen(
            [
                require_program("prometheus"),
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'data'}",
                "--enable-feature=exemplar-storage",
                "--web.listen-address=127.0.0.1:0",
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stderr is not None
            try:
                said = []
                for line in process.stderr:
                    said.append(line)
                    if listening := re.search(r'Listening on" address=127\.0\.0\.1:(\d+)', line):
                        break
                else:
                    pytest.fail("Prometheus did not start:\n" + "".join(said))
                # Nobody reads on, and a full pipe would stop it.
                reading = threading.Thread(target=process.stderr.read)
                reading.start()
                yield cls(f"http://127.0.0.1:{listening[1]}")
            finally:
                process.terminate()
            reading.join(20)

    def query(self, query: str, at: datetime | None = None) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self._ask("query", query=query, **({"time": str(at.timestamp())} if at else {}))

    def query_range(self, query: str, begins: datetime, ends: datetime, step: str) -> list[dict[str, Any]]:
        """The series of a query over time."""
        start, end = str(begins.timestamp()), str(ends.timestamp())
        return self._ask("query_range", query=query, start=start, end=end, step=step)

    def exemplars(self, query: str, begins: datetime, ends: datetime) -> list[dict[str, Any]]:
        """The exemplars of the series that a query names."""
        return self._ask("query_exemplars", query=query, start=str(begins.timestamp()), end=str(ends.timestamp()))

    def until(self, query: str, what: str, *, within: float = 60.0) -> None:
        """Wait until a query finds something."""
        deadline = time.monotonic() + within
        while not self.query(query):
            assert time.monotonic() < deadline, f"not within {within:g} s: {what}: {query}"
            time.sleep(0.05)

    def _ask(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20)
        answer = response.json()
        assert answer["status"] == "success", f"{parameters['query']}: {answer}"
        data = answer["data"]
        found: list[dict[str, Any]] = data if isinstance(data, list) else data["result"]
        return found
