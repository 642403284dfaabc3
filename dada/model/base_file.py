"""Frozen weights: written once per run, beside snapshots that hold the rest and name them by their hash."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from dada.model.torch_files import UnreadableFile, read_torch_file

State = dict[str, Tensor]


def frozen_state(network: nn.Module) -> State:
    """The entries of `network` that training does not change; see SegmentationModel.freeze_backbone."""
    names = getattr(network, "frozen", ())
    state = network.state_dict() if names else {}
    return {name: state[name] for name in names}


def hash_of(state: State) -> str:
    """SHA-256 of names, shapes and values, whatever their order and memory format."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def base_name(digest: str) -> str:
    """Name of the file that holds frozen weights with this hash."""
    return f"base-{digest[:12]}.pth"


def read_base(snapshot: Path, digest: str) -> State:
    """The frozen weights that `snapshot` names, from its folder or the one above, where they are if the run was set aside.

    Raises:
        FileNotFoundError: they are in neither.
        ValueError: they are damaged, or not those that the snapshot was trained with.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{snapshot} is damaged: it names its frozen weights by {digest[:70]!r}, which is not a SHA-256 hash")
    name = base_name(digest)
    path = next((path for path in (snapshot.parent / name, snapshot.parent.parent / name) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{snapshot} holds only what was trained; the frozen weights of its run, {name}, are not beside it. Copy that file "
            "from the folder of the run, or make one file of both there with `dada release`"
        )
    try:
        content = read_torch_file(path)
    except UnreadableFile as error:
        raise ValueError(f"{path}, the frozen weights of {snapshot.name}, is damaged ({error}); copy it again") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or hash_of(state) != digest:
        raise ValueError(
            f"{path} holds other weights than those that {snapshot.name} was trained with: copy the {name} of its own run"
        )
    return state
