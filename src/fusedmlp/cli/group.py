"""The group of commands. It imports a command when it is used, and prints an expected error as one line."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from fusedmlp.errors import TrainingDivergedError
from fusedmlp.extras import MissingExtraError

EXPECTED_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    TrainingDivergedError,
    MissingExtraError,
)
"""Bad usage, bad data, wrong settings and things that are missing: one line. Other errors are bugs: a traceback."""

BUGS = (RecursionError, NotImplementedError)
"""Subclasses of the expected errors that are bugs nevertheless."""

MEANT = {
    "--lr": "--learning-rate",
    "--eta": "--learning-rate",
    "--seed": "--random-state",
    "--label": "--target",
    "--y": "--target",
    "--layers": "--hidden",
    "--units": "--hidden",
    "--output": "--out",
    "--save": "--out",
    "--l2": "--alpha",
    "--weight-decay": "--alpha",
    "--batch": "--batch-size",
    "--iterations": "--epochs",
    "--max-iter": "--epochs",
    "--device": "--backend",
    "--na": "--missing",
    "--na-values": "--missing",
}
"""Options of other programs, and what they are called here."""

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
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"fusedmlp.cli.{name}"), name)
        command.short_help = self._short_help[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._short_help.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments; errors are handled as in `invoke`."""
        with _shielded():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an interrupt or EOFError becomes an error of its own, because click makes both "Aborted!"."""
        with _shielded():
            return super().invoke(ctx)

    def main(  # type: ignore[override]  # click's own signature is overloaded by standalone_mode
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **kwargs: Any
    ) -> Any:
        """Run the command line. As the whole program, print errors and warnings as one line on stderr, and exit."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **kwargs)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                status = super().main(args, standalone_mode=False, **kwargs)
        except click.NoSuchOption as error:
            meant = MEANT.get(error.option_name)
            command = error.ctx.command_path if error.ctx else "fusedmlp"
            text = f"No such option {error.option_name}: did you mean {meant}?" if meant else error.format_message()
            _fail(f"{text} (see {command} --help)", BAD_USAGE)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "fusedmlp"
            _fail(f"{error.format_message()} (see {command} --help)", BAD_USAGE)
        except _Interrupted as error:
            _fail(error.format_message(), INTERRUPTED)
        except click.ClickException as error:
            _fail(error.format_message(), BAD_USAGE)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", INTERRUPTED)
        except BUGS:
            raise
        except EXPECTED_ERRORS as error:
            _fail(_message(error), BAD_USAGE)
        sys.exit(status if isinstance(status, int) else 0)


class _Interrupted(click.ClickException):
    """Ctrl-C while a command ran."""


@contextmanager
def _shielded() -> Iterator[None]:
    """Turn KeyboardInterrupt and EOFError into errors of their own: click would turn both into "Aborted!".

    A KeyboardInterrupt becomes `_Interrupted`, and so does an error that a compiled library made of one while it was
    imported. An EOFError, as a damaged file raises it, becomes a ClickException with its message.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise _Interrupted(str(interrupt) or "interrupted") from None
    except Exception as error:
        if _comes_from_an_interrupt(error):
            raise _Interrupted("interrupted") from None
        if isinstance(error, EOFError):
            raise click.ClickException(_message(error)) from error
        raise


def _comes_from_an_interrupt(error: BaseException) -> bool:
    """Whether the error was raised because of a KeyboardInterrupt."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    if isinstance(error, EOFError):
        return f"a file ended too early: {error}"
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    """In place of ``warnings.showwarning``: the place in the source says nothing to a user of the command line."""
    _print(f"warning: {message}")


def _fail(message: str, status: int) -> NoReturn:
    if "fusedmlp.cli.ranks" in sys.modules:  # the command may be run by several processes
        from fusedmlp.cli.ranks import named

        message = named(message)
    _print(message)
    sys.exit(status)


def _print(message: str) -> None:
    """Print a message on stderr, in one line."""
    lines = (line.strip() for line in message.splitlines())
    click.echo("fusedmlp: " + " ".join(line for line in lines if line), err=True)
