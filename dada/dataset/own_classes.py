"""Classes that a user names, and colours for them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dada.label_sets import IGNORE_LABEL, LabelSet

IGNORE = "ignore"  # what a label map writes for ids that are not trained


def own_classes(names: Sequence[str], colors: Sequence[Sequence[int]] = ()) -> LabelSet:
    """The LabelSet of CLASSES.NAMES and CLASSES.COLORS; without colours, it gets some that are easy to tell apart.

    Raises:
        ValueError: fewer than 2 or more than 254 names, a repeated name or colour, or not one colour for each name.
    """
    if not 2 <= len(names) < IGNORE_LABEL:
        raise ValueError(f"CLASSES.NAMES holds {len(names)} names, expected from 2 to {IGNORE_LABEL - 1}")
    for what, entries in (("CLASSES.NAMES", list(names)), ("CLASSES.COLORS", [tuple(color) for color in colors])):
        twice = [entry for k, entry in enumerate(entries) if entry in entries[:k]]
        if twice:
            raise ValueError(f"{what} holds {twice[0]!r} twice: every class needs one of its own")
    if IGNORE in names:
        raise ValueError(
            f"CLASSES.NAMES holds {IGNORE!r}, which is not a class: leave it out, and write 'ignore' in the LABEL_MAP "
            "for the ids that are not trained"
        )
    if len(colors) not in (0, len(names)):
        raise ValueError(f"CLASSES.COLORS holds {len(colors)} colours for {len(names)} CLASSES.NAMES; give one for each, or none")
    return LabelSet(tuple(names), np.array(colors) if len(colors) else distinct_colors(len(names)))


def distinct_colors(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB, each as far as possible from those before it and from black and white; always the same.

    Distances are measured in CIELAB, where they are roughly as large as they look.
    """
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]

    def distance_to(index: int) -> np.ndarray:
        return np.linalg.norm(lab - lab[index], axis=1)

    nearest = np.minimum(distance_to(0), distance_to(len(lab) - 1))  # black is for unlabelled pixels
    chosen = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance_to(chosen[-1]))
    return candidates[chosen]
