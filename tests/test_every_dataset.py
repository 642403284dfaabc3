"""What holds for each dataset of DATASETS that has a published layout."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from layouts import HEIGHT, LAYOUTS, WIDTH, ids_of, random_rgb, save_ids, write_dataset
from PIL import Image

from dada.dataset import DATASETS, LABEL_SETS, Draw, EvalTransform, TrainTransform, build_dataset
from dada.normalization import TORCHVISION_RGB

PLAIN = EvalTransform(lambda image: image.float())


@pytest.fixture(params=sorted(LAYOUTS))
def name(request):
    return request.param


@pytest.fixture
def root(name, tmp_path):
    return write_dataset(name, tmp_path / name)


def built(name, root, transform=PLAIN, **options):
    layout = LAYOUTS[name]
    options = {"split": layout.split, "num_classes": layout.num_classes, **options}
    return build_dataset(name, root, transform=transform, **options)


def test_every_published_dataset_has_a_layout_here():
    assert set(DATASETS) - {"Folder"} == set(LAYOUTS)


def test_images_come_in_order_with_their_labels(name, root):
    dataset = built(name, root)
    stems = [LAYOUTS[name].names[k].split("/")[-1] for k in range(3)]
    assert [stem in sample.name.split("/")[-1] for sample, stem in zip(dataset, stems)] == [True] * 3
    sample = dataset[1]
    assert sample.size == (HEIGHT, WIDTH) and sample.depth is None
    if not sample.name.endswith(".jpg"):
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0), random_rgb(1))
    np.testing.assert_array_equal(sample.label, dataset.id_map[ids_of(name)])


def test_every_class_set_of_a_dataset_gives_ids_of_that_set(name, root):
    for num_classes in DATASETS[name].label_sets:
        dataset = built(name, root, num_classes=num_classes)
        assert dataset.classes is LABEL_SETS[num_classes]
        found = set(np.unique(dataset[0].label).tolist())
        assert found <= {*range(num_classes), 255}
        assert 255 in found and len(found) > num_classes // 2


def test_another_number_of_classes_is_refused_with_those_there_are(name, root):
    with pytest.raises(ValueError, match=f"NUM_CLASSES is 12, but {name} has .*classes"):
        built(name, root, num_classes=12)
    foreign = 16 if name == "CamVid" else 11
    with pytest.raises(ValueError, match=f"NUM_CLASSES is {foreign}, but {name} has"):
        built(name, root, num_classes=foreign)


@pytest.mark.parametrize("form", [0, 1])
def test_both_forms_of_list_files(name, root, tmp_path, form):
    layout = LAYOUTS[name]
    chosen = [layout.names[2], layout.names[0]]
    (tmp_path / f"{layout.split}.txt").write_text("".join(layout.lines[form].format(n) + "\n" for n in chosen))
    dataset = built(name, root, list_file=tmp_path / "{}.txt")
    assert [chosen[k].split("/")[-1] in dataset[k].name for k in range(2)] == [True, True] and len(dataset) == 2
    assert dataset[0].label is not None


def test_without_labels_their_folder_need_not_exist(name, root):
    shutil.rmtree(root / LAYOUTS[name].label_folder)
    dataset = built(name, root, with_labels=False)
    assert len(dataset) == 3 and all(sample.label is None for sample in dataset)


def test_without_labels_their_files_are_never_opened(name, root):
    for image in LAYOUTS[name].names:
        (root / LAYOUTS[name].label.format(image)).write_bytes(b"no image at all")
    assert all(sample.label is None for sample in built(name, root, with_labels=False))


def test_a_missing_label_folder_is_named(name, root):
    shutil.rmtree(root / LAYOUTS[name].label_folder)
    with pytest.raises(FileNotFoundError, match=f"{name} labels.* not found: .*{LAYOUTS[name].label_folder}.* does not exist"):
        built(name, root)


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_missing_root_names_the_setting_and_the_download(name, tmp_path, role):
    with pytest.raises(FileNotFoundError) as error:
        built(name, tmp_path / "nowhere", role=role)
    message = str(error.value)
    assert f"{name} images" in message and f"Set DATA_DIRECTORY_{role.upper()} to the folder that holds" in message
    assert "https://" in message


def test_an_empty_image_folder_is_reported(name, root):
    for image in LAYOUTS[name].names:
        (root / LAYOUTS[name].image.format(image)).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} images in "):
        built(name, root)


def test_a_missing_label_is_counted_before_anything_is_opened(name, root):
    (root / LAYOUTS[name].label.format(LAYOUTS[name].names[1])).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 3 labels of {name} images are missing"):
        built(name, root)


def test_an_id_that_the_dataset_does_not_define_is_refused(name, root):
    layout = LAYOUTS[name]
    path = root / layout.label.format(layout.names[0])
    save_ids(path, np.full((HEIGHT, WIDTH), layout.highest_id + 1), sixteen_bit=name == "SYNTHIA")
    with pytest.raises(ValueError, match=f"label id {layout.highest_id + 1} out of range in .*{path.name}"):
        built(name, root)[0]


def test_a_label_of_another_size_is_refused_with_what_to_do(name, root):
    layout = LAYOUTS[name]
    save_ids(root / layout.label.format(layout.names[0]), ids_of(name)[:, :-1], sixteen_bit=name == "SYNTHIA")
    advice = "list file" if name == "GTA5" else "same release"
    with pytest.raises(ValueError, match=f"label and image differ in size: .* is 19x12, .* is 20x12 .*{advice}"):
        built(name, root)[0]


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"SYNTHIA"}))
def test_depth_is_refused_where_there_is_none(name, root):
    with pytest.raises(ValueError, match=f"{name} has no depth here. Set USE_DEPTH to False"):
        built(name, root, with_depth=True)


def test_it_can_be_sent_to_a_loader_process(name, root):
    dataset = built(name, root, EvalTransform(TORCHVISION_RGB))
    assert pickle.loads(pickle.dumps(dataset)).items == dataset.items


def test_a_zip_archive_is_as_good_as_the_folder(name, root, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
    unpacked, packed = built(name, root), built(name, tmp_path / "packed.zip")
    assert [s.name for s in unpacked] == [s.name for s in packed]
    for a, b in zip(unpacked, packed):
        assert a.image.equal(b.image) and a.label.equal(b.label)


def test_as_source_and_as_target_a_dataset_is_augmented_independently(name, root):
    """Every pixel tells its place, so that a crop of one pixel tells where it was taken."""
    places = np.dstack([np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)] * 3)
    for image in LAYOUTS[name].names:
        Image.fromarray(places).save(root / LAYOUTS[name].image.format(image), quality=100)
    transform = TrainTransform(lambda image: image.float(), crop=(1, 1), flip=0.0)
    source, target = (built(name, root, transform, role=role, seed=7) for role in ("source", "target"))
    draws = [Draw(0, step, 0) for step in range(12)]
    assert sum(source[draw].image[0].equal(target[draw].image[0]) for draw in draws) < 5


def test_other_ids_are_the_classes_that_the_label_set_leaves_out(name, root):
    for num_classes in DATASETS[name].label_sets:
        dataset = built(name, root, num_classes=num_classes)
        whole = built(name, root, num_classes=max(DATASETS[name].label_sets))
        others = {whole.classes.names[i] for i in whole.id_map[dataset.other_ids]}
        expected = set() if num_classes == 7 else set(whole.classes.names) - set(dataset.classes.names)
        assert others == expected


def test_an_info_file_of_another_number_of_classes_is_refused(name, root, tmp_path):
    (tmp_path / "info.json").write_text(
        '{"classes": 2, "label": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "label2train": [[1, 0], [2, 1]]}'
    )
    assert built(name, root, num_classes=2, info=tmp_path / "info.json").classes.names == ("a", "b")
    with pytest.raises(ValueError, match="info.json holds 2 classes, but NUM_CLASSES is 16"):
        built(name, root, num_classes=16, info=tmp_path / "info.json")
