"""Several trained networks as one: their weights averaged, statistics of batch norm taken from target images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from dada.build import build_network, on_device, target_images
from dada.config import cfg_from_dict, cfg_from_list, default_cfg, each_dataset, option_value, plain_cfg
from dada.evaluation.criteria import label_free_criteria
from dada.evaluation.tester import build_predictor
from dada.model import SegmentationModel
from dada.model.averaging import Merged, by_layers, greedy, uniform
from dada.model.weight_files import State, read_weights
from dada.runs import file_hash, iteration_of, save_whole, snapshot
from dada.training.adabn import adapt_batch_norm, statistics_loader
from dada.training.post_mortem import not_finite

log = logging.getLogger(__name__)

# What decides a network, or what its numbers mean, beside names and shapes of its weights.
_ALIKE = (
    *("TRAIN.MODEL", "NUM_CLASSES", "CLASSES.NAMES", "LEGACY.PLCA_CLASS_ORDER", "TRAIN.OUTPUT_STRIDE", "TRAIN.DOMAIN_BN"),
    *("TRAIN.MULTI_LEVEL", "TRAIN.HEAD_BIAS", "USE_DEPTH"),
)


def merge(
    cfg: Any,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    how: str = "uniform",
    by: str = "information",
    images: int = 64,
    refresh: int = 0,
    share: float = 1.0,
    target: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a snapshot whose weights are those of `files` averaged; its cfg is `cfg`.

    Args:
        cfg: describes the first network, and those whose files hold no cfg.
        how: "uniform", the average of all; "greedy" and "layers": see dada.model.averaging.
        by: the criterion without labels that these two go by; see dada.evaluation.criteria.
        images: of the target, that it is measured on.
        refresh: at least so many target images give the batch norms their statistics, before a network is measured and at
            the end; 0 leaves those of the average.
        share: of the images in these statistics; see adapt_batch_norm.
        target: `KEY=value` pairs over `cfg` for where target images are; they are not written.

    Returns:
        What the file says that it is made of, under "merged".

    Raises:
        FileNotFoundError, ValueError: files that are no trained networks, or not of one kind; no image; no batch norm to
            refresh; another ending than .pth; a single network and nothing to refresh.
    """
    if Path(out).suffix != ".pth":
        raise ValueError(f"a snapshot is a .pth file, but --out is {str(out)!r}")
    if refresh < 0 or images < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected at least 1 image and a share of 0 to 1, got {min(refresh, images)} and {share}")
    if len(files) == 1 and not refresh:
        raise ValueError(f"{files[0]} is one network, and there is nothing to do: give several, or --refresh-bn")
    cfgs = [cfg, *(_cfg_of(path, cfg) for path in files[1:])]
    _check_alike(files, cfgs)
    data = cfg_from_list(target, cfg_from_dict(plain_cfg(cfg), "the cfg", default_cfg()))
    with on_device(cfg) as device:
        networks = [build_network(c, str(path), trained=True) for c, path in zip(cfgs, files)]
        _check_networks(files, networks)
        states = [network.state_dict() for network in networks]
        network = networks[0].to(device).eval()
        states[0] = {name: value.clone() for name, value in states[0].items()}

        def refreshed(state: State) -> None:
            """Give `network` a state, with batch-norm statistics of target images if there are to be any."""
            network.load_state_dict(state)
            if refresh:
                batches = statistics_loader(data, network, refresh)
                adapt_batch_norm(network, (batch.image.to(device, non_blocking=True) for batch in batches), share)

        def score(state: State) -> float:
            refreshed(state)
            predictor = build_predictor(data, [network], [1.0], device)
            return getattr(label_free_criteria(predictor, target_images(data, network.normalization, images), device), by)

        found = uniform(states) if how == "uniform" else (greedy if how == "greedy" else by_layers)(states, score)
        refreshed(found.state)
    said = _made_of(files, found, how, by, refresh, share, data)
    out, iteration = Path(out), max(map(iteration_of, map(Path, files)))
    save_whole(out, {**snapshot(out.parent, network, iteration, plain_cfg(cfg)), "merged": said})
    return said


def _cfg_of(path: str | Path, otherwise: Any) -> EasyDict:
    stored = read_weights(path).cfg
    return cfg_from_dict(stored, str(path), default_cfg()) if stored else otherwise


def _check_alike(files: Sequence[str | Path], cfgs: Sequence[Any]) -> None:
    for path, other in zip(files[1:], cfgs[1:]):
        values = {name: [option_value(plain_cfg(c), name) for c in (cfgs[0], other)] for name in _ALIKE}
        if differ := [f"{name} is {b} in {path} and {a} in {files[0]}" for name, (a, b) in values.items() if a != b]:
            raise ValueError("only networks of one kind can be merged: " + "; ".join(differ))


def _check_networks(files: Sequence[str | Path], networks: Sequence[SegmentationModel]) -> None:
    for path, network in zip(files, networks):
        if bad := not_finite(network.state_dict()):
            raise ValueError(f"{path}: {len(bad)} of its weights and statistics are not finite, {bad[0]} among them")
        if network.normalization != networks[0].normalization:
            raise ValueError(
                f"{path} and {files[0]} want images prepared in different ways: {network.normalization} and "
                f"{networks[0].normalization}"
            )


def _made_of(
    files: Sequence[str | Path], found: Merged, how: str, by: str, refresh: int, share: float, data: Any
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "files": [{"file": str(path), "sha256": file_hash(path)} for path in files],
        "how": how,
        "parts": found.parts,
    }
    if how != "uniform":
        said |= {"by": by, "scores": [list(entry) for entry in found.scores]}
    if refresh:
        of = " and ".join(f"{one.TARGET} in {one.DATA_DIRECTORY_TARGET}" for one in each_dataset(data, "target"))
        said["statistics"] = {"images": refresh, "share": share, "of": of}
    return said
