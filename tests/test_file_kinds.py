"""Sound files of kinds that are not read are called what they are, and damaged is said of damaged ones only."""

import struct

import numpy as np
import pytest
from PIL import Image

from dada.dataset.image_files import read_image


def packed_tiff(method: int) -> bytes:
    """A grey TIFF of 4x2 pixels, packed by `method`."""
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 2),
        (258, 3, 1, 8),
        (259, 3, 1, method),
        (262, 3, 1, 1),
        (273, 4, 1, 110),
        (279, 4, 1, 8),
    ]
    ifd = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + ifd + bytes(20)


def box(brand: bytes) -> bytes:
    return struct.pack(">L", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + bytes(100)


@pytest.mark.parametrize(
    ("name", "content", "kind", "advice"),
    [
        ("a.avif", box(b"avif"), "AVIF", "PNG"),
        ("a.heic", box(b"heic"), "HEIC", "PNG"),
        ("a.jpg", box(b"heic"), "HEIC", "PNG"),  # as phones are said to rename them
        ("a.png", struct.pack(">L", 24) + b"ftypisom" + bytes(100), "MP4", "frames"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000", "PNG"),
        ("a.jxl", b"\xff\x0a" + bytes(50), "JPEG XL", "PNG"),
        ("a.tga", b"\0\0\2" + bytes(50), "TGA", "PNG"),
        ("a.exr", b"v/1\x01" + bytes(50), "OpenEXR", "PNG"),
        ("a.psd", b"8BPS\0\1" + bytes(50), "Photoshop", "PNG"),
        ("a.npy", b"\x93NUMPY\1\0" + bytes(50), "NumPy array", "PNG"),
        ("a.dcm", bytes(128) + b"DICM" + bytes(50), "DICOM", "PNG"),
        ("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS", "git lfs pull"),
        ("a.png", b"\n<!doctype html><html></html>", "web page", "again"),
        ("a.wmv", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(50), "video", "frames"),
        ("a.tif", packed_tiff(50002), "TIFF compressed by method 50002", "without compression"),
    ],
)
def test_a_sound_file_of_another_kind_is_called_by_it_with_what_to_do(tmp_path, name, content, kind, advice):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / name)
    message = str(error.value)
    assert f"{name} ({len(content)} bytes) is {kind}" in message and advice in message
    assert "damaged" not in message and "cut short" not in message


def test_a_tiff_that_is_read_is_none_of_them_and_a_damaged_one_is_called_so(tmp_path):
    Image.fromarray(np.full((2, 4, 3), 7, np.uint8)).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif")).max() == 7
    for content in (b"II*\0", (tmp_path / "a.tif").read_bytes()[:40], b"\x89PNG\r\n\x1a\nhalf", b"nothing known", b""):
        (tmp_path / "b.tif").write_bytes(content)
        with pytest.raises(ValueError, match="cut short or damaged"):
            read_image(tmp_path / "b.tif")
