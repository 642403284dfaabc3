"""`dada make-toycity`, from a clone that need not be installed: python scripts/make_toycity.py --help"""

from _root import main

if __name__ == "__main__":
    main("make-toycity")
