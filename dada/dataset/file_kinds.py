"""Recognise files in formats that are not read here, so that no intact file is called damaged, and say what to do."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from PIL import TiffImagePlugin

_CONVERT = "convert it to PNG"
_FRAMES = "`dada predict` recognises videos by their extension, such as .mp4; a dataset needs the frames as PNG or JPEG"

# How a file begins, what it is and what to do.
_BEGINNINGS = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000", _CONVERT),
    (b"\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (b"\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (b"\xff\x0a", "JPEG XL", _CONVERT),
    (b"%!PS", "EPS", _CONVERT),
    (b"%PDF", "PDF", _CONVERT),
    (b"8BPS", "Photoshop", _CONVERT),
    (b"v/1\x01", "OpenEXR", "convert it to PNG, or a depth file to 16-bit PNG of centimetres"),
    (b"#?RADIANCE", "Radiance HDR", _CONVERT),
    (b"DDS ", "DDS", _CONVERT),
    (b"qoif", "QOI", _CONVERT),
    (b"\0\0\1\0", "ICO", _CONVERT),
    (b"SIMPLE  =", "FITS", _CONVERT),
    (b"\x89HDF", "HDF5", "save each array in it as PNG"),
    (b"\x93NUMPY", "NumPy array", "save it as PNG of 8 or 16 bits"),
    (b"MATLAB", "MATLAB", "save each array in it as PNG"),
    (b"PK\x03\x04", "zip archive", "rename it to end in .zip, or unpack it"),
    (b"\x1f\x8b", "gzip archive", "unpack it"),
    (b"Rar!", "RAR archive", "unpack it"),
    (b"<svg", "SVG", _CONVERT),
    (b"<?xml", "XML", "convert a drawing in it to PNG"),
    (b"version https://git-lfs", "pointer of Git LFS, not the file itself", "fetch the files with `git lfs pull`"),
    (b"<!DOCTYPE", "web page", "the server sent one in place of the file: download it again"),
    (b"<html", "web page", "the server sent one in place of the file: download it again"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
    b"crx ": "CR3",
}


def other_kind(name: str, content: bytes) -> str | None:
    """What the file is and what to do, for a message: "HEIC, which is not read here: convert it to PNG"; None: unknown.

    Args:
        name: of the file; a TGA need not have a signature, and is then recognised by its extension.
        content: the whole file.
    """
    kind, advice = _known(name.lower(), content)
    return kind and f"{kind}, which is not read here: {advice}"


def _known(name: str, content: bytes) -> tuple[str, str]:
    for begin, kind, advice in _BEGINNINGS:
        if content[:64].lstrip().lower().startswith(begin.lower()) if begin[:1] == b"<" else content.startswith(begin):
            return kind, advice
    if content[4:8] == b"ftyp":
        brands = [content[k : k + 4] for k in range(8, min(64, int.from_bytes(content[:4], "big")), 4)]
        found = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "")
        return (found, _CONVERT) if found else ("MP4 video", _FRAMES)
    if content.startswith((b"\x1aE\xdf\xa3", b"\x30\x26\xb2\x75", b"\0\0\1\xba", b"FLV\1")) or content[8:12] == b"AVI ":
        return "video", _FRAMES
    if content[128:132] == b"DICM":
        return "DICOM", _CONVERT
    if content.startswith((b"II*\0", b"MM\0*")):
        return _of_tiff(content)
    if content[-18:].startswith(b"TRUEVISION-XFILE") or (name.endswith(".tga") and content[2:3] in b"\1\2\3\x09\x0a\x0b"):
        return "TGA", _CONVERT
    return "", ""


def _of_tiff(content: bytes) -> tuple[str, str]:
    """A TIFF with a compression that Pillow does not know; ("", "") for any other, and if the tags are damaged."""
    with suppress(Exception):
        tags, file = TiffImagePlugin.ImageFileDirectory_v2(content[:8]), BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        if tags.get(259, 1) not in TiffImagePlugin.COMPRESSION_INFO:
            return f"TIFF compressed by method {tags[259]}", "save it again without compression, or convert it to PNG"
    return "", ""
