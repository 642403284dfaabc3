"""Reading images, labels and depth, with every check that a file from outside needs."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  plugins register themselves

from dada.dataset import packed, samples, storage
from dada.dataset.file_kinds import other_kind

# The formats that are read. Pillow knows more, and hands some of them, such as EPS, to other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
MOST_PIXELS = 100_000_000  # a damaged header may promise any number, and memory is taken before the damage shows
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_ADVICE = "Use gtFine_labelIds for Cityscapes, parsed_LABELS or the original 16-bit GT/LABELS for SYNTHIA."
_ID_ADVICE = "Check that the file belongs to this dataset and holds its original ids, not train ids."


class LabelIdError(ValueError):
    """A label file that can be read, but holds an id (or a colour) that its dataset does not define."""


def read_image(
    path: str | Path,
    white: float = 0,
    *,
    beside: tuple[int, int] | None = None,
    orientation: str = "auto",
    content: bytes | None = None,
) -> Image.Image:
    """An image file of any kind -> PIL RGB; grey, paletted and transparent images are converted.

    `info` of the result holds what else the file says: "pages"; "white", for more than 8 bits per channel; and for a picture that
    is stored rotated, "orientation" (EXIF's number), "upright" (whether it is now) and "decided" (whether `beside` settled that).

    Args:
        white: the value of white in files of more than 8 bits; see samples.to_8_bits.
        beside: (width, height) of a label or depth file that belongs to the picture.
        orientation: "upright" rotates as EXIF says, "stored" does not; "auto" does, unless `beside` has the size of the stored
            picture alone.
        content: the bytes of the file, if they were read already; `path` then only names it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, damaged or not an image, or holds numbers that cannot be brightness.
    """
    pixels = storage.decoded_pixels(path, packed.IMAGE) if content is None else None
    if pixels is not None:
        return Image.fromarray(pixels)
    content = content_of(path) if content is None else content
    stored = stored_in(path, content)
    try:
        rgb = samples.as_stored(samples.rgb_of(stored, white), stored)
        found = 0 if stored.numbers is None else white or samples.white_of(stored.numbers)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    rgb.info = {"pages": stored.pages, **({"white": found} if found else {})}
    if stored.orientation != 1:
        sideways = stored.orientation in samples.SIDEWAYS
        fits_stored = sideways and beside == rgb.size != rgb.size[::-1]
        upright = orientation == "upright" or (orientation == "auto" and not fits_stored)
        decided = beside is not None and sideways and rgb.size != rgb.size[::-1]
        facts = {**rgb.info, "orientation": stored.orientation, "upright": upright, "decided": decided}
        rgb = rgb.transpose(samples.TURNS[stored.orientation]) if upright else rgb
        rgb.info = facts
    return rgb


def read_label_ids(path: str | Path, advice: str = _COLOUR_ADVICE, first_channel: bool = False) -> Image.Image:
    """A label file of ids -> PIL "L" with the ids as they are in the file, or "I" if they do not fit into 8 bits.

    A paletted file gives its indices, unless it is a GIF of grey levels; a file whose channels are equal gives one of them.
    `info` of the result holds the "bits" of a number in the file, the "pages" and, for indices, the "palette".

    Args:
        advice: what to do about a colour picture, for the message.
        first_channel: of several channels, the first holds the ids, as in SYNTHIA's GT/LABELS, a 16-bit PNG whose second
            channel counts objects. PIL would read such a file as 8-bit, which turns nearly all ids into 0.

    Raises:
        FileNotFoundError, ValueError: as read_image; also for a colour picture, or one with lossy compression.
    """
    if place := storage.in_pack(path):
        pack, name = place
        image = Image.fromarray(pack.array(name, packed.IDS))
        image.info = {"bits": packed.bits_of(pack.files[name].kind)}
        return image
    content = content_of(path)
    stored = stored_in(path, content)
    refuse_lossy(path, content, stored.image)
    try:
        ids = samples.ids_of(stored, first_channel)
    except ValueError as error:
        raise ValueError(f"{path} is not a label file: {error}") from None
    if ids is None:
        raise ValueError(f"{path} is a colour picture, not a label file: expected one channel of ids. {advice}")
    if ids.dtype != np.uint8:
        small = not ids.size or (ids.min() >= 0 and ids.max() <= 255)
        ids = ids.astype(np.uint8) if small else ids.clip(-(2**31), 2**31 - 1).astype(np.int32)
    image = samples.as_stored(Image.fromarray(ids), stored)
    indices = stored.image is not None and stored.image.mode == "P" and np.array_equal(ids, np.asarray(stored.image))
    palette = stored.image.getpalette() if indices else None
    image.info = {"bits": stored.bits, "pages": stored.pages, **({"palette": palette} if palette else {})}
    return image


def to_train_ids(
    ids: Image.Image, path: str | Path, id_map: np.ndarray, defined: np.ndarray, dataset: str, advice: str = _ID_ADVICE
) -> Image.Image:
    """File ids -> train ids, both PIL "L".

    Args:
        path: the file that `ids` came from, for the message.
        id_map: (256,) uint8, the train id of every file id.
        defined: (256,) bool, the file ids that the dataset knows.
        advice: what to do about an id that it does not know, for the message.

    Raises:
        LabelIdError: an id that the dataset does not define, with its count and first position.
    """
    counts = np.array(ids.histogram() if ids.mode == "L" else [0] * 256)
    strange = np.flatnonzero((counts > 0) & ~defined)
    if strange.size or ids.mode != "L":
        values = np.asarray(ids)
        outside = np.isin(values, strange) if ids.mode == "L" else (values < 0) | (values > 255)
        raise strange_ids(values, outside, path, f"{dataset} labels hold ids {_ranges(defined)}", advice)
    return ids.point(id_map.tolist())


def strange_ids(values: np.ndarray, strange: np.ndarray, path: str | Path, known: str, advice: str) -> LabelIdError:
    """The error for ids (H, W), at least one of them `strange` (H, W, bool): how many these are, and where the first one is."""
    found, counts = np.unique(values[strange], return_counts=True)
    row, column = np.argwhere(values == found[0])[0]
    others = f"; {len(found) - 1} more such ids: {first_few(found[1:].tolist())}" if len(found) > 1 else ""
    return LabelIdError(
        f"label id {found[0]} out of range in {path}: {counts[0]} pixels, the first at row {row}, column {column}{others}. "
        f"{known}. {advice}"
    )


def read_inverse_depth(path: str | Path) -> np.ndarray:
    """A 16-bit depth PNG of one channel, or three equal ones -> float32 (H, W), 65536 / (d + 1).

    DADA (Vu et al., ICCV 2019) learns this quantity: 65536 where d is 0, 1 where d is largest. d counts
    centimetres.

    Raises:
        FileNotFoundError, ValueError: as read_image; also a file that is not a 16-bit PNG.
    """
    depth = read_distances(path).astype(np.float32)
    return np.float32(65536.0) / (depth + np.float32(1.0))


def read_distances(path: str | Path) -> np.ndarray:
    """A 16-bit depth PNG -> uint16 (H, W), distances in centimetres; raises as `read_inverse_depth`."""
    pixels = storage.decoded_pixels(path, packed.DEPTH)
    if pixels is not None:
        return pixels
    content = content_of(path)
    if not _is_16_bit_png(content):
        raise ValueError(
            f"{path} is not a 16-bit PNG, expected one of distances in centimetres, as in SYNTHIA's Depth. "
            "If it was converted, take the original; or set USE_DEPTH to False."
        )
    pixels = _pixels_16_bit(path, content)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])


def require_files(paths: Iterable[str], *, what: str, advice: str) -> None:
    """Raise FileNotFoundError, which counts the missing ones and names the first few, unless all files exist."""
    paths = list(paths)
    if missing := missing_files(paths):
        named, folder = first_few(missing), os.path.dirname(missing[0])
        there = storage.list_dir(folder) if storage.is_dir(folder) else []
        seen = f"{folder} holds {first_few(there, 3) or 'nothing'}" if storage.is_dir(folder) else f"there is no folder {folder}"
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} {what} are missing: {named}\n  ({seen}).\n  {advice}")


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of the files that do not exist, sorted.

    Each folder is listed once: asking for 9400 files one by one takes minutes on a network disk.
    """
    by_folder: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        by_folder[folder].add(name)
    missing = []
    for folder, names in by_folder.items():
        present = set(storage.list_dir(folder)) if storage.is_dir(folder) else set()
        missing += [os.path.join(folder, name) for name in names - present]
    return sorted(missing)


def content_of(path: str | Path) -> bytes:
    """The bytes of a file that was there when the dataset was listed."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found: it was there when the dataset was listed") from None


def decoded(path: str | Path, content: bytes) -> Image.Image:
    """The picture in the bytes of `path`; whatever Pillow raises for a broken one becomes the same kind of message."""
    with _opened(path, content) as image:
        try:
            image.load()
            return image
        except Exception as error:
            raise ValueError(_broken(path, content, str(error)[:200] or type(error).__name__)) from None


def _opened(path: str | Path, content: bytes) -> Image.Image:
    """The picture before its pixels are decoded.

    Raises:
        ValueError: none of _FORMATS, a broken header, or one that promises more than MOST_PIXELS.
    """
    try:
        with warnings.catch_warnings():  # the size is checked below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        if kind := other_kind(str(path), content):
            raise ValueError(f"{path} ({len(content)} bytes) is {kind}") from None
        raise ValueError(_broken(path, content, "not an image, or damaged at its very start")) from None
    except Exception as error:
        raise ValueError(_broken(path, content, str(error)[:200] or type(error).__name__)) from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"cannot read {path} ({len(content)} bytes): it claims to be {image.width}x{image.height}, expected at "
            f"most {MOST_PIXELS} pixels. If it is not damaged, split it into parts."
        )
    return image


def refuse_lossy(path: str | Path, content: bytes, image: Image.Image | None) -> None:
    """Raise ValueError if a label file was stored in a way that changes ids and colours."""
    kind = None if image is None else image.format
    if kind in ("JPEG", "MPO") or (kind == "TIFF" and "jpeg" in str(image.info.get("compression"))):
        kind = "JPEG"
    elif kind == "WEBP" and b"VP8 " in content[:64]:
        kind = "lossy WebP"
    else:
        return
    raise ValueError(
        f"{path} is a {kind}, which blurs labels at every edge, and that cannot be undone. "
        "Export the labels again as PNG, from the tool that they were drawn in."
    )


def _broken(path: str | Path, content: bytes, reason: str) -> str:
    return (
        f"cannot read {path} ({len(content)} bytes): {reason}. "
        "The file is cut short or damaged, often by an interrupted download or a full disk: "
        "unpack or download it again."
    )


def _is_16_bit_png(content: bytes) -> bool:
    return content[:8] == _PNG_SIGNATURE and content[24:25] == b"\x10"


def _pixels_16_bit(path: str | Path, content: bytes) -> np.ndarray:
    """uint16 (H, W) or (H, W, C), RGB(A). Pillow reduces 16-bit colour to 8 bits, so OpenCV decodes; its order is BGR(A)."""
    try:
        with _opened(path, content) as image:
            image.verify()  # OpenCV may return a half-decoded array; the checksums tell
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, EOFError, cv2.error) as error:
        raise ValueError(_broken(path, content, str(error)[:200])) from None
    if pixels is None:
        raise ValueError(_broken(path, content, "the PNG does not decode"))
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]


def stored_in(path: str | Path, content: bytes) -> samples.Stored:
    """What the file holds, exactly as stored."""
    if _is_16_bit_png(content):
        stored = samples.Stored(None, _pixels_16_bit(path, content), 16)
    else:
        try:
            stored = samples.of_image(decoded(path, content), content)
        except ValueError:
            stored = samples.tiff_numbers(content, MOST_PIXELS)
            if stored is None:
                raise
    with suppress(Exception), _opened(path, content) as header:  # metadata may be broken where the pixels are intact
        return samples.with_header(stored, header, content)
    return stored


def first_few(items: list, count: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:count])
    return shown + (f", … and {len(items) - count} more" if len(items) > count else "")


def _ranges(defined: np.ndarray) -> str:
    """[0, 1, 2, 255] -> "0 to 2 and 255"."""
    ids = np.flatnonzero(defined)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return " and ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
