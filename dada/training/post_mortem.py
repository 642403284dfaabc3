"""The training step whose loss was not finite, as a file: all that is needed to compute it again.

Parameters are those before the step, which has moved none. Running statistics of batch norm are those after it: they
move in the forward pass, and nothing reads them in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dada.config.option import shown
from dada.dataset.sample import Batch
from dada.model.torch_files import UnreadableFile, read_torch_file
from dada.parallel.ranks import rank, world_size
from dada.runs import save_whole, versions

FORMAT = 1
KEYS = {"format", "iter", "cfg", "versions", "device", "state_dict", "discriminators", "source", "target", "values", "rng"}


BATCHES = ("source", "target", "labelled")


class FailedStep(NamedTuple):
    """What went into a step, and what came out of it."""

    iteration: int
    source: Batch | None
    target: Batch | None
    values: dict[str, float]  # of every term that was computed, unweighted
    rng: dict[str, Any]  # state of the random generators before the step
    labelled: Batch | None = None  # images of the target


def save_post_mortem(
    folder: Path,
    failed: FailedStep,
    network: nn.Module,
    discriminators: Iterable[nn.Module],
    cfg: dict,
    teacher: nn.Module | None = None,
) -> Path:
    """Write `post_mortem_{iteration}.pth` whole, or `post_mortem_rank{r}_{iteration}.pth` of one of several processes.

    Returns its path.

    Args:
        folder: of the run's snapshots.
        cfg: plain.
    """
    own = f"rank{rank()}_" if world_size() > 1 else ""
    path = folder / f"post_mortem_{own}{failed.iteration}.pth"
    content = {
        "format": FORMAT,
        "iter": failed.iteration,
        "cfg": cfg,
        "versions": versions(),
        "device": str(next(network.parameters()).device),
        "state_dict": network.state_dict(),
        "discriminators": [discriminator.state_dict() for discriminator in discriminators],
        **({} if teacher is None else {"teacher": teacher.state_dict()}),
        **{name: None if (batch := getattr(failed, name)) is None else batch.to("cpu")._asdict() for name in BATCHES},
        "values": failed.values,
        "rng": failed.rng,
    }
    save_whole(path, content)
    return path


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, x in tensors.items() if x.is_floating_point() and not x.detach().isfinite().all()]


def read_post_mortem(path: Path) -> dict[str, Any]:
    """What `save_post_mortem` wrote, tensors on the CPU; no code of the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a post_mortem_<iteration>.pth in the folder of a run")
    try:
        content = read_torch_file(path)
    except UnreadableFile as error:
        raise ValueError(f"post-mortem {path} is damaged ({error})") from error
    missing = KEYS - set(content) if isinstance(content, Mapping) else KEYS
    if missing or type(content["format"]) is not int or content["format"] != FORMAT:
        found = f"lacks {', '.join(sorted(missing))}" if missing else f"has format {shown(content['format'])}"
        raise ValueError(
            f"{path} {found}: it is not a post-mortem that dada {versions()['dada']} wrote; "
            "those are the files post_mortem_<iteration>.pth"
        )
    for domain in BATCHES:  # files of earlier versions know no labelled one
        try:
            content[domain] = None if content.get(domain) is None else Batch(**content[domain])
        except TypeError as error:
            raise ValueError(f"{path}: the {domain} batch is none that dada {versions()['dada']} wrote ({error})") from error
    return content
