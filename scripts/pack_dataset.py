"""`dada pack-dataset`, from a clone that need not be installed: python scripts/pack_dataset.py --help"""

from _root import main

if __name__ == "__main__":
    main("pack-dataset")
