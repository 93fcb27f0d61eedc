"""What every command shares: settings, the open database, and how errors reach a person."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, TypeVar

import click
import psycopg
import structlog

from tracekit import config
from tracekit.cli.viewer import Viewer
from tracekit.errors import TracekitError
from tracekit.workers.substrate import Substrate, open_substrate
from tracekit.workers.words import one_line

Result = TypeVar("Result")

INTERRUPTED = 130
BROKEN_PIPE = 1
"""Nobody reads on; click's own code for it too."""


class App:
    """One run of the command line."""

    def __init__(self) -> None:
        self.debug = False

    @cached_property
    def settings(self) -> config.Settings:
        """The configuration, read when a command first needs it. Raises `ConfigError`."""
        return config.load()

    @property
    def viewer(self) -> Viewer:
        """Who looks at what a command prints."""
        return Viewer(self.settings.cli_principal, self.settings.role(self.settings.cli_principal))

    def run(self, command: Callable[[Substrate], Coroutine[Any, Any, Result]], *, name: str) -> Result:
        """Run a command that needs the database, and close it afterwards."""

        async def main() -> Result:
            async with self.substrate(name) as substrate:
                return await substrate.while_it_fits(command(substrate))

        return asyncio.run(main())

    @asynccontextmanager
    async def substrate(self, name: str) -> AsyncIterator[Substrate]:
        """The open database; what is logged on the way is shown with `--debug` only."""
        self.quieten()
        async with open_substrate(self.settings, name=f"tracekit {name}", max_size=3) as substrate:
            yield substrate

    def quieten(self) -> None:
        """Keep the library's own log lines off the screen: a command tells what matters itself."""
        level = logging.DEBUG if self.debug else logging.CRITICAL
        # The level is the handler's too: some libraries give their loggers one of their own.
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(level)
        logging.basicConfig(handlers=[handler], level=level, force=True)
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


class ListingGroup(click.Group):
    """A group whose `list` need not be said: alone, or followed by options, it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` in where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


class OperatorOnly(TracekitError):
    """Who runs the command is no operator, and it is one's alone."""

    exit_code = 2


def operator_only(app: App, what: str) -> None:
    """Raise `OperatorOnly` for anybody else; `what` is theirs, in words: `decisions`, `dead tasks`."""
    if app.viewer.role != "operator":
        raise OperatorOnly(f"{app.viewer.principal} is not an operator", hint=f"{what} are an operator's")


pass_app = click.make_pass_decorator(App)


def run(cli: click.Group, arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit code. Every error becomes one line on stderr."""
    app = App()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A screen that lacks a character shows another in its place.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = cli.main(args=arguments, prog_name="tracekit", standalone_mode=False, obj=app)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return _pipe_closed()
    except TracekitError as error:
        return _report(app, error, str(error), error.hint, error.exit_code)
    except TimeoutError as error:
        return _report(
            app, error, "the database did not answer in time", "is it overloaded, or gone? `tracekit db status`"
        )
    except psycopg.OperationalError as error:
        return _report(app, error, f"the database went away: {error}", "try again; `tracekit db status`")
    except psycopg.Error as error:
        return _report(app, error, f"the database refused: {error}", "`--debug` shows where; please report it")
    except UnicodeEncodeError as error:
        return _report(app, error, "an argument is not text in UTF-8", "check the encoding of what is given", 2)
    except OSError as error:
        return _report(app, error, f"the system refused: {error}", "`--debug` shows where")
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return _report(app, error, message, "this is a fault of tracekit; `--debug` shows where, please report it")


def _report(app: App, error: BaseException, message: str, hint: str, code: int = 1) -> int:
    if app.debug:
        traceback.print_exception(error)
    line = one_line(message)
    click.echo(f"tracekit: {line} — {one_line(hint)}" if hint else f"tracekit: {line}", err=True)
    return code


def _pipe_closed() -> int:
    # What is left in the buffer would be written, and fail, once more at the interpreter's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
