"""The tables of docs/datasets.md say what the code does."""

import re
from pathlib import Path

from dada.dataset import DATASETS, LABEL_SETS
from dada.label_sets import cityscapes_id_map, synthia_id_map

PAGE = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")


def rows(columns):
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line] for line in lines if len(line) == columns]


def test_ids_and_categories_are_those_of_the_maps():
    found = [row for row in rows(5) if row[3].isdigit()]
    assert [row[0] for row in found] == list(LABEL_SETS[19].names)
    for name, sets, category, cityscapes, synthia in found:
        for count in (19, 16, 13):
            names = LABEL_SETS[count].names
            want = names.index(name) if name in names else 255
            assert (str(count) in sets.split(", ")) == (name in names)
            assert cityscapes_id_map(count)[int(cityscapes)] == want
            assert synthia_id_map(count)[int(synthia)] == want
        train_id = LABEL_SETS[7].names.index(category)
        assert cityscapes_id_map(7)[int(cityscapes)] == synthia_id_map(7)[int(synthia)] == train_id


def test_every_dataset_and_its_class_sets_are_listed():
    found = {match[1]: row for row in rows(4) + rows(3) if (match := re.fullmatch(r"`(\w+)`", row[0])) and match[1] in DATASETS}
    assert set(found) == set(DATASETS)
    for name, row in found.items():
        if name != "Folder":
            assert tuple(map(int, row[2].split(", "))) == DATASETS[name].label_sets


def test_the_camvid_classes_are_listed_by_id():
    assert f"by id: {', '.join(LABEL_SETS[11].names)}." in PAGE
