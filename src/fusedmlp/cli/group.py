"""The group of commands: it loads a command when it is asked for, and turns expected errors into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from fusedmlp.errors import BackendUnavailableError, TrainingDivergedError
from fusedmlp.extras import MissingExtraError

EXPECTED_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
    BackendUnavailableError,
    TrainingDivergedError,
    MissingExtraError,
)
"""What bad usage, bad data and missing things raise. Anything else is a mistake of ours and shows its traceback."""

BAD_USAGE = 2
INTERRUPTED = 130


class CommandGroup(click.Group):
    """Commands that live in modules of their own, imported when they are used.

    Parameters
    ----------
    commands_by_name : mapping of str to str
        Name -> short help.
    """

    def __init__(self, *args: Any, commands_by_name: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._short_help = commands_by_name

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(self._short_help)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in self._short_help:
            return None
        command: click.Command = getattr(importlib.import_module(f"fusedmlp.cli.{cmd_name}"), cmd_name)
        command.short_help = self._short_help[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._short_help.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments; an interrupt is handled as in `invoke`."""
        with _interrupts():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an interrupt becomes an error of its own before click turns it into "Aborted!"."""
        with _interrupts():
            return super().invoke(ctx)

    def main(  # type: ignore[override]  # click's own signature is overloaded by standalone_mode
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **kwargs: Any
    ) -> Any:
        """Run the command line; where it is the whole program, errors are one line on stderr and an exit status."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **kwargs)
        try:
            status = super().main(args, standalone_mode=False, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "fusedmlp"
            _fail(f"{error.format_message()} (see {command} --help)", BAD_USAGE)
        except _Interrupted as error:
            _fail(error.format_message(), INTERRUPTED)
        except click.ClickException as error:
            _fail(error.format_message(), BAD_USAGE)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", INTERRUPTED)
        except EXPECTED_ERRORS as error:
            _fail(_message(error), BAD_USAGE)
        sys.exit(status if isinstance(status, int) else 0)


class _Interrupted(click.ClickException):
    """Ctrl-C while a command ran."""


@contextmanager
def _interrupts() -> Iterator[None]:
    """Turn an interrupt into `_Interrupted`, and also an error that a compiled library made of one at its import."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise _Interrupted(str(interrupt) or "interrupted") from None
    except Exception as error:
        if not _is_of_an_interrupt(error):
            raise
        raise _Interrupted("interrupted") from None


def _is_of_an_interrupt(error: BaseException) -> bool:
    """Whether an interrupt is what the error came from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    return str(error)


def _fail(message: str, status: int) -> NoReturn:
    lines = (line.strip() for line in message.splitlines())
    click.echo("fusedmlp: " + " ".join(line for line in lines if line), err=True)
    sys.exit(status)
