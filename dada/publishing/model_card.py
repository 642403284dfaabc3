"""The page that goes with published weights: what they are, what they were trained on, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dada.config import each_dataset, in_words

_METHODS = {
    "source_only": "learnt on the labelled source alone",
    "MinEnt": "MinEnt (arXiv:1811.12833)",
    "AdvEnt": "AdvEnt (arXiv:1811.12833)",
    "DADA": "DADA (arXiv:1904.01886)",
    "PLCA_adv": "the adversarial baseline of PLCA (arXiv:2011.00147)",
}


def model_card(
    cfg: Any,
    classes: Sequence[str],
    *,
    versions: Mapping[str, str],
    commit: str | None,
    checkpoint: str,
    sha256: str,
    iteration: int | None = None,
    merged: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    licence: str = "",
    encoder_licence: str = "",
) -> str:
    """The card, in Markdown.

    Args:
        cfg: that the network was trained with.
        classes: names, in the order of their train ids.
        versions: of dada, torch and Python, with which the file was written.
        commit: of the code, None where it is not known.
        checkpoint, sha256: name and hash of the file that the weights come from.
        iteration: at which it was saved, if it says so.
        merged: what it is an average of, if it is one, as a snapshot of `dada merge` says.
        test: mIoU, protocol and seed of the checkpoint's own test; None if it was never tested.
        licence: under which the weights are released.
        encoder_licence: of the pretrained weights that the encoder started from.
    """
    train = cfg.TRAIN
    facts = {
        "Network": f"`{train.MODEL}`{', two heads' if train.MULTI_LEVEL else ''}{', depth block' if cfg.USE_DEPTH else ''}",
        "Classes": f"{len(classes)}: {', '.join(classes)}",
        "Labelled source": _data(cfg, "source") + (", with depth" if cfg.USE_DEPTH else ""),
        "Unlabelled target": _data(cfg, "target"),
        **({"Labelled target": f"some images, TARGET_LABELLED `{in_words(cfg.TARGET_LABELLED)}`"} if cfg.TARGET_LABELLED else {}),
        "Method": _method(cfg),
        **({"Merged from": _merged(merged)} if merged else {}),
        "Iterations": f"{iteration}" if iteration else "not stated in the file",
        "Seed": f"{train.RANDOM_SEED}",
        "Started from": {"random": "random weights", "": "random weights, or weights that the cfg does not name"}.get(
            train.RESTORE_FROM, "pretrained weights"
        ),
        "Checkpoint": f"`{checkpoint}`, sha256 `{sha256}`",
        "Code": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", commit {f'`{commit}`' if commit else 'not known'}, when this file was written",
    }
    if cfg.IMPORTS:
        facts["Trained with code of its own"] = f"{', '.join(cfg.IMPORTS)}, not part of this file"
    data = f"{in_words(cfg.SOURCE)} to {in_words(cfg.TARGET)}"
    title = cfg.EXP_NAME if set(_datasets(cfg)) == {"Folder"} and cfg.EXP_NAME else data
    lines = [f"# {title}: {train.MODEL}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join([*lines, "", *_result(test), "", *_licence(cfg, licence, encoder_licence), "", *_use()]) + "\n"


def _datasets(cfg: Any) -> list[str]:
    """Names of what it was trained on, each once."""
    return list(dict.fromkeys(one[role.upper()] for role in ("source", "target") for one in each_dataset(cfg, role)))


def _data(cfg: Any, role: str) -> str:
    key = role.upper()
    return " and ".join(f"{one[key]}, split `{one.TRAIN[f'SET_{key}']}`" for one in each_dataset(cfg, role))


def _merged(said: Mapping[str, Any]) -> str:
    """Which files, how, and whose statistics its batch norms have."""
    files = ", ".join(f"`{'/'.join(Path(one['file']).parts[-2:])}` (sha256 `{one['sha256']}`)" for one in said["files"])
    how = f"{said['how']} average" + (f" by {said['by']}" if "by" in said else "")
    used = sorted({number for numbers in said["parts"].values() for number in numbers})
    left = f", of which it took {len(used)}" if len(used) < len(said["files"]) else ""
    statistics = said.get("statistics")
    refreshed = (
        f"; batch norm refreshed on {statistics['images']} target images, share {statistics['share']:g}" if statistics else ""
    )
    return f"{how} of {files}{left}{refreshed}"


def _method(cfg: Any) -> str:
    method = _METHODS.get(cfg.TRAIN.DA_METHOD, cfg.TRAIN.DA_METHOD)
    if cfg.CONTRASTIVE_LEARNING and cfg.TRAIN.DA_METHOD == "source_only":
        method = "learnt on the labelled source"
    extra = ["pixel-level cycle association (arXiv:2011.00147)"] if cfg.CONTRASTIVE_LEARNING else []
    extra += [f"SELF_TRAINING.{key}" for key in ("LAMBDA_MIX", "LAMBDA_MIC") if cfg.SELF_TRAINING[key]]
    extra += ["batch norm per domain"] if cfg.TRAIN.DOMAIN_BN else []
    extra += ["at last adapted to the target without the source"] if cfg.TRAIN.SOURCE_FREE else []
    return ", ".join([method, *extra])


def _result(test: Mapping[str, Any] | None) -> list[str]:
    if not test:
        return ["## Result", "", "No test of these weights lay beside them."]
    protocol = test["protocol"]
    # Reports of earlier versions name no protocol.
    name, target, split = (protocol.get(key, "not stated") for key in ("PROTOCOL", "TARGET", "SET_TARGET"))
    lines = ["## Result", "", f"On {in_words(target)}, split `{in_words(split)}`, in percent:", ""]
    columns = {**test.get("datasets", {}), "mean" if "datasets" in test else "IoU": test}
    lines += [f"| class | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    shown, covered = (
        {name: [one["IoU"][name] for one in columns.values()] for name in test["IoU"]},
        test.get("classes_in_mean", {}),
    )
    for count in test["mIoU"]:
        fewer = covered.get(count, int(count)) != int(count)
        name_of_mean = f"**mIoU, {f'{covered[count]} of ' if fewer else ''}{count} classes**"
        shown[name_of_mean] = [one["mIoU"][count] for one in columns.values()]
    for row, values in shown.items():
        lines.append(f"| {row} | {' | '.join('-' if value is None else f'{value:.2f}' for value in values)} |")
    settings = ", ".join(f"{k} {v}" for k, v in protocol.items() if k not in ("PROTOCOL", "TARGET", "SET_TARGET"))
    return [*lines, "", f"Protocol: {name}. {settings}."]


def _licence(cfg: Any, licence: str, encoder_licence: str) -> list[str]:
    lines = ["## Licence", "", f"Of these weights: {licence or 'not stated'}."]
    if encoder_licence:
        lines.append(f"Of the pretrained encoder that they started from: {encoder_licence}.")
    terms = ("the pictures that they were trained on" if name == "Folder" else name for name in _datasets(cfg))
    lines.append(
        f"The terms of {' and of '.join(terms)} may bind what is learnt from them; whether they allow your use is for you to "
        "check."
    )
    return lines


def _use() -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "import dada",
        'prediction = dada.Segmenter.from_checkpoint("this_file.safetensors").predict("image.png")',
        "```",
    ]
