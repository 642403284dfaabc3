"""`dada adapt-bn`, from a clone that need not be installed: python scripts/adapt_bn.py --help"""

from _root import main

if __name__ == "__main__":
    main("adapt-bn")
