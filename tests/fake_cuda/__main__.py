"""python -m fake_cuda FOLDER [NAME ...]: the reports of device.py, a line of JSON each. FOLDER holds the library."""

import json
import sys
from pathlib import Path

from fake_cuda import load

if __name__ == "__main__":
    load(Path(sys.argv[1]))
    from fake_cuda.device import reports  # imports torch

    for name, report in reports(sys.argv[2:]):
        print(json.dumps([name, report]), flush=True)
