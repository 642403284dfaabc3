"""Options that earlier versions had, so that what those have written can still be read.

One that stands at its default there changes nothing and is passed over. With another value the result would be another, and
the message names the last commit that reads it.
"""

from __future__ import annotations

from typing import Any

# They said where a run writes; EXP_ROOT alone says it now.
FOLDERS = ("EXP_ROOT_SNAPSHOT", "EXP_ROOT_LOGS", "TRAIN.SNAPSHOT_DIR", "TRAIN.TENSORBOARD_LOGDIR", "TEST.SNAPSHOT_DIR")

# Default of each, by the last commit that has it; what they gained stands in docs/results.md.
_BY_COMMIT: dict[str, dict[str, Any]] = {
    "60464c8": {
        "ASSOCIATION.CLASS_BALANCE": "none",
        "ASSOCIATION.MIN_CONFIDENCE": 0.0,
        "ASSOCIATION.BY_CONFIDENCE": False,
        "ASSOCIATION.TEACHER": False,
        "ASSOCIATION.BOTH_DIRECTIONS": False,
        "ASSOCIATION.PSEUDO_THRESHOLD": 0.9,
        "ASSOCIATION.WHOLE_BATCH": False,
        "ASSOCIATION.MEMORY": 0,
        "ASSOCIATION.MEMORY_PER_IMAGE": 256,
        "ASSOCIATION.PAIR_TOP": 0.0,
        "ASSOCIATION.SOFT": False,
        "CLASS_CONTRAST.LAMBDA": 0.0,
        "CLASS_CONTRAST.FORM": "dist",
        "CLASS_CONTRAST.TEMPERATURE": 0.1,
        "CLASS_CONTRAST.MOMENTUM": 0.99,
    },
    "5b9aea9": {"DATA_TRANSFORM.BLUR": 0.0, "TRAIN.FDA_BETA": 0.0, **dict.fromkeys(FOLDERS, ""), "TEST.SNAPSHOT_DIR": []},
}
REMOVED = {name: default for options in _BY_COMMIT.values() for name, default in options.items()}


def has_no_effect(name: str, value: Any) -> bool:
    """Whether `name` is an option that has been removed, and `value` what it was by default."""
    return name in REMOVED and isinstance(value, (bool, int, float, str, list, tuple)) and value == REMOVED[name]


def says_nothing(name: str, value: Any) -> bool:
    """The same of what an earlier version has stored, where a folder that it wrote to is of no interest either."""
    return name in FOLDERS or has_no_effect(name, value)


def advice(name: str) -> str:
    """What to do about a removed option that is set."""
    commit = next(commit for commit, options in _BY_COMMIT.items() if name in options)
    return f"it has been removed: leave it out, or git checkout {commit}, the last commit that has it"
