"""Reading the configuration: the file, the environment, and what is said of a fault."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import SettingsError

from tracekit.config.models import ModelSettings
from tracekit.config.section import ConfigError
from tracekit.config.settings import Settings


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
    found = [settings.key] if isinstance(settings, ModelSettings) and settings.api_key_env and settings.key else []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr) and value.get_secret_value():
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += secrets(value)
        elif isinstance(value, dict):
            found += [secret for one in value.values() if isinstance(one, BaseModel) for secret in secrets(one)]
    return found
