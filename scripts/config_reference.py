"""`dada config-reference`, from a clone that need not be installed: python scripts/config_reference.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["config-reference", *sys.argv[1:]])
