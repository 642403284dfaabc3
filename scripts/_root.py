"""Let the scripts find `dada` in a clone where it was not installed; imported for that effect only."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# At the end: an installed package comes first, and the standard library has modules `select` and `test` as well.
sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != HERE] + [str(HERE)]
if str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))
