"""The raw numbers of a picture file, and the one rule that turns them into 8-bit brightness.

Image libraries decode for display: they stretch the values 0 to 3 of 2 bits to 0 to 255, invert pictures in which 0 is
white, and cut off what exceeds 8 bits. That is right for pictures and wrong for ids. So an id is the number in the file,
however it is displayed; and a picture of more than 8 bits, which does not say what white is, is scaled by `to_8_bits`.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

# Whole numbers of more than 8 bits come from sensors of 10, 11, 12, 14 or 16 bits.
_WHITES = (255, 1023, 2047, 4095, 16383, 65535)
ORIENTATION = 0x0112  # tag of EXIF
TURNS = {  # what brings a picture of that orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # width and height change places
_CHANNELS_OF_IDS = ("1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX")
_TIFF = (b"II*\0", b"MM\0*")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _BANDS, _COUNTS = 256, 257, 258, 259, 262, 273, 277, 279
_SUBFILE, _PLANAR, _PREDICTOR, _SAMPLE_FORMAT = 254, 284, 317, 339
_PNM = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)")


class Stored(NamedTuple):
    """A decoded file: `image` if Pillow keeps all that is in it, else `numbers`."""

    image: Image.Image | None  # 8 bits a channel, or fewer that are shown as 8
    numbers: np.ndarray | None  # (H, W) or (H, W, C), RGB(A), as in the file
    bits: int = 8  # of a sample in the file
    inverted: bool = False  # whether 0 is white
    signed: bool = False  # whether its 8 bits count from -128 to 127
    highest: int = 0  # the largest value of a PGM, if it names one
    orientation: int = 1  # EXIF's number for how the picture is stored
    turned: bool = False  # whether it was turned upright when it was decoded
    pages: int = 1


def of_image(image: Image.Image, content: bytes) -> Stored:
    """What a loaded Pillow image, and the bytes that it comes from, hold."""
    bits, inverted, signed, highest = 8, False, False, 0
    turned = image.format == "TIFF" and ORIENTATION not in image.getexif()
    if image.format == "PNG":
        bits = content[24]
    elif image.format == "TIFF":
        tags = image.tag_v2
        bits, inverted = tags.get(_BITS, (1,))[0], tags.get(_PHOTOMETRIC) == 0
        signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
        if len(image.getbands()) > 1 and bits > 8:  # Pillow keeps the upper 8
            rest = tiff_numbers(content)
            return rest if rest is not None else Stored(image, None, turned=turned)
        if image.mode == "I" and bits == 32 and not signed:
            return Stored(None, np.asarray(image).view(np.uint32), bits, inverted, turned=turned)
    elif image.format == "PPM" and (found := _PNM.match(content)):
        inverted = found[1] in b"14"
        bits, highest = (1, 0) if inverted else (8, int(found[4]))
    if image.mode.startswith("I") or image.mode == "F":
        numbers = np.asarray(image)
        if 0 < highest != 65535:
            numbers, bits = _unscaled(numbers, 65535, highest), 16
        return Stored(None, numbers, max(bits, 16), inverted, signed, turned=turned)
    return Stored(image, None, bits, inverted, signed, highest, turned=turned)


def _unscaled(shown: np.ndarray, top: int, highest: int) -> np.ndarray:
    return np.rint(shown.astype(np.float64) * highest / top).astype(np.int32)


def tiff_numbers(content: bytes, most_pixels: int = 100_000_000) -> Stored | None:
    """A TIFF of numbers that Pillow does not read: colour of more than 8 bits, many bands, rarer kinds of numbers.

    None for any other file, and for one that has more than `most_pixels`, is cut short, or is not read by OpenCV either.
    """
    if content[:4] not in _TIFF:
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        width, height, bands = tags[_WIDTH], tags[_HEIGHT], tags.get(_BANDS, 1)
        bits, kind = tags.get(_BITS, (1,))[0], {1: "u", 2: "i", 3: "f"}[tags.get(_SAMPLE_FORMAT, (1,))[0]]
        offsets, counts = tags.get(_OFFSETS, ()), tags.get(_COUNTS, ())
        inverted, orientation, turned = tags.get(_PHOTOMETRIC) == 0, tags.get(ORIENTATION, 1), False
        if width * height * bands > most_pixels or any(at + count > len(content) for at, count in zip(offsets, counts)):
            return None
        if tags.get(_COMPRESSION, 1) == 1 and offsets and bits in (8, 16, 32, 64) and tags.get(_PREDICTOR, 1) == 1:
            dtype = np.dtype(f"{'<' if content[:2] == b'II' else '>'}{kind}{bits // 8}")
            pixels = np.frombuffer(b"".join(content[at : at + count] for at, count in zip(offsets, counts)), dtype)
            planes = tags.get(_PLANAR, 1) == 2
            pixels = pixels.reshape((bands, height, width) if planes else (height, width, bands))
            pixels = np.moveaxis(pixels, 0, -1) if planes else pixels
        else:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            turned = orientation in TURNS
            if pixels is None or pixels.shape[:2] != ((width, height) if orientation in SIDEWAYS else (height, width)):
                return None
            pixels = pixels if pixels.ndim == 2 or pixels.shape[2] < 3 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    except Exception:  # headers from anybody can fail in any way
        return None
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    orientation = orientation if orientation in TURNS else 1
    return Stored(None, pixels, bits, inverted, orientation=orientation, turned=turned)


def ids_of(stored: Stored, first_channel: bool = False) -> np.ndarray | None:
    """(H, W) whole numbers as they are in the file, uint8 or int64; None for a picture in colours.

    Equal channels count as one; transparency is ignored.

    Args:
        first_channel: of several, the first holds the ids.

    Raises:
        ValueError: the numbers are not whole.
    """
    numbers = stored.numbers
    if stored.image is not None:
        if stored.image.mode not in _CHANNELS_OF_IDS:
            return None
        shown = np.asarray(stored.image)
        if shown.ndim == 2 and stored.image.mode != "P":
            shown = shown.astype(np.uint8)
            if stored.image.mode == "1":
                return shown ^ 1 if stored.inverted else shown
            shown = 255 - shown if stored.inverted else shown
            if 0 < stored.highest < 255:
                return _unscaled(shown, 255, stored.highest).astype(np.uint8)
            if stored.bits < 8:
                return shown // (255 // ((1 << stored.bits) - 1))
            numbers = shown.view(np.int8) if stored.signed else shown
        else:
            numbers = shown[..., 0] if stored.image.mode == "PA" else shown
            if stored.image.format == "GIF" and stored.image.mode == "P":
                numbers = _levels(numbers, stored.image.getpalette())
    if numbers.ndim == 3:
        colors = numbers[..., :1] if numbers.shape[2] == 2 else numbers[..., :3]
        if not first_channel and (numbers.shape[2] > 4 or (colors != colors[..., :1]).any()):
            return None
        numbers = colors[..., 0]
    if numbers.dtype.kind == "f":
        whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53)
        if not (whole.all() and (numbers == np.rint(numbers)).all()):
            raise ValueError("it holds numbers that are not whole, as maps of depth or probabilities do")
    return np.ascontiguousarray(numbers) if numbers.dtype == np.uint8 else numbers.astype(np.int64)


def _levels(indices: np.ndarray, palette: list[int]) -> np.ndarray:
    """The grey levels of a GIF whose colours are all grey: it stores grey as a palette, in whatever order a program chose."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors.reshape(-1)[: len(palette)] = palette[:768]
    used = colors[np.unique(indices)]
    return colors[indices, 0] if (used == used[:, :1]).all() else indices


def white_of(numbers: np.ndarray) -> float:
    """The value of white, if the file does not say: the smallest of _WHITES that no number exceeds; 1 for fractions up to 1.

    Raises:
        ValueError: numbers below 0, or over 65535.
    """
    kind = "whole numbers" if numbers.dtype.kind in "iu" else "fractions"
    finite = numbers[np.isfinite(numbers)] if numbers.dtype.kind == "f" else numbers
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    whites = _WHITES if kind == "whole numbers" else (1, *_WHITES)
    fits = [white for white in whites if high <= white]
    if low < 0 or not fits:
        raise ValueError(f"it holds {kind} from {low:g} to {high:g}, expected 0 to 1, or 0 to 255 up to 65535, as brightness")
    return fits[0]


def to_8_bits(numbers: np.ndarray, white: float = 0, inverted: bool = False) -> np.ndarray:
    """Numbers of any kind -> uint8 of the same shape: 0 is black, `white` 255.

    Whole numbers keep their upper 8 bits, floor(256 v / (white + 1)); fractions are rounded. Whatever exceeds `white` becomes
    white, and NaN black.

    Args:
        white: 0 for that of `white_of`.
        inverted: 0 is white.

    Raises:
        ValueError: numbers that cannot be brightness, see `white_of`.
    """
    if numbers.dtype == bool:
        return numbers.astype(np.uint8) * 255
    if numbers.dtype == np.uint8 and not inverted and white in (0, 255):
        return numbers
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"it holds {numbers.dtype}, expected numbers")
    found = white_of(numbers) if numbers.dtype != np.uint8 else 255
    white = white or found
    if numbers.dtype.kind == "f" or white < 255:
        scaled = np.rint(np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32) * np.float32(255 / white))
    else:
        scaled = numbers.astype(np.uint32) * 256 // int(white + 1)
    scaled = np.minimum(scaled, 255).astype(np.uint8)
    return 255 - scaled if inverted else scaled


def rgb_of(stored: Stored, white: float = 0) -> Image.Image:
    """The picture as displayed, PIL RGB; `white` as in `to_8_bits`, for more than 8 bits.

    Raises:
        ValueError: bands that are not colours, or numbers that cannot be brightness.
    """
    if stored.image is not None:
        return stored.image.convert("RGB")
    bands = 1 if stored.numbers.ndim == 2 else stored.numbers.shape[2]
    if bands not in (1, 3, 4):
        raise ValueError(f"it has {bands} bands, expected 1 (grey), 3 or 4 (red, green, blue): save those as a separate file")
    pixels = to_8_bits(stored.numbers if bands == 1 else stored.numbers[..., :3], white, stored.inverted)
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def with_header(stored: Stored, image: Image.Image, content: bytes) -> Stored:
    """`stored` with orientation and pages, which an opened file tells before it is decoded."""
    # PNG may keep EXIF after the pixels: looking for it decodes them again.
    may = image.format != "PNG" or b"eXIf" in content or b"tiff:Orientation" in content or b"Raw profile type" in content
    orientation = image.getexif().get(ORIENTATION, 1) if may else 1
    if orientation not in TURNS:
        orientation = 1
    pages = 1 if image.format in ("MPO", "JPEG") else _pages(image)
    return stored._replace(orientation=orientation, turned=stored.turned and orientation != 1, pages=pages)


def as_stored(picture: Image.Image, stored: Stored) -> Image.Image:
    """`picture`, which was made of `stored`, in the orientation of the file."""
    back = {6: 8, 8: 6}.get(stored.orientation, stored.orientation)  # the others are their own opposites
    return picture.transpose(TURNS[back]) if stored.turned else picture


def _pages(image: Image.Image) -> int:
    """The number of pictures in an opened file, without the smaller copies of the first that some TIFFs hold."""
    count = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return count
    own = 0
    for number in range(count):
        image.seek(number)
        own += not image.tag_v2.get(_SUBFILE, 0)
    return max(own, 1)


def colors_of(stored: Stored) -> Image.Image:
    """The colours of a mask, PIL RGB, as displayed. With more than 8 bits, numbers up to 255, or 257 times those, are colours.

    Raises:
        ValueError: other numbers, which are ids or a picture.
    """
    if stored.image is not None:
        return stored.image.convert("RGB")
    numbers = stored.numbers
    top = numbers.max(initial=0)
    if numbers.dtype.kind not in "iu" or numbers.min(initial=0) < 0 or (top > 255 and (top > 65535 or (numbers % 257).any())):
        raise ValueError(f"it holds numbers from {numbers.min():g} to {top:g}, not colours of 8 bits")
    return rgb_of(stored._replace(numbers=(numbers if top <= 255 else numbers // 257).astype(np.uint8)))
