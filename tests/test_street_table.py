"""Street datasets that an entry of the table describes: splits, other layouts, and what their ids become."""

import numpy as np
import pytest
from layouts import LAYOUTS, save_ids, save_image, write_dataset

from dada.config import cfg, cfg_from_list
from dada.dataset import DATASETS, LABEL_SETS, EvalTransform, Folder, build_dataset
from dada.dataset.own_classes import own_classes
from dada.dataset.street_table import TABLE
from dada.label_sets import NAMED_IDS

PLAIN = EvalTransform(lambda image: image.float())


def built(name, root, split, num_classes=19, **options):
    return build_dataset(name, root, split=split, num_classes=num_classes, transform=PLAIN, **options)


def pair(root, image, label, ids=7, number=0):
    save_image(root / image, number)
    save_ids(root / label, np.full((12, 20), ids))


def test_every_entry_says_where_its_layout_was_taken_from():
    for entry in TABLE:
        assert "Layout" in entry.about and ("github.com/" in entry.about or "https://" in entry.about)
        assert DATASETS[entry.title].__doc__ == entry.about and "https://" in entry.download


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
@pytest.mark.parametrize(
    ("split", "want"),
    [("train", ["fog", "night", "rain", "snow"]), ("night_train", ["night"]), ("snow_train", ["snow"]), ("val", ["rain"])],
)
def test_acdc_splits_are_all_conditions_or_one_and_either_kind_of_ids_gives_the_classes(tmp_path, kind, split, want):
    ids = 26 if kind == "labelIds" else 13
    for number, (sky, part) in enumerate(
        [("fog", "train"), ("night", "train"), ("rain", "train"), ("snow", "train"), ("rain", "val")]
    ):
        stem = f"{sky}/{part}/GOPR0{number}/GOPR0{number}_frame_1"
        pair(tmp_path, f"rgb_anon/{stem}_rgb_anon.png", f"gt/{stem}_gt_{kind}.png", ids)
    dataset = built("ACDC", tmp_path, split)
    assert [sample.name.split("/")[0] for sample in dataset] == want
    assert all((sample.label == LABEL_SETS[19].names.index("car")).all() for sample in dataset)


def test_other_layouts_of_a_dataset_are_found(tmp_path):
    pair(tmp_path / "bdd", "seg/images/val/0a.jpg", "seg/labels/val/0a_train_id.png", ids=18)
    assert (built("BDD", tmp_path / "bdd", "val")[0].label == 18).all()
    pair(tmp_path / "acdc", "rgb_anon/val/GOPR1_frame_2_rgb_anon.png", "gt/val/GOPR1_frame_2_gt_labelTrainIds.png", ids=10)
    assert (built("ACDC", tmp_path / "acdc", "val")[0].label == 10).all()
    stem = "val/lindau/lindau_000000_000019"
    image = f"leftImg8bit_foggyDBF/{stem}_leftImg8bit_foggy_beta_0.02.png"
    pair(tmp_path / "foggy", image, f"gtFine/{stem}_gtFine_labelIds.png", ids=23)
    assert (built("FoggyCityscapes", tmp_path / "foggy", "val")[0].label == 10).all()
    pair(tmp_path / "kitti", "training/image_2/000000_10.png", "training/semantic/000000_10.png", ids=11)
    assert (built("KITTI", tmp_path / "kitti", "train")[0].label == 2).all()
    pair(tmp_path / "wd", "images/aa0000.jpg", "labels/aa0000_labelIds.png", ids=38)
    assert (built("WildDash", tmp_path / "wd", "all")[0].label == 0).all()


def test_both_parts_of_idd_are_one_split_and_labels_that_do_not_serve_are_answered_with_the_command_that_draws_them(tmp_path):
    for number, (stem, ending) in enumerate([("119/638495", "png"), ("201/frame0029", "jpg")]):
        pair(
            tmp_path,
            f"leftImg8bit/val/{stem}_leftImg8bit.{ending}",
            f"gtFine/val/{stem}_gtFine_labellevel3Ids.png",
            number=number,
        )
    assert len(built("IDD", tmp_path, "val", with_labels=False)) == 2
    with pytest.raises(FileNotFoundError) as error:
        built("IDD", tmp_path, "val")
    message = str(error.value)
    assert "_gtFine_labelcsIds.png or " in message and "contains: 638495_gtFine_labellevel3Ids.png" in message
    assert "createLabels.py --datadir IDD --id-type csId" in message
    for stem in ("119/638495", "201/frame0029"):
        save_ids(tmp_path / f"gtFine/val/{stem}_gtFine_labelcsTrainIds.png", np.full((12, 20), 9))
    assert [int(sample.label.unique()) for sample in built("IDD", tmp_path, "val")] == [9, 9]


def test_the_nights_of_dark_zurich_are_its_splits_and_twilight_and_day_have_theirs(tmp_path):
    for part in ("train/night", "train/twilight", "train/day"):
        save_image(tmp_path / f"rgb_anon/{part}/GOPR1/GOPR1_frame_1_rgb_anon.png", 0)
    for split in ("train", "train_twilight", "train_day"):
        (sample,) = built("DarkZurich", tmp_path, split, with_labels=False)
        assert {"train": "night"}.get(split, split.removeprefix("train_")) in sample.name
    with pytest.raises(ValueError, match="DarkZurich has no split 'night', only 'train', 'val', 'test', 'train_twilight'"):
        built("DarkZurich", tmp_path, "night")


def test_a_list_may_name_images_of_another_split(tmp_path):
    for split in ("train", "val"):
        pair(tmp_path, f"images/10k/{split}/{split}.jpg", f"labels/sem_seg/masks/{split}/{split}.png", ids=len(split))
    (tmp_path / "list.txt").write_text("images/10k/train/train.jpg\nval\n")
    dataset = built("BDD100K", tmp_path, "val", list_file=tmp_path / "list.txt")
    assert [int(sample.label.unique()) for sample in dataset] == [5, 3]


def test_labels_that_a_list_names_are_read_by_the_ids_that_they_hold(tmp_path):
    """Both kinds are there; ids of the one would be other classes in the other."""
    stem = "fog/val/GOPR1/GOPR1_frame_1"
    pair(tmp_path, f"rgb_anon/{stem}_rgb_anon.png", f"gt/{stem}_gt_labelIds.png", ids=11)
    save_ids(tmp_path / f"gt/{stem}_gt_labelTrainIds.png", np.full((12, 20), 11))  # other pixels than those, for the test
    for kind, want in (("labelIds", "building"), ("labelTrainIds", "person")):
        (tmp_path / "list.txt").write_text(f"rgb_anon/{stem}_rgb_anon.png\tgt/{stem}_gt_{kind}.png\n")
        dataset = built("ACDC", tmp_path, "val", list_file=tmp_path / "list.txt")
        assert (dataset[0].label == LABEL_SETS[19].names.index(want)).all()
    lines = (tmp_path / "list.txt").read_text()
    (tmp_path / "list.txt").write_text(lines + lines.replace("labelTrainIds", "labelIds"))
    with pytest.raises(
        ValueError, match="DATA_LIST_SOURCE names labels of several kinds, gt/.*labelIds.png and .*labelTrainIds.png"
    ):
        built("ACDC", tmp_path, "val", list_file=tmp_path / "list.txt")


def test_wilddash_ids_become_the_classes_of_its_own_label_policy():
    _, id_map = NAMED_IDS["wilddash"]
    names = {34: "truck", 35: "car", 36: None, 37: None, 38: "road", 26: "car"}
    assert {i: (*LABEL_SETS[19].names, *[None] * 237)[id_map(19)[i]] for i in names} == names
    categories = {34: "vehicle", 35: "vehicle", 36: "object", 37: "object", 38: "flat"}
    assert {i: LABEL_SETS[7].names[id_map(7)[i]] for i in categories} == categories


AS_FOLDER = {  # what users had to type
    "ACDC": ("rgb_anon/*/{split}/*/*_rgb_anon.png", "gt/*/{split}/*/*_gt_labelIds.png", "cityscapes"),
    "DarkZurich": (
        "rgb_anon/{split}/night/*/*_rgb_anon.png",
        "gt/{split}/night/*/*_gt_labelTrainIds.png",
        "cityscapes_train_ids",
    ),
    "BDD100K": ("images/10k/{split}/*.jpg", "labels/sem_seg/masks/{split}/*.png", ""),
    "IDD": ("leftImg8bit/{split}/*/*_leftImg8bit.png", "gtFine/{split}/*/*_gtFine_labelcsIds.png", "cityscapes"),
    "KITTI": ("training/image_2/*.png", "training/semantic/*.png", "cityscapes"),
    "WildDash": ("images/*.jpg", "labels/*.png", "wilddash"),
}


@pytest.mark.parametrize("name", AS_FOLDER)
@pytest.mark.parametrize("num_classes", [19, 16, 7])
def test_a_folder_with_a_named_label_map_reads_the_same_files_to_the_same_classes(name, num_classes, tmp_path):
    root, (images, labels, label_map) = write_dataset(name, tmp_path), AS_FOLDER[name]
    if not label_map and num_classes != 19:
        label_map = "cityscapes_train_ids"
    split = LAYOUTS[name].split
    folder = Folder(root, split, num_classes, transform=PLAIN, images=images, labels=labels, label_map=label_map or {})
    dataset = built(name, root, split, num_classes)
    assert [item.image for item in dataset.items] == [item.image for item in folder.items]
    assert all(one.label.equal(other.label) for one, other in zip(dataset, folder))


def test_a_named_label_map_ignores_classes_that_are_not_trained_and_is_refused_where_it_gives_none(tmp_path):
    pair(tmp_path, "images/1.png", "masks/1.png", ids=26)
    pair(tmp_path, "images/2.png", "masks/2.png", ids=24)
    options = {"transform": PLAIN, "images": "images/*", "labels": "masks/*", "label_map": "cityscapes"}
    dataset = Folder(tmp_path, classes=own_classes(("car", "weed")), **options)
    assert [int(sample.label.unique()) for sample in dataset] == [0, 255]
    with pytest.raises(
        ValueError, match="FOLDER_SOURCE.LABEL_MAP is cityscapes, but none of the classes soil, weed is one of its, road,"
    ):
        Folder(tmp_path, classes=own_classes(("soil", "weed")), **options)
    with pytest.raises(
        ValueError, match="LABEL_MAP is cityscapes, which numbers classes.*Leave .*LABEL_MAP empty.*DEFAULT to ignore"
    ):
        Folder(tmp_path, classes=own_classes(("car", "weed")), label_format="rgb", **options)


def test_the_option_takes_a_name_or_a_mapping_and_refuses_other_names():
    cfg_from_list(["FOLDER_SOURCE.LABEL_MAP=cityscapes", "FOLDER_TARGET.LABEL_MAP={7: road}"])
    assert cfg.FOLDER_SOURCE.LABEL_MAP == "cityscapes" and cfg.FOLDER_TARGET.LABEL_MAP == {"7": "road"}
    with pytest.raises(
        ValueError, match="expected a mapping to str, or one of cityscapes, cityscapes_train_ids, synthia, wilddash, got"
    ):
        cfg_from_list(["FOLDER_SOURCE.LABEL_MAP=cityscape"])
