"""Domain-adaptive semantic segmentation by pixel-level cycle association.

The names of `__all__` are imported when they are first used: they need torch, which takes a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dada.domain_adaptation.contrastive_learning import (
        cycle_associate,
        cycle_association_loss,
        find_cycles,
        spatial_aggregation,
    )
    from dada.segmenter import Prediction, Segmenter

__version__ = "0.1.0"
__all__ = ["Prediction", "Segmenter", "cycle_associate", "cycle_association_loss", "find_cycles", "spatial_aggregation"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dada' has no attribute {name!r}")
    home = "dada.segmenter" if name[0].isupper() else "dada.domain_adaptation.contrastive_learning"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
