"""Which of SYNTHIA's archives was unpacked: several look alike, and only one is the usual source domain.

SYNTHIA-RAND-CITYSCAPES holds 9400 images of 1280x760, RGB/0000000.png to RGB/0009399.png, labels in GT/LABELS and
Depth/. The others, told apart by their names and sizes as they are downloaded:

    SYNTHIA-RAND-CVPR16   RGB/ap_000_02-11-2015_18-02-19_000157_0_Rand_10.png, 960x720; labels as text, in GTTXT/
    SYNTHIA-SEQS-..       video: RGB/Stereo_Left/Omni_F/000000.png and so on
    SYNTHIA-SF            video: RGBLeft/
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dada.dataset import image_files, storage

EXPECTED = "SYNTHIA-RAND-CITYSCAPES"
_IMAGES, _SIZE = 9400, (1280, 760)


class Release(NamedTuple):
    """A guess from names and sizes: `name` is None if nothing known fits; `fits` is whether it is the usual source domain."""

    name: str | None
    fits: bool
    reason: str


def guess_release(root: str | Path) -> Release:
    """Which one lies in `root`, a folder or a zip archive. Never raises, whatever is in there."""
    root = Path(root)
    if storage.is_dir(root / "RGBLeft"):
        return Release("SYNTHIA-SF", False, "it holds RGBLeft/, as the video sequences of SYNTHIA-SF do")
    if not storage.is_dir(root / "RGB"):
        return Release(None, False, "there is no folder RGB/")
    names = storage.list_dir(root / "RGB")
    if any(name.startswith(("Stereo_", "Omni_")) for name in names):
        return Release("SYNTHIA-SEQS", False, "RGB/ holds folders of cameras, as the video sequences do")
    images = [name for name in names if name.lower().endswith(".png")]
    if not images:
        return Release(None, False, "RGB/ holds no PNG")
    if re.match(r"ap_\d+_.*Rand_\d+", images[0]):
        return Release("SYNTHIA-RAND-CVPR16", False, f"RGB/ holds {images[0]}, a name of that archive")
    if not re.fullmatch(r"\d{7}\.png", images[0]):
        return Release(None, False, f"RGB/ holds {images[0]}, a name of none of SYNTHIA's archives")
    try:
        first = root / "RGB" / images[0]
        height, width = storage.original_size(first) or image_files.read_image(first).size[::-1]
    except (OSError, ValueError):
        return Release(EXPECTED, False, f"the names fit, but RGB/{images[0]} cannot be read")
    if (width, height) != _SIZE:
        return Release(None, False, f"the names fit {EXPECTED}, but RGB/{images[0]} is {width}x{height}, not 1280x760")
    if len(images) != _IMAGES:
        return Release(EXPECTED, False, f"names and size fit, but RGB/ holds {len(images)} of its {_IMAGES} images")
    return Release(EXPECTED, True, f"names, size and number ({_IMAGES}) fit")
