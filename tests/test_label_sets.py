import json

import numpy as np
import pytest
import torch

from dada import label_sets
from dada.label_sets import IGNORE_LABEL, LABEL_SETS, LabelSet

SYNTHIA_NAMES = {  # id in the file: the class that a person would call it
    1: "sky",
    2: "building",
    3: "road",
    4: "sidewalk",
    5: "fence",
    6: "vegetation",
    7: "pole",
    8: "car",
    9: "sign",
    10: "person",
    11: "bicycle",
    12: "motorcycle",
    15: "light",
    16: "terrain",
    17: "rider",
    18: "truck",
    19: "bus",
    20: "train",
    21: "wall",
}


@pytest.mark.parametrize("num_classes", [19, 16, 13])
def test_each_synthia_id_leads_to_the_class_of_its_name(num_classes):
    names = LABEL_SETS[num_classes].names
    vector = label_sets.synthia_id_map(num_classes)
    assert vector.shape == (256,) and vector.dtype == np.uint8
    for file_id in range(256):
        name = SYNTHIA_NAMES.get(file_id)
        assert vector[file_id] == (names.index(name) if name in names else IGNORE_LABEL)


def test_seven_class_map_gives_every_trained_class_of_either_dataset_its_category():
    seven = LABEL_SETS[7].names
    categories = {
        "flat": {"road", "sidewalk"},
        "construction": {"building", "wall", "fence"},
        "object": {"pole", "light", "sign"},
        "nature": {"vegetation", "terrain"},
        "sky": {"sky"},
        "human": {"person", "rider"},
        "vehicle": {"car", "truck", "bus", "train", "motorcycle", "bicycle"},
    }
    of_class = {name: seven.index(category) for category, names in categories.items() for name in names}
    assert len(of_class) == 19
    for id_map in (label_sets.synthia_id_map, label_sets.cityscapes_id_map):
        fine, coarse = id_map(19), id_map(7)
        for file_id in np.flatnonzero(fine != IGNORE_LABEL):
            assert coarse[file_id] == of_class[LABEL_SETS[19].names[fine[file_id]]]


def test_cityscapes_seven_classes_are_the_official_categories():
    vector = label_sets.cityscapes_id_map(7)
    ranges = [(7, 10), (11, 16), (17, 20), (21, 22), (23, 23), (24, 25), (26, 33)]
    want = np.full(256, IGNORE_LABEL)
    for category, (first, last) in enumerate(ranges):
        want[first : last + 1] = category
    np.testing.assert_array_equal(vector, want)


def test_published_seven_class_map_ignores_what_dada_left_out():
    ours, published = label_sets.synthia_id_map(7), label_sets.synthia_id_map(7, published=True)
    assert np.flatnonzero(ours != published).tolist() == [12, 13, 16, 17, 18, 19, 20, 21]
    assert (published[[12, 13, 16, 17, 18, 19, 20, 21]] == IGNORE_LABEL).all()


@pytest.mark.parametrize("id_map", [label_sets.synthia_id_map, label_sets.cityscapes_id_map])
def test_thirteen_classes_are_the_sixteen_without_wall_fence_and_pole(id_map):
    keep = label_sets.subsets(LABEL_SETS[16])["13"]
    assert [LABEL_SETS[16].names[i] for i in range(16) if i not in keep] == ["wall", "fence", "pole"]
    sixteen, thirteen = id_map(16), id_map(13)
    for file_id in range(256):
        want = keep.index(sixteen[file_id]) if sixteen[file_id] in keep else IGNORE_LABEL
        assert thirteen[file_id] == want


def test_subsets_name_the_same_classes():
    for num_classes, own in LABEL_SETS.items():
        found = label_sets.subsets(own)
        assert next(iter(found)) == str(num_classes)
        for count, kept in found.items():
            assert tuple(own.names[i] for i in kept) == LABEL_SETS[int(count)].names
    assert list(label_sets.subsets(LABEL_SETS[19])) == ["19", "16", "13"]
    assert list(label_sets.subsets(LABEL_SETS[7])) == ["7"]


def test_a_set_of_other_classes_has_its_own_mean_only():
    orchard = LabelSet(("tree", "apple", "ground"), np.zeros((3, 3)))
    assert label_sets.subsets(orchard) == {"3": [0, 1, 2]}
    assert label_sets.category_of_class(orchard) is None and label_sets.category_of_class(LABEL_SETS[13]) is None


def test_category_of_class_adds_up_to_the_seven_class_map():
    for num_classes in (19, 16):
        vector = label_sets.cityscapes_id_map(num_classes)
        trained = vector != IGNORE_LABEL
        got = label_sets.category_of_class(LABEL_SETS[num_classes])[vector[trained]]
        np.testing.assert_array_equal(got, label_sets.cityscapes_id_map(7)[trained])


def test_no_label_set_of_that_size_is_refused_with_the_sizes_there_are():
    with pytest.raises(ValueError, match="NUM_CLASSES is 12.*19, 16, 13, 7"):
        label_sets.synthia_id_map(12)


def test_a_map_handed_out_can_be_changed_without_harm_to_the_next():
    label_sets.synthia_id_map(16)[:] = 3
    assert label_sets.synthia_id_map(16)[0] == IGNORE_LABEL
    with pytest.raises(ValueError, match="read-only"):
        LABEL_SETS[16].palette[0] = 0


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_colorize_paints_classes_in_their_colours_and_ignore_black(kind):
    image = label_sets.colorize(kind([[0, 9, 255]]), LABEL_SETS[16])
    assert image.mode == "P" and image.size == (3, 1)
    assert np.asarray(image.convert("RGB")).tolist() == [[[128, 64, 128], [70, 130, 180], [0, 0, 0]]]


def test_colorize_refuses_a_batch():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        label_sets.colorize(np.zeros((1, 2, 3)), LABEL_SETS[16])


def write_info(path, **changes):
    info = {
        "classes": 2,
        "label": ["ground", "other"],
        "palette": [[1, 2, 3], [4, 5, 6], [0, 0, 0]],
        "label2train": [[7, 0], [8, 0], [23, 1], [-1, 255]],
        "mean": [0, 0, 0],
    }
    info.update(changes)
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    return path


def test_info_file_sets_names_colours_and_map(tmp_path):
    classes, id_map = label_sets.label_set_from_info(write_info(tmp_path / "info.json"))
    assert classes.names == ("ground", "other") and classes.palette.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert {i: int(id_map[i]) for i in np.flatnonzero(id_map != 255)} == {7: 0, 8: 0, 23: 1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"palette": None}, "lacks palette"),
        ({"classes": 3}, "3 classes, but 2 names"),
        ({"classes": "two"}, "classes is 'two'"),
        ({"label2train": [[7, 2]]}, r"\[7, 2\].*0 to 1 or 255"),
        ({"label2train": [[300, 0]]}, r"\[300, 0\].*-1 to 255"),
        ({"label2train": [[7]]}, r"\[7\]"),
        ({"label2train": [["7", 0]]}, r"\['7', 0\]"),
    ],
)
def test_a_broken_info_file_is_named_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"info.json.*{message}"):
        label_sets.label_set_from_info(write_info(tmp_path / "info.json", **changes))


def test_an_info_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json not found"):
        label_sets.label_set_from_info(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json is not valid JSON"):
        label_sets.label_set_from_info(tmp_path / "bad.json")
