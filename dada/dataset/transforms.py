"""From a file's image, label and depth to a network's input: joint geometry, colour, normalisation.

Training follows Pixel-Level-Cycle-Association (resize, flip, crop) or ADVENT (resize to one size); the
resizes are Pillow's, to the last bit, as those of ADVENT and DADA are. Random numbers come from torch's global
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
from dada.label_sets import IGNORE_LABEL

# isort: split
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_RESAMPLE = {"bicubic": v2.InterpolationMode.BICUBIC, "bilinear": v2.InterpolationMode.BILINEAR}
_ALIASED = "bilinear_aliased"
_NEAREST = v2.InterpolationMode.NEAREST  # on a PIL image this is Pillow's: source index floor((i + 0.5) * src / dst)
_SECOND_VIEW_JITTER = 0.5
_CROPS = 10  # places that are tried until the crop shows a wanted class,
_ENOUGH = 0.005  # which must fill this share of it


class Views(NamedTuple):
    """What a transform returns; the fields are those of a Sample."""

    image: Tensor
    label: Tensor | None
    depth: Tensor | None
    view: Tensor | None = None


class TrainTransform:
    """Resize, flip, crop, colour jitter, normalise; geometry is shared by image, label and depth.

    Args:
        normalization: RGB uint8 or float (3, H, W) in 0..255 -> float32, for the weights in use.
        resize: (width, height), aspect ignored, bicubic, as ADVENT and DADA do.
        cover: (width, height): resized, aspect kept, bicubic, until both sides reach it, then cropped to it at a
            random place. An image that has its aspect is changed exactly as by `resize`.
        fit: (width, height): resized, aspect kept, bicubic, until it just fits into it, then padded to it as by
            `crop`; what DADA does to Mapillary Vistas.
        load_size: (lowest, highest) length of the shorter side, drawn uniformly, both ends included, aspect
            kept, bilinear: (760, 988) in PLCA. At most one of `resize`, `cover`, `fit` and `load_size`.
        crop: (height, width) of a crop at a random place, not with `cover` and `fit`. A smaller image is padded at the
            right and the bottom: 0 before normalisation, label 255, depth 0 (infinitely far).
        flip: probability of a left-right flip.
        color_jitter: strength s of a random change of brightness, contrast and saturation by factors from
            1 - s to 1 + s and of hue by up to s / 4 of the colour circle; 0 is off.
        second_view: also return `view`, the same pixels under separate colour changes of strength 0.5, with a
            Gaussian blur of 0.15 to 1.15 pixels half of the time, and grey a fifth of the time.
    """

    def __init__(
        self,
        normalization: Callable[[Tensor], Tensor],
        *,
        resize: tuple[int, int] | None = None,
        cover: tuple[int, int] | None = None,
        fit: tuple[int, int] | None = None,
        load_size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        flip: float = 0.5,
        color_jitter: float = 0.0,
        second_view: bool = False,
    ) -> None:
        rules = {"resize": resize, "cover": cover, "fit": fit}
        # The rule, width and height by which all images are resized, whatever is drawn; None: they are not.
        self.fixed_resize: tuple[str, int, int] | None = next(((rule, *size) for rule, size in rules.items() if size), None)
        self.normalization = normalization
        self.load_size = load_size
        whole = cover or fit
        self.crop = whole[::-1] if whole else crop
        self.flip = flip
        self.photometric = _photometric(color_jitter)
        self.second_view = _photometric(_SECOND_VIEW_JITTER, blur=0.5, grey=0.2) if second_view else None

    def __call__(
        self, image: Image.Image, label: Image.Image | None = None, depth: np.ndarray | None = None, wanted: int = -1
    ) -> Views:
        """PIL RGB image, PIL "L" label of train ids, float32 (H, W) depth, all of one size -> Views.

        With a `wanted` class, up to ten crops are drawn until one shows enough pixels of it; if none does, the one that shows
        most is taken.
        """
        if self.fixed_resize is not None:
            image, label, depth = self.resized(image, label, depth)
        elif self.load_size is not None:
            shorter = _randint(*self.load_size)
            width, height = image.size
            # The longer side is cut to whole pixels, not rounded, as torchvision and PLCA do.
            size = (shorter, int(shorter * width / height)) if height <= width else (int(shorter * height / width), shorter)
            image, label, depth = _resized(image, label, depth, size, v2.InterpolationMode.BILINEAR)

        pixels, label, depth = _as_tv_tensors(image, label, depth)
        # Cropping first and padding last costs less than PLCA's flip, pad, crop, and draws from the same
        # distribution: a side that needs padding has only one place to be cropped from.
        geometry = self._box_with(wanted, label, *pixels.shape[-2:]), torch.rand(()).item() < self.flip
        pixels = self._placed(pixels, *geometry, fill=0)
        label = None if label is None else self._placed(label, *geometry, fill=IGNORE_LABEL)
        depth = None if depth is None else self._placed(depth, *geometry, fill=0)

        return Views(
            image=self._finished(pixels, self.photometric),
            label=_long_label(label),
            depth=None if depth is None else depth.as_subclass(Tensor)[0].contiguous(),
            view=None if self.second_view is None else self._finished(pixels, self.second_view),
        )

    def resized(self, image: Image.Image, label: Image.Image | None = None, depth: np.ndarray | None = None) -> tuple:
        """All three resized by `fixed_resize`, the image bicubic and the others nearest; doing so twice changes nothing."""
        rule, *size = self.fixed_resize
        if rule != "resize":
            size = (_covering if rule == "cover" else _filling)(image.size, size)
        return _resized(image, label, depth, size[::-1], v2.InterpolationMode.BICUBIC)

    def _box_with(self, wanted: int, label: Tensor | None, height: int, width: int) -> tuple[int, int, int, int] | None:
        """As _crop_box; of several, one that shows enough pixels of the class `wanted`, or else the most."""
        box = self._crop_box(height, width)
        if box is None or wanted < 0 or label is None:
            return box
        hits, most = label[0] == wanted, -1
        for attempt in range(_CROPS):
            drawn = box if attempt == 0 else self._crop_box(height, width)
            top, left, rows, columns = drawn
            pixels = int(hits[top : top + rows, left : left + columns].sum())
            if pixels > most:
                box, most = drawn, pixels
            if most >= _ENOUGH * self.crop[0] * self.crop[1]:
                break
        return box

    def _crop_box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of the part of the image that is kept."""
        if self.crop is None or (height, width) == self.crop:
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


class EvalTransform:
    """Resize the image and normalise it; the label keeps its own size unless told otherwise.

    Args:
        normalization: as for TrainTransform.
        size: (width, height) of the network's input; None keeps the file's size.
        resample: "bicubic" (ADVENT, DADA) or "bilinear" (PLCA), both Pillow's; "bilinear_aliased" reads the four
            nearest pixels only, however much smaller the image becomes, as OpenCV and so mmsegmentation do.
        keep_ratio: the image keeps its shape and becomes as large as fits into `size`, in either orientation.
        pad: the image keeps its shape and becomes as large as fits into `size`, then is padded to it at the right and
            the bottom, 0 before normalisation. The label is padded to the shape of `size` likewise, with 255, before
            it is resized. DADA's test on Mapillary Vistas. Not together with `keep_ratio`.
        label_size: (width, height) of the labels to score against, nearest; None keeps the file's size.
    """

    def __init__(
        self,
        normalization: Callable[[Tensor], Tensor],
        size: tuple[int, int] | None = None,
        resample: str = "bicubic",
        label_size: tuple[int, int] | None = None,
        keep_ratio: bool = False,
        pad: bool = False,
    ) -> None:
        self.normalization = normalization
        self.size = size
        self.resample = resample
        self.keep_ratio = keep_ratio
        self.pad = pad
        self.label_size = label_size

    def __call__(self, image: Image.Image, label: Image.Image | None = None, depth: np.ndarray | None = None) -> Views:
        """As TrainTransform takes and returns; depth is resized with the label."""
        if self.size is not None:
            size = (_fitting(image.size, self.size) if self.keep_ratio else self.size)[::-1]
            if self.pad:
                size = _filling(image.size, self.size)[::-1]
                label, depth = _padded(label, depth, _widened(image.size, self.size))
            if self.resample == _ALIASED:
                image = _resized_as_opencv(image, size)
            else:
                image, _, _ = _resized(image, None, None, size, _RESAMPLE[self.resample])
            if self.pad:
                width, height = self.size
                image = F.pad(image, [0, 0, width - size[1], height - size[0]], fill=0)
        if self.label_size is not None:
            _, label, depth = _resized(None, label, depth, self.label_size[::-1], self.resample)
        pixels, label, depth = _as_tv_tensors(image, label, depth)
        return Views(
            image=self.normalization(pixels.as_subclass(Tensor)).contiguous(),
            label=_long_label(label),
            depth=None if depth is None else depth.as_subclass(Tensor)[0],
        )


def _resized_as_opencv(image: Image.Image, size: tuple[int, int]) -> tv_tensors.Image:
    """RGB -> uint8 (3, *size) by OpenCV's bilinear rule, which rounds halves up; see resize_depth for why not by OpenCV.

    Half the size, as of Cityscapes at 1024x512, is exact; at other sizes OpenCV's coarse weights differ by a grey level.
    """
    pixels = F.resize(F.pil_to_tensor(image).float(), list(size), antialias=False)
    return tv_tensors.Image((pixels + 0.5).floor().to(torch.uint8))


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
        image if isinstance(image, tv_tensors.Image) else tv_tensors.Image(F.pil_to_tensor(image)),
        None if label is None else tv_tensors.Mask(F.pil_to_tensor(label)),
        None if depth is None else tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(depth))[None]),
    )


def _long_label(label: Tensor | None) -> Tensor | None:
    return None if label is None else label.as_subclass(Tensor)[0].long()


def _photometric(jitter: float, blur: float = 0.0, grey: float = 0.0) -> v2.Transform | None:
    steps: list[v2.Transform] = []
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4))
    if grey:
        steps.append(v2.RandomGrayscale(p=grey))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.15, 1.15))], p=blur))
    return v2.Compose(steps) if steps else None


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """(width, height) `size` scaled until it just covers `wanted`."""
    (width, height), (least_width, least_height) = size, wanted
    if width * least_height >= height * least_width:
        return max(least_width, round(width * least_height / height)), least_height
    return least_width, max(least_height, round(height * least_width / width))


def _filling(size: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
    """(width, height) `size` scaled until one side is that of `bounds` and the other no longer, cut to whole pixels."""
    if size[0] / size[1] > bounds[0] / bounds[1]:
        return bounds[0], max(int(size[1] * (bounds[0] / size[0])), 1)
    return max(int(size[0] * (bounds[1] / size[1])), 1), bounds[1]


def _widened(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """(width, height) `size` with one side lengthened to the aspect of `shape`, cut to whole pixels."""
    aspect = shape[0] / shape[1]
    if aspect > size[0] / size[1]:
        return int(aspect * size[1]), size[1]
    return size[0], int(size[0] / aspect)


def _padded(label: Image.Image | None, depth: np.ndarray | None, size: tuple[int, int]) -> tuple:
    """Label and depth, padded at the right and the bottom to (width, height) `size`."""
    if label is not None:
        label = F.pad(label, [0, 0, size[0] - label.width, size[1] - label.height], fill=IGNORE_LABEL)
    if depth is not None:
        depth = np.pad(depth, [(0, size[1] - depth.shape[0]), (0, size[0] - depth.shape[1])])
    return label, depth


def _fitting(size: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
    """(width, height) `size` scaled so that its longer side fits the longer of `bounds`, its shorter the shorter."""
    scale = min(max(bounds) / max(size), min(bounds) / min(size))
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def _randint(low: int, high: int) -> int:
    """Uniform over low..high, both included."""
    return int(torch.randint(low, high + 1, ()))
