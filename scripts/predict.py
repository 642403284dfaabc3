"""`dada predict`, from a clone that need not be installed: python scripts/predict.py --help"""

import sys

from _root import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
