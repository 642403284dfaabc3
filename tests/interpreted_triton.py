"""Imported before torch: without a GPU, Triton's kernels run in its interpreter (test_kernels.py), where triton is installed."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
