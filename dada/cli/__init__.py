"""The command `dada`: a file here for each command, named like it, with its flags; what it does is in the packages below.

`add_flags(parser)` and `main(args)` are all that a command needs. `main` returns the command that comes next, with its flags,
which is printed ready to paste. The head of the file is its help, and the first line of that stands in `dada --help`. torch and
the like are imported inside `main`, after the flags are read.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dada import __version__
from dada.cli.shared import Parser, print_what_can_be_printed, reporting_errors

COMMANDS = tuple(sorted(file.name.replace("_", "-") for file in pkgutil.iter_modules(__path__) if file.name != "shared"))
_AsItStands = argparse.RawDescriptionHelpFormatter
_HEAD = "Domain-adaptive semantic segmentation. `dada COMMAND --help` shows the flags of a command."


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: `main(["train", "--cfg", "toycity.yml"])`; without `argv`, that of the command line.

    Raises:
        SystemExit: with a message for an error that a user can mend; with the exit code of the command, if it has one.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    print_what_can_be_printed()
    if argv[:1] and argv[0] in COMMANDS:
        parser = parser_of(argv[0])
        # argparse has no inputs among flags for a command with kinds of its own.
        args = parser.parse_args(argv[1:]) if argv[0] == "visualize" else parser.parse_intermixed_args(argv[1:])
        reporting_errors(lambda: _tell_next(_module_of(argv[0]).main(args)))
        return
    lines = [f"  {name:<17} {_help_of(name).splitlines()[0].rstrip('.')}" for name in COMMANDS]
    parser = argparse.ArgumentParser("dada", None, _HEAD, "\n".join(["commands:", *lines]), formatter_class=_AsItStands)
    parser.add_argument("--version", action="version", version=f"dada {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    if not argv:  # as typed by somebody who wants to know what there is
        parser.print_help(sys.stderr)
        sys.exit(2)
    parser.parse_args(argv[:1])


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, with its flags."""
    parser = Parser(f"dada {command}", description=_help_of(command), formatter_class=_AsItStands)
    _module_of(command).add_flags(parser)
    return parser


def _tell_next(command: Sequence[object]) -> None:
    """Print a command and its flags, to be called as this one was: by script, as a module, or as `dada`."""
    if os.environ.get("RANK", "0") != "0":  # the first process of torchrun says it for all
        return
    name, *flags = map(str, command)
    called = Path(sys.argv[0])
    if (called.parent / "_root.py").is_file():
        program = f"python {called.with_name(name.replace('-', '_') + '.py')}"
    else:
        program = f"{'python -m dada' if called.name == '__main__.py' else 'dada'} {name}"
    print("next:", program, *map(shlex.quote, flags))


def _module_of(command: str) -> ModuleType:
    return importlib.import_module(f"dada.cli.{command.replace('-', '_')}")


def _help_of(command: str) -> str:
    # Formatters take away the indentation of commands that no text follows.
    return re.sub(r"^(?=(?:dada|torchrun) )", "    ", _module_of(command).__doc__ or "", flags=re.MULTILINE)
