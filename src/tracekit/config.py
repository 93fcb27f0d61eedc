"""Configuration: one TOML file, any value of it overridden by the environment.

The file is `$TRACEKIT_CONFIG`, or `tracekit/tracekit.toml` in the user's configuration directory; none is needed. Its
`[worker] lease` is overridden by `TRACEKIT_WORKER__LEASE`. Every field states its default and what it trades.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from tracekit.envelope import Name, Origin
from tracekit.errors import TracekitError

Role = Literal["operator", "household", "system"]


def _seconds(value: object) -> object:
    # A variable is a text, also where it says a number.
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    return value


Span = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]


class ConfigError(TracekitError):
    """The configuration cannot be used."""

    exit_code = 2


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Principal(_Section):
    """Someone who may ask: an `operator` decides and sees everything, a `household` member gets plain words, a `system`
    is a program.
    """

    role: Role


class Token(_Section):
    """A credential, bound to a surface, a principal and an origin. Kept as a hash, or named by a variable."""

    surface: Name
    principal: Name
    origin: Origin = Origin.MANUAL
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the token (`tracekit token` makes both)."""
    env: str | None = None
    """Environment variable that holds the token itself."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.sha256 is None) == (self.env is None):
            raise ValueError("give either sha256 or env")
        return self


class WorkerSettings(_Section):
    """How a worker process runs hops."""

    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    """Hops of one mode in flight in one process. More hides the latency of what handlers wait for, and costs memory."""
    lease: Span = timedelta(seconds=60)
    """How long a claim lasts without a heartbeat. Shorter returns a dead worker's hop sooner, longer tolerates longer
    pauses of a living one. With the sweep it bounds the recovery: 61 s by default."""
    heartbeat: Span = timedelta(seconds=15)
    """Between heartbeats. At most a third of the lease, so that two may fail."""
    poll_interval: Span = timedelta(seconds=1)
    """Between looks at the queue when nothing wakes the worker: what a lost NOTIFY costs."""
    sweep_interval: Span = timedelta(seconds=1)
    """Between sweeps for leases, rests, deadlines and ttls that are over. An idle sweep reads two indexes."""
    grace: Span = timedelta(seconds=20)
    """After SIGTERM: how long handlers may finish before their leases are given back."""
    handler_timeout: Span = timedelta(minutes=15)
    """The longest that one attempt may take, unless its mode says otherwise. A hung handler is a failed attempt."""
    database_timeout: Span = timedelta(seconds=30)
    """The longest that one round against the database may take."""

    @model_validator(mode="after")
    def _beats_fit(self) -> Self:
        if self.heartbeat * 3 > self.lease:
            raise ValueError(f"heartbeat ({self.heartbeat}) must be at most a third of lease ({self.lease})")
        return self


class IngressSettings(_Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Only this machine by default: put a reverse proxy with TLS before it to go further."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    public_url: str = ""
    """How a phone reaches this ingress; approval links begin with it. Empty: http://host:port."""
    max_body: Annotated[int, Field(ge=1024)] = 4_194_304
    """Bytes of a request's body; larger ones are refused with 413. A group of 4,000 alerts as Alertmanager sends it has
    about as many; `max_alerts` there keeps groups smaller."""
    max_depth: Annotated[int, Field(ge=1)] = 100_000
    """Open hops beyond which new tasks are refused with 429 and Retry-After."""


class HomeAssistantSettings(_Section):
    """How to reach Home Assistant: a long-lived access token of a user that may do what is planned."""

    url: str = "http://homeassistant.local:8123"
    token: SecretStr = SecretStr("")
    verify_timeout: Span = timedelta(seconds=10)
    """How long a device may take to reach the state that was asked for (a lock turns for seconds)."""


class PrometheusSettings(_Section):
    """Where alerts' expressions are looked up."""

    url: str = ""
    """Empty: an alert's expression is not looked up."""


class AlertmanagerSettings(_Section):
    """Where the observer looks for incidents."""

    url: str = ""
    """Polled by the observer; empty: not polled."""
    interval: Span = timedelta(seconds=30)


class NtfySettings(_Section):
    """Notifications that can wait."""

    url: str = "https://ntfy.sh"
    topic: str = ""
    """Where the operator's notifications go; empty: ntfy is off."""
    token: SecretStr = SecretStr("")


class PushoverSettings(_Section):
    """Notifications that page."""

    url: str = "https://api.pushover.net"
    user: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    """Both empty: Pushover is off, and urgent notifications go where the others go."""


class GitHubSettings(_Section):
    """Where the upstream-watcher asks."""

    url: str = "https://api.github.com"
    token: SecretStr = SecretStr("")


class GuardianSettings(_Section):
    """What a person must approve, and for how long they may think."""

    approval_ttl: Span = timedelta(hours=24)
    """How long a destructive plan waits for a decision before it expires, unless the task's own ttl ends sooner."""
    urgent_ttl: Span = timedelta(hours=1)
    """The same for urgent tasks, which page."""
    approval_secret: SecretStr = SecretStr("")
    """Key of the approval links' HMAC. Empty: made once and kept in the data directory."""
    household_allowlist: tuple[str, ...] = ("media_player", "light", "climate", "scene")
    """Home Assistant domains that a household member may use without asking."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="TRACEKIT_", env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=None
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
    log_format: Literal["json", "console"] | None = None
    """None: console on a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    worker: WorkerSettings = WorkerSettings()
    ingress: IngressSettings = IngressSettings()
    guardian: GuardianSettings = GuardianSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    alertmanager: AlertmanagerSettings = AlertmanagerSettings()
    ntfy: NtfySettings = NtfySettings()
    pushover: PushoverSettings = PushoverSettings()
    github: GitHubSettings = GitHubSettings()

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
        return env_settings, init_settings

    @model_validator(mode="after")
    def _principals_exist(self) -> Self:
        for token in self.tokens:
            if token.principal not in self.principals:
                raise ValueError(f"the token of surface {token.surface} names no principal: {token.principal}")
        if self.cli_principal not in self.principals:
            raise ValueError(f"cli_principal names no principal: {self.cli_principal}")
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


def config_path() -> Path:
    """The configuration file that applies, whether or not it exists."""
    named = os.environ.get("TRACEKIT_CONFIG")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "tracekit" / "tracekit.toml"


def load(path: Path | None = None, *, may_be_missing: bool = False, **overrides: Any) -> Settings:
    """The settings of `path` (default: `config_path()`), the environment, and `overrides`, the last first.

    A file that somebody has named must be there, unless it `may_be_missing`. Raises `ConfigError`
    that lists every fault, without the values: some are secrets.
    """
    file = path or config_path()
    values: dict[str, Any] = {}
    if file.exists():
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read {file}: {error}", hint="it must be TOML") from None
    elif not may_be_missing and (path or os.environ.get("TRACEKIT_CONFIG")):
        raise ConfigError(f"there is no configuration file {file}")
    try:
        settings = Settings(**values)
        return settings.model_copy(update=overrides) if overrides else settings
    except SettingsError as error:
        # A variable that holds a list or a table, and no JSON. The words name the setting and do not quote the value.
        raise ConfigError(
            f"the configuration is not valid: {error}", hint="in TRACEKIT_* variables lists and tables are JSON"
        ) from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'settings'}: "
            + (_unknown(fault["loc"]) if fault["type"] == "extra_forbidden" else fault["msg"])
            for fault in error.errors()
        )
        raise ConfigError(
            f"the configuration is not valid: {faults}", hint=f"see {file} and TRACEKIT_* variables"
        ) from None


def _unknown(location: tuple[int | str, ...]) -> str:
    """What is said of a setting that there is not, and which one may be meant."""
    *above, name = map(str, location)
    found: type[BaseModel] = Settings
    for part in above:
        field = found.model_fields.get(part)
        # A number or a name leads into a list or a table of one kind: the field above has said which.
        if field is not None and (inner := _model(field.annotation)) is not None:
            found = inner
    close = difflib.get_close_matches(name, found.model_fields, n=1)
    if not close and not above:
        sections = {section: _model(field.annotation) for section, field in found.model_fields.items()}
        close = [f"{section}.{name}" for section, model in sections.items() if model and name in model.model_fields][:1]
    return f"unknown setting, did you mean {close[0]}?" if close else "unknown setting"


def _model(annotation: object) -> type[BaseModel] | None:
    """The model that an annotation is, or is a list or a table of."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def secrets(settings: BaseModel) -> list[str]:
    """Every secret value of the settings, for what keeps them out of log lines."""
    found = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr) and value.get_secret_value():
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += secrets(value)
    return found
