"""Pictures of one's own: patterns that pair files, classes and label maps from a YAML, and a run with nothing else."""

import json
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_NETWORK

from dada.build import build_network, source_loader
from dada.config import cfg, cfg_from_file, cfg_from_list
from dada.dataset import Draw, EvalTransform, Folder, build_dataset, step_loader
from dada.dataset.image_files import LabelIdError
from dada.dataset.masks import parse_color
from dada.dataset.own_classes import distinct_colors, own_classes
from dada.dataset.pairing import Pattern
from dada.evaluation.tester import evaluate_run as run_test
from dada.runs import run_of
from dada.training.loop import train

CLASSES = own_classes(("grass", "trunk", "apple"), ((0, 160, 0), (120, 80, 40), (200, 0, 30)))
UNLABELLED = (9, 9, 9)
SIZE = (24, 32)  # height, width


def raw_pixels(image):
    return image.float()


PLAIN = EvalTransform(raw_pixels)


def truth(number):
    """Train ids of picture `number`, some of them unlabelled."""
    ids = np.random.default_rng(number).integers(0, 4, (SIZE[0] // 4, SIZE[1] // 4), dtype=np.uint8)
    return np.where(ids == 3, 255, ids).repeat(4, 0).repeat(4, 1)


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)


def save_image(path, number):
    colors = np.vstack([CLASSES.palette, np.zeros((253, 3), dtype=np.uint8)])
    save(path, colors[truth(number)] // 2 + np.random.default_rng(number).integers(0, 9, (*SIZE, 3), dtype=np.uint8))


def save_rgb_mask(path, number, alpha=False):
    colors = np.tile(np.array(UNLABELLED, dtype=np.uint8), (256, 1))
    colors[:3] = CLASSES.palette
    mask = colors[truth(number)]
    save(path, np.dstack([mask, np.full(SIZE, 77, dtype=np.uint8)]) if alpha else mask)


def save_palette_mask(path, number):
    """Grass 10, trunk 20, apple 30, unlabelled 0; the colours of the palette say nothing."""
    ids = np.zeros(256, dtype=np.uint8)
    ids[:3] = 10, 20, 30
    save(path, ids[truth(number)], palette=np.arange(768, dtype=np.uint8) % 251)


@pytest.fixture
def orchard(tmp_path) -> Path:
    """rendered/: pictures in rows, RGB masks and depth. photos/: two splits, palette masks for val only."""
    root = tmp_path / "orchard"
    for number, stem in enumerate(("row1/tree_000", "row1/tree_001", "row2/tree_000", "row2/tree_001")):
        save_image(root / f"rendered/views/{stem}.png", number)
        save_rgb_mask(root / f"rendered/painted/{stem}_mask.png", number, alpha=number == 1)
        distance = root / f"rendered/distance/{stem}.png"
        distance.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(distance), np.full(SIZE, 100 * number, dtype=np.uint16))
    for number in range(4, 8):
        save_image(root / f"photos/train/images/{number}.JPG", number)
    for number in range(8, 11):
        save_image(root / f"photos/val/images/{number}.jpg", number)
        save_palette_mask(root / f"photos/val/masks/{number}.png", number)
    return root


RENDERED = {
    "images": "views/**/*.png",
    "labels": "painted/**/*_mask.png",
    "depth": "distance/**/*.png",
    "label_format": "rgb",
    "label_map": {"0,160,0": "grass", "#785028": "trunk", "200, 0, 30": "apple", "[9, 9, 9]": "ignore"},
}
PHOTOS = {"label_map": {"10": "grass", "20": "trunk", "30": "apple", "0": "ignore"}}


def rendered(root, **options):
    return Folder(root / "rendered", transform=PLAIN, **{"classes": CLASSES, **RENDERED, **options})


def photos(root, split="val", **options):
    return Folder(root / "photos", split, transform=PLAIN, role="target", **{"classes": CLASSES, **PHOTOS, **options})


# ---- reading


def test_images_masks_and_depth_are_paired_by_what_the_wildcards_stand_for(orchard):
    dataset = rendered(orchard, with_depth=True)
    assert [sample.name for sample in dataset] == [
        "views/row1/tree_000.png",
        "views/row1/tree_001.png",
        "views/row2/tree_000.png",
        "views/row2/tree_001.png",
    ]
    for number, sample in enumerate(dataset):
        np.testing.assert_array_equal(sample.label, truth(number))
        assert (sample.depth == np.float32(65536) / (100 * number + 1)).all()
        assert sample.size == SIZE


def test_palette_masks_are_read_as_ids(orchard):
    dataset = photos(orchard)
    assert dataset.classes.names == ("grass", "trunk", "apple")
    assert [sample.name for sample in dataset] == [f"val/images/{n}.jpg" for n in (10, 8, 9)]
    for number, sample in zip((10, 8, 9), dataset):
        np.testing.assert_array_equal(sample.label, truth(number))


def test_without_a_map_ids_are_train_ids_and_colours_those_of_the_classes(orchard, tmp_path):
    save_image(tmp_path / "own/images/1.png", 1)
    save(tmp_path / "own/masks/1.png", truth(1))
    options = {"transform": PLAIN, "classes": CLASSES, "images": "images/*.png"}
    np.testing.assert_array_equal(Folder(tmp_path / "own", labels="masks/*.png", **options)[0].label, truth(1))
    save_rgb_mask(tmp_path / "own/masks/1.png", 1)
    dataset = Folder(tmp_path / "own", labels="masks/*", label_format="rgb", default="ignore", **options)
    np.testing.assert_array_equal(dataset[0].label, truth(1))


def test_a_mask_of_0_and_255_may_map_255_to_a_class(tmp_path):
    save_image(tmp_path / "images/1.png", 1)
    mask = np.where(truth(1) == 0, 0, 255).astype(np.uint8)
    save(tmp_path / "masks/1.png", mask)
    dataset = Folder(
        tmp_path,
        transform=PLAIN,
        classes=own_classes(("ground", "leaf")),
        images="images/*",
        labels="masks/*",
        label_map={"0": "ground", "255": "leaf"},
    )
    np.testing.assert_array_equal(dataset[0].label, mask // 255)


def test_the_built_in_label_sets_serve_too(tmp_path):
    save_image(tmp_path / "images/1.png", 1)
    save(tmp_path / "masks/1.png", np.full(SIZE, 7, dtype=np.uint8))
    dataset = Folder(tmp_path, "", 19, transform=PLAIN, images="images/*", labels="masks/*", label_map={"7": "bicycle"})
    assert (dataset[0].label == 18).all() and dataset.num_classes == 19


def test_an_info_file_gives_classes_and_map(orchard, tmp_path):
    info = {
        "classes": 2,
        "label": ["green", "other"],
        "palette": [[0, 9, 0], [9, 0, 0]],
        "label2train": [[10, 0], [20, 1], [30, 1], [0, 255]],
    }
    (tmp_path / "info.json").write_text(json.dumps(info))
    dataset = photos(orchard, classes=None, label_map={}, info=tmp_path / "info.json")
    assert dataset.classes.names == ("green", "other")
    np.testing.assert_array_equal(dataset[1].label, np.array([0, 1, 1] + [255] * 253)[truth(8)])
    with pytest.raises(ValueError, match="info.json holds an id map, and FOLDER_TARGET gives another"):
        photos(orchard, info=tmp_path / "info.json")


def test_without_labels_no_mask_is_looked_for(orchard):
    dataset = photos(orchard, "train", with_labels=False)
    assert len(dataset) == 4 and dataset[0].label is None


@pytest.mark.parametrize("with_masks", [True, False])
def test_a_list_file_stands_in_for_the_patterns(orchard, tmp_path, with_masks):
    stems = ("row2/tree_001", "row1/tree_000")
    rows = (f"views/{s}.png" + (f"\tpainted/{s}_mask.png" if with_masks else "") for s in stems)
    (tmp_path / "some.txt").write_text("\n".join(rows))
    dataset = rendered(orchard, list_file=tmp_path / "{}.txt", split="some", with_depth=True)
    assert [sample.name for sample in dataset] == [f"views/{s}.png" for s in stems]
    np.testing.assert_array_equal(dataset[0].label, truth(3))
    assert (dataset[1].depth == 65536).all()


@pytest.mark.parametrize("labelled_only", [False, True])
def test_a_label_that_a_list_names_must_be_there_even_where_unlabelled_images_are_left_out(orchard, tmp_path, labelled_only):
    (tmp_path / "list.txt").write_text("val/images/8.jpg\tval/masks/8.png\nval/images/9.jpg\tval/masks/gone.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 4 files that DATA_LIST_TARGET names are missing: .*gone.png"):
        photos(orchard, list_file=tmp_path / "list.txt", labelled_only=labelled_only)


def test_names_in_a_list_may_hold_blanks_where_a_tab_divides_them(tmp_path):
    save_image(tmp_path / "a picture.png", 1)
    save_rgb_mask(tmp_path / "its mask.png", 1)
    (tmp_path / "list.txt").write_text("a picture.png\tits mask.png\n")
    options = {"label_format": "rgb", "default": "ignore"}
    dataset = Folder(tmp_path, transform=PLAIN, classes=CLASSES, list_file=tmp_path / "list.txt", **options)
    np.testing.assert_array_equal(dataset[0].label, truth(1))


def test_source_and_target_folders_are_augmented_independently(orchard):
    source, target = rendered(orchard), photos(orchard)
    assert source.title != target.title


# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "path", "key"),
    [
        ("images/**/*.jpg", "images/1.jpg", "1"),
        ("images/**/*.jpg", "images/a/b/1.jpg", "a/b/1"),
        ("images/**/*.jpg", "images/1.png", None),
        ("**/img_*.*", "a/img_007.webp", "a/007"),
        ("**/img_*.*", "a/img_007.txt", None),
        ("*/img_[0-9]*.png", "b/img_12.png", "b/12"),
        ("*/img_[!0-9]*.png", "b/img_12.png", None),
        ("frame_??.png", "frame_07.png", "07"),
        ("frame_??.png", "frame_107.png", None),
        ("*", "1.2.png", "1.2"),
        ("a_*_*.png", "a_1_2_3.png", "1_2/3"),
        ("./one.png", "one.png", ""),
        ("*(1)+.png", "x(1)+.png", "x"),
    ],
)
def test_the_key_of_a_file(pattern, path, key):
    assert Pattern(pattern, "X").key(path) == key


def test_an_absolute_pattern_is_refused(orchard):
    with pytest.raises(ValueError, match="FOLDER_SOURCE.IMAGES is '/views/.*', an absolute path"):
        rendered(orchard, images="/views/*.png")


def test_images_without_a_label_are_counted_and_named(orchard):
    (orchard / "photos/val/masks/8.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        photos(orchard)
    message = str(error.value)
    assert "1 of 3 images have no label: val/images/8.jpg." in message
    assert "'8' for val/images/8.jpg in FOLDER_TARGET.IMAGES 'val/images/**/*.*'" in message
    assert "'10', '9' for the labels in FOLDER_TARGET.LABELS 'val/masks/**/*.*'" in message
    assert "list file (DATA_LIST_TARGET)" in message


def test_patterns_that_would_pair_all_are_proposed(orchard, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"4 of 4 (.|\n)*Did you mean FOLDER_SOURCE.LABELS 'painted/\*\*/\*_mask.png'"):
        rendered(orchard, labels="painted/**/*.png")
    for number in range(3):
        save_image(tmp_path / f"x/img_{number}.png", number)
        save_rgb_mask(tmp_path / f"x/lab_{number}.png", number)
    with pytest.raises(FileNotFoundError) as error:
        Folder(tmp_path, "x", images="{split}/img*.png", labels="{split}/lab_*.png", classes=CLASSES, transform=PLAIN)
    assert "FOLDER_SOURCE.IMAGES 'x/img_*.png'" in str(error.value)


def test_ambiguous_pairs_are_refused(orchard):
    save_rgb_mask(orchard / "rendered/painted/row1/tree_001_mask.webp", 0)
    with pytest.raises(ValueError, match="2 labels match the image views/row1/tree_001.png: .*Narrow FOLDER_SOURCE.LABELS"):
        rendered(orchard, labels="painted/**/*_mask.*")
    with pytest.raises(ValueError, match="label painted/row1/tree_000_mask.png matches two images, views/row1/tree_000"):
        save_image(orchard / "rendered/views/row1/tree_000.bmp", 0)
        rendered(orchard, images="views/**/*.*")


def test_a_pattern_that_nothing_fits_says_what_is_there(orchard):
    with pytest.raises(FileNotFoundError) as error:
        rendered(orchard, images="views/*.tif")
    assert "matches FOLDER_SOURCE.IMAGES 'views/*.tif'" in str(error.value) and "row1, row2" in str(error.value)
    with pytest.raises(FileNotFoundError, match="images for split 'test' not found(.|\n)*contains: train, val") as error:
        photos(orchard, "test")
    assert "TEST.SET_TARGET" in str(error.value)
    with pytest.raises(FileNotFoundError, match="no file in .* matches FOLDER_TARGET.LABELS 'val/labels/\\*'"):
        photos(orchard, labels="{split}/labels/*")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist either"):
        Folder(orchard / "nowhere", "train", transform=PLAIN, classes=CLASSES)


def test_what_is_needed_but_not_described_is_asked_for(orchard, tmp_path):
    with pytest.raises(ValueError, match="FOLDER_SOURCE.LABELS is empty, but labels are needed"):
        rendered(orchard, labels="")
    with pytest.raises(ValueError, match="FOLDER_SOURCE.DEPTH is empty.*USE_DEPTH"):
        rendered(orchard, depth="", with_depth=True)
    (tmp_path / "list.txt").write_text("views/row1/tree_000.png\tpainted/none.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 2 files that DATA_LIST_SOURCE names are missing: .*none.png"):
        rendered(orchard, list_file=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("views/a.png\tpainted/a.png\nviews/b.png\n")
    with pytest.raises(ValueError, match="DATA_LIST_SOURCE names a label for 1 of 2 images"):
        rendered(orchard, list_file=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("strange.png\n")
    with pytest.raises(ValueError, match="1 of 1 images that DATA_LIST_SOURCE names .* do not match FOLDER_SOURCE.IMAGES"):
        rendered(orchard, list_file=tmp_path / "list.txt")


# ---- labels


def test_an_unknown_colour_names_count_place_and_neighbour(orchard):
    path = orchard / "rendered/painted/row1/tree_000_mask.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[3, 5] = mask[4, 4] = 121, 80, 44
    mask[5, 5] = 1, 1, 1
    save(path, mask)
    with pytest.raises(LabelIdError) as error:
        rendered(orchard)[0]
    message = str(error.value)
    assert "colour (121, 80, 44) in " in message and "tree_000_mask.png is not in the colours of FOLDER_SOURCE" in message
    assert "2 pixels, the first at row 3, column 5; 1 more such colours, 3 pixels in all" in message
    assert "nearest known colour is (120, 80, 40)" in message
    label = rendered(orchard, default="ignore")[0].label
    assert label[3, 5] == label[4, 4] == label[5, 5] == 255


def test_an_unknown_id_names_the_map(orchard):
    ids = np.asarray(Image.open(orchard / "photos/val/masks/8.png")).copy()
    ids[0, 0] = 77
    save(orchard / "photos/val/masks/8.png", ids)
    with pytest.raises(LabelIdError, match="label id 77 .*8.png: 1 pixels.*FOLDER_TARGET.LABEL_MAP.*DEFAULT"):
        photos(orchard)[1]
    assert photos(orchard, default="ignore")[1].label[0, 0] == 255


def test_jpeg_masks_and_colours_read_as_ids_are_refused(orchard):
    path = orchard / "rendered/painted/row1/tree_000_mask.png"
    with pytest.raises(ValueError, match="is a colour picture.*FOLDER_SOURCE.LABEL_FORMAT to rgb"):
        rendered(orchard, label_format="ids", label_map={})[0]
    Image.open(path).save(path, format="JPEG")
    with pytest.raises(ValueError, match="is a JPEG, which blurs labels"):
        rendered(orchard)[0]
    Image.open(path).convert("L").save(path, format="JPEG")
    with pytest.raises(ValueError, match="is a JPEG, which blurs labels"):
        rendered(orchard, label_format="ids", label_map={})[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_map": {"0,160,0": "gras"}}, "maps 0,160,0 to 'gras', which is not a class; the nearest is 'grass'"),
        ({"label_map": {"0,160": "grass"}}, "'0,160' is not a colour; write it as"),
        ({"label_map": {"0,160,256": "grass"}}, "'0,160,256' is not a colour"),
        ({"label_map": {"7": "grass"}}, "LABEL_MAP with LABEL_FORMAT 'rgb': '7' is not a colour"),
        ({"label_map": {"0,160,0": "grass", "#00a000": "apple"}}, "holds '#00a000' twice"),
        ({"label_map": {"2.5": "grass"}, "label_format": "ids"}, "'2.5' is not an id"),
        ({"label_map": {"#785028": "grass"}, "label_format": "ids"}, "LABEL_FORMAT 'ids': '#785028' is not an id"),
    ],
)
def test_a_bad_label_map_is_refused(orchard, options, message):
    with pytest.raises(ValueError) as error:
        rendered(orchard, **options)
    assert message in str(error.value) and "FOLDER_SOURCE.LABEL_MAP" in str(error.value)


def test_colours_may_be_written_in_three_ways():
    for text in ("120, 80, 40", "120,80,40", "[120, 80, 40]", "(120, 80, 40)", "#785028"):
        assert parse_color(text) == (120, 80, 40)


# ---- classes


def test_generated_colours_are_far_apart_and_always_the_same():
    colors = distinct_colors(24)
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[~np.eye(24, dtype=bool)]
    assert distances.min() > 20  # 2.3 is just noticeable
    np.testing.assert_array_equal(distinct_colors(5), colors[:5])
    assert len(np.unique(distinct_colors(254), axis=0)) == 254 and colors.any(axis=1).all()


@pytest.mark.parametrize(
    ("names", "colors", "message"),
    [
        (("a",), (), "CLASSES.NAMES holds 1 names, expected from 2 to 254"),
        ((), ((0, 0, 1),), "CLASSES.NAMES holds 0 names, expected from 2 to 254"),
        (("a", "b", "a"), (), "CLASSES.NAMES holds 'a' twice"),
        (("a", "ignore"), (), "holds 'ignore', which is not a class"),
        (("a", "b"), ((0, 0, 1),), "holds 1 colours for 2"),
        (("a", "b"), ((0, 0, 1), (0, 0, 1)), r"CLASSES.COLORS holds \(0, 0, 1\) twice"),
    ],
)
def test_bad_classes_are_refused(names, colors, message):
    with pytest.raises(ValueError, match=message):
        own_classes(names, colors)


# ---- archives


def test_samples_out_of_an_archive_are_the_same_bit_for_bit(orchard, tmp_path):
    with zipfile.ZipFile(tmp_path / "orchard.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(orchard.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path).as_posix())
    pairs = [
        (rendered(orchard, with_depth=True), rendered(tmp_path / "orchard.zip/orchard", with_depth=True)),
        (photos(orchard), photos(tmp_path / "orchard.zip/orchard")),
    ]
    for folder, archive in pairs:
        for workers in (0, 2):
            loaders = [step_loader(d, 2, seed=0, stop_step=3, num_workers=workers) for d in (folder, archive)]
            for here, there in zip(*loaders):
                assert here.name == there.name and torch.equal(here.label, there.label)
                assert torch.equal(here.image, there.image)
        again = pickle.loads(pickle.dumps(archive))
        assert torch.equal(folder[Draw(0, 1, 0)].image, again[Draw(0, 1, 0)].image)


# ---- with a YAML alone

ROOT = Path(__file__).parent.parent


def tiny_run(data, tmp_path):
    """What makes a run of seconds out of a YAML for the orchard."""
    return [
        f"DATA_DIRECTORY_SOURCE={data / 'rendered'}",
        f"DATA_DIRECTORY_TARGET={data / 'photos'}",
        f"EXP_ROOT={tmp_path / 'runs'}",
        "NUM_WORKERS=0",
        "GPU_ID=-1",
        f"TRAIN.MODEL={TINY_NETWORK}",
        "TRAIN.RESTORE_FROM=random",
        "TRAIN.MAX_ITERS=2",
        "TRAIN.CONTRASTIVE_START=0",
        "TRAIN.BATCH_SIZE_SOURCE=2",
        "TRAIN.BATCH_SIZE_TARGET=2",
        "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False",
        "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True",
        "DATA_TRANSFORM.LOADSIZE=32",
        "DATA_TRANSFORM.CROPSIZE=32",
        "TEST.INPUT_SIZE_TARGET=[32, 32]",
    ]


def yaml_of_the_page():
    (block,) = [b for b in (ROOT / "docs/datasets.md").read_text().split("```") if b.startswith("yaml\nSOURCE: Folder")]
    return block.removeprefix("yaml\n")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("text", ["configs/folder_example.yml", "docs/datasets.md"])
def test_classes_of_ones_own_train_and_test_with_a_yaml_alone(orchard, tmp_path, capsys, text, zipped):
    data = orchard
    if zipped:
        data = tmp_path / "orchard.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for path in sorted(orchard.rglob("*.*")):
                archive.write(path, path.relative_to(orchard).as_posix())
    (tmp_path / "my.yml").write_text(yaml_of_the_page() if text == "docs/datasets.md" else (ROOT / text).read_text())
    cfg_from_file(tmp_path / "my.yml")
    cfg_from_list(tiny_run(data, tmp_path))
    assert cfg.NUM_CLASSES == 3
    run = run_of(cfg)
    train(cfg, run)
    (evaluation,) = run_test(cfg, run).values()
    assert evaluation.classes.names == ("grass", "trunk", "apple")
    labelled = sum(int((truth(number) != 255).sum()) for number in (8, 9, 10))
    assert int(evaluation.confusion.sum()) == labelled
    assert "apple" in capsys.readouterr().out


def test_depth_of_a_folder_trains(orchard, tmp_path):
    cfg_from_file("folder_example.yml")
    cfg_from_list([*tiny_run(orchard, tmp_path), "USE_DEPTH=True", "CONTRASTIVE_LEARNING=False"])
    values = []
    loader = source_loader(cfg, build_network(cfg, "").normalization, 1)
    for batch in loader:
        values += batch.depth.unique().tolist()
    assert values and set(values) <= {65536.0, *(float(np.float32(65536) / (100 * k + 1)) for k in range(4)), 0.0}


def test_classes_that_another_dataset_does_not_have_are_refused(orchard, city, tmp_path):
    cfg_from_file("folder_example.yml")
    cfg_from_list([*tiny_run(orchard, tmp_path), "TARGET=Cityscapes", f"DATA_DIRECTORY_TARGET={city / 'Cityscapes'}"])
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but Cityscapes has"):
        train(cfg, run_of(cfg))
    info = {"classes": 3, "label": ["a", "b", "c"], "palette": [[0, 0, k] for k in range(3)], "label2train": [[7, 0]]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    cfg_from_list([f"TRAIN.INFO_TARGET={tmp_path / 'info.json'}"])
    with pytest.raises(ValueError, match=r"CLASSES.NAMES are grass, trunk, apple, but the classes of Cityscapes are a, b, c"):
        train(cfg, run_of(cfg))


def test_an_unlabelled_folder_is_the_target_of_a_published_dataset(orchard, city, tmp_path):
    cfg_from_list([*tiny_run(orchard, tmp_path), "SOURCE=SYNTHIA", f"DATA_DIRECTORY_SOURCE={city / 'SYNTHIA'}"])
    cfg_from_list(["TARGET=Folder", "TRAIN.SET_TARGET=train", "CONTRASTIVE_LEARNING=True"])
    assert train(cfg, run_of(cfg)) is not None
    cfg_from_list(["FOLDER_TARGET.LABEL_MAP={10: road, 20: person, 30: car, 0: ignore}", "TEST.SET_TARGET=val"])
    (evaluation,) = run_test(cfg, run_of(cfg)).values()
    assert evaluation.classes.names[0] == "road" and int(evaluation.confusion.sum()) > 0


def test_build_dataset_knows_folders(orchard):
    dataset = build_dataset(
        "Folder", orchard / "photos", split="val", num_classes=3, transform=PLAIN, role="target", classes=CLASSES, **PHOTOS
    )
    assert len(dataset) == 3


# ---- which files are images


@pytest.mark.parametrize("pattern", ["images/*.jpg", "images/*.JPG", "images/*.jp*g"])
def test_the_case_of_an_extension_does_not_decide_what_is_read(tmp_path, pattern):
    for number, name in enumerate(("1.jpg", "2.JPG", "3.Jpg")):
        save_image(tmp_path / "images" / name, number)
    found = Folder(tmp_path, transform=PLAIN, classes=CLASSES, images=pattern, with_labels=False)
    assert [item.name for item in found.items] == ["images/1.jpg", "images/2.JPG", "images/3.Jpg"]


def test_gif_masks_are_found_where_the_extension_is_open(tmp_path):
    save_image(tmp_path / "images/1.tif", 1)
    save(tmp_path / "masks/1.gif", truth(1))
    dataset = Folder(tmp_path, transform=PLAIN, classes=CLASSES, images="images/*.*", labels="masks/*.*")
    np.testing.assert_array_equal(dataset[0].label, truth(1))


@pytest.mark.parametrize(
    ("image", "mask", "patterns"),
    [
        ("train/{}.jpg", "train/{}_mask.png", {"images": "{split}/*.*", "labels": "{split}/*_mask.png"}),
        ("train/{}.png", "train/masks/{}.png", {"images": "{split}/**/*.*", "labels": "{split}/masks/*.png"}),
        ("train/{}.png", "train/{}_depth.png", {"images": "{split}/*.png", "labels": "", "depth": "{split}/*_depth.png"}),
    ],
)
@pytest.mark.parametrize("with_labels", [False, True])
def test_a_file_that_labels_or_depth_fits_is_no_image(tmp_path, image, mask, patterns, with_labels):
    for number in range(3):
        save_image(tmp_path / image.format(number), number)
        save(tmp_path / mask.format(number), truth(number))
    options = {**patterns, "with_labels": with_labels and bool(patterns["labels"])}
    found = Folder(tmp_path, "train", transform=PLAIN, classes=CLASSES, **options)
    assert [item.name for item in found.items] == [image.format(number) for number in range(3)] and found.left_out == 3


def test_images_that_labels_fits_too_stay_where_there_are_no_others(tmp_path):
    save_image(tmp_path / "1.png", 1)
    found = Folder(tmp_path, transform=PLAIN, classes=CLASSES, images="*.*", labels="*.png", with_labels=False)
    assert len(found) == 1 and found.left_out == 0
