"""Load weights of published networks and of our own checkpoints completely, or refuse them and name what does not fit.

docs/models.md lists what is accepted; weight_files.py finds the state dict in a file, weight_formats.py recognises its names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dada.model.batch_norm import for_every_domain, without_domain
from dada.model.imagenet import imagenet_state
from dada.model.low_rank import has_adapters, is_adapter, merged
from dada.model.segmentation_model import SegmentationModel
from dada.model.weight_files import State, found_weights, read_weights
from dada.model.weight_formats import HEADS, Adapted, adapt, head_prefixes, prefixes, shortened

log = logging.getLogger(__name__)

RANDOM = ("", "random")  # names of no weights


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
    model: SegmentationModel, source: str | Path, *, plca_class_order: bool = False, accept_licence: str = "", head: bool = True
) -> LoadReport:
    """Set the weights of `model`, in place.

    Args:
        source: "random", or "", keeps the random initialisation; "imagenet" takes the ImageNet weights of the trunk from a
            package or from the hub; anything else is a file (see the table at the top of this module).
        plca_class_order: the network numbers its classes as PLCA does (LEGACY.PLCA_CLASS_ORDER), so that PLCA's
            weights stay as they are; otherwise their classes are put into our order.
        accept_licence: the name of a licence that is accepted for the weights of a timm encoder though it is not permissive;
            see dada.model.licences. Checked for pretrained encoders; a whole network was checked when it was trained.
        head: False takes only the trunk, even of a whole network; head and depth block keep their initial values.

    Returns:
        What was set and what was not. A file without a head may leave the head at its initial values, one without
        adapters the adapters; every other gap is an error, except counters of batch norm (`num_batches_tracked`), which
        old files lack. Adapters that the network does not have are merged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, unknown format, a file of ours with the other class order, or names or shapes that
            do not match; all are listed. Also a licence that is not permissive and not accepted.
        RuntimeError: the hub cannot be reached.
    """
    if str(source) in RANDOM:
        return LoadReport("", (), tuple(model.state_dict()))
    if str(source) == "imagenet":
        _check_licence(model, accept_licence)
        origin, state = imagenet_state(model)
    else:
        origin = str(source)
        state, stored_cfg = read_weights(source)
        _check_class_order(stored_cfg, plca_class_order, origin)
    if has_adapters(state) and not has_adapters(model.state_dict()):
        log.info("%s: its low-rank adapters are merged into the weights", origin)
        state = merged(state)
    adapted = _adapted(model, state, plca_class_order)
    if adapted.trunk_only and str(source) != "imagenet":
        _check_licence(model, accept_licence)
    if not head:
        own, names = model.state_dict(), (*HEADS, *head_prefixes(model))
        left_out = tuple(key for key in adapted.state if key.startswith(head_prefixes(model) if key in own else names))
        kept = {key: value for key, value in adapted.state.items() if key not in left_out}
        adapted = Adapted(kept, True, (*adapted.ignored, *left_out), adapted.note)
    report = _apply(model, adapted, origin)
    ignored = f", left out: {shortened(report.ignored, 4)}" if report.ignored else ""
    log.info("weights: %d entries from %s%s", len(report.loaded), report.source, ignored)
    if adapted.note:
        log.warning("%s: %s", report.source, adapted.note)
    if report.missing:
        modules = dict.fromkeys(name.partition(".")[0] for name in report.missing)
        log.info("%s: new, as expected, since only the encoder is taken from there", ", ".join(modules))
    return report


def _adapted(model: SegmentationModel, state: State, plca_class_order: bool) -> Adapted:
    """`state` under the names of `model`; if necessary, a prefix is stripped, and entries without it are dropped.

    The first prefix under which the trunk is found decides, so that a network whose head does not fit is not taken for a trunk.
    """
    own = (key for key in model.state_dict() if not key.startswith(head_prefixes(model)) and not is_adapter(key))
    trunk = {without_domain(key) for key in own}
    strange: ValueError | None = None
    tried = []
    for prefix in ("", *prefixes(state)):
        inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        try:
            adapted = adapt(model, inner, plca_class_order)
        except ValueError as error:
            strange = strange or error
            continue
        adapted = adapted._replace(ignored=(*adapted.ignored, *(key for key in state if not key.startswith(prefix))))
        if 2 * len(trunk & {without_domain(key) for key in adapted.state}) > len(trunk):
            return adapted
        tried.append(adapted)
    if strange is not None:
        raise strange
    return tried[0]


def check_at_hand(source: str) -> None:
    """Raise FileNotFoundError if `source` of `load_weights` is a file that does not exist; nothing is read or fetched."""
    if source not in (*RANDOM, "imagenet"):
        found_weights(source)


def _check_class_order(stored_cfg: Mapping, plca_class_order: bool, origin: str) -> None:
    """Networks with either order of the same classes take each other's weights: only the cfg of the file tells them apart."""
    if stored_cfg and bool(stored_cfg.get("LEGACY", {}).get("PLCA_CLASS_ORDER", False)) != plca_class_order:
        raise ValueError(
            f"{origin} was trained with LEGACY.PLCA_CLASS_ORDER {not plca_class_order}, which numbers the classes "
            f"differently; set it to {not plca_class_order} here as well"
        )


def _check_licence(model: SegmentationModel, accepted: str) -> None:
    if model.encoder_name is not None:
        from dada.model.licences import check_licence  # imports timm, which takes seconds

        check_licence(model.encoder_name, accepted)


def _apply(model: SegmentationModel, adapted: Adapted, origin: str) -> LoadReport:
    own, state = model.state_dict(), for_every_domain(model, adapted.state)
    starting = not has_adapters(state)
    missing = [
        key for key in own if key not in state and not key.endswith("num_batches_tracked") and not (starting and is_adapter(key))
    ]
    gaps = [key for key in missing if not (adapted.trunk_only and key.startswith(head_prefixes(model)))]
    unexpected = [key for key in state if key not in own]
    common = [(key, value, own[key]) for key, value in state.items() if key in own]
    shapes = [f"{key} {tuple(x.shape)} for {tuple(y.shape)}" for key, x, y in common if x.shape != y.shape]
    scales = [f"{key} {x:g} for {y:g}" for key, x, y in common if key.endswith("lora_scale") and x.shape == y.shape and x != y]
    kinds = [
        f"{key} {str(x.dtype).removeprefix('torch.')}"
        for key, x, y in common
        if y.is_floating_point() and not x.is_floating_point()
    ]
    problems = {
        "entries are missing": gaps,
        "have no place in the network": unexpected,
        "have another shape (file for network)": shapes,
        "hold numbers of another kind": kinds,
        "scale adapters otherwise (file for network)": scales,
    }
    if parts := [f"{len(found)} {what}: {shortened(found)}" for what, found in problems.items() if found]:
        raise ValueError(
            f"the weights {origin} do not fit {type(model).__name__}: {'; '.join(parts)}. "
            + _advice(gaps, unexpected, shapes, bool(scales))
        )
    model.load_state_dict(state, strict=False)  # counters of batch norm may be absent, nothing else
    return LoadReport(origin, tuple(key for key in own if key in state), tuple(missing), adapted.ignored)


def _advice(missing: list[str], unexpected: list[str], shapes: list[str], scales: bool) -> str:
    """What to change, for the mistakes that are easily made."""
    if scales or has_adapters([*missing, *unexpected, *(shape.split()[0] for shape in shapes)]):
        return (
            "The file's adapters have another rank, alpha or layers: set TRAIN.LORA_RANK, TRAIN.LORA_ALPHA and TRAIN.LORA_LAYERS "
            "to those that it was trained with; or start from the two merged, which `dada release` writes"
        )
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
    if shapes and all(key.startswith(HEADS) for key in shapes):
        return (
            "Only the head differs: set NUM_CLASSES to the number that the file was trained with, or, to train other classes "
            "from the rest, TRAIN.RESTORE_HEAD to False"
        )
    return "Check that TRAIN.MODEL and its options are those that the file was written with"
