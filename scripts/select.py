"""`dada select`, from a clone that need not be installed: python scripts/select.py --help"""

import sys

if __name__ == "select":  # Python looks for its own module of that name, and was started in this folder
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from os.path import abspath, dirname

    spec = PathFinder.find_spec("select", [p for p in sys.path if abspath(p) != dirname(abspath(__file__))])
    sys.modules["select"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["select"])

from _root import main

if __name__ == "__main__":
    main("select")
