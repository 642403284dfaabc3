"""What one option of the configuration may hold, and how a value from a YAML file is read as that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option. Its type is that of `default`; `element` and `length` describe the entries of a tuple or dict.

    `element` is a scalar type, or an Option that reads each entry. A dict has strings as keys: what YAML reads as a
    number becomes one.
    """

    default: Any
    meaning: str
    unit: str = ""
    choices: tuple = ()
    element: type | Option = int
    length: int | None = None
    minimum: float | None = None
    maximum: float | None = None

    @property
    def type_name(self) -> str:
        if not isinstance(self.default, (tuple, dict)):
            return type(self.default).__name__
        element = self.element.type_name if isinstance(self.element, Option) else self.element.__name__
        if isinstance(self.default, dict):
            return f"mapping to {element}"
        return f"list of {'any number of' if self.length is None else self.length} {element}"

    def read(self, value: Any) -> Any:
        """`value` as this option's type. Raises ValueError that says what was expected."""
        if isinstance(self.default, dict):
            if not isinstance(value, Mapping):
                raise ValueError(f"expected a {self.type_name}, got {value!r}")
            return {str(k): self._entry(v, f"{k}: ") for k, v in value.items()}
        if isinstance(self.default, tuple):
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"expected a {self.type_name}, got {value!r}")
            if self.length is not None and len(value) != self.length:
                raise ValueError(f"expected a {self.type_name}, got {len(value)} entries: {list(value)!r}")
            return tuple(self._entry(v) for v in value)
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
        if self.choices and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(map(repr, self.choices))}, got {value!r}")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"expected at least {self.minimum}, got {value!r}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"expected at most {self.maximum}, got {value!r}")
        return value


def _scalar(value: Any, kind: type) -> Any:
    """`value` as `kind`: ints do for floats, and so does '1e-4', which YAML reads as a string."""
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise ValueError(f"expected {kind.__name__}, got {type(value).__name__} {value!r}")
