"""`dada export`, from a clone that need not be installed: python scripts/export.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
