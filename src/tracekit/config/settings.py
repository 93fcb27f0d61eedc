"""Everything that can be set, in one value."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tracekit.config.environment import PREFIX, Environment
from tracekit.config.models import CostSettings, ModelSettings, PriceSettings
from tracekit.config.people import Principal, Role, Token
from tracekit.config.processes import GuardianSettings, HistorySettings, IngressSettings, WorkerSettings
from tracekit.config.section import ConfigError, Span
from tracekit.config.services import (
    AlertmanagerSettings,
    GitHubSettings,
    HomeAssistantSettings,
    NtfySettings,
    PrometheusSettings,
    PushoverSettings,
)
from tracekit.envelope import Name


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=None
    )

    dsn: SecretStr = SecretStr("")
    """PostgreSQL (14 or later), as a URI or key=value pairs. Empty: an embedded server in the data directory."""
    listen_dsn: SecretStr = SecretStr("")
    """A direct way to the same server where `dsn` leads through a pooler. Empty: `dsn`."""
    pooler: Literal["none", "transaction"] = "none"
    """`transaction`: what `dsn` leads to is a pooler in transaction mode, so nothing is prepared by name."""
    home: Path | None = None
    """Data directory. Default: `tracekit` in the user's XDG data directory; for root /var/lib/tracekit."""
    vault: Path | None = None
    """Where the historian writes its summaries. Default: `vault` in the data directory."""
    notes: Path | None = None
    """Where the capability `note.write` writes. Default: `notes` in the vault."""
    personas: Path | None = None
    """Directory of persona files (Markdown with YAML front matter). None: only the built-in names."""
    checkouts: tuple[Path, ...] = ()
    """Checkouts that the upstream-watcher reads."""
    watch_interval: Span = timedelta(hours=6)
    """Between the upstream-watcher's rounds. Conditional requests are cheap; GitHub allows 60 an hour without token."""
    rules: Path | None = None
    """A TOML file of routes and plans, read before the built-in ones."""
    principals: dict[str, Principal] = {
        "rob": Principal(role="operator"),
        "renee": Principal(role="household"),
        "system": Principal(role="system"),
    }
    cli_principal: str = "rob"
    """Who the command line speaks as: whoever can read this configuration can reach the database."""
    tokens: tuple[Token, ...] = ()
    models: dict[Name, ModelSettings] = {}
    """Models by the name that plans use: `[models.<name>]`."""
    prices: tuple[PriceSettings, ...] = ()
    """Prices that go before the table's: `[[prices]]`."""
    log_format: Literal["json", "console"] | None = None
    """None: console on a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    worker: WorkerSettings = WorkerSettings()
    history: HistorySettings = HistorySettings()
    ingress: IngressSettings = IngressSettings()
    guardian: GuardianSettings = GuardianSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    alertmanager: AlertmanagerSettings = AlertmanagerSettings()
    ntfy: NtfySettings = NtfySettings()
    pushover: PushoverSettings = PushoverSettings()
    github: GitHubSettings = GitHubSettings()
    cost: CostSettings = CostSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What a caller gives, then the environment. The file comes in as the caller's (see `load`)."""
        return Environment(settings_cls), init_settings

    @model_validator(mode="after")
    def _principals_exist(self) -> Self:
        for token in self.tokens:
            if token.principal not in self.principals:
                raise ValueError(f"the token of surface {token.surface} names no principal: {token.principal}")
        if self.cli_principal not in self.principals:
            raise ValueError(f"cli_principal names no principal: {self.cli_principal}")
        return self

    @model_validator(mode="after")
    def _local_model_is_local(self) -> Self:
        name = self.cost.local_model
        if name and (name not in self.models or not self.models[name].local):
            raise ValueError(f"cost.local_model must name one of [models] that has local = true: {name}")
        return self

    @cached_property
    def data_home(self) -> Path:
        """The data directory, as an absolute path. Raises `ConfigError` for a user without a home directory."""
        if self.home:
            return self.home.expanduser().absolute()
        if os.geteuid() == 0:
            return Path("/var/lib/tracekit")
        if base := os.environ.get("XDG_DATA_HOME"):
            return Path(base).absolute() / "tracekit"
        try:
            return Path.home() / ".local" / "share" / "tracekit"
        except RuntimeError:
            raise ConfigError(
                f"user {os.geteuid()} has no home directory",
                hint="set TRACEKIT_HOME to a directory that this user can write to",
            ) from None

    @cached_property
    def vault_dir(self) -> Path:
        """Where summaries go, as an absolute path."""
        return (self.vault or self.data_home / "vault").expanduser().absolute()

    @cached_property
    def notes_dir(self) -> Path:
        """Where notes go, as an absolute path."""
        return (self.notes or self.vault_dir / "notes").expanduser().absolute()

    @property
    def public_url(self) -> str:
        """Where approval links lead."""
        return (self.ingress.public_url or f"http://{self.ingress.host}:{self.ingress.port}").rstrip("/")

    @property
    def system_principal(self) -> str:
        """Who a program's own tasks are asked by: `system`, or the principal that has its role under another name."""
        named = [name for name, principal in self.principals.items() if principal.role == "system"]
        return "system" if "system" in named or not named else named[0]

    def role(self, principal: str) -> Role:
        """What a principal may do. One that is not configured any more is `household`: the least."""
        found = self.principals.get(principal)
        return found.role if found else "household"
