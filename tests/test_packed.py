"""A packed copy gives the samples of the files it was made from, to the last bit, or says why it cannot."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS, MAPILLARY_NAMES, save_ids, save_image, write_dataset, write_mapillary_config
from PIL import Image
from tiny import same, tiny_options

from dada import build
from dada.build import source_loader, target_loader
from dada.commands.pack_dataset import check, pack
from dada.config import cfg, cfg_from_list
from dada.dataset import Draw, packed, storage
from dada.dataset.rare_classes import class_counts
from dada.files import write_whole
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.loop import train

# Sizes for images of 20x12: each way in which a training comes to one size, then random sizes.
SHRUNK = ["TRAIN.INPUT_SIZE_SOURCE=[10, 7]", "DATA_TRANSFORM.FLIP=0.5", "DATA_TRANSFORM.COLOR_JITTER=0.2"]
TRANSFORMS = {
    "cover": SHRUNK,
    "resize": [*SHRUNK, "LEGACY.SQUASHING_RESIZE=True"],
    "enlarged": ["TRAIN.INPUT_SIZE_SOURCE=[40, 30]"],
    "crops": [*SHRUNK, "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", "DATA_TRANSFORM.LOADSIZE=9", "DATA_TRANSFORM.CROPSIZE=8"],
}


def source_dataset(directory: Path, *pairs: str):
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={directory}", *pairs])
    return source_loader(cfg, TORCHVISION_RGB, steps=1).dataset


def samples(dataset) -> list:
    draws = [Draw(index, step, 0) for step in range(3) for index in range(len(dataset))]
    return [tuple(dataset[draw]) for draw in draws]


def assert_same_samples(original: Path, copy: Path, *pairs: str) -> None:
    wanted, given = samples(source_dataset(original, *pairs)), samples(source_dataset(copy, *pairs))
    assert len(wanted) and same(wanted, given)


@pytest.fixture
def city_source(city):
    """The cfg for the toy city's source, with depth, shrunk. Returns its folder."""
    cfg_from_list(["USE_DEPTH=True", "TRAIN.INPUT_SIZE_SOURCE=[64, 40]", f"DATA_DIRECTORY_SOURCE={city / 'SYNTHIA'}"])
    return city / "SYNTHIA"


@pytest.fixture
def copy(city_source, tmp_path):
    pack(cfg, "source", tmp_path / "copy")
    return tmp_path / "copy"


# ---- the same samples


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_gives_the_same_samples(name, transform, tmp_path):
    layout, original = LAYOUTS[name], write_dataset(name, tmp_path / "original")
    options = [f"SOURCE={name}", f"TRAIN.SET_SOURCE={layout.split}", f"NUM_CLASSES={layout.num_classes}", *TRANSFORMS[transform]]
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={original}", *options])
    made = pack(cfg, "source", tmp_path / "copy")
    assert made.broken == 0 and (made.parts[0].resized is not None) == (transform in ("cover", "resize"))
    assert_same_samples(original, tmp_path / "copy", *options)


@pytest.mark.parametrize("transform", ["cover", "crops"])
@pytest.mark.parametrize("label_format", ["ids", "rgb"])
def test_a_folder_of_pictures_of_many_shapes_gives_the_same_samples(label_format, transform, tmp_path):
    original = tmp_path / "original"
    for number, size in enumerate([(20, 12), (12, 20), (33, 17)]):
        save_image(original / "images" / f"{number}.png", number, size)
        ids = np.random.default_rng(number).integers(0, 3, (size[1], size[0]))
        mask = original / "masks" / f"{number}.png"
        save_ids(mask, ids)
        if label_format == "rgb":
            Image.fromarray(np.eye(3, dtype=np.uint8)[ids] * 255).save(mask)
    options = [
        "SOURCE=Folder",
        "CLASSES.NAMES=[a, b, c]",
        "CLASSES.COLORS=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]",
        "FOLDER_SOURCE.IMAGES=images/*.png",
        "FOLDER_SOURCE.LABELS=masks/*.png",
        f"FOLDER_SOURCE.LABEL_FORMAT={label_format}",
        *TRANSFORMS[transform],
    ]
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={original}", *options])
    pack(cfg, "source", tmp_path / "copy")
    assert_same_samples(original, tmp_path / "copy", *options)


def test_archives_that_nobody_unpacked_are_packed(tmp_path):
    original = write_dataset("GTA5", tmp_path / "original")
    archive = Path(shutil.make_archive(str(tmp_path / "GTA5"), "zip", original))
    options = ["SOURCE=GTA5", "NUM_CLASSES=19", *SHRUNK]
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={archive}", *options])
    pack(cfg, "source", tmp_path / "copy")
    assert_same_samples(original, tmp_path / "copy", *options)


def test_depth_is_packed_without_loss(city_source, copy):
    dataset = source_dataset(copy)
    assert same(samples(source_dataset(city_source)), samples(dataset)) and dataset[0].depth is not None


def test_two_loader_processes_give_what_the_original_gives_in_one(city_source, copy):
    def batches(folder, workers):
        cfg_from_list([f"DATA_DIRECTORY_SOURCE={folder}", f"NUM_WORKERS={workers}", "TRAIN.BATCH_SIZE_SOURCE=3"])
        return [tuple(batch) for batch in source_loader(cfg, TORCHVISION_RGB, steps=4)]

    assert same(batches(city_source, 0), batches(copy, 2))


def test_the_target_is_packed_for_training_without_labels_and_for_the_test_with_them(tiny_cfg, city, tmp_path):
    cfg_from_list(["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False", "TRAIN.INPUT_SIZE_TARGET=[64, 40]"])

    def read():
        tested, trained = build.eval_loader(cfg, TORCHVISION_RGB), target_loader(cfg, TORCHVISION_RGB, steps=3)
        return [tuple(batch) for loader in (trained, tested) for batch in loader]

    wanted = read()
    made = pack(cfg, "target", tmp_path / "copy")
    assert [(part.split, part.resized) for part in made.parts] == [("train", ("cover", 64, 40)), ("val", None)]
    assert not storage.is_dir(tmp_path / "copy" / "gtFine" / "train")
    cfg_from_list([f"DATA_DIRECTORY_TARGET={tmp_path / 'copy'}"])
    assert same(wanted, read())


def test_images_that_are_also_tested_keep_their_size(tiny_cfg, tmp_path):
    cfg_from_list(["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False", "TRAIN.INPUT_SIZE_TARGET=[64, 40]", "TRAIN.SET_TARGET=val"])
    assert [part.resized for part in pack(cfg, "target", tmp_path / "copy").parts] == [None, None]


def test_a_run_goes_on_from_its_checkpoint_with_a_packed_copy(tiny_cfg, city_source, tmp_path):
    cfg_from_list(["USE_DEPTH=False", "TRAIN.MAX_ITERS=2", "TRAIN.CHECKPOINT_EVERY=1"])
    pack(cfg, "source", tmp_path / "copy")
    whole = train(cfg, run_of(cfg)).state_dict()
    (run_of(cfg).snapshots / "checkpoint_2.pth").unlink()
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={tmp_path / 'copy'}"])
    assert same(dict(whole), dict(train(cfg, run_of(cfg), resume="auto").state_dict()))


def test_class_names_beside_the_folders_come_along(tmp_path):
    original = write_dataset("Mapillary", tmp_path / "original")
    for name in LAYOUTS["Mapillary"].names:
        save_ids(original / LAYOUTS["Mapillary"].label.format(name), np.arange(240).reshape(12, 20) % len(MAPILLARY_NAMES))
    write_mapillary_config(original / "config_v1.2.json")
    options = ["SOURCE=Mapillary", "TRAIN.SET_SOURCE=validation", "NUM_CLASSES=7", *SHRUNK]
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={original}", *options])
    pack(cfg, "source", tmp_path / "copy")
    assert_same_samples(original, tmp_path / "copy", *options)


def test_an_unreadable_image_is_refused_or_kept_as_that(city, tmp_path):
    original = write_dataset("GTA5", tmp_path / "original")
    broken = original / "images" / "00002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    options = ["SOURCE=GTA5", "NUM_CLASSES=19", *SHRUNK]
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={original}", *options])
    with pytest.raises(ValueError, match=r"00002\.png.*cut short"):
        pack(cfg, "source", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    options.append("ON_BAD_FILE=skip")
    cfg_from_list(options)
    assert pack(cfg, "source", tmp_path / "copy").broken == 2  # the image, and the label that goes with it
    wanted, given = samples(source_dataset(original, *options)), samples(source_dataset(tmp_path / "copy", *options))
    reasons = [[reason for _, reason in sample[-1]] for sample in wanted]
    assert any(reasons) and reasons == [[reason for _, reason in sample[-1]] for sample in given]
    assert same([sample[:-1] for sample in wanted], [sample[:-1] for sample in given])


# ---- copies that cannot be used


def refusal(copy: Path, *pairs: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        samples(source_dataset(copy, *pairs))
    return str(error.value)


def test_another_size_another_split_and_another_dataset_are_refused(copy):
    assert "resized (cover 64x40), but they are to be read cover 32x20" in refusal(copy, "TRAIN.INPUT_SIZE_SOURCE=[32, 20]")
    assert "--original-size" in refusal(copy, "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True")
    index = json.loads((copy / "packed.json").read_text())
    content = index["content"].replace('"all"', '"half"')
    write_whole(copy / "packed.json", json.dumps({**index, "content": content, "checksum": packed._checksum(content)}).encode())
    assert "copy of SYNTHIA 'half', not of SYNTHIA 'all'" in refusal(copy)


def test_a_copy_at_original_size_serves_every_transform(city_source, tmp_path):
    pack(cfg, "source", tmp_path / "copy", original_size=True)
    assert_same_samples(city_source, tmp_path / "copy", "TRAIN.INPUT_SIZE_SOURCE=[48, 32]")
    crops = ["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", "DATA_TRANSFORM.LOADSIZE=40", "DATA_TRANSFORM.CROPSIZE=32"]
    assert_same_samples(city_source, tmp_path / "copy", *crops)


def test_draws_by_class_count_whole_labels(copy, city_source, tmp_path):
    with pytest.raises(ValueError, match="was resized when it was packed.*--original-size"):
        class_counts(source_dataset(copy), tmp_path / "counts")
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={city_source}", "TRAIN.RARE_CLASS_TEMPERATURE=0.1"])
    pack(cfg, "source", tmp_path / "whole")
    whole = class_counts(source_dataset(tmp_path / "whole"), tmp_path / "counts")
    assert (whole == class_counts(source_dataset(city_source), tmp_path / "counts")).all() and whole.any()


def test_a_copy_of_listed_images_wants_the_list(city_source, tmp_path):
    (tmp_path / "list.txt").write_text("0000002.png\n0000000.png\n")
    listed = f"DATA_LIST_SOURCE={tmp_path / 'list.txt'}"
    cfg_from_list([listed])
    assert pack(cfg, "source", tmp_path / "copy").parts[0].images == 2
    assert_same_samples(city_source, tmp_path / "copy", listed)
    assert "give the list file" in refusal(tmp_path / "copy", "DATA_LIST_SOURCE=")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda i, d: d.write_bytes(d.read_bytes()[:-7]), r"packed\.bin has \d+ bytes, but .* says \d+"),
        (lambda i, d: d.unlink(), r"packed\.bin, which .* is missing"),
        (lambda i, d: i.write_text(i.read_text()[:-20]), r"packed\.json is damaged: it is not valid JSON"),
        (lambda i, d: i.write_text(i.read_text().replace("RGB/", "RGC/", 1)), r"packed\.json is damaged: its checksum"),
        (lambda i, d: i.write_text(i.read_text().replace('"version": 1', '"version": 7')), "has version 7, this program reads 1"),
        (lambda i, d: i.write_text('{"images": []}'), r"packed\.json is not the index of a packed copy"),
        (lambda i, d: _flip_a_byte(d), r"packed\.bin is damaged: .* does not have its checksum"),
    ],
)
def test_a_spoilt_copy_is_refused_by_name(copy, spoil, message):
    spoil(copy / "packed.json", copy / "packed.bin")
    packed._packs.clear()
    with pytest.raises(ValueError, match=message):
        samples(source_dataset(copy))
    with pytest.raises(ValueError, match=message):
        packed._packs.clear()
        check(copy)


def _flip_a_byte(data: Path) -> None:
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def test_a_picture_is_not_handed_out_as_another_kind(copy):
    with pytest.raises(ValueError, match="packed as ids .* read as colors now"):
        storage.decoded_pixels(copy / "parsed_LABELS" / "0000000.png", packed.COLORS)
    with pytest.raises(ValueError, match="no file to read"):
        storage.read_bytes(copy / "RGB" / "0000000.png")


# ---- making one


def test_a_full_disk_leaves_the_older_copy_whole(copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dada.commands.pack_dataset._append", full)
    with pytest.raises(OSError, match=r"no space left to write .*packed\.bin"):
        pack(cfg, "source", copy, overwrite=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_what_an_interrupted_run_left_is_no_copy_and_is_made_anew(copy, city_source):
    before = (copy / "packed.bin").read_bytes()
    (copy / "packed.json").unlink()
    (copy / ".packed.bin.x.part").write_bytes(b"half")
    assert "does not exist" in refusal(copy)
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={city_source}"])
    pack(cfg, "source", copy)
    assert (copy / "packed.bin").read_bytes() == before and not list(copy.glob(".*.part"))


def test_nothing_else_is_replaced(copy, city_source, tmp_path):
    with pytest.raises(FileExistsError, match="add --overwrite"):
        pack(cfg, "source", copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        pack(cfg, "source", tmp_path / "mine", overwrite=True)
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={copy}"])
    with pytest.raises(ValueError, match="is a packed copy: set DATA_DIRECTORY_SOURCE to the original folder"):
        pack(cfg, "source", tmp_path / "again")


def test_the_script_packs_checks_and_reports_errors(city, tmp_path, capsys, run_script):
    def script(*arguments) -> str:
        """What it prints, or its one message."""
        try:
            run_script("pack_dataset.py", *arguments)
        except SystemExit as end:
            return str(end.code)
        return capsys.readouterr().out

    copy = tmp_path / "copy"
    cfg_flags = ["--cfg", "toycity.yml", "--set", *tiny_options(city, tmp_path / "runs")]
    made = script(*cfg_flags, "--role", "source", "--out", copy, "--workers", 0)
    assert "SYNTHIA all: 4 images, at their own size" in made and f" DATA_DIRECTORY_SOURCE={copy}" in made
    assert "all checksums right" in script("--check", copy)
    _flip_a_byte(copy / "packed.bin")
    packed._packs.clear()
    spoilt = script("--check", copy)
    assert spoilt.startswith("error: ") and "packed.bin is damaged" in spoilt
    assert "holds no packed copy" in script("--check", tmp_path)
    assert "give --role, --out, or --check DIR" in script("--cfg", "toycity.yml")
    assert "add --overwrite" in script(*cfg_flags, "--role", "source", "--out", copy)
    assert "workers -1 must not be negative" in script("--check", copy, "--workers", -1)
