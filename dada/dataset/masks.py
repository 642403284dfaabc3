"""Labels painted in colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dada.dataset import image_files, packed, samples, storage
from dada.label_sets import IGNORE_LABEL

Color = tuple[int, int, int]
_HEX = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def parse_color(text: str) -> Color:
    """'120, 80, 40', '[120, 80, 40]' or '#785028' -> (red, green, blue).

    Raises:
        ValueError: it is none of these.
    """
    if match := _HEX.fullmatch(text.strip()):
        return tuple(int(part, 16) for part in match.groups())
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    if len(parts) == 3 and all(part.isascii() and part.isdecimal() and int(part) <= 255 for part in parts):
        return tuple(int(part) for part in parts)
    raise ValueError(f"{text!r} is not a colour; write it as 'red, green, blue', each 0 to 255, or as '#rrggbb'")


def color_numbers(colors: Image.Image) -> np.ndarray:
    """PIL RGB -> (H, W) uint32, each pixel's colour as red + 256 * green + 65536 * blue."""
    return np.asarray(colors.convert("RGBA")).view("<u4")[..., 0] & 0xFFFFFF


def read_colors(path: str | Path) -> Image.Image:
    """A mask file -> PIL RGB; raises as image_files.read_image, also for a JPEG."""
    pixels = storage.decoded_pixels(path, packed.COLORS)
    if pixels is not None:
        return Image.fromarray(pixels)
    content = image_files.content_of(path)
    stored = image_files.stored_in(path, content)
    image_files.refuse_lossy(path, content, stored.image)
    try:
        return samples.as_stored(samples.colors_of(stored), stored)
    except ValueError as error:
        raise ValueError(f"{path} is not a mask in colours: {error}. Set LABEL_FORMAT to ids if it holds ids.") from None


class MappedIds:
    """The ids of a label map, for files with ids that `image_files.to_train_ids`, which knows 0 to 255, cannot read.

    Args:
        ids: in the files, any whole numbers.
        codes: the index of each in an id map, 0 to 255.
    """

    def __init__(self, ids: Sequence[int], codes: Sequence[int]) -> None:
        order = np.argsort(ids)
        self._ids, self._codes = np.array(ids, dtype=np.int64)[order], np.array(codes, dtype=np.uint8)[order]

    def train_ids(
        self, ids: Image.Image, path: str | Path, id_map: np.ndarray, dataset: str, advice: str, strict: bool
    ) -> Image.Image:
        """File ids, PIL "L" or "I", -> train ids, PIL "L". If unmapped, 255 is ignored, and so are others unless `strict`.

        Programs show the largest number of 1, 2 or 4 bits as 255. If the map holds all numbers as they are shown, but not all
        that are in the file, it is taken to mean those shown.

        Args:
            path, dataset, advice: for the message.
            id_map: (256,) uint8, the train id of every code.

        Raises:
            LabelIdError: as to_train_ids.
        """
        values, bits = np.asarray(ids), ids.info.get("bits", 8)
        if bits < 8:
            shown = values * np.uint8(255 // ((1 << bits) - 1))
            if not np.isin(values, self._ids).all() and np.isin(shown, self._ids).all():
                values = shown
        places = np.searchsorted(self._ids, values).clip(max=len(self._ids) - 1)
        known = self._ids[places] == values
        strange = ~known & (values != IGNORE_LABEL)
        if strict and strange.any():
            holds = f"{dataset} labels hold ids {image_files.first_few(self._ids.tolist(), 12)}, and 255"
            raise image_files.strange_ids(values, strange, path, holds, advice)
        return Image.fromarray(np.where(known, id_map[self._codes[places]], np.uint8(IGNORE_LABEL)))


def positions_of_colors(
    numbers: np.ndarray, colors: Sequence[Color], path: str | Path, *, setting: str, strict: bool
) -> Image.Image:
    """The position of each pixel's colour in `colors`, PIL "L"; 255 for a colour that is not among them.

    Args:
        numbers: (H, W), from color_numbers.
        colors: at most 255, all different.
        path: the file, for the message.
        setting: the option that holds the colours, for the message.
        strict: refuse other colours.

    Raises:
        LabelIdError: another colour; the message has its count, its first position, and the nearest of `colors`.
    """
    positions = _table(tuple(colors))[numbers]
    if strict and (strange := positions == IGNORE_LABEL).any():
        row, column = np.argwhere(strange)[0]
        color = tuple(int(numbers[row, column]) >> shift & 255 for shift in (0, 8, 16))
        distance = np.abs(np.array(colors) - color).max(axis=1)
        others = len(np.unique(numbers[strange])) - 1
        raise image_files.LabelIdError(
            f"colour {color} in {path} is not in {setting}: {int((numbers[strange] == numbers[row, column]).sum())} "
            f"pixels, the first at row {row}, column {column}"
            + (f"; {others} more such colours, {int(strange.sum())} pixels in all" if others else "")
            + f". The nearest known colour is {tuple(colors[int(distance.argmin())])}. Many colours that are nearly "
            "right come from smoothing or JPEG: export the masks again without them. Otherwise, add the colour."
        )
    return Image.fromarray(positions)


@lru_cache(maxsize=4)
def _table(colors: tuple[Color, ...]) -> np.ndarray:
    """(2^24,) uint8, the position of every colour number; 16 MB, made once per process."""
    table = np.full(1 << 24, IGNORE_LABEL, dtype=np.uint8)
    for position, (red, green, blue) in enumerate(colors):
        table[red | green << 8 | blue << 16] = position
    return table
