"""The data pipeline against arrays made by the published implementations."""

import cv2
import numpy as np
import pytest
import torch
from golden_cases import Case, golden_cases
from PIL import Image

from dada import label_sets
from dada.dataset.image_files import LabelIdError, read_inverse_depth, read_label_ids, to_train_ids
from dada.dataset.mapillary import NAMES_OF_V1_2, mapillary_id_map
from dada.dataset.transforms import EvalTransform, TrainTransform, resize_depth
from dada.normalization import CAFFE_BGR, Normalization


def raw_pixels(image):
    """In place of a normalisation: the pixels as they are."""
    return image.float()


def by_name(case: Case) -> str:
    return case.name


def labels_of(ids: np.ndarray, id_map: np.ndarray, size_wh) -> np.ndarray:
    """File ids -> train ids at `size_wh` through the training transform, as int64."""
    label = Image.fromarray(ids).point(id_map.tolist())
    image = Image.new("RGB", label.size)
    return TrainTransform(raw_pixels, resize=size_wh, flip=0.0)(image, label).label.numpy()


@pytest.mark.parametrize("case", golden_cases("advent_preprocess.npz"), ids=by_name)
def test_image_preprocessing_is_advents(case):
    size = case.settings["image_size_wh"]
    image = Image.fromarray(case.arrays["rgb"])
    mean = tuple(case.settings["mean_bgr"])
    assert mean == CAFFE_BGR.mean
    for transform in (TrainTransform(CAFFE_BGR, resize=size, flip=0.0), EvalTransform(CAFFE_BGR, size, "bicubic")):
        torch.testing.assert_close(transform(image).image, case.tensor("output"), rtol=0, atol=1e-5)
    resized = EvalTransform(raw_pixels, size, "bicubic")(image).image
    assert torch.equal(resized, case.tensor("resized_rgb").permute(2, 0, 1))


CITYSCAPES, MAPILLARY = (
    [case for case in golden_cases("cityscapes_labels.npz") if ("map_vector19" in case.arrays) == wanted]
    for wanted in (True, False)
)


@pytest.mark.parametrize("case", CITYSCAPES, ids=by_name)
def test_cityscapes_and_gta5_labels_are_advents_and_dadas(case):
    size = case.settings["size_wh"]
    for classes in (19, 16):
        vector = label_sets.cityscapes_id_map(classes)
        published = case.arrays[f"map_vector{classes}"]
        np.testing.assert_array_equal(vector[: len(published)], published)
        np.testing.assert_array_equal(labels_of(case.arrays["ids"], vector, size), case.arrays[f"label{classes}"])
    gta5 = labels_of(case.arrays["gta5_ids"], label_sets.cityscapes_id_map(19), size)
    np.testing.assert_array_equal(gta5, case.arrays["gta5_label19"])
    image = EvalTransform(CAFFE_BGR, size, "bicubic")(Image.fromarray(case.arrays["rgb"])).image
    torch.testing.assert_close(image, case.tensor("image"), rtol=0, atol=1e-5)


def readable(name: str) -> str:
    """The name that Mapillary shows for `object--support--pole` and so on."""
    irregular = {
        "construction--barrier--other-barrier": "Barrier",
        "construction--flat--crosswalk-plain": "Crosswalk - Plain",
        "marking--crosswalk-zebra": "Lane Marking - Crosswalk",
        "marking--general": "Lane Marking - General",
        "object--cctv-camera": "CCTV Camera",
        "object--traffic-sign--back": "Traffic Sign (Back)",
        "object--traffic-sign--front": "Traffic Sign (Front)",
    }
    return irregular.get(name) or name.split("--")[-1].replace("-", " ").title()


@pytest.mark.parametrize("case", MAPILLARY, ids=by_name)
def test_mapillary_in_training_is_dadas(case):
    size, background = tuple(case.settings["size_wh"]), case.settings["background_index"]
    names = case.settings["classes7"]
    assert names == list(label_sets.LABEL_SETS[len(names)].names)
    vector = mapillary_id_map(NAMES_OF_V1_2, len(names))
    assert list(map(readable, NAMES_OF_V1_2)) == case.settings["class_names"]
    np.testing.assert_array_equal(vector[: len(case.arrays["map_vector"])], case.arrays["map_vector"])

    image, ids = Image.fromarray(case.arrays["rgb"]), Image.fromarray(case.arrays["ids"])
    transform = TrainTransform(raw_pixels, fit=size, flip=0.0)
    views = transform(image, ids.point(vector.tolist()))
    assert views.label.shape == (size[1], size[0])  # DADA's has a third dimension, of 1
    np.testing.assert_array_equal(views.label, case.arrays["label7_scaled"])
    np.testing.assert_array_equal(views.image.permute(1, 2, 0), case.arrays["padded_rgb"])
    padded_ids = np.where(case.arrays["padded_ids"] == background, 255, case.arrays["padded_ids"])
    unmapped = ids.point([*range(background), *[255] * (256 - background)])
    np.testing.assert_array_equal(transform(image, unmapped).label, padded_ids)


@pytest.mark.parametrize("case", MAPILLARY, ids=by_name)
def test_mapillary_in_a_test_is_dadas(case):
    background = case.settings["background_index"]
    ids = Image.fromarray(case.arrays["ids"]).point([*range(background), *[255] * (256 - background)])
    transform = EvalTransform(raw_pixels, tuple(case.settings["size_wh"]), pad=True)
    views = transform(Image.fromarray(case.arrays["rgb"]), ids)
    padded_ids = case.arrays["aspect_padded_ids"]
    np.testing.assert_array_equal(views.label, np.where(padded_ids == background, 255, padded_ids))
    np.testing.assert_array_equal(views.image.permute(1, 2, 0), case.arrays["padded_rgb"])


@pytest.mark.parametrize("case", golden_cases("synthia_labels.npz"), ids=by_name)
def test_synthia_labels_are_dadas(case):
    for name, vector in (("label16", label_sets.synthia_id_map(16)), ("label7", label_sets.synthia_id_map(7, published=True))):
        got = labels_of(case.arrays["ids"], vector, case.settings["size_wh"])
        np.testing.assert_array_equal(got, case.arrays[name])


@pytest.mark.parametrize("case", golden_cases("dada_depth_decode.npz"), ids=by_name)
def test_depth_is_dadas(case, tmp_path):
    path = tmp_path / "depth.png"
    path.write_bytes(case.arrays["png_bytes"].tobytes())
    depth = read_inverse_depth(path)
    height, width = case.arrays["depth_raw"].shape
    assert depth.shape == (height, width) and depth.dtype == np.float32
    views = TrainTransform(raw_pixels, resize=case.settings["size_wh"], flip=0.0)(Image.new("RGB", (width, height)), None, depth)
    assert torch.equal(views.depth, case.tensor("output"))


@pytest.mark.parametrize("case", golden_cases("plca_data.npz", "labels_"), ids=by_name)
def test_plca_labels_are_ours_in_another_order(case):
    count = len(case.settings["class_order"])
    order = label_sets.PLCA_CLASSES[count]
    ours_name = {"traffic sign": "sign", "traffic light": "light", "pedestrian": "person"}
    names = label_sets.LABEL_SETS[count].names
    assert [names[i] for i in order] == [ours_name.get(name, name) for name in case.settings["class_order"]]

    id_map = {
        "SYNTHIA": label_sets.synthia_id_map,
        "Cityscapes": label_sets.cityscapes_id_map,
        "GTAV": label_sets.cityscapes_id_map,
    }[case.settings["domain"]](count)
    translate = np.full(256, label_sets.IGNORE_LABEL)  # also for id 34, which PLCA hands through unmapped
    translate[:count] = order
    np.testing.assert_array_equal(id_map[case.arrays["ids"]], translate[case.arrays["train_ids"]])


@pytest.mark.parametrize("case", golden_cases("plca_data.npz", "bgr_normalize"), ids=by_name)
def test_normalisation_is_plcas(case):
    std = tuple(float(value) for value in case.settings["std"])
    normalization = Normalization("BGR", 1.0, tuple(case.settings["mean_bgr"]), std)
    image, label = Image.fromarray(case.arrays["rgb"]), Image.fromarray(case.arrays["label"])
    views = TrainTransform(normalization, flip=0.0)(image, label)
    torch.testing.assert_close(views.image, case.tensor("image"), rtol=0, atol=1e-5)
    assert torch.equal(views.label, case.tensor("target"))


@pytest.mark.parametrize("case", golden_cases("plca_data.npz", "resize"), ids=by_name)
def test_resize_is_plcas(case):
    height, width = case.settings["size_hw"]
    image, label = Image.fromarray(case.arrays["rgb"]), Image.fromarray(case.arrays["label"])
    views = EvalTransform(raw_pixels, (width, height), "bilinear", label_size=(width, height))(image, label)
    assert torch.equal(views.image, case.tensor("image").permute(2, 0, 1).float())
    assert torch.equal(views.label, case.tensor("target").long())


def test_golden_depth_rule_is_opencvs_for_every_ratio():
    for old in range(1, 130, 3):
        for new in range(1, 130, 4):
            row = np.arange(old, dtype=np.float32)[None]
            want = cv2.resize(row, (new, 1), interpolation=cv2.INTER_NEAREST)
            np.testing.assert_array_equal(resize_depth(row, (1, new)), want)


@pytest.mark.parametrize("case", golden_cases("dada_depth_decode.npz"), ids=by_name)
def test_golden_16_bit_file_gives_its_first_channel(case, tmp_path):
    """The same bytes read as a label file: ids over 255 are never cut to 8 bits, and refused where none is defined."""
    path = tmp_path / "label.png"
    path.write_bytes(case.arrays["png_bytes"].tobytes())
    largest = int(case.arrays["depth_raw"].max())
    assert largest > 255
    ids = read_label_ids(path)
    raw = case.arrays["depth_raw"]
    np.testing.assert_array_equal(np.asarray(ids), raw if raw.ndim == 2 else raw[..., 0])
    nothing, everything = np.full(256, 255, dtype=np.uint8), np.ones(256, dtype=bool)
    with pytest.raises(LabelIdError, match=r"label id \d+ out of range in .*label.png"):
        to_train_ids(ids, path, nothing, everything, "SYNTHIA")
