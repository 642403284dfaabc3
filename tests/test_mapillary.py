import json

import numpy as np
import pytest
from layouts import MAPILLARY_NAMES, save_ids, save_image, write_mapillary_config
from PIL import Image

from dada.build import eval_loader as build_eval_loader
from dada.build import target_loader
from dada.config import cfg, cfg_from_list
from dada.dataset import LABEL_SETS, EvalTransform, Mapillary, TrainTransform
from dada.dataset.mapillary import NAMES_OF_V1_2, mapillary_id_map
from dada.label_sets import OTHER_LABEL

PLAIN = EvalTransform(lambda image: image.float())
IDS = np.arange(5 * 4).reshape(4, 5) % 5  # one id for each of MAPILLARY_NAMES
SEVEN, NINETEEN = LABEL_SETS[7].names, LABEL_SETS[19].names


def named(names, num_classes):
    """Name in the file -> name of the class, None where it is ignored."""
    vector = mapillary_id_map(tuple(names), num_classes)
    return {n: None if t == 255 else LABEL_SETS[num_classes].names[t] for n, t in zip(names, vector)}


@pytest.fixture
def v2(tmp_path):
    """As v2.0 is packed: its labels and those of v1.2 beside each other, a config file for each."""
    for split in ("training", "validation"):
        save_image(tmp_path / split / "images/a.jpg", 0, (5, 4))
        save_ids(tmp_path / split / "v2.0/labels/a.png", IDS)
        save_ids(tmp_path / split / "v1.2/labels/a.png", np.full_like(IDS, 13))  # road
    write_mapillary_config(tmp_path / "config_v2.0.json")
    write_mapillary_config(tmp_path / "config_v1.2.json", NAMES_OF_V1_2)
    return tmp_path


@pytest.mark.parametrize("version, road_share", [("", 1.0), ("v1.2", 1.0), ("v2.0", 0.2)])
def test_either_version_is_read_with_its_own_names(v2, version, road_share):
    dataset = Mapillary(v2, "validation", 19, version=version, transform=PLAIN)
    assert (dataset[0].label == NINETEEN.index("road")).float().mean() == pytest.approx(road_share)


def test_names_decide_and_not_ids(v2):
    dataset = Mapillary(v2, "validation", 7, version="v2.0", transform=PLAIN)
    assert [SEVEN[t] for t in dataset.id_map[:4]] == ["sky", "flat", "human", "vehicle"]
    write_mapillary_config(v2 / "config_v2.0.json", MAPILLARY_NAMES[::-1])
    dataset = Mapillary(v2, "validation", 7, version="v2.0", transform=PLAIN)
    assert [SEVEN[t] for t in dataset.id_map[1:5]] == ["vehicle", "human", "flat", "sky"]


def test_v2_without_its_names_is_refused(v2):
    (v2 / "config_v2.0.json").unlink()
    with pytest.raises(FileNotFoundError, match="config_v2.0.json not found: it names the ids of Mapillary v2.0"):
        Mapillary(v2, "validation", transform=PLAIN, version="v2.0")
    (v2 / "config_v1.2.json").unlink()  # the order of v1.2 is known
    assert (Mapillary(v2, "validation", 7, transform=PLAIN)[0].label == SEVEN.index("flat")).all()


def test_a_version_that_is_not_there_is_asked_for_by_its_folder(v2):
    for split in ("training", "validation"):
        (v2 / split / "v2.0").rename(v2 / split / "other")
    with pytest.raises(FileNotFoundError, match="v2.0/labels does not exist"):
        Mapillary(v2, "validation", transform=PLAIN, version="v2.0")
    with pytest.raises(ValueError, match="version must be 'v1.2' or 'v2.0', or empty, not '3'"):
        Mapillary(v2, "validation", transform=PLAIN, version="3")


@pytest.mark.parametrize("asked, folder", [("train", "training"), ("val", "validation"), ("validation", "validation")])
def test_the_usual_names_of_splits_serve_too(v2, asked, folder):
    assert f"/{folder}/images/" in Mapillary(v2, asked, transform=PLAIN).items[0].image


def test_a_folder_called_train_is_taken_as_it_is(v2):
    (v2 / "training").rename(v2 / "train")
    assert "/train/images/" in Mapillary(v2, "train", transform=PLAIN).items[0].image


def test_a_config_file_as_info_names_the_ids(v2, tmp_path):
    """DADA's info.json is Mapillary's own config file."""
    write_mapillary_config(tmp_path / "info.json", MAPILLARY_NAMES[::-1])
    dataset = Mapillary(v2, "validation", 7, version="v2.0", transform=PLAIN, info=tmp_path / "info.json")
    assert SEVEN[dataset.id_map[4]] == "sky" and dataset.classes is LABEL_SETS[7]


def test_readable_names_of_v1_2_do_as_well(v2, tmp_path):
    (tmp_path / "info.json").write_text(json.dumps({"labels": [{"readable": "?"}] * 66}))
    assert Mapillary(v2, "validation", transform=PLAIN, info=tmp_path / "info.json").class_names == NAMES_OF_V1_2


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object, but holds a list"),
        (json.dumps({"labels": []}), "does not name the classes"),
        (json.dumps({"labels": [{"readable": "Sky"}]}), "does not name the classes.*`name`"),
        (json.dumps({"labels": 5}), "does not name the classes"),
    ],
)
def test_a_broken_info_file_is_named(v2, tmp_path, content, message):
    (tmp_path / "info.json").write_text(content)
    with pytest.raises(ValueError, match=f"info.json.*{message}"):
        Mapillary(v2, "validation", transform=PLAIN, info=tmp_path / "info.json")


def test_an_info_file_that_is_missing_is_named(v2, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json not found; leave INFO_TARGET empty"):
        Mapillary(v2, "validation", transform=PLAIN, info=tmp_path / "none.json")


def test_the_finer_classes_of_v2_go_where_those_of_v1_went():
    finer = {
        "human--person": ["human--person--individual", "human--person--person-group"],
        "object--traffic-light": ["object--traffic-light--cyclists", "object--traffic-light--general-upright"],
        "marking--general": ["marking--discrete--text", "marking--continuous--solid", "marking-only--discrete--text"],
        "object--traffic-sign--front": ["object--traffic-sign--direction-front"],
        "void--unlabeled": ["void--ground", "void--static"],
    }
    for num_classes in (19, 16, 13, 7):
        for coarse, names in finer.items():
            (want,) = named([coarse], num_classes).values()
            assert set(named(names, num_classes).values()) == {want}


def test_classes_that_cityscapes_leaves_out_are_left_out():
    left_out = (
        "construction--barrier--guard-rail",
        "construction--structure--bridge",
        "construction--flat--parking",
        "construction--flat--rail-track",
        "object--vehicle--caravan",
        "object--vehicle--trailer",
        "object--traffic-sign--back",
        "object--support--pole-group",
        "nature--snow",
        "object--bench",
    )
    assert set(named(left_out, 19).values()) == {None}


def test_every_class_of_every_set_has_something_in_v1_2():
    for num_classes in (19, 16, 13, 7):
        assert set(named(NAMES_OF_V1_2, num_classes).values()) - {None} == set(LABEL_SETS[num_classes].names)


def test_thirteen_and_sixteen_are_the_nineteen_without_the_others():
    nineteen = named(NAMES_OF_V1_2, 19)
    for num_classes in (16, 13):
        kept = LABEL_SETS[num_classes].names
        assert named(NAMES_OF_V1_2, num_classes) == {n: c if c in kept else None for n, c in nineteen.items()}


@pytest.mark.parametrize("size", [(9, 30), (30, 9), (12, 10)])
def test_images_of_any_shape_become_one_size_and_keep_theirs(tmp_path, size):
    save_image(tmp_path / "training/images/a.jpg", 0, size)
    save_ids(tmp_path / "training/labels/a.png", np.full(size[::-1], 13))
    sample = Mapillary(tmp_path, transform=TrainTransform(lambda x: x.float(), fit=(16, 8), flip=0.0))[0]
    labelled = sample.label != 255
    assert sample.image.shape == (3, 8, 16) and sample.label.shape == (8, 16)
    width, height = int(labelled.any(0).sum()), int(labelled.any(1).sum())
    scale = min(16 / size[0], 8 / size[1])
    assert (width, height) == (int(size[0] * scale), int(size[1] * scale))  # cut to whole pixels
    assert labelled[:height, :width].all() and not sample.image[:, height:].any() and not sample.image[:, :, width:].any()


def test_in_a_test_the_label_keeps_its_resolution():
    label = Image.new("L", (30, 9), 0)
    views = EvalTransform(lambda x: x.float(), (16, 8), pad=True)(Image.new("RGB", (30, 9), (9, 9, 9)), label)
    assert views.image.shape == (3, 8, 16) and views.label.shape == (15, 30)
    assert (views.label[:9] == 0).all() and (views.label[9:] == 255).all()


@pytest.fixture
def configured(tmp_path):
    """A cfg for Mapillary with images of three shapes."""
    for number, size in enumerate([(30, 20), (15, 25), (22, 22)]):
        save_image(tmp_path / f"training/images/{number}.jpg", number, size)
        save_image(tmp_path / f"validation/images/{number}.jpg", number, size)
        save_ids(tmp_path / f"validation/labels/{number}.png", np.arange(size[0] * size[1]).reshape(size[::-1]) % 66)
    sizes = [f"{phase}.INPUT_SIZE_TARGET=[16, 12]" for phase in ("TRAIN", "TEST")]
    cfg_from_list(["TARGET=Mapillary", f"DATA_DIRECTORY_TARGET={tmp_path}", "NUM_WORKERS=0", *sizes])
    return cfg


@pytest.mark.parametrize("legacy", [False, True])
def test_a_run_squashes_no_image(configured, legacy):
    """DADA does not either, even though it squashes those of Cityscapes."""
    cfg_from_list([f"LEGACY.SQUASHING_RESIZE={legacy}", "TRAIN.BATCH_SIZE_TARGET=3"])
    batch = next(iter(target_loader(configured, lambda image: image.float(), 1)))
    widths = {name: int(image.any(0).any(0).sum()) for name, image in zip(batch.name, batch.image)}
    assert batch.image.shape == (3, 3, 12, 16) and batch.label is None
    assert widths == {"0.jpg": 16, "1.jpg": 7, "2.jpg": 12}


@pytest.mark.parametrize("num_classes, others", [(19, []), (16, ["on-rails", "terrain", "truck"]), (7, [])])
def test_the_class_rule_counts_classes_of_the_19_that_are_not_trained(configured, num_classes, others):
    cfg_from_list([f"NUM_CLASSES={num_classes}", "TEST.CLASS_RULE=count", "TEST.SET_TARGET=val"])
    loader = build_eval_loader(configured, lambda image: image.float())
    counted = np.flatnonzero(loader.dataset.id_map == OTHER_LABEL)
    assert sorted(NAMES_OF_V1_2[i].split("--")[-1] for i in counted) == others
    assert {tuple(batch.label.shape) for batch in loader} == {(1, 22, 30), (1, 25, 33), (1, 22, 29)}


def test_the_version_is_an_option(v2):
    cfg_from_list(["TARGET=Mapillary", f"DATA_DIRECTORY_TARGET={v2}", "NUM_CLASSES=7", "MAPILLARY_VERSION=v2.0"])
    cfg_from_list(["TEST.SET_TARGET=validation", "NUM_WORKERS=0"])
    dataset = build_eval_loader(cfg, lambda image: image.float()).dataset
    assert dataset.version == "v2.0" and dataset.class_names == MAPILLARY_NAMES


def test_labels_of_v2_that_lie_in_labels_are_known_by_the_config_that_alone_is_there(tmp_path):
    save_image(tmp_path / "training/images/a.jpg", 0)
    save_ids(tmp_path / "training/labels/a.png", np.full((12, 20), 3))
    write_mapillary_config(tmp_path / "config_v2.0.json")
    for version in ("", "v2.0"):
        dataset = Mapillary(tmp_path, "training", 19, version=version, transform=PLAIN)
        assert dataset.version == "v2.0" and (dataset[0].label == LABEL_SETS[19].names.index("car")).all()
    write_mapillary_config(tmp_path / "config_v1.2.json", NAMES_OF_V1_2)
    dataset = Mapillary(tmp_path, "training", 19, transform=PLAIN)
    assert dataset.version == "v1.2" and dataset.class_names[3] == "construction--barrier--fence" != MAPILLARY_NAMES[3]
