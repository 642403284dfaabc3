"""`dada config-reference`, from a clone that need not be installed: python scripts/config_reference.py --help"""

from _root import main

if __name__ == "__main__":
    main("config-reference")
