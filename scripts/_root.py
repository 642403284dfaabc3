"""Let the scripts find `dada` in a clone where it was not installed; imported for that effect only."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)  # at the end: an installed package comes first
