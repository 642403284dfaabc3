"""Reading images, labels and depth, with every check that a file from outside needs."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  plugins register themselves

from dada.dataset import packed, storage

# What pictures are stored in. Pillow knows more, and hands some of them, EPS for one, to other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
MOST_PIXELS = 100_000_000  # a damaged header may promise any number, and memory is taken before the damage shows
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_ADVICE = "Use gtFine_labelIds for Cityscapes, parsed_LABELS or the original 16-bit GT/LABELS for SYNTHIA."
_ID_ADVICE = "Check that the file belongs to this dataset and holds its original ids, not train ids."


class LabelIdError(ValueError):
    """A label file that can be read, but holds an id (or a colour) that its dataset does not define."""


def read_image(path: str | Path) -> Image.Image:
    """An image file of any kind -> PIL RGB; grey, paletted and transparent images are converted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, damaged or no image.
    """
    pixels = storage.decoded_pixels(path, packed.IMAGE)
    if pixels is not None:
        return Image.fromarray(pixels)
    content = content_of(path)
    image = decoded(path, content)
    if image.mode.startswith("I"):  # 16-bit grey: PIL would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return as_rgb(path, content, image)


def read_label_ids(path: str | Path, advice: str = _COLOUR_ADVICE) -> Image.Image:
    """A label file with one channel of ids -> PIL "L" holding the ids as they stand in the file.

    A paletted file gives its indices. SYNTHIA's GT/LABELS, a 16-bit PNG of two to four channels, gives its
    first channel: the class (the second counts objects). PIL would read such a file as 8-bit, which turns
    nearly all ids into 0.

    Args:
        advice: what to do about a colour picture, for the message.

    Raises:
        FileNotFoundError, ValueError: as read_image; also a colour picture, a JPEG, or an id over 255.
    """
    pixels = storage.decoded_pixels(path, packed.IDS)
    if pixels is not None:
        return Image.fromarray(pixels)
    content = content_of(path)
    if _is_16_bit_png(content):
        ids = _first_channel_16_bit(path, content)
    else:
        image = decoded(path, content)
        refuse_lossy(path, image)
        if image.mode in ("L", "P"):
            return Image.frombytes("L", image.size, image.tobytes())
        if image.mode not in ("1", "I", "I;16"):
            raise ValueError(
                f"{path} is a colour picture (PIL mode {image.mode}), not a label file: expected one channel of ids. {advice}"
            )
        ids = np.asarray(image)
    if ids.size and (ids.max() > 255 or ids.min() < 0):
        raise ValueError(
            f"{path} holds label ids from {ids.min()} to {ids.max()}, expected 0 to 255. "
            "Is it an instance or depth file? Class ids are in gtFine_labelIds (Cityscapes) "
            "or GT/LABELS (SYNTHIA)."
        )
    return Image.fromarray(ids.astype(np.uint8))


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
    counts = np.array(ids.histogram())
    strange = np.flatnonzero((counts > 0) & ~defined)
    if strange.size:
        first = int(strange[0])
        row, column = np.argwhere(np.asarray(ids) == first)[0]
        others = f"; {strange.size - 1} more such ids: {first_few(strange[1:].tolist())}" if strange.size > 1 else ""
        raise LabelIdError(
            f"label id {first} out of range in {path}: {counts[first]} pixels, "
            f"the first at row {row}, column {column}{others}. {dataset} labels hold ids {_ranges(defined)}. "
            f"{advice}"
        )
    return ids.point(id_map.tolist())


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
    return _first_channel_16_bit(path, content)


def check_same_size(
    image: tuple[int, int], other: tuple[int, int], image_path: str, other_path: str, kind: str, advice: str
) -> None:
    """Raise ValueError, with `advice` on what to do, unless both (width, height) agree."""
    if image != other:
        raise ValueError(
            f"{kind} and image differ in size: {other_path} is {other[0]}x{other[1]}, "
            f"{image_path} is {image[0]}x{image[1]} (width x height). {advice}"
        )


def require_folder(folder: Path, root: Path, *, what: str, setting: str, holds: str, source: str) -> None:
    """Raise FileNotFoundError, with what is there and what to do, unless `folder` exists.

    Args:
        root: the dataset's folder as set by the user; `folder` lies in it.
        what: what is missing, for example "Cityscapes images for split 'train'".
        setting: the configuration key that holds `root`.
        holds: what the root must contain, for example "leftImg8bit/".
        source: where to get it, a sentence.
    """
    if storage.is_dir(folder):
        return
    advice = ""
    if storage.is_dir(root):
        # The deepest folder on the way that is there, so that a wrong split name shows the right ones.
        there = next(parent for parent in folder.parents if storage.is_dir(parent))
        found = storage.list_dir(there)
        seen = f"{there} exists and contains: {first_few(found, 10)}" if found else f"{there} exists and is empty"
        unreadable = storage.unreadable_archives(there)
        seen += "".join(f";\n  {reason}" for reason in unreadable.values())
        inside = [
            root / name
            for name in storage.list_dir(root)
            if str(root / name) not in unreadable and storage.is_dir(root / name / folder.relative_to(root))
        ]
        advice = f" Did you mean '{inside[0]}'?" if inside else ""
    elif root.is_file():
        seen = f"{root} is a file, neither a folder nor a .zip archive: unpack it, or pack it again as .zip"
    else:
        seen = f"{root} does not exist either"
    raise FileNotFoundError(
        f"{what} not found: {folder} does not exist\n  ({seen}).\n"
        f"  Set {setting} to the folder that holds {holds}; it is now '{root}'.{advice}\n  {source}"
    )


def require_files(paths: Iterable[str], *, what: str, advice: str) -> None:
    """Raise FileNotFoundError, counting them all and naming the first few, unless all files exist.

    Each folder is listed once: asking for 9400 files one by one takes minutes on a network disk.
    """
    by_folder: dict[str, set[str]] = defaultdict(set)
    total = 0
    for path in paths:
        folder, name = os.path.split(path)
        by_folder[folder].add(name)
        total += 1
    missing = []
    for folder, names in by_folder.items():
        present = set(storage.list_dir(folder)) if storage.is_dir(folder) else set()
        missing += [os.path.join(folder, name) for name in names - present]
    if missing:
        named = first_few(sorted(missing))
        raise FileNotFoundError(f"{len(missing)} of {total} {what} are missing: {named}.\n  {advice}")


def content_of(path: str | Path) -> bytes:
    """The bytes of a file that was there when the dataset was listed."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found: it was there when the dataset was listed") from None


def decoded(path: str | Path, content: bytes) -> Image.Image:
    """The picture in the bytes of `path`; every way in which Pillow says that it is broken becomes one message."""
    with _opened(path, content) as image:
        try:
            image.load()
            return image
        except Exception as error:
            raise ValueError(_broken(path, content, str(error)[:200] or type(error).__name__)) from None


def as_rgb(path: str | Path, content: bytes, image: Image.Image) -> Image.Image:
    """The decoded picture of `path` in three channels of 8 bits."""
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(_broken(path, content, str(error))) from None


def _opened(path: str | Path, content: bytes) -> Image.Image:
    """The picture before its pixels are decoded.

    Raises:
        ValueError: none of _FORMATS, a broken header, or one that promises more than MOST_PIXELS.
    """
    try:
        with warnings.catch_warnings():  # Pillow's on the size comes to the same as ours below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        kind = "EPS and other formats are not read here" if content[:4] == b"%!PS" else "damaged at its very start"
        raise ValueError(_broken(path, content, f"not an image, or {kind}")) from None
    except Exception as error:
        raise ValueError(_broken(path, content, str(error)[:200] or type(error).__name__)) from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"cannot read {path} ({len(content)} bytes): it says of itself to be {image.width}x{image.height}, expected at "
            f"most {MOST_PIXELS} pixels. If it is not damaged, cut it into parts."
        )
    return image


def refuse_lossy(path: str | Path, image: Image.Image) -> None:
    """Raise ValueError if a label file was stored in a way that changes ids and colours."""
    if image.format in ("JPEG", "MPO"):
        raise ValueError(
            f"{path} is a JPEG, which blurs labels at every edge and cannot be mended. "
            "Export the labels from where they were drawn again, as PNG."
        )


def _broken(path: str | Path, content: bytes, reason: str) -> str:
    return (
        f"cannot read {path} ({len(content)} bytes): {reason}. "
        "The file is cut short or damaged, often by an interrupted download or a full disk: "
        "unpack or download it again."
    )


def _is_16_bit_png(content: bytes) -> bool:
    return content[:8] == _PNG_SIGNATURE and content[24:25] == b"\x10"


def _first_channel_16_bit(path: str | Path, content: bytes) -> np.ndarray:
    """uint16 (H, W). Pillow reduces 16-bit colour to 8 bits, so OpenCV decodes; its order is BGR(A)."""
    try:
        with _opened(path, content) as image:
            image.verify()  # OpenCV may return a half-decoded array; the checksums tell
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, EOFError, cv2.error) as error:
        raise ValueError(_broken(path, content, str(error)[:200])) from None
    if pixels is None:
        raise ValueError(_broken(path, content, "the PNG does not decode"))
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 2])


def first_few(items: list, count: int = 5) -> str:
    shown = ", ".join(str(item) for item in items[:count])
    return shown + (f", … and {len(items) - count} more" if len(items) > count else "")


def _ranges(defined: np.ndarray) -> str:
    """[0, 1, 2, 255] -> "0 to 2 and 255"."""
    ids = np.flatnonzero(defined)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return " and ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
