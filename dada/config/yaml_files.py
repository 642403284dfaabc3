"""YAML from anybody: plain values or an error, in little time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_CHARACTERS = 256_000  # our largest file has 4000; PyYAML takes seconds for this many
_MOST_ALIASES = 100
_MOST_ENTRIES = 10_000  # of a mapping after `<<`, which can multiply what aliases stand for


class _Loader(yaml.SafeLoader):
    """PyYAML's loader that makes plain values only, with bounds on what few characters can grow to."""

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MOST_ALIASES:
                raise yaml.YAMLError(f"more than {_MOST_ALIASES} aliases (*name)")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}  # as written: what `<<` brings in may be given anew beside it
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (before := first.setdefault((key.tag, key.value), key)) is not key:
                lines = f"lines {before.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"{key.value[:200]!r} is given twice, {lines}: only one would count. Join them")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_ENTRIES:
            raise yaml.YAMLError(f"a mapping of more than {_MOST_ENTRIES} entries")


def parse_yaml(text: str) -> Any:
    """The value that `text` holds: dicts, lists and scalars. No code of the text is run.

    Raises:
        yaml.YAMLError: not YAML, other objects in it, or too much of anything.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters, expected at most {MOST_CHARACTERS}")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("brackets or sections are nested too deep") from None
    except Exception as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {str(error)[:200]}") from error


def read_yaml(path: str | Path) -> Any:
    """The value that a file holds, as parse_yaml.

    Raises:
        yaml.YAMLError: as parse_yaml; also bytes that are no UTF-8.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(4 * MOST_CHARACTERS + 1)
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(f"it is not text in UTF-8: {error}"[:300]) from None
