"""Pictures of any kind that users have -> upright 8-bit RGB, as networks here take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from dada.dataset import image_files


def as_picture(image: Image.Image | np.ndarray | Tensor | str | Path) -> Image.Image:
    """One picture -> PIL RGB.

    A picture that says of itself to be turned (EXIF, as of phones) is turned upright. Grey becomes RGB, transparency is
    dropped, and of 16 bits the upper 8 are kept, all as where datasets are read.

    Args:
        image: a file (also one inside a zip archive, `photos.zip/a.png`), a PIL image, an array (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4), or a tensor (1, H, W) or (3, H, W); arrays and tensors are RGB, uint8 or uint16.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or another shape or type.
    """
    if isinstance(image, (str, Path)):
        try:
            return _upright(image_files.read_image(image))
        except FileNotFoundError:
            raise FileNotFoundError(f"image {image} does not exist") from None
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") or image.mode == "F":
            return as_picture(np.asarray(image).astype(np.uint16) if image.mode != "F" else np.asarray(image))
        return _upright(image).convert("RGB")
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(
                f"a tensor of an image is (3, H, W) or (1, H, W), got {tuple(image.shape)}; arrays have the channels last"
            )
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(
            f"an array of an image is (H, W, 3), RGB, or (H, W) or (H, W, 4), got {image.shape}; tensors have the channels first"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(
            f"an array of an image holds uint8, 0 to 255, got {image.dtype}; multiply values of 0 to 1 by 255 and convert them"
        )
    image = np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    return Image.fromarray(np.ascontiguousarray(image))


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)
