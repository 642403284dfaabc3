"""`dada test`, from a clone that need not be installed: python scripts/test.py --help"""

from _root import main

if __name__ == "__main__":
    main("test")
