"""Configuration: one TOML file, any value of it overridden by the environment.

The file is `$TRACEKIT_CONFIG`, or `tracekit/tracekit.toml` in the user's configuration directory; none is needed. Its
`[worker] lease` is overridden by `TRACEKIT_WORKER__LEASE`, and `TRACEKIT_DSN_FILE` names a file that holds the DSN:
so containers are handed secrets. Every field states its default and what it trades.
"""

from tracekit.config.environment import read_secret
from tracekit.config.loading import config_path, load, secrets
from tracekit.config.models import CostSettings, ModelSettings, PriceSettings
from tracekit.config.people import Principal, Role, Token
from tracekit.config.processes import GuardianSettings, HistorySettings, IngressSettings, WorkerSettings
from tracekit.config.section import ConfigError, Dollars, Span
from tracekit.config.services import (
    AlertmanagerSettings,
    GitHubSettings,
    HomeAssistantSettings,
    NtfySettings,
    PrometheusSettings,
    PushoverSettings,
)
from tracekit.config.settings import Settings

__all__ = [
    "AlertmanagerSettings",
    "ConfigError",
    "CostSettings",
    "Dollars",
    "GitHubSettings",
    "GuardianSettings",
    "HistorySettings",
    "HomeAssistantSettings",
    "IngressSettings",
    "ModelSettings",
    "NtfySettings",
    "PriceSettings",
    "Principal",
    "PrometheusSettings",
    "PushoverSettings",
    "Role",
    "Settings",
    "Span",
    "Token",
    "WorkerSettings",
    "config_path",
    "load",
    "read_secret",
    "secrets",
]
