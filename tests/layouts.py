"""Each published dataset on disk as its authors pack it, three small images of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 20, 12
MAPILLARY_NAMES = (
    "nature--sky",
    "construction--flat--road",
    "human--person--individual",
    "object--vehicle--car",
    "void--unlabeled",
)


class Layout(NamedTuple):
    """Where a dataset's files lie, and one of each kind of list line; `{0}` stands for the name of an image."""

    split: str
    num_classes: int
    names: tuple[str, ...]
    image: str
    label: str
    lines: tuple[str, ...]
    label_folder: str
    highest_id: int  # of those that its label files may hold, 255 left out


LAYOUTS = {
    "SYNTHIA": Layout(
        "all",
        16,
        ("0000000", "0000001", "0000002"),
        "RGB/{0}.png",
        "GT/LABELS/{0}.png",
        ("{0}.png", "RGB/{0}.png\tGT/LABELS/{0}.png"),
        "GT",
        22,
    ),
    "GTA5": Layout(
        "all",
        19,
        ("00001", "00002", "00003"),
        "images/{0}.png",
        "labels/{0}.png",
        ("{0}.png", "images/{0}.png\tlabels/{0}.png"),
        "labels",
        34,
    ),
    "Cityscapes": Layout(
        "val",
        19,
        ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019"),
        "leftImg8bit/val/{0}_leftImg8bit.png",
        "gtFine/val/{0}_gtFine_labelIds.png",
        ("{0}_leftImg8bit.png", "leftImg8bit/val/{0}_leftImg8bit.png\tgtFine/val/{0}_gtFine_labelIds.png"),
        "gtFine",
        34,
    ),
    "Mapillary": Layout(
        "validation",
        7,
        ("-1_a", "b2", "c-3"),
        "validation/images/{0}.jpg",
        "validation/labels/{0}.png",
        ("{0}.jpg", "validation/images/{0}.jpg\tvalidation/labels/{0}.png"),
        "validation/labels",
        65,
    ),
    "CamVid": Layout(
        "val",
        11,
        ("0016E5_07959", "0016E5_07961", "0016E5_07963"),
        "val/{0}.png",
        "valannot/{0}.png",
        ("{0}.png", "/SegNet/CamVid/val/{0}.png /SegNet/CamVid/valannot/{0}.png"),
        "valannot",
        11,
    ),
    "UrbanSyn": Layout(
        "all",
        19,
        ("0001", "0002", "0003"),
        "rgb/rgb_{0}.png",
        "ss/ss_{0}.png",
        ("rgb_{0}.png", "rgb/rgb_{0}.png\tss/ss_{0}.png"),
        "ss",
        19,
    ),
    "Synscapes": Layout(
        "all",
        19,
        ("1", "10", "2"),
        "img/rgb/{0}.png",
        "img/class/{0}.png",
        ("{0}.png", "img/rgb/{0}.png\timg/class/{0}.png"),
        "img/class",
        34,
    ),
    "ACDC": Layout(
        "val",
        19,
        (
            "fog/val/GOPR0476/GOPR0476_frame_000854",
            "night/val/GOPR0356/GOPR0356_frame_000324",
            "snow/val/GP010122/GP010122_frame_0002",
        ),
        "rgb_anon/{0}_rgb_anon.png",
        "gt/{0}_gt_labelIds.png",
        ("{0}_rgb_anon.png", "rgb_anon/{0}_rgb_anon.png\tgt/{0}_gt_labelIds.png"),
        "gt",
        34,
    ),
    "DarkZurich": Layout(
        "val",
        19,
        ("GOPR0356/GOPR0356_frame_000321", "GOPR0356/GOPR0356_frame_000324", "GOPR0356/GOPR0356_frame_000353"),
        "rgb_anon/val/night/{0}_rgb_anon.png",
        "gt/val/night/{0}_gt_labelTrainIds.png",
        ("{0}_rgb_anon.png", "rgb_anon/val/night/{0}_rgb_anon.png\tgt/val/night/{0}_gt_labelTrainIds.png"),
        "gt",
        18,
    ),
    "BDD100K": Layout(
        "val",
        19,
        ("7d06fefd-f7be05a6", "7d128593-0ccfea4c", "7d15b18b-1e0d6e3f"),
        "images/10k/val/{0}.jpg",
        "labels/sem_seg/masks/val/{0}.png",
        ("{0}.jpg", "images/10k/val/{0}.jpg\tlabels/sem_seg/masks/val/{0}.png"),
        "labels",
        18,
    ),
    "IDD": Layout(
        "val",
        19,
        ("119/638495", "119/770156", "201/frame0029"),
        "leftImg8bit/val/{0}_leftImg8bit.png",
        "gtFine/val/{0}_gtFine_labelcsIds.png",
        ("{0}_leftImg8bit.png", "leftImg8bit/val/{0}_leftImg8bit.png\tgtFine/val/{0}_gtFine_labelcsIds.png"),
        "gtFine",
        34,
    ),
    "KITTI": Layout(
        "training",
        19,
        ("000000_10", "000001_10", "000002_10"),
        "training/image_2/{0}.png",
        "training/semantic/{0}.png",
        ("{0}.png", "training/image_2/{0}.png\ttraining/semantic/{0}.png"),
        "training/semantic",
        34,
    ),
    "FoggyCityscapes": Layout(
        "val",
        19,
        ("lindau/lindau_000000_000019", "munster/munster_000000_000019", "munster/munster_000001_000019"),
        "leftImg8bit_foggy/val/{0}_leftImg8bit_foggy_beta_0.02.png",
        "gtFine/val/{0}_gtFine_labelIds.png",
        (
            "{0}_leftImg8bit_foggy_beta_0.02.png",
            "leftImg8bit_foggy/val/{0}_leftImg8bit_foggy_beta_0.02.png\tgtFine/val/{0}_gtFine_labelIds.png",
        ),
        "gtFine",
        34,
    ),
    "WildDash": Layout(
        "all",
        19,
        ("aa0000_100000", "ar0010_100000", "zz0087_100000"),
        "images/{0}.jpg",
        "labels/{0}.png",
        ("{0}.jpg", "images/{0}.jpg\tlabels/{0}.png"),
        "labels",
        38,
    ),
}


def ids_of(name: str) -> np.ndarray:
    """(H, W) uint8: every id that the dataset defines, 255 among them."""
    ids = np.arange(HEIGHT * WIDTH) % (LAYOUTS[name].highest_id + 2)
    return np.where(ids > LAYOUTS[name].highest_id, 255, ids).astype(np.uint8).reshape(HEIGHT, WIDTH)


def write_dataset(name: str, root: Path) -> Path:
    """Write the images of LAYOUTS[name] with labels that hold ids_of(name), and return `root`."""
    layout = LAYOUTS[name]
    for number, image in enumerate(layout.names):
        save_image(root / layout.image.format(image), number)
        save_ids(root / layout.label.format(image), ids_of(name), sixteen_bit=name == "SYNTHIA")
    return root


def random_rgb(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def save_image(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_rgb(seed, size)).save(path)


def save_ids(path: Path, ids: np.ndarray, sixteen_bit: bool = False) -> None:
    """A paletted PNG; or as SYNTHIA's GT/LABELS, 16-bit RGB with the class in red and an object number in green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if sixteen_bit:
        red, green = ids.astype(np.uint16), (np.arange(ids.size) * 7).reshape(ids.shape).astype(np.uint16)
        assert cv2.imwrite(str(path), np.dstack([np.zeros_like(red), green, red]))
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        image.save(path)


def write_mapillary_config(path: Path, names: tuple[str, ...] = MAPILLARY_NAMES) -> None:
    labels = [{"name": name, "readable": name.split("--")[-1], "color": [0, 0, 0]} for name in names]
    path.write_text(json.dumps({"labels": labels, "mapping": "public"}))
