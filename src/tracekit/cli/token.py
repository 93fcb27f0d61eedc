"""`tracekit token`: credentials of surfaces."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from pydantic import ValidationError

from tracekit import config
from tracekit.cli.app import App, pass_app
from tracekit.cli.output import json_option, print_json
from tracekit.config import ConfigError, Settings, Token, config_path
from tracekit.envelope import Origin
from tracekit.workers.words import one_line

RESTART = "a running `tracekit up` or `serve` reads its configuration when it starts: restart it"


@click.group()
def token() -> None:
    """Credentials: who asks follows from the token, never from what the request says."""


@token.command(
    epilog="""\b
Examples:
  tracekit token create --surface zulip --principal rob
  export TOKEN=$(tracekit token create --surface laptop --principal rob --save)
  tracekit token create --surface alertmanager --principal system --origin observer
"""
)
@click.option("--surface", required=True, help="Where it is used, such as zulip or alertmanager.")
@click.option("--principal", required=True, help="Whom its requests come from; one of the configuration's principals.")
@click.option(
    "--origin", type=click.Choice([origin.value for origin in Origin]), default="manual", show_default=True,
    help="What its tasks' origin is.",
)  # fmt: skip
@click.option("--save", is_flag=True, help="Add the lines to the configuration file; print the token and nothing else.")
@json_option
@pass_app
@click.pass_context
def create(ctx: click.Context, app: App, surface: str, principal: str, origin: str, save: bool, as_json: bool) -> None:
    """Make a token. It is printed this once; the configuration keeps its hash, in the lines that are printed too."""
    path = config_path()
    settings = config.load(may_be_missing=True) if save else app.settings
    if principal not in settings.principals:
        name, known = one_line(principal), ", ".join(sorted(settings.principals))
        click.echo(
            f"tracekit: there is no principal {name} — configured are: {known}. To add one, to {path}:\n\n"
            f"{_principal_lines(settings, path, name)}",
            err=True,
        )
        ctx.exit(ConfigError.exit_code)
    made = secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    try:
        Token(surface=surface, principal=principal, origin=Origin(origin), sha256=digest)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"no token can be made: {faults}", hint="names are short and in lower case") from None
    lines = [
        "[[tokens]]",
        f'surface = "{surface}"',
        f'principal = "{principal}"',
        f'origin = "{origin}"',
        f'sha256 = "{digest}"',
    ]
    if save:
        before = _save(path, lines, digest)
        if any((one.surface, one.principal) == (surface, principal) for one in before.tokens):
            click.echo(f"There is a token of {principal} on {surface} already; both are valid.", err=True)
        click.echo(f"Saved in {path}; {RESTART}.", err=True)
    if as_json:
        saved = {"saved": path} if save else {}
        print_json({"token": made, "sha256": digest, "toml": "\n".join(lines) + "\n", **saved})
    elif save:
        click.echo(made)
    else:
        click.echo(f"{made}\n")
        click.echo(f"Keep it now: it cannot be shown again. Add to {path} ({RESTART}):\n", err=True)
        for text in lines:
            click.echo(text)


def _principal_lines(settings: Settings, path: Path, name: str) -> str:
    """TOML that adds a principal at the end of the file, and keeps those that there are."""
    added = f'[principals.{name}]\nrole = "household"'
    if "principals" not in settings.model_fields_set:
        # Setting them replaces those that are there by default.
        kept = "".join(f'{one} = {{ role = "{known.role}" }}\n' for one, known in settings.principals.items())
        return f"[principals]\n{kept}\n{added}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        try:
            tomllib.loads(f"{path.read_text()}\n{added}\n")
        except tomllib.TOMLDecodeError:
            return f'{name} = {{ role = "household" }}  # among the other principals'
    return added


def _save(path: Path, lines: Sequence[str], digest: str) -> Settings:
    """Add the lines to the file. Returns the settings as they were before. Raises `ConfigError`: nothing is changed."""
    # A link stays one: what it leads to is replaced.
    target = path.resolve()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(target.parent):
        before = config.load(path, may_be_missing=True)
        text = target.read_text() if target.exists() else ""
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        new = Path(name)
        try:
            with open(descriptor, "w") as file:
                file.write(text + gap + "\n".join(lines) + "\n")
                file.flush()
                if target.exists():
                    found = target.stat()
                    os.fchmod(file.fileno(), found.st_mode & 0o7777)
                    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fsync(file.fileno())
            try:
                loaded = config.load(new)
            except ConfigError as error:
                told = str(error).replace(str(new), str(path))
                raise ConfigError(
                    f"{path} would not be valid: {told}", hint="without --save it prints the lines"
                ) from None
            if digest not in [one.sha256 for one in loaded.tokens]:
                raise ConfigError(
                    f"TRACEKIT_TOKENS overrides what {path} says", hint="unset it, or add the token there"
                )
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    return before


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two at once would each lose the other's lines."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
