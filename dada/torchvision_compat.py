"""Make `import torchvision` work on builds without compiled operators.

torchvision registers shape rules for `torchvision::nms` and others while it is imported. A wheel whose compiled
part is missing, or was built for another device than the installed torch, has never declared those operators, and
the import stops with "operator torchvision::nms does not exist". This project needs only the pure-Python parts
(transforms, tv_tensors), so the missing operators are declared, never defined: calling one still fails.

Import this module before torchvision, or before timm, which imports torchvision.
"""

from __future__ import annotations

import sys

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: torch.library.Library | None = None  # holds the declarations alive as long as the process


def _declare_missing_operators() -> None:
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)


def _import_torchvision() -> None:
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        # The failed import leaves half-made modules behind; the second attempt must start from nothing.
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        _declare_missing_operators()
        import torchvision  # noqa: F401


_import_torchvision()
