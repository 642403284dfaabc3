"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dada.model.batch_norm import convert_domain_batch_norm
from dada.model.deeplabv2 import DeepLabV2, undilated_resnet18
from dada.model.segmentation_model import SegmentationModel
from dada.model.weights import load_weights
from dada.normalization import TORCHVISION_RGB

TIMM_PREFIX = "timm:"


# Strides, initialisation and images of torchvision's weights.
_TORCHVISION = partial(DeepLabV2, strided_conv=2, init="kaiming", normalization=TORCHVISION_RGB)
# "DeepLabv2_depth" is what DADA calls DeepLabv2 with the depth block, which every network can have.
MODELS: dict[str, Callable[..., SegmentationModel]] = {
    "DeepLabv2": DeepLabV2,
    "DeepLabv2_depth": DeepLabV2,
    **{f"resnet-{depth}": partial(_TORCHVISION, depth=depth) for depth in (18, 34, 50)},
    "resnet-18_undilated": undilated_resnet18,
}


@contextmanager
def _float32_on_cpu() -> Iterator[None]:
    """Whatever torch's default dtype and device are in the program around it, networks are built in this way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@_float32_on_cpu()
def build_model(
    name: str,
    num_classes: int,
    *,
    multi_level: bool = False,
    with_depth: bool = False,
    head_bias: bool = True,
    bn_policy: str = "train",
    domain_bn: bool = False,
    output_stride: int = 8,
    weights: str | Path = "",
    accept_licence: str = "",
) -> SegmentationModel:
    """Build a segmentation network and load its weights.

    Args:
        name: one of MODELS, or "timm:<encoder>" for any timm encoder that gives dense maps.
        num_classes: K.
        multi_level: add the auxiliary head (ADVENT's conv4 head).
        with_depth: add DADA's depth block; "DeepLabv2_depth" has it in any case.
        head_bias: False for PLCA's bias-free head.
        bn_policy: "train", "frozen_affine" or "eval"; see dada.model.batch_norm.BN_POLICIES.
        domain_bn: give each domain batch norms of its own (PLCA's DOMAIN_BN); call `select_domain` before a forward.
        output_stride: 8, 16 or 32 image pixels per position of `features`; for a plain vision transformer, its patches
            decide.
        weights: "", "imagenet" or a file; see dada.model.weights.load_weights.
        accept_licence: see dada.model.licences.check_licence.

    Raises:
        ValueError: unknown name; the message lists the accepted ones and the nearest. Also `domain_bn` for a network
            without batch norm.
    """
    options: dict[str, Any] = {
        "multi_level": multi_level,
        "with_depth": with_depth or name == "DeepLabv2_depth",
        "head_bias": head_bias,
        "bn_policy": bn_policy,
        "output_stride": output_stride,
    }
    if name.startswith(TIMM_PREFIX):
        # Imported here since timm takes seconds to import, and most networks do not need it.
        from dada.model.timm_encoder import TimmSegmenter
        from dada.model.vit_encoder import VitSegmenter, is_plain_vit

        encoder = name[len(TIMM_PREFIX) :]
        if is_plain_vit(encoder):
            del options["output_stride"]
            model: SegmentationModel = VitSegmenter(encoder, num_classes, **options)
        else:
            model = TimmSegmenter(encoder, num_classes, **options)
    elif name in MODELS:
        model = MODELS[name](num_classes, **options)
    else:
        raise ValueError(unknown_model(name))
    if domain_bn:
        convert_domain_batch_norm(model)
    load_weights(model, weights, accept_licence=accept_licence)
    return model


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is that of a network; timm checks names of encoders later."""
    if not name.startswith(TIMM_PREFIX) and name not in MODELS:
        raise ValueError(unknown_model(name))


def unknown_model(name: str) -> str:
    """The message for a name that no network has."""
    lower = {key.lower(): key for key in MODELS}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    nearest = f" (nearest: {lower[near[0]]!r})" if near else ""
    return f"unknown network {name!r}{nearest}; accepted are {', '.join(MODELS)} and {TIMM_PREFIX}<encoder>"
