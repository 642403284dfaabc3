"""Read weights files of any accepted format, without running any code in them; dada.model.weight_formats converts the names."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dada.model.base_file import State, read_base
from dada.model.torch_files import UnreadableFile, read_torch_file

log = logging.getLogger(__name__)

CAFFE_RESNET = "DeepLab_resnet_pretrained_imagenet.pth"  # from which ADVENT, DADA and PLCA start
ACCEPTED = (
    "a bare state dict (ADVENT, DADA, torchvision, timm), a dict that holds one under 'state_dict' (this project, DADA fork), "
    "'weights', 'model_state_dict' (PLCA), 'model', 'state_dict_ema', 'teacher' or another name, or a .safetensors file"
)
PREFERRED = ("state_dict", "model", "weights", "model_state_dict")

# What other programs put in front of every name: data parallelism, compilation, sharding, recomputation.
_PUT_BEFORE = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class WeightsFile(NamedTuple):
    """What is read from a weights file.

    Args:
        state: the state dict, unwrapped, with the frozen weights that a snapshot names; names as in the file, without
            `module.`, `_orig_mod.` and the like.
        cfg: the configuration that it was trained with, for files of this project; else empty.
    """

    state: State
    cfg: Mapping


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file of any accepted format.

    Raises:
        FileNotFoundError, ValueError: see load_weights.
    """
    path = found_weights(path)
    content: object
    if path.suffix == ".safetensors":
        content, stored_cfg = _read_safetensors(path)
    else:
        content = _read_torch(path)
        stored_cfg = content.get("cfg") if isinstance(content, Mapping) else None
    state = _unwrapped(content, path)
    if state is None:
        raise ValueError(f"{path} holds {_describe(content)}; accepted is {ACCEPTED}")
    if isinstance(content, Mapping) and isinstance(stored_cfg, Mapping) and isinstance(content.get("base"), str):
        state = {**read_base(path, content["base"]), **state}
    return WeightsFile(bare_names(state), stored_cfg if isinstance(stored_cfg, Mapping) else {})


def _unwrapped(content: object, path: Path, depth: int = 3) -> State | None:
    """The state dict that is `content`, or lies in it; None if there is none."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(map(_is_entry, content.items())):
        return dict(content)
    if not depth or len(content) > 100:  # a small file can hold one dict a great many times
        return None
    inside = {str(key): _unwrapped(value, path, depth - 1) for key, value in content.items() if "optim" not in str(key)}
    states = {key: state for key, state in inside.items() if state is not None}
    if not states:
        return None
    taken = min(states, key=preference)
    if len(states) > 1 and "cfg" not in content:  # what else our own checkpoints hold is known
        log.warning("%s holds several networks, %s: %r is taken", path, ", ".join(map(repr, states)), taken)
    return states[taken]


def preference(name: str) -> tuple[bool, ...]:
    """Sorts several networks in a file; the first is taken: PREFERRED, then averages over training (ema, teacher)."""
    return name.rstrip(".") not in PREFERRED, re.search(r"(^|[._])(ema|teacher)([._]|$)", name) is None


def bare_names(state: State) -> State:
    """`state` without what _PUT_BEFORE lists, in any order and number; `module` only at the start of a name."""
    bare = {}
    for key, value in state.items():
        parts = [part for part in key.split(".") if part == "module" or part not in _PUT_BEFORE]
        while len(parts) > 1 and parts[0] == "module":
            del parts[0]
        bare[".".join(parts)] = value
    return bare if len(bare) == len(state) else state


def found_weights(path: str | Path) -> Path:
    """`path`, if it is a file. Raises FileNotFoundError otherwise, which says where to get the best known one."""
    path = Path(path)
    if path.is_file():
        return path
    kind = "is a folder" if path.is_dir() else "does not exist"
    had = f" {CAFFE_RESNET} is on https://github.com/valeoai/ADVENT/releases." if path.name == CAFFE_RESNET else ""
    raise FileNotFoundError(
        f"weights file {path} {kind}.{had} Give the path of a file, or 'imagenet' for an encoder's own weights; to "
        "start from random weights on purpose, set TRAIN.RESTORE_FROM=random"
    )


def _read_torch(path: Path) -> object:
    with open(path, "rb") as file:
        start = file.read(16)
    if start and not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
        raise ValueError(f"{path} is not a weights file: it begins with {start!r}; accepted is {ACCEPTED}")
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
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
        return state, json.loads(metadata.get("dada_cfg", "{}"))
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "nothing in it"
        raise ValueError(_damaged(path, "safetensors", f"{type(error).__name__}: {reason}")) from error


def _damaged(path: Path, kind: str, reason: str) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is not a complete {kind} file, it may have been cut off; "
        f"download or save it again ({reason})"
    )


def _is_entry(item: tuple[object, object]) -> bool:
    """Whether it is a name with a tensor that a network could use: dense, in memory."""
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


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata that `write_release` put into the file; empty for files of other kinds."""
    if Path(path).suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
