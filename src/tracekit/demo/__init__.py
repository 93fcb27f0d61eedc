"""The demo: the main job on real input, in under a minute."""

from __future__ import annotations


def run(*, keep: bool = False, as_json: bool = False) -> int:
    """Do the main job in a throw-away directory; returns 0 where every step did what it said, else 1.

    `keep`: leave the directory, and say how to look around in it. `as_json`: what became of each step goes to stdout as
    JSON, and the telling to stderr.
    """
    # The command line imports this package to have the command; what it needs is imported when it runs.
    from tracekit.demo.show import run as show

    return show(keep=keep, as_json=as_json)
