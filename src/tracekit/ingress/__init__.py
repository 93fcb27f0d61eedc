"""The HTTP side: where tasks, alerts and decisions come in, and what a monitor looks at."""

from tracekit.ingress.app import create_app
from tracekit.ingress.server import bind, serve

__all__ = ["bind", "create_app", "serve"]
