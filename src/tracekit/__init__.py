"""A durable task queue for AI agents on PostgreSQL, built around OpenTelemetry traces."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("tracekit")
