"""A trained network as one safetensors file that says what it is, to be published."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from dada.config import flat_options, plain_cfg
from dada.dataset.label_sets import label_set, label_set_from_info
from dada.domain_adaptation.build import build_network
from dada.domain_adaptation.legacy import plca_order
from dada.domain_adaptation.runs import file_hash, versions
from dada.files import whole_file

log = logging.getLogger(__name__)

# What says where files lie on this machine, and nothing about the network.
_LOCAL = ("EXP_", "DATA_DIRECTORY", "DATA_LIST", "RESTORE_FROM", "SNAPSHOT_DIR", "TENSORBOARD_LOGDIR", "INFO_")


def write_release(cfg: Any, checkpoint: str | Path, out: str | Path) -> dict[str, str]:
    """Write the network of `checkpoint`, of any format that load_weights reads, as safetensors with metadata.

    Args:
        cfg: describes the network; that of a snapshot is in the snapshot.
        out: name of the file, ending in .safetensors.

    Returns:
        The metadata, all strings: `dada_cfg`, `classes`, `normalization`, `versions` and `test` are JSON, `model` is the
        network's name, `checkpoint_sha256` the hash of the file that it was made from. `test`, mIoU and protocol, is
        there if `scripts/test.py` has tested exactly this checkpoint and its report lies beside it.

    Raises:
        ValueError: `out` has another ending, or the checkpoint does not fit the cfg.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"a release is a .safetensors file, but --out is {str(out)!r}")
    network = build_network(cfg, str(checkpoint))
    digest = file_hash(checkpoint)
    metadata = {
        "format": "pt",
        "model": cfg.TRAIN.MODEL,
        "classes": json.dumps(_class_names(cfg)),
        "normalization": json.dumps(dataclasses.asdict(network.normalization)),
        "dada_cfg": json.dumps(_portable(cfg)),
        "versions": json.dumps(versions()),
        "checkpoint_sha256": digest,
    }
    if test := _test_of(checkpoint, digest):
        metadata["test"] = json.dumps(test)

    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with whole_file(out) as part:
        save_file(state, part, metadata)
    return metadata


def _class_names(cfg: Any) -> list[str]:
    if cfg.CLASSES.NAMES:
        return list(cfg.CLASSES.NAMES)
    classes = label_set_from_info(cfg.TRAIN.INFO_TARGET).label_set if cfg.TRAIN.INFO_TARGET else label_set(cfg.NUM_CLASSES)
    return list((plca_order(classes) if cfg.LEGACY.PLCA_CLASS_ORDER else classes).names)


def _portable(cfg: Any) -> dict[str, Any]:
    """The plain cfg without what only this machine understands."""
    kept: dict[str, Any] = {}
    for name in flat_options():
        *sections, key = name.split(".")
        if key.startswith(_LOCAL):
            continue
        value, node = plain_cfg(), kept
        for section in sections:
            value, node = value[section], node.setdefault(section, {})
        node[key] = value[key]
    return kept


def _test_of(checkpoint: Path, digest: str) -> dict[str, Any] | None:
    path = checkpoint.parent / f"test_{checkpoint.stem}.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if [tested["sha256"] for tested in report["checkpoints"]] != [digest]:
        log.warning("%s reports on another file of this name; it is left out", path)
        return None
    return {key: report[key] for key in ("mIoU", "IoU", "protocol", "seed")}
