"""`dada replay`, from a clone that need not be installed: python scripts/replay.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["replay", *sys.argv[1:]])
