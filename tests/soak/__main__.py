"""`python -m tests.soak`: minutes, or with `--minutes 480` hours, of work through faults on a server of its own.

Exits with 1 where something did not hold; then the logs are kept, and the seed deals the same faults again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import sys
from dataclasses import asdict

from tests.soak.run import Plan, Report, soak


def show(report: Report) -> None:
    width = max(map(len, report.numbers), default=0)
    for name, number in report.numbers.items():
        print(f"{name:<{width}}  {round(number, 2):>10,}")
    for finding in report.findings:
        print(f"NOT WELL: {finding}")
    print(f"seed {report.seed}: " + (f"logs are in {report.kept}" if report.findings else "all is well"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Work through faults, and a reckoning.")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="how long the faults go on")
    parser.add_argument("--workers", type=int, default=Plan.workers, help="worker processes, at least 2")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="tasks a second")
    parser.add_argument("--every", type=float, default=Plan.every, help="seconds between faults, on average")
    parser.add_argument("--seed", type=int, default=None, help="which faults when; default: a new one")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON; progress goes to stderr")
    given = parser.parse_args()
    if given.workers < 2:
        parser.error("one worker is spared what the others are put through: give at least 2")
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    # That connections break is what is going on; what comes of it is in the reckoning.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    report = asyncio.run(soak(Plan(seed, given.minutes, given.workers, given.rate, every=given.every)))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if given.json:
        print(json.dumps(asdict(report)))
    else:
        show(report)
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
