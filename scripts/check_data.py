"""`dada check-data`, from a clone that need not be installed: python scripts/check_data.py --help"""

from _root import main

if __name__ == "__main__":
    main("check-data")
