"""A learning rate for each layer of the backbone, smaller towards the image, and what weight decay leaves out.

Layer-wise decay as BEiT (Bao et al., ICLR 2022) fine-tunes transformers and ConvNeXt (Liu et al., CVPR 2022) convolutional
networks: the pretrained first layers are general and need to move least.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from dada.model.segmentation_model import SegmentationModel

# What counts as one block, in the names of our ResNets and of timm's families.
BLOCK = re.compile(
    r"\b(?:layer\d\.\d+"  # ResNets: layer3.5
    r"|blocks[._]\d+(?:\.\d+)?"  # vision transformers: blocks.7; EfficientNet, MobileNet: blocks.3.1
    r"|(?:stages|layers)[._]\d+\.blocks\.\d+)(?=\.)"  # ConvNeXt, Swin: stages_2.blocks.5
)
TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token", "mask_token")


def blocks_above(network: SegmentationModel) -> dict[str, int]:
    """For each trainable parameter of the backbone, how many blocks away from the head it is.

    0 is what comes after the last block (a final norm), 1 the last block, 2 the one before it, N the first of N blocks,
    N + 1 what comes before them (stem, patch and positional embedding). What lies between two blocks, as ConvNeXt's
    downsampling does, belongs to the later one.

    Raises:
        ValueError: the names in the backbone do not show its blocks.
    """
    backbone = {id(parameter) for parameter in network.parameter_groups()["backbone"]}
    names = [name for name, parameter in network.named_parameters() if id(parameter) in backbone]
    layers: dict[str, int] = {}  # from the image on: 0 before the first block, n in the n-th one
    seen: list[str] = []
    waiting: list[str] = []
    for name in names:
        found = BLOCK.search(name)
        if found is None:
            waiting.append(name)
            continue
        if found[0] not in seen:
            layers.update(dict.fromkeys(waiting, len(seen) + 1 if seen else 0))
            waiting = []
            seen.append(found[0])
        layers[name] = seen.index(found[0]) + 1
    if names and not seen:
        raise ValueError(
            f"TRAIN.LAYER_DECAY needs to know the blocks of the network, and the names of {type(network).__name__} "
            f"({getattr(network, 'encoder_name', '') or names[0]}) do not show them; set it to 1.0"
        )
    layers.update(dict.fromkeys(waiting, len(seen) + 1))
    return {name: len(seen) + 1 - layers[name] for name in names}


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay should apply to it: to weights of products, not norms, biases, layer scales, tokens or positions."""
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in TOKENS


def layered_groups(
    network: SegmentationModel, rates: dict[str, float], *, layer_decay: float, weight_decay: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, the head first, then the backbone from its last layers to its first.

    A layer n blocks away from the head (see `blocks_above`) has the rate rates["backbone"] * layer_decay^n.

    Args:
        rates: of "backbone" and "head".
        layer_decay: in (0, 1]; 1 gives all of the backbone the same rate.
        weight_decay: of the parameters that are decayed.
        decay_norms: True decays all of them; False only those that `is_decayed` names, in the head too.

    Raises:
        ValueError: see `blocks_above`.
    """
    away = blocks_above(network) if layer_decay != 1 else {}
    head = {id(parameter) for parameter in network.parameter_groups()["head"]}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = -1 if id(parameter) in head else away.get(name, 0)
        decayed = decay_norms or is_decayed(name, parameter)
        rate = rates["head"] if layer < 0 else rates["backbone"] * layer_decay**layer
        options = {"params": [], "lr": rate, "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((layer, not decayed), options)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
