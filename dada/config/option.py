"""What one option of the configuration may hold, and how a value from a YAML file is read as that."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class _Short(reprlib.Repr):
    """repr that stays short and quick: a value from a file may be of any size, or hold itself."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 3, 12, 20, 20
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 200 else f"a number of {x.bit_length()} bits"  # Python refuses to write some


_short = _Short()


def shown(value: object) -> str:
    """`value` for a message: its repr, cut where that is long."""
    text = _short.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


# What an option decides, and what follows from that. Only the first must stay as it is in a run that goes on from a
# checkpoint; runs are compared by those of the first three.
ROLES = {
    "weights": "every step of a training, and so its weights",
    "span": "from which weights a training starts, or how far it goes",
    "score": "how a network is measured",
    "run": "how a run is watched, kept and sped up",
    "machine": "where on this machine files are and networks run",
}


@dataclass(frozen=True)
class Option:
    """One option. Its type is that of `default`; `element` and `length` describe the entries of a tuple or dict.

    `element` is a scalar type, or an Option that reads each entry. A dict has strings as keys: what YAML reads as a
    number becomes one; one of its `choices` may stand in its place. A tuple whose default is empty may be empty whatever
    its `length`.
    """

    default: Any
    meaning: str
    role: str = "weights"  # one of ROLES
    path: bool = False  # a file or a folder, which another machine has elsewhere
    each: str = ""  # "source" or "target": it may also be a list, with a value for each of several
    digits: bool = False  # of text: whether a whole number stands for its digits
    unit: str = ""
    choices: tuple = ()
    pattern: str = ""  # what decides in place of `choices`, which then show what it means
    element: type | Option = int
    length: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # limits that are themselves left out
    below: float | None = None

    @property
    def is_local(self) -> bool:
        """Whether it means nothing on another machine."""
        return self.path or self.role == "machine"

    @property
    def limits(self) -> str:
        """The range in words: "at least 0", "0 to 1", "above 0 and at most 1"."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum} to {self.maximum}"
        words = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "less than": self.below}
        return " and ".join(f"{word} {limit}" for word, limit in words.items() if limit is not None)

    @property
    def type_name(self) -> str:
        return f"{self._kind}, or a list of those, one per {self.each}" if self.each else self._kind

    @property
    def _kind(self) -> str:
        if self.digits:
            return "str or int"
        if not isinstance(self.default, (tuple, dict)):
            return type(self.default).__name__
        element = self.element.type_name if isinstance(self.element, Option) else self.element.__name__
        if isinstance(self.default, dict):
            names = f", or one of {', '.join(self.choices)}" if self.choices else ""
            return f"mapping to {element}{names}"
        count = "any number of" if self.length is None else self.length if self.default else f"none or {self.length}"
        return f"list of {count} {element}"

    def read(self, value: Any) -> Any:
        """`value` as this option's type. Raises ValueError that says what was expected."""
        if self.each and isinstance(value, (list, tuple)):
            if not value:
                raise ValueError(f"expected a {self.type_name}, got an empty list")
            return tuple(self._one(v) for v in value)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if isinstance(self.default, dict):
            if isinstance(value, str) and value in self.choices:
                return value
            if not isinstance(value, Mapping):
                raise ValueError(f"expected a {self._kind}, got {shown(value)}")
            entries = {_key(k): self._entry(v, f"{_key(k)}: ") for k, v in value.items()}
            if len(entries) < len(value):  # 7 and "7"
                raise ValueError(f"expected every key once, got {shown(list(value))}")
            return entries
        if isinstance(self.default, tuple):
            if self.path and isinstance(value, str):  # one file needs no brackets
                return (self._entry(value),)
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"expected a {self._kind}, got {shown(value)}")
            if self.length is not None and len(value) not in (self.length, len(self.default)):
                raise ValueError(f"expected a {self._kind}, got {len(value)} entries: {shown(list(value))}")
            if self.default and not value:
                raise ValueError(f"expected a {self._kind}, at least one, got none")
            return tuple(self._entry(v) for v in value)
        if self.digits and type(value) is int:
            return str(value)
        return self._checked(_scalar(value, type(self.default)))

    def _entry(self, value: Any, where: str = "") -> Any:
        """One entry of a tuple or dict; `where` begins the message."""
        try:
            if isinstance(self.element, Option):
                return self.element.read(value)
            return self._checked(_scalar(value, self.element))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None

    def _checked(self, value: Any) -> Any:
        fits = re.fullmatch(self.pattern, value) if self.pattern else value in self.choices
        if self.choices and not isinstance(self.default, dict) and not fits:
            raise ValueError(f"expected one of {', '.join(map(repr, self.choices))}, got {shown(value)}")
        inside = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not inside:
            raise ValueError(f"expected {self.limits}, got {shown(value)}")
        return value


def _key(key: Any) -> str:
    return key[:200] if isinstance(key, str) else shown(key)


def _scalar(value: Any, kind: type) -> Any:
    """`value` as `kind`: ints do for floats, and so does '1e-4', which YAML reads as a string."""
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    raise ValueError(f"expected {kind.__name__}, got {type(value).__name__} {shown(value)}")
