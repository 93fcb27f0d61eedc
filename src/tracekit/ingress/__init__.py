"""The HTTP side: where tasks, alerts and decisions come in, and what a monitor looks at."""

from tracekit.ingress.app import ListenerState, create_app
from tracekit.ingress.server import bind, serve

__all__ = ["ListenerState", "bind", "create_app", "serve"]
