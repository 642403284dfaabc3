"""List files in the forms in which datasets and annotation tools write them, for every dataset."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS, save_ids, save_image, write_dataset

from dada.dataset import EvalTransform, Folder, build_dataset
from dada.dataset.lists import Line, read_list
from dada.dataset.own_classes import own_classes

PLAIN = EvalTransform(lambda image: image.float())
CLASSES = own_classes(("soil", "weed"))


def picture(root, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"a picture")


def read(root, text, images=()):
    path = root / "list.txt"
    path.write_text(text)
    return read_list(path, "DATA_LIST_TARGET", root, lambda: images)


@pytest.mark.parametrize(
    "line, image, label",
    [
        ("images/IMG 000 (copy).png", "images/IMG 000 (copy).png", None),
        ("images/IMG 000 (copy).png\t", "images/IMG 000 (copy).png", None),
        ("images/IMG 1.png", "images/IMG 1.png", None),
        ("IMG 1", "images/IMG 1.png", None),
        ("  images/a.png  ", "images/a.png", None),
        ("./images/a.png", "images/a.png", None),
        ("images//a.png", "images/a.png", None),
        (r"images\a.png", "images/a.png", None),
        (".\\images\\a.png\tmasks\\a.png", "images/a.png", "masks/a.png"),
        ("images/a.png masks/a.png", "images/a.png", "masks/a.png"),
        ("images/a.png   masks/a.png", "images/a.png", "masks/a.png"),
        ("images/IMG 1.png masks/IMG 1.png", "images/IMG 1.png", "masks/IMG 1.png"),
        ("images/IMG 1.png\tmasks/IMG 1.png", "images/IMG 1.png", "masks/IMG 1.png"),
        ('"images/IMG 1.png" "masks/IMG 1.png"', "images/IMG 1.png", "masks/IMG 1.png"),
        ('"images/IMG 1.png" masks/a.png', "images/IMG 1.png", "masks/a.png"),
        ('"IMG 1"', "images/IMG 1.png", None),
        ("a.png", "images/a.png", None),
        ("a", "images/a.png", None),
        ("a.jpg", "images/a.png", None),
        ("frame.001", "images/frame.001.png", None),
        ("/images/a.png /masks/a.png", "images/a.png", "masks/a.png"),
        ("/SegNet/CamVid/images/a.png /SegNet/CamVid/masks/a.png", "images/a.png", "masks/a.png"),
        ("data/obj_train_data/a.png", "images/a.png", None),
        (r"C:\data\set\images\a.png", "images/a.png", None),
        ("images/missing.png", "images/missing.png", None),
        ("missing.png", "images/missing.png", None),
        ("images/missing.png masks/missing.png", "images/missing.png", "masks/missing.png"),
    ],
)
def test_a_line_names_an_image_and_its_label_in_every_usual_form(tmp_path, line, image, label):
    names = ("IMG 000 (copy).png", "IMG 1.png", "a.png", "frame.001.png")
    for name in names:
        picture(tmp_path, f"images/{name}")
        picture(tmp_path, f"masks/{name}")
    found = read(tmp_path, f"# a comment\n\n{line}\n", [f"images/{name}" for name in names])
    assert found == [Line(image, label)]


def test_a_path_from_the_root_of_the_file_system_is_one_from_the_folder_of_the_dataset(tmp_path, monkeypatch):
    picture(tmp_path, "data/images/a.png")
    monkeypatch.chdir(tmp_path)
    for root in (Path("data"), tmp_path / "data"):
        (tmp_path / "list.txt").write_text(f"{tmp_path}/data/images/a.png\n")
        assert read_list(tmp_path / "list.txt", "X", root, lambda: []) == [Line("images/a.png")]


def test_where_images_lie_in_several_folders_those_in_the_line_must_be_so(tmp_path):
    images = ["images/day/1.png", "images/night/1.png", "images/night/2.png"]
    for image in images:
        picture(tmp_path, image)
    lines = "night/1.png\n/elsewhere/images/day/1\n2\nfog/2.png\n"
    assert [line.image for line in read(tmp_path, lines, images)] == [images[1], images[0], images[2], "fog/2.png"]
    with pytest.raises(
        ValueError, match="list.txt, line 2: '1' matches 2 images, such as images/day/1.png and images/night/1.png: write it"
    ):
        read(tmp_path, "2\n1\n", images)


def test_a_line_that_leaves_open_what_it_means_is_refused_with_its_number(tmp_path):
    for line in ("a b c", "a.png\tb.png\tc.png"):
        with pytest.raises(ValueError, match="list.txt, line 2: 3 fields, expected an image, or an image and its label"):
            read(tmp_path, f"# the images\n{line}\n")


def test_files_of_an_archive_are_found_as_those_of_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("images/IMG 1.png", b"a picture")
    (tmp_path / "list.txt").write_text("images/IMG 1.png\nIMG 1\n")
    found = read_list(tmp_path / "list.txt", "X", tmp_path / "data.zip", lambda: ["images/IMG 1.png"])
    assert found == [Line("images/IMG 1.png")] * 2


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_dataset_takes_the_name_of_an_image_alone_without_its_ending_and_with_strange_folders(name, tmp_path):
    layout = LAYOUTS[name]
    root = write_dataset(name, tmp_path / name)
    image = layout.image.format(layout.names[1])
    short = image.rpartition("/")[2]
    forms = [short, short.rpartition(".")[0], f"./{image}", image.replace("/", "\\"), f"{root}/{image}", f"/elsewhere/{image}"]
    (tmp_path / "list.txt").write_text("\n".join(forms) + "\n")
    options = {"split": layout.split, "num_classes": layout.num_classes, "transform": PLAIN}
    whole = build_dataset(name, root, **options)
    dataset = build_dataset(name, root, list_file=tmp_path / "list.txt", **options)
    assert dataset.items == [next(item for item in whole.items if item.image == str(root / image))] * len(forms)


def test_a_label_of_another_name_is_taken_where_the_list_gives_it(tmp_path):
    root = write_dataset("GTA5", tmp_path / "GTA5")
    save_ids(root / "mended/00001_again.png", np.full((12, 20), 7))
    (tmp_path / "list.txt").write_text("images/00001.png\tmended/00001_again.png\n")
    dataset = build_dataset("GTA5", root, split="all", num_classes=19, transform=PLAIN, list_file=tmp_path / "list.txt")
    assert (dataset[0].label == 0).all()
    (tmp_path / "list.txt").write_text("images/00001.png\tmended/00001_lost.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 1 labels of GTA5 images are missing: .*mended/00001_lost.png"):
        build_dataset("GTA5", root, split="all", num_classes=19, transform=PLAIN, list_file=tmp_path / "list.txt")


def test_a_folder_pairs_listed_images_of_every_form_with_their_masks(tmp_path):
    for number, name in enumerate(("IMG 000 (copy)", "IMG 1", "2007_000033")):
        save_image(tmp_path / f"images/{name}.jpg", number)
        save_ids(tmp_path / f"masks/{name}.png", np.full((12, 20), number % 2))
    (tmp_path / "list.txt").write_text(f"images/IMG 000 (copy).jpg\nIMG 1\n{tmp_path}/images/2007_000033.jpg\n")
    options = {"images": "images/*.*", "labels": "masks/*.*", "classes": CLASSES, "list_file": tmp_path / "list.txt"}
    dataset = Folder(tmp_path, transform=PLAIN, **options)
    assert [sample.name for sample in dataset] == [f"images/{n}.jpg" for n in ("IMG 000 (copy)", "IMG 1", "2007_000033")]
    assert [int(sample.label.unique()) for sample in dataset] == [0, 1, 0]
