"""`dada bench-methods`, from a clone that need not be installed: python scripts/bench_methods.py --help"""

from _root import main

if __name__ == "__main__":
    main("bench-methods")
