"""Pictures in whatever form users have them -> upright 8-bit RGB, which networks here take."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from dada.dataset import image_files, samples

Picture = Image.Image | np.ndarray | Tensor | str | os.PathLike | bytes | BinaryIO


def is_one_picture(image: object) -> bool:
    """Whether `image` is a single picture, of a kind that as_picture takes, and not a sequence of them."""
    if isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(image, "read"):
        return True
    return hasattr(image, "__array__") and getattr(image, "ndim", 0) < 4


def as_picture(image: Picture, white: float = 0) -> Image.Image:
    """One picture -> PIL RGB.

    A picture that EXIF says is stored rotated, as phones do, is turned upright. Grey becomes RGB, transparency is dropped,
    and numbers of more or fewer than 8 bits are scaled by samples.to_8_bits, as when datasets are read.

    Args:
        image: a path (also into a zip archive, `photos.zip/a.png`), the bytes of a file, a file object, a PIL image, an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor (1, H, W), (3, H, W) or (4, H, W); arrays and tensors are
            RGB, of any kind of number.
        white: the value of white in numbers of more than 8 bits; 0: see samples.white_of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another shape or type, or numbers that cannot be brightness.
    """
    if hasattr(image, "read"):
        image = image.read()
        if not isinstance(image, bytes):
            raise ValueError("a file object of an image must be opened in binary mode, 'rb'; this one gives text")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return image_files.read_image("the given bytes", white, content=bytes(image))
    if isinstance(image, (str, os.PathLike)):
        try:
            return image_files.read_image(os.fsdecode(image), white)
        except FileNotFoundError:
            raise FileNotFoundError(f"image {os.fsdecode(image)} does not exist") from None
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if not image.mode.startswith("I") and image.mode != "F":
            return image.convert("RGB")
        image = np.asarray(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ValueError(
                f"a tensor of an image is (3, H, W), (1, H, W) or (4, H, W), got {tuple(image.shape)}; arrays have channels last"
            )
        image = image.detach().cpu().permute(1, 2, 0)
        image = (image.float() if image.is_floating_point() else image).numpy()
    if image is None:
        raise ValueError("the image is None, which is what cv2.imread gives for a file that it cannot read: check its path")
    if not hasattr(image, "__array__"):
        raise ValueError(f"expected a path, bytes, a file object, a PIL image, an array or a tensor, got {type(image).__name__}")
    image = np.asarray(image)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
        raise ValueError(
            f"an array of an image is (H, W, 3), RGB, or (H, W) or (H, W, 4), got {image.shape}; tensors have channels first"
        )
    try:
        return samples.rgb_of(samples.Stored(None, image[..., 0] if image.shape[2:] == (1,) else image), white)
    except ValueError as error:
        raise ValueError(f"an array of an image cannot be read as one: {error}") from None
