"""From a cfg to networks and loaders: the only place, besides commands and trainer, that reads it.

Other packages import from `dada.build` alone.
"""

from dada.build.datasets import eval_transform, evaluated_splits, files_of, labelled_target, unlabelled_target
from dada.build.loaders import eval_loader, eval_loaders, images_of, labelled_loader, source_loader, target_images, target_loader
from dada.build.network import build_network, classes_of, cudnn_search, on_device

__all__ = [
    "build_network",
    "classes_of",
    "cudnn_search",
    "eval_loader",
    "eval_loaders",
    "eval_transform",
    "evaluated_splits",
    "files_of",
    "images_of",
    "labelled_loader",
    "labelled_target",
    "on_device",
    "source_loader",
    "target_images",
    "target_loader",
    "unlabelled_target",
]
