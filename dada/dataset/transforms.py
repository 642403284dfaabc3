"""From a file's image, label and depth to a network's input: joint geometry, colour, normalisation.

Training follows Pixel-Level-Cycle-Association (resize, flip, crop) or ADVENT (resize to one size); the
resizes are Pillow's, to the last bit, as both ancestors' are. Random numbers come from torch's global
generator, which the dataset seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dada.torchvision_compat  # noqa: F401  before torchvision, hence the split
from dada.dataset.label_sets import IGNORE_LABEL

# isort: split
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_RESAMPLE = {"bicubic": v2.InterpolationMode.BICUBIC, "bilinear": v2.InterpolationMode.BILINEAR}
_NEAREST = (
    v2.InterpolationMode.NEAREST
)  # on a PIL image this is Pillow's: source index floor((i + 0.5) * src / dst)
_SECOND_VIEW_JITTER = 0.5


class Views(NamedTuple):
    """What a transform returns; the fields are those of a Sample."""

    image: Tensor
    label: Tensor | None
    depth: Tensor | None
    view: Tensor | None = None


class TrainTransform:
    """Resize, flip, crop, colour jitter, blur, normalise; geometry is shared by image, label and depth.

    Args:
        normalization: RGB uint8 or float (3, H, W) in 0..255 -> float32, for the weights in use.
        resize: (width, height), aspect ignored, bicubic, as ADVENT and DADA do.
        load_size: (lowest, highest) length of the shorter side, drawn evenly with both ends included, aspect
            kept, bilinear: (760, 988) in PLCA. Not together with `resize`.
        crop: (height, width) of a crop at a random place. A smaller image is padded at the right and the
            bottom: 0 before normalisation, label 255, depth 0 (infinitely far).
        flip: probability of a left-right flip.
        color_jitter: strength s of a random change of brightness, contrast and saturation by factors from
            1 - s to 1 + s and of hue by up to s / 4 of the colour circle; 0 is off.
        blur: probability of a Gaussian blur of 0.15 to 1.15 pixels.
        second_view: also return `view`, the same pixels under colour changes of their own, of strength 0.5,
            with blur half of the time and grey a fifth of the time.
    """

    def __init__(
        self,
        normalization: Callable[[Tensor], Tensor],
        *,
        resize: tuple[int, int] | None = None,
        load_size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        flip: float = 0.5,
        color_jitter: float = 0.0,
        blur: float = 0.0,
        second_view: bool = False,
    ) -> None:
        if resize is not None and load_size is not None:
            raise ValueError(f"give resize {tuple(resize)} or load_size {tuple(load_size)}, not both")
        if load_size is not None and not 0 < load_size[0] <= load_size[1]:
            raise ValueError(f"load_size is (lowest, highest) shorter side in pixels, got {tuple(load_size)}")
        for name, value in (("flip", flip), ("color_jitter", color_jitter), ("blur", blur)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        self.normalization = normalization
        self.resize = _checked_size(resize, "resize")
        self.load_size = load_size
        self.crop = _checked_size(crop, "crop")
        self.flip = flip
        self.photometric = _photometric(color_jitter, blur, grey=0.0)
        self.second_view = _photometric(_SECOND_VIEW_JITTER, 0.5, grey=0.2) if second_view else None

    def __call__(
        self, image: Image.Image, label: Image.Image | None = None, depth: np.ndarray | None = None
    ) -> Views:
        """PIL RGB image, PIL "L" label of train ids, float32 (H, W) depth, all of one size -> Views."""
        if self.resize is not None:
            image, label, depth = _resized(
                image, label, depth, self.resize[::-1], v2.InterpolationMode.BICUBIC
            )
        elif self.load_size is not None:
            shorter = _randint(*self.load_size)
            width, height = image.size
            # The longer side is cut to whole pixels, not rounded, as torchvision and PLCA do.
            size = (
                (shorter, int(shorter * width / height))
                if height <= width
                else (int(shorter * height / width), shorter)
            )
            image, label, depth = _resized(image, label, depth, size, v2.InterpolationMode.BILINEAR)

        pixels, label, depth = _as_tv_tensors(image, label, depth)
        # Cropping first and padding last costs less than PLCA's flip, pad, crop, and draws from the same
        # distribution: a side that needs padding has only one place to be cropped from.
        geometry = self._crop_box(*pixels.shape[-2:]), torch.rand(()).item() < self.flip
        pixels = self._placed(pixels, *geometry, fill=0)
        label = None if label is None else self._placed(label, *geometry, fill=IGNORE_LABEL)
        depth = None if depth is None else self._placed(depth, *geometry, fill=0)

        return Views(
            image=self._finished(pixels, self.photometric),
            label=_long_label(label),
            depth=None if depth is None else depth.as_subclass(Tensor)[0].contiguous(),
            view=None if self.second_view is None else self._finished(pixels, self.second_view),
        )

    def _crop_box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of the part of the image that is kept."""
        if self.crop is None:
            return None
        kept = min(self.crop[0], height), min(self.crop[1], width)
        return _randint(0, height - kept[0]), _randint(0, width - kept[1]), *kept

    def _placed(self, tensor: Tensor, box: tuple[int, int, int, int] | None, flip: bool, fill: int) -> Tensor:
        if box is not None:
            tensor = F.crop(tensor, *box)
        tensor = tensor.contiguous()  # PIL interleaves the channels; planes make the colour changes faster
        if flip:
            tensor = F.horizontal_flip(tensor)
        if box is not None:
            missing = self.crop[1] - box[3], self.crop[0] - box[2]
            if any(missing):
                tensor = F.pad(tensor, [0, 0, *missing], fill=fill)
        return tensor

    def _finished(self, pixels: Tensor, photometric: v2.Transform | None) -> Tensor:
        if photometric is not None:
            # Colours are changed in 0..1 floats: faster than in uint8, and nothing is rounded on the way.
            pixels = photometric(F.to_dtype(pixels, torch.float32, scale=True)) * 255.0
        return self.normalization(pixels.as_subclass(Tensor)).contiguous()


class TestTransform:
    """Resize the image to one size and normalise it; the label keeps its own size unless told otherwise.

    Args:
        normalization: as for TrainTransform.
        size: (width, height) of the network's input; None keeps the file's size.
        resample: "bicubic" (ADVENT, DADA) or "bilinear" (PLCA).
        label_size: (width, height) of the labels to score against, nearest; None keeps the file's size.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(
        self,
        normalization: Callable[[Tensor], Tensor],
        size: tuple[int, int] | None = None,
        resample: str = "bicubic",
        label_size: tuple[int, int] | None = None,
    ) -> None:
        if resample not in _RESAMPLE:
            raise ValueError(f"resample must be one of {', '.join(_RESAMPLE)}, not {resample!r}")
        self.normalization = normalization
        self.size = _checked_size(size, "size")
        self.resample = _RESAMPLE[resample]
        self.label_size = _checked_size(label_size, "label_size")

    def __call__(
        self, image: Image.Image, label: Image.Image | None = None, depth: np.ndarray | None = None
    ) -> Views:
        """As TrainTransform takes and returns; depth is resized with the label."""
        if self.size is not None:
            image, _, _ = _resized(image, None, None, self.size[::-1], self.resample)
        if self.label_size is not None:
            _, label, depth = _resized(None, label, depth, self.label_size[::-1], self.resample)
        pixels, label, depth = _as_tv_tensors(image, label, depth)
        return Views(
            image=self.normalization(pixels.as_subclass(Tensor)).contiguous(),
            label=_long_label(label),
            depth=None if depth is None else depth.as_subclass(Tensor)[0],
        )


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> (height, width) by OpenCV's nearest rule, source index floor(i * src / dst), as in DADA.

    Not through OpenCV itself, whose threads do not survive the fork of a data-loader worker.
    """
    rows, columns = (
        # The double reciprocal is how OpenCV computes the ratio; it matters where i * src / dst is a whole
        # number.
        np.minimum(np.floor(np.arange(new) * (1.0 / (new / old))).astype(np.int64), old - 1)
        for new, old in zip(size, depth.shape)
    )
    return depth[rows[:, None], columns]


def _resized(image, label, depth, size: tuple[int, int], interpolation: v2.InterpolationMode) -> tuple:
    """PIL image and label and array depth, any of them None -> the same of (height, width) `size`."""
    image = None if image is None else F.resize(image, list(size), interpolation=interpolation)
    label = None if label is None else F.resize(label, list(size), interpolation=_NEAREST)
    depth = None if depth is None else resize_depth(depth, size)
    return image, label, depth


def _as_tv_tensors(image: Image.Image, label: Image.Image | None, depth: np.ndarray | None) -> tuple:
    return (
        tv_tensors.Image(F.pil_to_tensor(image)),
        None if label is None else tv_tensors.Mask(F.pil_to_tensor(label)),
        None if depth is None else tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(depth))[None]),
    )


def _long_label(label: Tensor | None) -> Tensor | None:
    return None if label is None else label.as_subclass(Tensor)[0].long()


def _photometric(jitter: float, blur: float, grey: float) -> v2.Transform | None:
    steps: list[v2.Transform] = []
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4))
    if grey:
        steps.append(v2.RandomGrayscale(p=grey))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.15, 1.15))], p=blur))
    return v2.Compose(steps) if steps else None


def _checked_size(size: tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    size = tuple(int(side) for side in size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} must be two sides of at least 1 pixel, got {size}")
    return size


def _randint(low: int, high: int) -> int:
    """Even over low..high, both included."""
    return int(torch.randint(low, high + 1, ()))
