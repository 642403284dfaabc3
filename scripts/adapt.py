"""`dada adapt`, from a clone that need not be installed: python scripts/adapt.py --help"""

from _root import main

if __name__ == "__main__":
    main("adapt")
