"""The command `dada`, found in a clone where it was not installed."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# At the end: an installed package comes first, and the standard library has modules `select` and `test` as well.
sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != HERE] + [str(HERE)]
if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))

from dada.cli import main  # noqa: E402

__all__ = ["main"]
