"""The services around tracekit: where they are, and how they are spoken to."""

from __future__ import annotations

from datetime import timedelta

from pydantic import SecretStr

from tracekit.config.section import Section, Span


class HomeAssistantSettings(Section):
    """How to reach Home Assistant: a long-lived access token of a user that may do what is planned."""

    url: str = "http://homeassistant.local:8123"
    token: SecretStr = SecretStr("")
    verify_timeout: Span = timedelta(seconds=10)
    """How long a device may take to reach the state that was asked for (a lock turns for seconds)."""


class PrometheusSettings(Section):
    """Where alerts' expressions are looked up."""

    url: str = ""
    """Empty: an alert's expression is not looked up."""


class AlertmanagerSettings(Section):
    """Where the observer looks for incidents."""

    url: str = ""
    """Polled by the observer; empty: not polled."""
    interval: Span = timedelta(seconds=30)


class NtfySettings(Section):
    """Notifications that can wait."""

    url: str = "https://ntfy.sh"
    topic: str = ""
    """Where the operator's notifications go; empty: ntfy is off."""
    token: SecretStr = SecretStr("")


class PushoverSettings(Section):
    """Notifications that page."""

    url: str = "https://api.pushover.net"
    user: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    """Both empty: Pushover is off, and urgent notifications go where the others go."""


class GitHubSettings(Section):
    """Where the upstream-watcher asks."""

    url: str = "https://api.github.com"
    token: SecretStr = SecretStr("")
