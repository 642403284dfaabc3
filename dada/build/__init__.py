"""From a cfg to networks and loaders: the only place, besides commands and trainer, that reads it.

    network.py    a network with its weights, the device that it runs on, the classes that it predicts
    datasets.py   what is read of source and target; several of a role as one
    loaders.py    batches of that, for training steps and for tests

Other packages import from `dada.build` alone.
"""

from dada.build.datasets import eval_transform, evaluated_splits, files_of, labelled_target, unlabelled_target
from dada.build.loaders import eval_loader, eval_loaders, labelled_loader, loading, source_loader, target_images, target_loader
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
    "labelled_loader",
    "labelled_target",
    "loading",
    "on_device",
    "source_loader",
    "target_images",
    "target_loader",
    "unlabelled_target",
]
