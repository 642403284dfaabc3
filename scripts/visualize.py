"""`dada visualize`, from a clone that need not be installed: python scripts/visualize.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["visualize", *sys.argv[1:]])
