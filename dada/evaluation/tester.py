"""Test the snapshots of a run as the cfg says, and say under which protocol a number was measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dada.build import build_network, eval_loaders
from dada.config import option_value, plain_cfg
from dada.config.protocols import OPTIONS_OF_A_PROTOCOL, describe, short
from dada.dataset.conventions import warn_of_conventions
from dada.evaluation.evaluator import Evaluation, evaluate, mean_over, table, to_json
from dada.evaluation.predictor import Predictor
from dada.files import write_whole
from dada.model.torch_files import read_torch_file
from dada.parallel.device import choose_device
from dada.parallel.ranks import is_main
from dada.runs import BEST, Run, file_hash, find_snapshots, versions

log = logging.getLogger(__name__)


def load_predictor(cfg: Any, checkpoints: list[Path], device: torch.device) -> Predictor:
    """The ensemble of `checkpoints` under the TEST section of `cfg`, one file for each network of TEST.MODEL.

    Raises:
        ValueError: TEST.MODEL, TEST.MULTI_LEVEL, TEST.MODEL_WEIGHT and the checkpoints differ in number.
    """
    test = cfg.TEST
    names = list(test.MODEL) or [cfg.TRAIN.MODEL] * len(checkpoints)
    levels = list(test.MULTI_LEVEL) or [cfg.TRAIN.MULTI_LEVEL] * len(names)
    weights = list(test.MODEL_WEIGHT) or [1.0] * len(names)
    if not len(checkpoints) == len(names) == len(levels) == len(weights):
        raise ValueError(
            f"an ensemble needs as many of each: TEST.MODEL {len(names)}, TEST.MULTI_LEVEL {len(levels)}, "
            f"TEST.MODEL_WEIGHT {len(weights)}, checkpoints (TEST.RESTORE_FROM) {len(checkpoints)}"
        )
    networks = [
        build_network(cfg, str(path), name=name, multi_level=level, trained=True).to(device).eval()
        for path, name, level in zip(checkpoints, names, levels)
    ]
    return build_predictor(cfg, networks, weights, device)


def build_predictor(cfg: Any, networks: Sequence[nn.Module], weights: Sequence[float], device: torch.device) -> Predictor:
    """The networks, in eval mode on their device, as an ensemble under the TEST section of `cfg`."""
    test = cfg.TEST
    return Predictor(
        networks,
        weights,
        align_corners=cfg.ALIGN_CORNERS,
        flip=test.FLIP,
        scales=tuple(test.SCALES),
        aggregate=test.WITH_AGGREGATION,
        average="logits" if cfg.LEGACY.LOGIT_ENSEMBLE else "probabilities",
        window=tuple(test.SLIDE_CROP[::-1]) or None,
        stride=tuple(test.SLIDE_STRIDE[::-1]) or None,
        via_input=test.UPSAMPLE_VIA_INPUT,
        autocast=cfg.TRAIN.BF16 and device.type == "cuda",
        precision=cfg.TRAIN.MATMUL_PRECISION,
    )


def protocol(cfg: Any) -> dict[str, Any]:
    """What, besides weights and data, decides an mIoU: the protocol by name, and every option that it is made of."""
    plain = plain_cfg(cfg)
    settings = {option: option_value(plain, option) for option in OPTIONS_OF_A_PROTOCOL}
    return {
        "PROTOCOL": describe(cfg.TEST.PROTOCOL, settings),
        **{key: plain[key] for key in ("TARGET", "NUM_CLASSES")},
        "SET_TARGET": cfg.TEST.SET_TARGET,
        **{short(option): value for option, value in settings.items()},
        "BF16": cfg.TRAIN.BF16,
    }


def evaluate_run(cfg: Any, run: Run) -> dict[str, Evaluation]:
    """Evaluate what TEST.MODE names, print the tables and write `test_<snapshot>.json` beside each snapshot's folder.

    Each of several targets is evaluated by itself; what counts is the mean of their mIoU.

    "single" evaluates TEST.RESTORE_FROM as one ensemble, or the last snapshot of the run. "best" evaluates every
    snapshot of the run; the last one stays the headline, since picking the best snapshot uses the target labels that
    the method must do without.

    Returns:
        Evaluations by the name of the snapshot; the headline is the last.
    """
    device = choose_device(cfg)
    if cfg.TEST.MODE == "best":
        groups = [[path] for path in find_snapshots(run.snapshots)]
    elif cfg.TEST.RESTORE_FROM:
        groups = [[Path(path) for path in cfg.TEST.RESTORE_FROM]]
    else:
        groups = [[find_snapshots(run.snapshots)[-1]]]

    results = {}
    for group in groups:
        predictor = load_predictor(cfg, group, device)
        loaders = eval_loaders(cfg, predictor.networks[0].normalization)
        found = {}
        for target, loader in loaders.items():
            if not results and is_main():
                warn_of_conventions(loader.dataset)
            found[target] = evaluate(predictor, loader, loader.dataset.classes, device, cfg.TEST.CLASS_RULE)
        evaluation = mean_over(found)
        name = "+".join(path.stem for path in group)
        results[name] = evaluation
        if is_main():
            _report(cfg, run, name, group, evaluation)
    if cfg.TEST.MODE == "best" and is_main():
        print(_best_summary(results))
    return results


def _report(cfg: Any, run: Run, name: str, checkpoints: list[Path], evaluation: Evaluation) -> None:
    settings = protocol(cfg)
    chosen = {path.name: read_torch_file(path).get("chosen") for path in checkpoints if path.name == BEST}
    result = {
        **evaluation.as_dict(),
        "protocol": settings,
        **({"chosen": chosen} if chosen else {}),
        "seed": cfg.TRAIN.RANDOM_SEED,
        "checkpoints": [{"file": str(path), "sha256": file_hash(path)} for path in checkpoints],
        "versions": versions(),
        "cfg": plain_cfg(cfg),
    }
    path = run.snapshots / f"test_{name}.json"
    write_whole(path, to_json(result))  # first: a closed pipe or a full log must not cost hours of evaluation
    print(table({**evaluation.parts, "mean": evaluation} if evaluation.parts else {name: evaluation}))
    print(f"protocol: {settings['PROTOCOL']}\n  " + ", ".join(f"{k} {v}" for k, v in settings.items() if k != "PROTOCOL"))
    for file, how in chosen.items():
        if how and how["by"]["split"].startswith("target:"):
            print(f"{file} was chosen among others by labels of the target ({how['by']['split']}): not a headline")
    print(f"written: {path}")


def _best_summary(results: dict[str, Evaluation]) -> str:
    last = list(results)[-1]
    best = max(results, key=lambda name: results[name].miou)
    return (
        f"last snapshot {last}: {results[last].headline()}\n"
        f"best snapshot {best}: {results[best].headline()} (chosen with target labels; not a headline)"
    )
