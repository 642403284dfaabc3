"""`dada merge`, from a clone that need not be installed: python scripts/merge.py --help"""

from _root import main

if __name__ == "__main__":
    main("merge")
