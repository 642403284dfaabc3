import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dada.dataset import SYNTHIA, Cityscapes, Draw, EvalTransform, TrainTransform, build_dataset, step_loader
from dada.dataset.image_files import read_image, read_inverse_depth, read_label_ids
from dada.label_sets import synthia_id_map
from dada.normalization import CAFFE_BGR

WIDTH, HEIGHT = 20, 12


def raw_pixels(image):
    return image.float()


PLAIN = EvalTransform(raw_pixels)
SYNTHIA_IDS = (np.arange(HEIGHT * WIDTH) % 23).reshape(HEIGHT, WIDTH)
CITYSCAPES_IDS = (np.arange(HEIGHT * WIDTH) % 34).reshape(HEIGHT, WIDTH)


def random_rgb(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def save_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_rgb(seed)).save(path)


def save_ids(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def save_raw_ids(path, ids):
    """As SYNTHIA's GT/LABELS: 16-bit RGB, class in red, object number in green."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green = ids.astype(np.uint16), (np.arange(ids.size) * 7).reshape(ids.shape).astype(np.uint16)
    assert cv2.imwrite(str(path), np.dstack([np.zeros_like(red), green, red]))


def save_depth(path, centimetres, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = centimetres.astype(np.uint16)
    assert cv2.imwrite(str(path), np.dstack([depth] * channels) if channels > 1 else depth)


@pytest.fixture
def synthia(tmp_path):
    """Three images; raw labels in all, parsed labels in none."""
    root = tmp_path / "SYNTHIA"
    for number in range(3):
        name = f"{number:07d}.png"
        save_image(root / "RGB" / name, number)
        save_raw_ids(root / "GT/LABELS" / name, np.roll(SYNTHIA_IDS, number))
        save_depth(root / "Depth" / name, np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 250)
    return root


@pytest.fixture
def cityscapes(tmp_path):
    """Two cities, three images."""
    root = tmp_path / "Cityscapes"
    for number, stem in enumerate(("ulm/ulm_000000_000019", "aachen/aachen_000001_000019", "aachen/aachen_000000_000019")):
        save_image(root / "leftImg8bit/val" / f"{stem}_leftImg8bit.png", number)
        save_ids(root / "gtFine/val" / f"{stem}_gtFine_labelIds.png", np.roll(CITYSCAPES_IDS, number))
    return root


def test_synthia_reads_the_16_bit_labels_that_pil_misreads(synthia):
    path = synthia / "GT/LABELS/0000000.png"
    with Image.open(path) as misread:
        assert np.asarray(misread.convert("RGB"))[..., 0].max() == 0  # the trap: everything is void
    sample = SYNTHIA(synthia, transform=PLAIN)[0]
    np.testing.assert_array_equal(sample.label, synthia_id_map(16)[SYNTHIA_IDS])
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0), random_rgb(0))
    assert sample.name == "0000000.png" and sample.size == (HEIGHT, WIDTH)
    assert sample.depth is None and sample.view is None


def test_synthia_prefers_parsed_labels(synthia):
    for number in range(3):
        save_ids(synthia / "parsed_LABELS" / f"{number:07d}.png", np.full((HEIGHT, WIDTH), 8))
    car = 12
    assert (SYNTHIA(synthia, transform=PLAIN)[1].label == car).all()
    shutil.rmtree(synthia / "parsed_LABELS")
    raw = SYNTHIA(synthia, transform=PLAIN)[1].label
    np.testing.assert_array_equal(raw, synthia_id_map(16)[np.roll(SYNTHIA_IDS, 1)])


def test_16_bit_files_are_understood_in_parsed_labels_too(synthia):
    (synthia / "GT/LABELS").rename(synthia / "parsed_LABELS")
    label = SYNTHIA(synthia, transform=PLAIN)[0].label
    np.testing.assert_array_equal(label, synthia_id_map(16)[SYNTHIA_IDS])


@pytest.mark.parametrize("channels", [1, 3])
def test_synthia_depth_is_inverse(synthia, channels):
    centimetres = np.full((HEIGHT, WIDTH), 65535)
    centimetres[0, :2] = 0, 99
    save_depth(synthia / "Depth/0000001.png", centimetres, channels)
    depth = SYNTHIA(synthia, transform=PLAIN, with_depth=True)[1].depth
    assert depth.dtype == torch.float32
    assert depth[0, 0] == 65536 and depth[0, 1] == pytest.approx(655.36) and (depth[1:] == 1).all()


def test_published_seven_classes_reach_the_dataset(synthia):
    wall = SYNTHIA_IDS == 21
    ours = SYNTHIA(synthia, "all", 7, transform=PLAIN)[0].label.numpy()
    published = SYNTHIA(synthia, "all", 7, transform=PLAIN, published=True)[0].label.numpy()
    assert (ours[wall] == 1).all() and (published[wall] == 255).all()


@pytest.mark.parametrize("line", ["{}", "RGB/{}\tGT/LABELS/{}"])
def test_synthia_list_files_of_advent_and_dada(synthia, tmp_path, line):
    names = ["0000002.png", "0000000.png"]
    list_file = tmp_path / "all.txt"
    list_file.write_text("# chosen\n" + "\n".join(line.format(name, name) for name in names) + "\n\n")
    dataset = SYNTHIA(synthia, transform=PLAIN, list_file=str(tmp_path / "{}.txt"))
    assert [sample.name for sample in dataset] == names
    np.testing.assert_array_equal(dataset[0].label, synthia_id_map(16)[np.roll(SYNTHIA_IDS, 2)])


def test_cityscapes_scan_is_sorted_by_city(cityscapes):
    dataset = Cityscapes(cityscapes, "val", transform=PLAIN)
    assert [sample.name for sample in dataset] == [
        "aachen/aachen_000000_000019_leftImg8bit.png",
        "aachen/aachen_000001_000019_leftImg8bit.png",
        "ulm/ulm_000000_000019_leftImg8bit.png",
    ]
    np.testing.assert_array_equal(dataset[2].image.permute(1, 2, 0), random_rgb(0))
    road, void = dataset[2].label[0, 7], dataset[2].label[0, 0]
    assert (road, void) == (0, 255)
    assert dataset.num_classes == 19 and dataset.classes.names[9] == "terrain"


@pytest.mark.parametrize(
    "line",
    [
        "{0}_leftImg8bit.png",
        "leftImg8bit/val/{0}_leftImg8bit.png",
        "leftImg8bit/val/{0}_leftImg8bit.png\tgtFine/val/{0}_gtFine_labelIds.png",
    ],
)
def test_cityscapes_list_files_of_advent_and_dada(cityscapes, tmp_path, line):
    (tmp_path / "val.txt").write_text(line.format("ulm/ulm_000000_000019") + "\n")
    dataset = Cityscapes(cityscapes, "val", 16, transform=PLAIN, list_file=tmp_path / "{}.txt")
    assert len(dataset) == 1 and dataset[0].name == "ulm/ulm_000000_000019_leftImg8bit.png"
    assert dataset[0].label[0, 7] == 0 and dataset[0].label[1, 2] == 255  # ids 7 and 22, terrain


def test_the_labels_of_train_extra_are_the_coarse_ones(cityscapes, tmp_path):
    """Alone, and in a list that mixes both kinds, as PLCA's train++."""
    stem = "bochum/bochum_000000_000313"
    save_image(cityscapes / "leftImg8bit/train_extra" / f"{stem}_leftImg8bit.png", 3)
    save_ids(cityscapes / "gtCoarse/train_extra" / f"{stem}_gtCoarse_labelIds.png", np.full((HEIGHT, WIDTH), 26))
    assert (Cityscapes(cityscapes, "train_extra", transform=PLAIN)[0].label == 13).all()
    lines = [f"leftImg8bit/train_extra/{stem}_leftImg8bit.png", "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"]
    (tmp_path / "mixed.txt").write_text("\n".join(lines))
    mixed = Cityscapes(cityscapes, "train", transform=PLAIN, list_file=tmp_path / "mixed.txt")
    assert (mixed[0].label == 13).all() and mixed[1].label[0, 7] == 0
    shutil.rmtree(cityscapes / "gtCoarse")
    with pytest.raises(FileNotFoundError, match="labels for split 'train_extra'(.|\n)*gtCoarse.zip"):
        Cityscapes(cityscapes, "train_extra", transform=PLAIN)


@pytest.mark.parametrize("listed", [False, True])
def test_without_labels_gtfine_need_not_exist(cityscapes, tmp_path, listed):
    shutil.rmtree(cityscapes / "gtFine")
    (tmp_path / "list.txt").write_text("ulm/ulm_000000_000019_leftImg8bit.png\n")
    list_file = tmp_path / "list.txt" if listed else ""
    dataset = Cityscapes(cityscapes, "val", transform=PLAIN, with_labels=False, list_file=list_file)
    assert len(dataset) == (1 if listed else 3)
    assert dataset[0].label is None and dataset.read_label(0) is None


def test_without_labels_gtfine_is_never_opened(cityscapes):
    for path in (cityscapes / "gtFine/val").rglob("*.png"):
        path.write_bytes(b"no image at all")
    dataset = Cityscapes(cityscapes, "val", transform=PLAIN, with_labels=False)
    assert all(sample.label is None for sample in dataset)


def test_an_info_file_replaces_names_and_map(cityscapes, tmp_path):
    info = {"classes": 1, "label": ["way"], "palette": [[9, 9, 9]], "label2train": [[7, 0], [8, 0]]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    dataset = Cityscapes(cityscapes, "val", transform=PLAIN, info=tmp_path / "info.json")
    assert dataset.num_classes == 1
    np.testing.assert_array_equal(dataset[2].label == 0, (CITYSCAPES_IDS == 7) | (CITYSCAPES_IDS == 8))


def test_build_dataset_makes_either_and_lists_the_names_it_knows(synthia, cityscapes):
    common = {"num_classes": 16, "transform": PLAIN}
    source = build_dataset("SYNTHIA", synthia, split="all", with_depth=True, published=True, **common)
    target = build_dataset("Cityscapes", cityscapes, split="val", with_labels=False, role="target", **common)
    assert source[0].depth is not None and target[0].label is None
    with pytest.raises(ValueError, match="TARGET is 'Cityscape'; the datasets are SYNTHIA, Cityscapes, Mapillary"):
        build_dataset("Cityscape", cityscapes, split="val", role="target", **common)


# ---- what goes wrong, before training


def test_a_missing_root_names_the_setting(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Cityscapes(tmp_path / "nowhere", "train", transform=PLAIN)
    message = str(error.value)
    assert "Cityscapes images for split 'train' not found" in message
    assert f"{tmp_path / 'nowhere'} does not exist either" in message
    assert "Set DATA_DIRECTORY_TARGET to the folder that holds leftImg8bit/" in message
    assert f"it is now '{tmp_path / 'nowhere'}'" in message
    assert "leftImg8bit_trainvaltest.zip" in message


def test_a_missing_folder_is_answered_with_what_is_there(cityscapes, synthia):
    with pytest.raises(FileNotFoundError, match="leftImg8bit exists and contains: val") as error:
        Cityscapes(cityscapes, "train", transform=PLAIN)
    assert "leftImg8bit/train does not exist" in str(error.value)
    shutil.rmtree(cityscapes / "leftImg8bit")
    with pytest.raises(FileNotFoundError, match="Cityscapes exists and contains: gtFine"):
        Cityscapes(cityscapes, "val", transform=PLAIN)
    shutil.rmtree(synthia / "GT")
    with pytest.raises(FileNotFoundError, match="SYNTHIA labels not found(.|\n)*contains: Depth, RGB") as error:
        SYNTHIA(synthia, transform=PLAIN)
    assert "DATA_DIRECTORY_SOURCE" in str(error.value)
    shutil.rmtree(synthia / "Depth")
    with pytest.raises(FileNotFoundError, match="SYNTHIA depth not found"):
        SYNTHIA(synthia, transform=PLAIN, with_labels=False, with_depth=True)


def test_a_root_one_level_too_high_is_recognised(synthia):
    with pytest.raises(FileNotFoundError, match=f"Did you mean '{synthia}'"):
        SYNTHIA(synthia.parent, transform=PLAIN)


def test_missing_labels_of_cityscapes_are_asked_for_by_their_archive(cityscapes):
    shutil.rmtree(cityscapes / "gtFine")
    with pytest.raises(FileNotFoundError, match="labels for split 'val'(.|\n)*gtFine_trainvaltest.zip"):
        Cityscapes(cityscapes, "val", transform=PLAIN)


def test_an_empty_folder_is_reported(cityscapes, synthia):
    for path in [*cityscapes.rglob("*_leftImg8bit.png"), *(synthia / "RGB").iterdir()]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no Cityscapes images in .*val: .*\*/\*_leftImg8bit.png.*aachen, ulm"):
        Cityscapes(cityscapes, "val", transform=PLAIN)
    with pytest.raises(FileNotFoundError, match="no SYNTHIA images in .*RGB: .*it is empty"):
        SYNTHIA(synthia, transform=PLAIN)


def test_images_without_labels_are_counted_and_named_when_the_dataset_is_built(cityscapes, synthia):
    (cityscapes / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 labels of Cityscapes images are missing: .*ulm_000000_000019_gtFine"):
        Cityscapes(cityscapes, "val", transform=PLAIN)
    for number in range(3, 12):
        save_image(synthia / "RGB" / f"{number:07d}.png", number)
    with pytest.raises(FileNotFoundError) as error:
        SYNTHIA(synthia, transform=PLAIN)
    assert "9 of 12 labels of SYNTHIA images are missing" in str(error.value)
    assert "0000003.png" in str(error.value) and "and 4 more" in str(error.value)
    assert "0000011.png" not in str(error.value)


def test_a_list_that_names_an_image_that_is_not_there(synthia, tmp_path):
    (tmp_path / "list.txt").write_text("0000000.png\n0000077.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 2 SYNTHIA images are missing: .*0000077.png(.|\n)*DATA_LIST_SOURCE"):
        SYNTHIA(synthia, transform=PLAIN, list_file=tmp_path / "list.txt")


def test_bad_list_files_are_named(synthia, tmp_path):
    with pytest.raises(FileNotFoundError, match="list file .*none.txt not found. Correct DATA_LIST_SOURCE"):
        SYNTHIA(synthia, transform=PLAIN, list_file=tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty.txt names no image"):
        SYNTHIA(synthia, transform=PLAIN, list_file=tmp_path / "empty.txt")
    (tmp_path / "three.txt").write_text("0000000.png\na b c\n")
    with pytest.raises(ValueError, match="three.txt, line 2: 3 fields"):
        SYNTHIA(synthia, transform=PLAIN, list_file=tmp_path / "three.txt")


def test_options_a_dataset_does_not_have_are_refused(synthia, cityscapes):
    with pytest.raises(ValueError, match="SYNTHIA has no split 'train'.*SET_SOURCE"):
        SYNTHIA(synthia, "train", transform=PLAIN)
    with pytest.raises(ValueError, match="Cityscapes has no depth.*USE_DEPTH"):
        Cityscapes(cityscapes, "val", transform=PLAIN, with_depth=True)


# ---- what goes wrong in a file


def test_an_undefined_label_id_names_file_id_place_and_range(synthia, cityscapes):
    ids = SYNTHIA_IDS.copy()
    ids[3, 5], ids[4, 4], ids[5, 5] = 200, 200, 201
    save_raw_ids(synthia / "GT/LABELS/0000001.png", ids)
    with pytest.raises(ValueError) as error:
        SYNTHIA(synthia, transform=PLAIN)[1]
    message = str(error.value)
    assert "label id 200 out of range" in message and "GT/LABELS/0000001.png" in message
    assert "2 pixels, the first at row 3, column 5; 1 more such ids: 201" in message
    assert "SYNTHIA labels hold ids 0 to 22 and 255" in message

    path = cityscapes / "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
    ids = CITYSCAPES_IDS.copy()
    ids[0, 0] = 77
    save_ids(path, ids)
    with pytest.raises(ValueError, match="label id 77 out of range in .*Cityscapes labels hold ids 0 to 34 and 255"):
        Cityscapes(cityscapes, "val", transform=PLAIN)[0]


def test_ids_over_255_are_refused_not_wrapped(synthia):
    save_raw_ids(synthia / "GT/LABELS/0000000.png", SYNTHIA_IDS + 256)
    with pytest.raises(ValueError, match="label id 256 out of range in .*0000000.png: .*22 more such ids"):
        SYNTHIA(synthia, transform=PLAIN)[0]


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.9])
def test_truncated_files_are_named_with_a_remedy(synthia, kept):
    readers = {"RGB": read_image, "GT/LABELS": read_label_ids, "Depth": read_inverse_depth}
    for folder, read in readers.items():
        path = synthia / folder / "0000001.png"
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        with pytest.raises(ValueError, match="0000001.png"):
            read(path)
        if isinstance(kept, float):
            with pytest.raises(ValueError, match=rf"cannot read {path} \(\d+ bytes\): .*cut short or damaged.*download it"):
                read(path)


def test_damaged_bytes_are_noticed(synthia):
    for folder, read in {"RGB": read_image, "GT/LABELS": read_label_ids}.items():
        path = synthia / folder / "0000001.png"
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 4] = bytes(255 - value for value in data[middle : middle + 4])
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot read .*0000001.png"):
            read(path)


def test_a_damaged_16_bit_file_is_refused_even_where_opencv_decodes_what_it_can(synthia, monkeypatch):
    path = synthia / "GT/LABELS/0000001.png"
    path.write_bytes(path.read_bytes()[:-30])
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint16))
    with pytest.raises(ValueError, match="cannot read .*0000001.png"):
        read_label_ids(path)


def test_an_error_names_its_file_through_a_worker(synthia):
    (synthia / "RGB/0000001.png").write_bytes((synthia / "RGB/0000001.png").read_bytes()[:300])
    loader = step_loader(SYNTHIA(synthia, transform=PLAIN), 3, seed=0, stop_step=1, num_workers=1)
    with pytest.raises(ValueError, match="cannot read .*0000001.png"):
        list(loader)


def test_image_and_label_of_different_size_are_refused_with_both_sizes(cityscapes):
    save_ids(cityscapes / "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png", CITYSCAPES_IDS[:, :-1])
    with pytest.raises(ValueError, match="differ in size: .*labelIds.png is 19x12, .*leftImg8bit.png is 20x12"):
        Cityscapes(cityscapes, "val", transform=PLAIN)[0]


def test_image_and_depth_of_different_size_are_refused(synthia):
    save_depth(synthia / "Depth/0000000.png", np.ones((HEIGHT + 1, WIDTH)))
    with pytest.raises(ValueError, match="depth and image differ in size: .* is 20x13, .* is 20x12"):
        SYNTHIA(synthia, transform=PLAIN, with_depth=True)[0]


def test_a_colour_picture_is_no_label(tmp_path):
    save_image(tmp_path / "gtFine_color.png", 0)
    with pytest.raises(ValueError, match="gtFine_color.png is a colour picture.*labelIds"):
        read_label_ids(tmp_path / "gtFine_color.png")


def test_an_8_bit_depth_file_is_refused(tmp_path):
    save_ids(tmp_path / "depth.png", SYNTHIA_IDS)
    with pytest.raises(ValueError, match="depth.png is not a 16-bit PNG"):
        read_inverse_depth(tmp_path / "depth.png")


# ---- file kinds


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    grey = np.tile(np.array([0, 255], dtype=np.uint8), (4, 3))
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    got = np.asarray(read_image(path))
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, axis=2))


def test_label_files_of_every_kind_give_their_ids(tmp_path):
    ids = SYNTHIA_IDS.astype(np.uint8)
    paletted = Image.fromarray(ids)
    paletted.putpalette(bytes(range(255, -1, -1)) * 3)
    paletted.save(tmp_path / "paletted.png")
    Image.fromarray(ids).save(tmp_path / "grey.png")
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "grey16.png")
    save_raw_ids(tmp_path / "rgb16.png", ids)
    rgba = np.dstack([np.zeros_like(ids), np.zeros_like(ids), ids, np.full_like(ids, 9)]).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "rgba16.png"), rgba)
    for path in tmp_path.iterdir():
        got = read_label_ids(path, first_channel=True)
        assert got.mode == "L"
        np.testing.assert_array_equal(np.asarray(got), ids, err_msg=path.name)


# ---- reproducibility


def training_set(root, seed=7):
    transform = TrainTransform(CAFFE_BGR, load_size=(12, 16), crop=(10, 10), color_jitter=0.3, second_view=True)
    return SYNTHIA(root, transform=transform, with_depth=True, seed=seed)


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b))


def test_a_draw_depends_on_seed_step_slot_and_index_only(synthia):
    dataset = training_set(synthia)
    draw = Draw(1, 5, 0)
    torch.manual_seed(1)
    first = dataset[draw]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(dataset[draw], first)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(training_set(synthia)[draw], first)
    for other in (dataset[Draw(1, 6, 0)], dataset[Draw(1, 5, 1)], training_set(synthia, seed=8)[draw]):
        assert other.name == first.name and not same(other, first)


def test_source_and_target_of_one_step_are_augmented_independently(synthia, cityscapes):
    transform = TrainTransform(raw_pixels, crop=(1, 1), flip=0.0)
    for path in [*(synthia / "RGB").iterdir(), *cityscapes.rglob("*_leftImg8bit.png")]:
        image = np.dstack([np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)] * 3)
        Image.fromarray(image).save(path)  # every pixel tells its place
    source = SYNTHIA(synthia, transform=transform, with_labels=False, seed=7)
    target = Cityscapes(cityscapes, "val", transform=transform, with_labels=False, seed=7)
    pairs = [(source[Draw(0, step, 0)].image[0, 0, 0], target[Draw(0, step, 0)].image[0, 0, 0]) for step in range(20)]
    assert sum(a == b for a, b in pairs) < 5


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_an_interruption(synthia):
    def batches(num_workers, start_step=0):
        dataset = training_set(synthia)
        return list(step_loader(dataset, 2, seed=7, start_step=start_step, stop_step=6, num_workers=num_workers))

    torch.manual_seed(1)
    whole = batches(0)
    torch.manual_seed(2)
    for other, want in ((batches(2), whole), (batches(0, start_step=4), whole[4:])):
        assert len(other) == len(want)
        assert all(same(a, b) for a, b in zip(other, want))
    assert whole[0].view.shape == (2, 3, 10, 10) and whole[0].depth.shape == (2, 10, 10)


def test_a_dataset_survives_pickling(synthia):
    dataset = training_set(synthia)
    assert same(pickle.loads(pickle.dumps(dataset))[Draw(2, 3, 1)], dataset[Draw(2, 3, 1)])
