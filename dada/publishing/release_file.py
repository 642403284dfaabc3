"""A trained network as one safetensors file that says what it is, to be published."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dada.build import build_network, classes_of
from dada.config import flat_options, plain_cfg
from dada.files import whole_file, write_whole
from dada.model.torch_files import read_torch_file
from dada.model.weights import RANDOM
from dada.publishing.commit import git_commit
from dada.publishing.model_card import model_card
from dada.runs import file_hash, versions

log = logging.getLogger(__name__)


def write_release(cfg: Any, checkpoint: str | Path, out: str | Path, licence: str = "") -> dict[str, str]:
    """Write the network of `checkpoint`, of any format that load_weights reads, as safetensors with metadata.

    The model card is also written beside it, as `<name>.md`.

    Args:
        cfg: describes the network; that of a snapshot is in the snapshot.
        out: name of the file, ending in .safetensors.
        licence: of the weights, as their publisher states it.

    Returns:
        The metadata, all strings: `dada_cfg`, `classes`, `palette`, `normalization`, `versions` and `test` are JSON, `model`
        is the network's name, `checkpoint_sha256` the hash of the file that it was made from; `encoder_licence` names the
        licence of the pretrained weights that a timm encoder started from. `test`, mIoU and protocol, is
        there if `dada test` has tested exactly this checkpoint and its report lies beside it. `model_card` says all
        that in Markdown; see dada.publishing.model_card.

    Raises:
        ValueError: `out` has another ending, or the checkpoint does not fit the cfg.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"a release is a .safetensors file, but --out is {str(out)!r}")
    network = build_network(cfg, str(checkpoint), trained=True)
    classes = classes_of(cfg)
    digest = file_hash(checkpoint)
    metadata = {
        "format": "pt",
        "model": cfg.TRAIN.MODEL,
        "classes": json.dumps(classes.names),
        "palette": json.dumps(classes.palette.tolist()),
        "normalization": json.dumps(dataclasses.asdict(network.normalization)),
        "dada_cfg": json.dumps(portable_cfg(cfg)),
        "versions": json.dumps(versions()),
        "checkpoint_sha256": digest,
    }
    if licence_of_encoder := encoder_licence(cfg):
        metadata["encoder_licence"] = licence_of_encoder
    if test := _test_of(checkpoint, digest):
        metadata["test"] = json.dumps(test)
    if licence:
        metadata["licence"] = licence
    metadata["model_card"] = model_card(
        cfg,
        classes.names,
        versions=versions(),
        commit=git_commit(),
        checkpoint=checkpoint.name,
        sha256=digest,
        **_said_of(checkpoint),
        test=test,
        licence=licence,
        encoder_licence=metadata.get("encoder_licence", ""),
    )

    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with whole_file(out) as part:
        save_file(state, part, metadata)
    write_whole(out.with_suffix(".md"), metadata["model_card"].encode())
    return metadata


def encoder_licence(cfg: Any) -> str:
    """Name of the licence of the pretrained weights that a timm encoder started from; "" where there were none."""
    if cfg.TRAIN.RESTORE_FROM in RANDOM or not cfg.TRAIN.MODEL.startswith("timm:"):
        return ""
    from dada.model.licences import licence_of  # imports timm, which takes seconds

    return licence_of(cfg.TRAIN.MODEL[len("timm:") :]).name or "unknown"


def _said_of(checkpoint: Path) -> dict[str, Any]:
    """Iteration of a snapshot, and what it is merged from, where it says so."""
    content = {} if checkpoint.suffix == ".safetensors" else read_torch_file(checkpoint)
    iteration, merged = (content.get(key) if isinstance(content, Mapping) else None for key in ("iter", "merged"))
    whole = isinstance(merged, Mapping) and {"files", "how", "parts"} <= merged.keys()
    return {"iteration": iteration if type(iteration) is int else None, "merged": merged if whole else None}


def portable_cfg(cfg: Any) -> dict[str, Any]:
    """The plain cfg without options that matter only on this machine."""
    plain = plain_cfg(cfg)
    for name, option in flat_options().items():
        if option.is_local:
            section, _, key = name.rpartition(".")
            del (plain[section] if section else plain)[key]
    return plain


def _test_of(checkpoint: Path, digest: str) -> dict[str, Any] | None:
    path = checkpoint.parent / f"test_{checkpoint.stem}.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if [tested["sha256"] for tested in report["checkpoints"]] != [digest]:
        log.warning("%s reports on another file of this name; it is left out", path)
        return None
    return {key: report[key] for key in ("mIoU", "classes_in_mean", "IoU", "datasets", "protocol", "seed") if key in report}
