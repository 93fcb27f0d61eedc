"""Ports for programs that have to be told one before they start."""

import random
import socket

_FREE = range(12_000, 32_000)
"""Below the ports that the kernel gives out by itself: no connection takes one between the look and the start."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on. Drawn, so that processes which ask at once get different ones."""
    while True:
        port = random.SystemRandom().choice(_FREE)
        with socket.socket() as trying:
            try:
                trying.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
