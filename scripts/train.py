"""`dada train`, from a clone that need not be installed: python scripts/train.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
