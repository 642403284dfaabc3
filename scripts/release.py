"""`dada release`, from a clone that need not be installed: python scripts/release.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["release", *sys.argv[1:]])
