"""The command `dada`, found in a clone where it was not installed."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# At the end: an installed package comes first, and the standard library has modules `select` and `test` as well.
sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != HERE] + [str(HERE)]
if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))

from dada import cli  # noqa: E402


def main(command: str) -> None:
    """`dada COMMAND` with the flags that the script was given."""
    cli.main([command, *sys.argv[1:]])
