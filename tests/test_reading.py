"""Files hold numbers: ids are those numbers, whatever is shown for them; brightness of any kind of number has one rule."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dada.build import files_of
from dada.commands.pack_dataset import pack
from dada.config import cfg_from_dict, default_cfg
from dada.dataset import EvalTransform, Folder, samples
from dada.dataset.image_files import LabelIdError, read_image, read_label_ids
from dada.dataset.masks import read_colors
from dada.dataset.own_classes import own_classes
from dada.dataset.pictures import as_picture
from dada.dataset.rare_classes import class_counts
from dada.training.unlabelled import LabelledPixels

IDS = np.tile(np.arange(4, dtype=np.uint8), (6, 4))  # (6, 16), 0 to 3
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
CLASSES = own_classes(("a", "b", "c", "d"))
PLAIN = EvalTransform(lambda image: image.float())


def tiff(pixels, order="<", *, inverted=False, bits=0, planes=False, orientation=1, compression=1):
    """A TIFF without compression: one strip, or one for each band."""
    height, width, *bands = pixels.shape
    count = bands[0] if bands else 1
    if bits and bits < 8:
        data = packed_bits(pixels, bits)
    else:
        stored = np.moveaxis(pixels, -1, 0) if planes else pixels
        data = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
        bits = pixels.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3, "b": 1}[pixels.dtype.kind]
    at = 8
    strips = count if planes else 1
    data = zlib.compress(data) if compression == 8 else data

    def array(values, code):
        """Value or offset of a tag; longer ones lie behind the pixels."""
        nonlocal data
        content = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(content) <= 4:
            return content.ljust(4, b"\0")
        data += b"\0" * (len(data) % 2)
        place = at + len(data)
        data += content
        return struct.pack(f"{order}I", place)

    size = len(data)
    tags = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * count),
        (259, "H", [compression]),
        (262, "H", [2 if count == 3 else 0 if inverted else 1]),
        (273, "I", [at + k * (size // strips) for k in range(strips)]),
        (274, "H", [orientation]),
        (277, "H", [count]),
        (278, "I", [height]),
        (279, "I", [size // strips] * strips),
        (284, "H", [2 if planes else 1]),
        (339, "H", [kind] * count),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values)) + array(values, code) for tag, code, values in tags
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at + len(data) + len(data) % 2)
    return head + data + b"\0" * (len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def packed_bits(pixels, bits):
    rows = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(len(pixels), -1)
    return np.packbits(rows, axis=1).tobytes()


def png(pixels, bits, color=0):
    """A grey PNG (colour type 0) of 1, 2 or 4 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = packed_bits(pixels, bits)
    step = len(packed) // len(pixels)
    rows = b"".join(b"\0" + packed[k * step : (k + 1) * step] for k in range(len(pixels)))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(pixels, kind="PNG", mode=None, **options):
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, kind, **options)
    return out.getvalue()


def encoded(pixels, end=".png"):
    return cv2.imencode(end, pixels)[1].tobytes()


def paletted(ids, colors=()):
    image = Image.fromarray(ids)
    image.putpalette(bytes(sum(colors, ())) or bytes(range(255, -1, -1)) * 3)
    return image


def put(tmp_path, content, name="file.png"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


# ---- ids


MASKS = {
    "1 bit": (png(IDS % 2, 1), IDS % 2),
    "2 bits": (png(IDS, 2), IDS),
    "4 bits": (png(IDS * 5, 4), IDS * 5),
    "1-bit TIFF": (tiff(IDS % 2, bits=1), IDS % 2),
    "1-bit TIFF, 0 is white": (tiff(IDS % 2, bits=1, inverted=True), IDS % 2),
    "2-bit TIFF": (tiff(IDS, bits=2), IDS),
    "4-bit TIFF, 0 is white": (tiff(IDS * 3, bits=4, inverted=True), IDS * 3),
    "TIFF, 0 is white": (tiff(IDS, inverted=True), IDS),
    "16-bit TIFF, 0 is white": (tiff(IDS.astype(np.uint16) * 300, inverted=True), IDS.astype(int) * 300),
    "16-bit big-endian, 0 is white": (tiff(IDS.astype(np.uint16) * 300, ">", inverted=True), IDS.astype(int) * 300),
    "TIFF, compressed, 0 is white": (saved(IDS, "TIFF", compression="tiff_lzw", tiffinfo={262: 0}), None),
    "palette": (saved(paletted(IDS)), IDS),
    "GIF of colours": (saved(paletted(IDS, ((9, 8, 7), (0, 0, 9), (1, 2, 3), (4, 4, 4))), "GIF", optimize=False), IDS),
    "GIF of grey levels, which Pillow numbers anew": (saved(IDS * 85, "GIF"), IDS * 85),
    "GIF of 0 and 255": (saved(IDS % 2 * 255, "GIF"), IDS % 2 * 255),
    "BMP": (saved(IDS, "BMP"), IDS),
    "PGM of few levels": (b"P5\n# made by hand\n16 6\n18\n" + (IDS * 6).tobytes(), IDS * 6),
    "plain PGM": (b"P2 16 6 3\n" + " ".join(map(str, IDS.ravel())).encode() + b"\n", IDS),
    "PGM of 16 bits": (b"P5 16 6 1000\n" + (IDS.astype(np.uint16) * 300).byteswap().tobytes(), IDS.astype(int) * 300),
    "16 bits": (saved(IDS.astype(np.uint16) * 1000), IDS.astype(int) * 1000),
    "16-bit big-endian": (tiff(IDS.astype(np.uint16) * 1000, ">"), IDS.astype(int) * 1000),
    "16 bits, signed": (tiff(IDS.astype(np.int16) - 1), IDS.astype(int) - 1),
    "8 bits, signed": (tiff(IDS.astype(np.int8) - 1), IDS.astype(int) - 1),
    "32 bits": (tiff(IDS.astype(np.int32) - 2), IDS.astype(int) - 2),
    "32 bits, unsigned, big-endian": (tiff(IDS.astype(np.uint32) * 70000, ">"), IDS.astype(int) * 70000),
    "float": (tiff(IDS.astype(np.float32)), IDS),
    "float big-endian": (tiff(IDS.astype(np.float32), ">"), IDS),
    "float of 64 bits": (tiff(IDS.astype(np.float64) - 1), IDS.astype(int) - 1),
    "grey with transparency": (saved(np.dstack([IDS, IDS * 9])), IDS),
    "three equal channels": (saved(np.dstack([IDS] * 3)), IDS),
    "three equal channels and transparency": (saved(np.dstack([IDS] * 3 + [255 - IDS])), IDS),
    "three equal channels of 16 bits": (encoded(np.dstack([IDS.astype(np.uint16) * 300] * 3)), IDS.astype(int) * 300),
    "WebP without losses": (saved(np.dstack([IDS] * 3), "WEBP", lossless=True), IDS),
}


@pytest.mark.parametrize("kind", MASKS)
def test_ids_are_the_numbers_in_the_file(tmp_path, kind):
    content, wanted = MASKS[kind]
    if wanted is None:  # Pillow turns the numbers over when it writes such a file
        wanted = 255 - IDS
    np.testing.assert_array_equal(np.asarray(read_label_ids(put(tmp_path, content))), wanted)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_label_is_never_turned_as_its_own_file_says(tmp_path, orientation):
    path = put(tmp_path, tiff(IDS, orientation=orientation))
    np.testing.assert_array_equal(np.asarray(read_label_ids(path)), IDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(IDS.astype(np.float32) / 2), "numbers that are not whole"),
        (tiff(np.full((4, 4), np.nan, np.float32)), "numbers that are not whole"),
        (saved(np.dstack([IDS, IDS, IDS + 1])), "is a colour picture"),
        (encoded(np.dstack([IDS.astype(np.uint16), IDS, IDS + 1])), "is a colour picture"),
        (saved(np.dstack([IDS] * 3), "WEBP", quality=50), "is a lossy WebP"),
        (saved(np.dstack([GREY] * 3), "TIFF", compression="jpeg"), "is a JPEG"),
    ],
)
def test_what_holds_no_ids_is_refused_as_what_it_is(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_label_ids(put(tmp_path, content))


def folder(tmp_path, content, end="png", **options):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    Image.new("RGB", IDS.shape[::-1]).save(tmp_path / "images/0.png")
    (tmp_path / f"masks/0.{end}").write_bytes(content)
    return Folder(tmp_path, transform=PLAIN, classes=CLASSES, images="images/*.*", labels="masks/*.*", **options)


@pytest.mark.parametrize(
    ("content", "label_map", "wanted"),
    [
        (saved(IDS.astype(np.uint16) * 1000), {"0": "a", "1000": "b", "2000": "c", "3000": "d"}, IDS),
        (tiff(IDS.astype(np.int16) - 1), {"-1": "ignore", "0": "a", "1": "b", "2": "c"}, np.array([255, 0, 1, 2])[IDS]),
        (tiff(IDS.astype(np.float32) * 700), {"0": "b", "700": "a", "1400": "d", "2100": "c"}, np.array([1, 0, 3, 2])[IDS]),
        (saved(IDS), {"0": "a", "1": "b", "2": "c", "3": "d", "500": "a"}, IDS),
        (png(IDS % 2, 1), {"0": "a", "255": "b"}, IDS % 2),
        (png(IDS % 2, 1), {"0": "a", "1": "b"}, IDS % 2),
        (png(IDS, 2), {"0": "a", "85": "b", "170": "c", "255": "d"}, IDS),
        (png(IDS, 2), {"0": "a", "1": "b", "2": "c", "3": "d"}, IDS),
    ],
)
@pytest.mark.parametrize("default", ["error", "ignore"])
def test_a_map_names_any_whole_number_and_what_is_shown_of_few_bits(tmp_path, content, label_map, wanted, default):
    dataset = folder(tmp_path, content, "tif", label_map=label_map, default=default)
    np.testing.assert_array_equal(dataset[0].label, wanted)


@pytest.mark.parametrize(
    ("content", "label_map", "message"),
    [
        (
            saved(IDS.astype(np.uint16) * 1000),
            {},
            r"label id 1000 out of range .*hold ids 0, 1, 2, 3, and 255.*FOLDER_SOURCE.LABEL_MAP",
        ),
        (tiff(IDS.astype(np.int16) - 1), {}, r"label id -1 out of range .* DEFAULT there to ignore"),
        (png(IDS, 2), {"0": "a", "255": "b"}, "A number in the file has 2 bits: white is 3"),
        (png(IDS % 2, 1), {"0": "a"}, "A number in the file has 1 bit: white is 1"),
    ],
)
def test_ids_outside_the_map_are_refused_with_the_option_that_names_them_or_left_out(tmp_path, content, label_map, message):
    with pytest.raises(LabelIdError, match=message):
        folder(tmp_path, content, "tif", label_map=label_map).read_label(0)
    label = folder(tmp_path, content, "tif", label_map=label_map, default="ignore")[0].label
    assert set(np.unique(label)) <= {0, 1, 2, 255} and (label == 255).any()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (saved(IDS.astype(np.uint16) * 300), None),
        (saved(IDS.astype(np.uint16) * 60), IDS * 60),
        (tiff(IDS.astype(np.float32)), None),
        (tiff(np.dstack([IDS.astype(np.uint16) * 257] * 3)), IDS),
        (png(IDS, 2), IDS * 85),
    ],
)
def test_numbers_that_are_no_colours_are_not_made_white(tmp_path, content, wanted):
    path = put(tmp_path, content)
    if wanted is None:
        with pytest.raises(ValueError, match="is not a mask in colours.*Set LABEL_FORMAT to ids"):
            read_colors(path)
    else:
        np.testing.assert_array_equal(np.asarray(read_colors(path)), np.dstack([wanted] * 3))


# ---- brightness


COLOR = np.dstack([GREY, GREY.T, 255 - GREY])
PICTURES = {
    "float to 1": tiff(GREY.astype(np.float32) / 255),
    "float to 255": tiff(GREY.astype(np.float32)),
    "float to 65535": tiff(GREY.astype(np.float32) * 257),
    "float of 64 bits, big-endian": tiff(GREY.astype(np.float64) / 255, ">"),
    "float of 16 bits": tiff((GREY / 255).astype(np.float16)),
    "32-bit": tiff(GREY.astype(np.int32)),
    "32-bit, unsigned, big-endian": tiff(GREY.astype(np.uint32) << 8, ">"),
    "11-bit": tiff(GREY.astype(np.uint16) << 3),
    "12-bit": tiff(GREY.astype(np.uint16) << 4, ">"),
    "12-bit PNG": saved(GREY.astype(np.uint16) << 4),
    "12-bit PGM": b"P5 16 16 4095\n" + (GREY.astype(np.uint16) << 4).byteswap().tobytes(),
    "16-bit": tiff(GREY.astype(np.uint16) << 8),
    "0 is white": tiff(255 - GREY, inverted=True),
    "16-bit, 0 is white": tiff((255 - GREY).astype(np.uint16) << 8, inverted=True),
    "float, 0 is white": tiff(1 - GREY.astype(np.float32) / 255, inverted=True),
    "colour of 12 bits": tiff(COLOR.astype(np.uint16) << 4),
    "colour of 12 bits, PNG": encoded(COLOR[..., ::-1].astype(np.uint16) << 4),
    "colour of 16 bits, compressed": encoded(COLOR[..., ::-1].astype(np.uint16) << 8, ".tiff"),
    "float colour": tiff(COLOR.astype(np.float32) / 255),
    "float colour, compressed": encoded(COLOR[..., ::-1].astype(np.float32) / 255, ".tiff"),
    "colour in planes": tiff(COLOR.astype(np.uint16) << 8, planes=True),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_as_bright_as_its_numbers_say_in_a_dataset_and_in_prediction(tmp_path, kind):
    wanted = COLOR if "colour" in kind else np.dstack([GREY] * 3)
    path = put(tmp_path, PICTURES[kind], "image.tif")
    for found in (read_image(path), as_picture(path)):
        assert np.abs(np.asarray(found).astype(int) - wanted).max() <= 1
    assert read_image(path).info["pages"] == 1


@pytest.mark.parametrize(
    "array",
    [
        GREY / 255,
        (GREY / 255).astype(np.float16),
        (GREY.astype(np.uint16) << 8).astype(">u2"),
        GREY.astype(np.int64),
        GREY.astype(np.uint16) << 4,
    ],
    ids=lambda array: f"{array.dtype} to {array.max():g}",
)
def test_arrays_follow_the_rule_of_files(array):
    assert np.abs(np.asarray(as_picture(array))[..., 0].astype(int) - GREY).max() <= 1


def test_what_is_white_can_be_said(tmp_path):
    path = put(tmp_path, saved(GREY.astype(np.uint16)))
    assert np.asarray(read_image(path)).max() == 255 and read_image(path).info["white"] == 255
    assert np.asarray(read_image(path, 1023)).max() == 255 // 4
    assert np.asarray(read_image(path, 100)).max() == 255
    assert samples.to_8_bits(np.array([0, 500, 999], np.uint16), 999).tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (GREY.astype(np.float32) - 100, "fractions from -100 to 155, expected 0 to 1"),
        (GREY.astype(np.int16) - 1, "whole numbers from -1 to 254"),
        (GREY.astype(np.int32) * 1000, "whole numbers from 0 to 255000"),
        (np.dstack([GREY] * 5).astype(np.uint16), "5 bands"),
    ],
)
def test_numbers_that_are_no_brightness_are_refused_as_that(tmp_path, pixels, message):
    with pytest.raises(ValueError, match=f"image.tif cannot be read as a picture: it h.*{message}"):
        read_image(put(tmp_path, tiff(pixels), "image.tif"))


@pytest.mark.parametrize("end", [30, 200, -100])
def test_a_rare_kind_that_is_cut_short_is_refused(tmp_path, end):
    for content in (PICTURES["float colour"], PICTURES["float colour, compressed"], PICTURES["colour in planes"]):
        with pytest.raises(ValueError, match="cannot read .*cut short or damaged"):
            read_image(put(tmp_path, content[:end]))


# ---- orientation


TALL = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)  # upright
BACK = {  # how a picture of that orientation is stored
    3: lambda a: a[::-1, ::-1],
    2: lambda a: a[:, ::-1],
    6: lambda a: np.rot90(a),
    8: lambda a: np.rot90(a, -1),
    5: lambda a: a.swapaxes(0, 1),
}


def photo(path, orientation, kind="PNG"):
    stored = np.ascontiguousarray(BACK[orientation](TALL))
    if kind == "TIFF of floats":
        path.write_bytes(tiff(stored.astype(np.float32), orientation=orientation))
    elif kind == "compressed TIFF of floats":
        path.write_bytes(tiff(stored.astype(np.float32), orientation=orientation, compression=8))
    elif kind == "TIFF of 16 bits":
        path.write_bytes(tiff(stored[..., 0].astype(np.uint16) << 8, orientation=orientation))
    else:
        exif = Image.Exif()
        exif[samples.ORIENTATION] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(stored).save(path, kind, exif=exif, **options)
    return stored


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TIFF of floats", "compressed TIFF of floats", "TIFF of 16 bits"])
@pytest.mark.parametrize("orientation", BACK)
def test_a_photo_without_label_is_turned_as_in_prediction_and_with_one_as_the_label_lies(tmp_path, orientation, kind):
    path = tmp_path / "image.any"
    stored = photo(path, orientation, kind)
    channels = slice(0, 1) if kind == "TIFF of 16 bits" else slice(0, 3)

    def same(picture, wanted):
        np.testing.assert_array_equal(np.asarray(picture)[..., channels], wanted[..., channels])

    same(read_image(path), TALL)
    same(as_picture(path), TALL)
    same(read_image(path, orientation="stored"), stored)
    same(read_image(path, beside=(8, 12)), TALL)
    sideways = orientation > 4
    same(read_image(path, beside=(12, 8)), stored if sideways else TALL)
    same(read_image(path, beside=(12, 8), orientation="upright"), TALL)
    assert read_image(path, beside=(8, 12)).info == {
        **read_image(path).info,
        "orientation": orientation,
        "upright": True,
        "decided": sideways,
    }


@pytest.mark.parametrize(("orientation", "setting", "turned"), [(6, "auto", False), (3, "auto", True), (3, "stored", False)])
def test_a_folder_turns_photos_so_that_labels_lie_on_them(tmp_path, orientation, setting, turned):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    stored = photo(tmp_path / "images/0.png", orientation)
    Image.fromarray(np.zeros(stored.shape[:2], np.uint8)).save(tmp_path / "masks/0.png")
    patterns = {"images": "images/*.*", "labels": "masks/*.*", "orientation": setting}
    labelled = Folder(tmp_path, transform=PLAIN, classes=CLASSES, **patterns)
    np.testing.assert_array_equal(labelled[0].image.permute(1, 2, 0), TALL if turned else stored)
    unlabelled = Folder(tmp_path, transform=PLAIN, classes=CLASSES, with_labels=False, **patterns)
    np.testing.assert_array_equal(unlabelled[0].image.permute(1, 2, 0), stored if setting == "stored" else TALL)


# ---- the same in a packed copy


@pytest.mark.parametrize(
    ("mask", "label_map"),
    [
        (png(IDS % 2, 1), {"0": "a", "255": "b"}),
        (png(IDS, 2), {"0": "a", "85": "b", "170": "c", "255": "d"}),
        (saved(IDS.astype(np.uint16) * 1000), {"0": "a", "1000": "b", "2000": "c", "3000": "d"}),
        (tiff(IDS.astype(np.int32) - 70000), {"-70000": "b", "-69999": "a", "-69998": "c", "-69997": "ignore"}),
    ],
)
def test_a_packed_copy_reads_as_the_files_do(tmp_path, mask, label_map):
    data, out = tmp_path / "data", tmp_path / "packed"
    data.mkdir()
    folder(data, mask, "tif", label_map=label_map)
    exif = Image.Exif()
    exif[samples.ORIENTATION] = 3
    noise = np.random.default_rng(0).integers(0, 256, (*IDS.shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "images/0.png", exif=exif)
    values = {
        "SOURCE": "Folder",
        "DATA_DIRECTORY_SOURCE": str(data),
        "CLASSES": {"NAMES": list(CLASSES.names)},
        "FOLDER_SOURCE": {"IMAGES": "images/*.*", "LABELS": "masks/*.*", "LABEL_MAP": label_map},
    }
    read = []
    config = cfg_from_dict(values, "test", default_cfg())
    for root in (data, out):
        config.DATA_DIRECTORY_SOURCE = str(root)
        dataset = files_of(config, "source")
        read.append((np.asarray(dataset.read_image(0)), np.asarray(dataset.read_label(0))))
        if root == data:
            pack(config, "source", out, original_size=True)
    for one, other in zip(*read):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(read[1][0], noise[::-1, ::-1])
    assert (read[1][1] != 255).any()


# ---- what the labels say of the first steps


@pytest.mark.parametrize(("steps", "labelled_at", "told"), [(30, None, True), (3, None, True), (30, 9, False), (30, 10, True)])
def test_training_tells_once_that_no_pixel_was_labelled(caplog, steps, labelled_at, told):
    pixels = LabelledPixels(steps)
    for step in range(steps):
        label = torch.full((2, 4, 4), 255)
        label[0, 0, 0] = 1 if step == labelled_at else 255
        pixels.look(label)
    assert [f"in {min(steps, 10)} steps" in record.getMessage() for record in caplog.records] == [True] * told


def test_counts_of_classes_are_kept_for_the_map_that_they_were_made_with(tmp_path):
    content = saved(IDS.astype(np.uint16) * 1000)
    for names in ("abcd", "dcba"):
        label_map = {str(1000 * k): name for k, name in enumerate(names)}
        counts = class_counts(folder(tmp_path, content, "tif", label_map=label_map | {"9000": "a"}), tmp_path / "cache")
        assert counts.tolist() == [[24] * 4]
    dataset = folder(tmp_path, content, "tif", label_map={"0": "a", "1000": "a", "2000": "a", "3000": "d"})
    assert class_counts(dataset, tmp_path / "cache").tolist() == [[72, 0, 0, 24]]
