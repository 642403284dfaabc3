"""`dada suggest`, from a clone that need not be installed: python scripts/suggest.py --help"""

from _root import main

if __name__ == "__main__":
    main("suggest")
