"""Several sources: a cfg for each of them, as if it were the only one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydict import EasyDict

from dada.config.loading import option_value
from dada.config.table import flat_options


def sources(cfg: Any) -> list[Any]:
    """A cfg for each dataset of SOURCE, in which every option that may differ between sources has one value.

    Of an option that is no list, all have the value.

    Raises:
        ValueError: a list that has not as many values as SOURCE.
    """
    names = [name for name, option in flat_options().items() if option.each]
    lists = {name: value for name in names if isinstance(value := option_value(cfg, name), tuple)}
    if not lists:
        return [cfg]
    count = len(lists["SOURCE"]) if "SOURCE" in lists else 1
    if wrong := [f"{name} has {len(value)}" for name, value in lists.items() if len(value) != count]:
        raise ValueError(
            f"SOURCE names {count} dataset{'s' * (count > 1)}, but {', '.join(wrong)}: give a list with one for each, "
            "or one value for all"
        )
    return [_changed(cfg, {name: value[k] for name, value in lists.items()}) for k in range(count)]


def source_names(cfg: Any) -> str:
    """As SOURCE names them: `CamVid`, or `CamVid+SYNTHIA`."""
    return cfg.SOURCE if isinstance(cfg.SOURCE, str) else "+".join(cfg.SOURCE)


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
