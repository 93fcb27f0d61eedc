"""The variables that override the file, and files that hold secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic_settings import EnvSettingsSource

from tracekit.config.section import ConfigError

PREFIX = "TRACEKIT_"
_IN_A_FILE = "_FILE"
_MOST = 2**20
"""Characters of a file: no setting has more."""


class Environment(EnvSettingsSource):
    """The variables. One that ends in `_FILE` names a file that holds the value, whatever the setting is: a secret is
    then in no environment, which children inherit and `docker inspect` shows.
    """

    def _load_env_vars(self) -> Mapping[str, str | None]:
        variables = dict(super()._load_env_vars())
        beginning, end = PREFIX.lower(), _IN_A_FILE.lower()
        for name in [name for name in variables if name.startswith(beginning) and name.endswith(end)]:
            setting = name.removesuffix(end)
            if setting.removeprefix(beginning).partition("__")[0] not in self.settings_cls.model_fields:
                continue
            if not (path := variables.pop(name)):
                continue
            if variables.get(setting):
                raise ConfigError(
                    f"{setting.upper()} and {name.upper()} are both set", hint="a setting comes from one of them"
                )
            variables[setting] = read_secret(Path(path), name.upper())
            # A secret that was not mounted is not the wish for a default, such as a database of one's own.
            if not variables[setting]:
                raise ConfigError(
                    f"{name.upper()}: {path} is empty", hint="write the value into it, or unset the variable"
                )
        return variables


def read_secret(path: Path, named_by: str) -> str:
    """What a file holds, without the white space around it. Raises `ConfigError`, which names whoever `named_by` it."""
    try:
        with path.expanduser().open(encoding="utf-8") as file:
            text = file.read(_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"{named_by}: cannot read {path}: {reason}") from None
    if len(text) > _MOST:
        raise ConfigError(f"{named_by}: {path} has more than {_MOST:,} characters")
    return text.strip()
