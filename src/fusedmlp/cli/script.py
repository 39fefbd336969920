"""``python -m fusedmlp script.py``: a script, module, command or standard input, with scikit-learn patched."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from fusedmlp.estimators.patching import patch_sklearn

USAGE = """\
usage: python -m fusedmlp [-v] [--profile] SCRIPT.py | -m MODULE | -c CODE | - [ARGUMENTS]

Run a Python script in which scikit-learn's MLPClassifier and MLPRegressor are fusedmlp's.

  -v, --verbose  print a line for each fit and predict: the backend, the engine, the seconds
  --profile      print a table of all calls at the end
"""


class Target(NamedTuple):
    """What is to run.

    Attributes
    ----------
    kind : {"script", "-m", "-c", "-"}
    name : str
        The script's path, the module's name or the code.
    arguments : list of str
        Of the script.
    verbose, profile : bool
    """

    kind: str
    name: str
    arguments: list[str]
    verbose: bool
    profile: bool


def target_of(words: list[str], commands: set[str]) -> Target | None:
    """What the words of a command line run; None where they are a command of `fusedmlp`, or ask for help.

    A word that is neither a command nor a file is left to the commands, which say what they know.
    """
    options, rest = set(), list(words)
    while rest and rest[0] in ("-v", "--verbose", "--profile"):
        options.add(rest.pop(0))
    if not rest:
        return Target("-", "-", [], *_flags(options)) if options and sys.stdin and not sys.stdin.isatty() else None
    first = rest[0]
    if first in commands:
        return None
    if first in ("-m", "-c"):
        if len(rest) < 2:
            raise SystemExit(f"fusedmlp: {first}: expected a module or code after it\n{USAGE}")
        return Target(first, rest[1], rest[2:], *_flags(options))
    if first == "-":
        return Target("-", "-", rest[1:], *_flags(options))
    if not options and (first.startswith("-") or not (first.endswith(".py") or Path(first).exists())):
        return None
    return Target("script", first, rest[1:], *_flags(options))


def _flags(options: set[str]) -> tuple[bool, bool]:
    return bool(options & {"-v", "--verbose"}), "--profile" in options


def run(target: Target) -> None:
    """Run it as Python would, in this process.

    Raises
    ------
    SystemExit
        The script cannot be read: status 2, as Python's.
    """
    patch_sklearn(target.verbose)
    profile = None
    if target.profile:
        from fusedmlp.estimators.activity import Profile, listeners

        profile = Profile()
        listeners.append(profile)
    try:
        if target.kind == "-m":
            sys.argv[:] = [target.name, *target.arguments]
            sys.path[0] = os.getcwd()
            runpy.run_module(target.name, run_name="__main__", alter_sys=True)
        else:
            _run_source(target)
    finally:
        if profile is not None:
            profile.print()


def _run_source(target: Target) -> None:
    """Run code as the module ``__main__``, which it stays: worker processes look for it there."""
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if target.kind == "script":
        path = Path(target.name)
        if path.is_dir():  # a folder or an archive with a __main__.py
            sys.argv[:] = [target.name, *target.arguments]
            runpy.run_path(target.name, run_name="__main__")
            return
        try:
            source = path.read_bytes()
        except OSError as error:
            sys.stderr.write(f"fusedmlp: can't open file {target.name!r}: {error.strerror}\n")
            raise SystemExit(2) from None
        main.__file__, file = target.name, target.name
        sys.path[0] = str(path.resolve().parent)
    else:
        source = target.name.encode() if target.kind == "-c" else sys.stdin.buffer.read()
        file = "<string>" if target.kind == "-c" else "<stdin>"
        sys.path[0] = ""
    sys.argv[:] = [target.name if target.kind == "script" else target.kind, *target.arguments]
    sys.modules["__main__"] = main
    exec(compile(source, file, "exec"), main.__dict__)
