"""Several sources, or several targets: a cfg for each of them, as if it were the only one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easydict import EasyDict

from dada.config.loading import option_value
from dada.config.table import flat_options


def each_dataset(cfg: Any, role: str) -> list[Any]:
    """A cfg for each dataset of "source" or "target", in which every option that may differ between them has one value.

    Of an option that is no list, all have the value.

    Raises:
        ValueError: a list that has not as many values as SOURCE or TARGET.
    """
    lists = several_values(cfg, role)
    if not lists:
        return [cfg]
    count = len(lists.get(role.upper(), [""]))
    if wrong := [f"{name} has {len(value)}" for name, value in lists.items() if len(value) != count]:
        raise ValueError(
            f"{role.upper()} names {count} dataset{'s' * (count > 1)}, but {', '.join(wrong)}: give a list with one for each, "
            "or one value for all"
        )
    return [_changed(cfg, {name: value[k] for name, value in lists.items()}) for k in range(count)]


@contextmanager
def naming_one(several: Sequence[Any], number: int, role: str) -> Iterator[None]:
    """Errors of files and values within the block say which of `several` datasets they are about, `number` from 1 on."""
    try:
        yield
    except (ValueError, OSError) as error:
        if len(several) == 1:
            raise
        kind = next(kind for kind in (FileNotFoundError, FileExistsError, OSError, ValueError) if isinstance(error, kind))
        raise kind(f"{role} {number} of {len(several)}, {several[number - 1][role.upper()]}: {error}") from error


def several_values(cfg: Any, role: str) -> dict[str, tuple]:
    """The options of a role that have a value for each of its datasets."""
    names = [name for name, option in flat_options().items() if option.each == role]
    return {name: value for name in names if isinstance(value := option_value(cfg, name), tuple)}


def in_words(value: str | Sequence[str]) -> str:
    """The text of an option, or those of several datasets: `CamVid`, or `CamVid+SYNTHIA`."""
    return value if isinstance(value, str) else "+".join(text or "none" for text in value)


def names_apart(cfg: Any, role: str) -> list[str]:
    """A name for each dataset of a role: `CamVid`; with split, folder or number where it takes that to tell them apart."""
    key, several = role.upper(), each_dataset(cfg, role)
    further = (
        [""] * len(several),
        [f" {one.TEST.SET_TARGET if role == 'target' else one.TRAIN.SET_SOURCE}" for one in several],
        [f" {Path(one[f'DATA_DIRECTORY_{key}']).name}" for one in several],
        [f" {number}" for number in range(1, len(several) + 1)],
    )
    candidates = ([one[key] + end for one, end in zip(several, ends)] for ends in further)
    return next(names for names in candidates if len(set(names)) == len(names))


def in_file_names(name: str) -> str:
    """One of `names_apart` as a file or folder may be called."""
    return re.sub(r"[^\w.-]+", "_", name)


def _changed(cfg: Mapping[str, Any], values: Mapping[str, Any]) -> EasyDict:
    """A copy with other values of some options, by dotted name; sections without any are shared."""
    copy = EasyDict({**cfg})
    for name, value in values.items():
        *sections, key = name.split(".")
        node = copy
        for section in sections:
            if node[section] is cfg[section]:
                node[section] = EasyDict({**cfg[section]})
            node = node[section]
        node[key] = value
    return copy
