"""Predictions under the test-time options, and scores that follow from one confusion matrix."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TinyNetwork, random_batch

from dada.build import eval_loader as build_eval_loader
from dada.config import cfg, cfg_from_list
from dada.dataset import Batch
from dada.dataset.own_classes import own_classes
from dada.domain_adaptation.cycle_association import spatial_aggregation
from dada.evaluation.evaluator import Evaluation, evaluate, table, to_json
from dada.evaluation.predictor import Predictor
from dada.label_sets import label_set
from dada.model.outputs import Outputs
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB

CPU = torch.device("cpu")
K, SIZE = 5, (37, 45)


class Network(TinyNetwork):
    """The tiny network with what a Predictor asks of a segmentation model; seeds give different ones."""

    normalization = TORCHVISION_RGB

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(K)
        for parameter in self.parameters():
            parameter.data.mul_(3)  # far from uniform predictions

    def classify(self, features, skip=None):
        return self.head_main(features)


class Answer:
    """A network that gives every pixel the class that the red channel of the image names."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, image):
        ids = TORCHVISION_RGB.inverse(image)[:, 0].long()
        return Outputs(10.0 * F.one_hot(ids, self.num_classes).permute(0, 3, 1, 2).float(), image)


def image(seed: int = 0) -> torch.Tensor:
    return random_batch(2, (32, 40), seed=seed).image


@torch.no_grad()
def probabilities(network, x, size=SIZE, align_corners=True) -> torch.Tensor:
    return F.interpolate(network(x).logits, size, mode="bilinear", align_corners=align_corners).softmax(1)


# --- predictions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_prediction_is_the_softmax_of_the_upsampled_logits(align_corners):
    network, x = Network(), image()
    got = Predictor([network], align_corners=align_corners)(x, SIZE)
    assert got.shape == (2, K, *SIZE) and got.dtype == torch.float32
    torch.testing.assert_close(got, probabilities(network, x, align_corners=align_corners))


def test_flip_averages_with_the_mirrored_prediction_of_the_mirrored_image():
    network, x = Network(), image()
    mirrored = probabilities(network, x.flip(-1)).flip(-1)
    assert not torch.allclose(mirrored, probabilities(network, x), atol=0.01)
    by_hand = (probabilities(network, x) + mirrored) / 2
    torch.testing.assert_close(Predictor([network], flip=True)(x, SIZE), by_hand)


def test_scales_are_averaged_at_the_wanted_size():
    network, x = Network(), image()
    larger = F.interpolate(x, scale_factor=1.5, mode="bilinear")
    assert larger.shape[-2:] == (48, 60)
    by_hand = (probabilities(network, x) + probabilities(network, larger)) / 2
    torch.testing.assert_close(Predictor([network], scales=(1.0, 1.5))(x, SIZE), by_hand)


def test_an_ensemble_averages_probabilities_by_its_weights():
    networks, x = [Network(0), Network(1)], image()
    parts = [probabilities(n, x) for n in networks]
    torch.testing.assert_close(Predictor(networks, [3.0, 1.0])(x, SIZE), 0.75 * parts[0] + 0.25 * parts[1])
    torch.testing.assert_close(Predictor(networks)(x, SIZE), (parts[0] + parts[1]) / 2)


def test_flip_scales_and_members_together_still_give_probabilities():
    got = Predictor([Network(0), Network(1)], [2, 1], flip=True, scales=(0.75, 1.0))(image(), SIZE)
    torch.testing.assert_close(got.sum(1), torch.ones(2, *SIZE))


def test_aggregation_mixes_features_and_then_probabilities_as_plca_does():
    network, x = Network(), image()
    with torch.no_grad():
        logits = network.classify(spatial_aggregation(network(x).features))
        mixed = spatial_aggregation(logits.softmax(1), metric="kl")
    by_hand = F.interpolate(mixed, SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Predictor([network], aggregate=True, align_corners=False)(x, SIZE), by_hand)


def test_bfloat16_changes_a_prediction_by_rounding_only():
    network, x = Network(), image()
    got = Predictor([network], autocast=True)(x, SIZE)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, probabilities(network, x), rtol=0, atol=0.1)


@pytest.mark.parametrize("count,weights", [(2, [1.0]), (1, [1.0, 2.0]), (0, [])])
def test_an_ensemble_needs_one_weight_for_each_network(count, weights):
    with pytest.raises(ValueError, match=r"give one weight to each network"):
        Predictor([Network(k) for k in range(count)], weights)


def test_members_that_read_images_differently_each_get_the_same_pixels_their_own_way():
    other = Network(1)
    other.normalization = CAFFE_BGR
    pixels = torch.randint(256, (2, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    got = Predictor([Network(), other], [1.0, 3.0])(TORCHVISION_RGB(pixels), SIZE)
    parts = [probabilities(n, n.normalization(pixels)) for n in (Network(), other)]
    torch.testing.assert_close(got, 0.25 * parts[0] + 0.75 * parts[1])


def test_an_ensemble_may_average_logits_as_advent_does():
    networks, x = [Network(0), Network(1)], image()
    with torch.no_grad():
        parts = [F.interpolate(n(x).logits, SIZE, mode="bilinear", align_corners=True) for n in networks]
    got = Predictor(networks, [3.0, 1.0], average="logits")(x, SIZE)
    torch.testing.assert_close(got, (0.75 * parts[0] + 0.25 * parts[1]).softmax(1))
    averaged = Predictor(networks, [3.0, 1.0])(x, SIZE)
    assert (got.argmax(1) != averaged.argmax(1)).any()  # it is another prediction, not another scale


def test_one_network_and_view_predicts_the_same_whatever_is_averaged():
    a, b = (Predictor([Network()], average=kind)(image(), SIZE) for kind in ("probabilities", "logits"))
    torch.testing.assert_close(a, b)


def test_averaging_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="must be 'probabilities' or 'logits', not 'votes'"):
        Predictor([Network()], average="votes")
    with pytest.raises(ValueError, match="set TEST.WITH_AGGREGATION or LEGACY.LOGIT_ENSEMBLE to False"):
        Predictor([Network(), Network(1)], average="logits", aggregate=True)


@pytest.mark.parametrize("align_corners", [True, False])
def test_scores_may_be_upsampled_by_way_of_the_input_size(align_corners):
    network, x = Network(), image()
    with torch.no_grad():
        first = F.interpolate(network(x).logits, (32, 40), mode="bilinear", align_corners=align_corners)
    by_hand = F.interpolate(first, SIZE, mode="bilinear", align_corners=align_corners).softmax(1)
    got = Predictor([network], align_corners=align_corners, via_input=True)(x, SIZE)
    torch.testing.assert_close(got, by_hand)
    assert not torch.allclose(got, Predictor([network], align_corners=align_corners)(x, SIZE), atol=1e-3)


@pytest.mark.parametrize("window", [(32, 40), (64, 64)])
@pytest.mark.parametrize("aggregate", [False, True])
def test_one_window_over_all_predicts_what_the_whole_image_does(window, aggregate):
    options = {"aggregate": aggregate, "align_corners": False, "flip": True}
    whole = Predictor([Network()], via_input=True, **options)(image(), SIZE)
    assert torch.equal(Predictor([Network()], window=window, **options)(image(), SIZE), whole)


def test_windows_average_logits_at_the_input_size():
    network, x = Network(), image()
    with torch.no_grad():
        parts = [
            F.interpolate(network(x[..., left : left + 24]).logits, (32, 24), mode="bilinear", align_corners=True)
            for left in (0, 12, 16)
        ]
    total, count = torch.zeros(2, K, 32, 40), torch.zeros(40)
    for left, part in zip((0, 12, 16), parts):
        total[..., left : left + 24] += part
        count[left : left + 24] += 1
    by_hand = F.interpolate(total / count, SIZE, mode="bilinear", align_corners=True).softmax(1)
    torch.testing.assert_close(Predictor([network], window=(32, 24))(x, SIZE), by_hand)  # by half a window


@pytest.mark.parametrize("stride", [(33, 8), (8, 0)])
def test_windows_that_would_leave_pixels_out_are_refused(stride):
    with pytest.raises(ValueError, match=r"\(32, 32\) cannot move by .*TEST.SLIDE_STRIDE must be from 1 to"):
        Predictor([Network()], window=(32, 32), stride=stride)


def test_a_stride_without_windows_is_refused():
    with pytest.raises(ValueError, match="TEST.SLIDE_CROP, their size, is empty"):
        Predictor([Network()], stride=(8, 8))


# --- counting ------------------------------------------------------------------------------------------------


def answered(ids: torch.Tensor, label: torch.Tensor) -> Batch:
    """A batch whose images make `Answer` predict `ids` (B, H, W)."""
    rgb = torch.zeros(len(ids), 3, *ids.shape[1:])
    rgb[:, 0] = ids
    return Batch(TORCHVISION_RGB(rgb), label, None, [""] * len(ids), [tuple(ids.shape[1:])] * len(ids))


def test_every_labelled_pixel_of_every_image_of_a_batch_is_counted_once():
    g = torch.Generator().manual_seed(0)
    batches, by_hand = [], np.zeros((16, 16), dtype=int)
    for batch, size in ((3, (4, 6)), (1, (5, 3))):  # the last batch is smaller, and of another size
        ids, label = (torch.randint(16, (batch, *size), generator=g) for _ in range(2))
        label[0, 0, :2] = 255
        batches.append(answered(ids, label))
        for row, column in zip(label.flatten().tolist(), ids.flatten().tolist()):
            if row != 255:
                by_hand[row, column] += 1
    evaluation = evaluate(Predictor([Answer(16)]), batches, label_set(16), CPU)
    assert evaluation.confusion.dtype == torch.int64
    assert evaluation.confusion.tolist() == by_hand.tolist()
    assert evaluation.confusion.sum() == 3 * 24 + 15 - 4


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(Predictor([Answer(16)]), [], label_set(16), CPU)


# --- scores --------------------------------------------------------------------------------------------------


def matrix(counts: dict[tuple[str, str], int], num_classes: int = 16, extra_rows: int = 0) -> torch.Tensor:
    """From {(label, prediction): pixels}; label "other" is the row of classes outside the set."""
    names = label_set(num_classes).names
    confusion = torch.zeros(num_classes + extra_rows, num_classes, dtype=torch.int64)
    for (label, prediction), pixels in counts.items():
        confusion[num_classes if label == "other" else names.index(label), names.index(prediction)] = pixels
    return confusion


COUNTS = {
    ("road", "road"): 60,
    ("road", "sidewalk"): 20,
    ("sidewalk", "sidewalk"): 20,
    ("wall", "wall"): 10,
    ("wall", "building"): 30,
    ("building", "building"): 90,
    ("car", "car"): 40,
    ("car", "bus"): 10,
    ("sky", "vegetation"): 5,
    ("vegetation", "vegetation"): 15,
}


def test_one_matrix_gives_the_means_over_16_13_and_7_classes():
    road, sidewalk, wall, building = 60 / 80, 20 / 40, 10 / 40, 90 / 120
    car, bus, sky, vegetation = 40 / 50, 0.0, 0.0, 15 / 20
    means = Evaluation(matrix(COUNTS), label_set(16)).means
    assert set(means) == {"16", "13", "7"}
    assert means["16"] == pytest.approx(np.mean([road, sidewalk, wall, building, car, bus, sky, vegetation]))
    # Wall is not among the 13, yet its pixels taken for building remain an error of building.
    assert means["13"] == pytest.approx(np.mean([road, sidewalk, building, car, bus, sky, vegetation]))
    # Flat, construction and vehicle are right whichever of their classes was predicted.
    assert means["7"] == pytest.approx(np.mean([1.0, 1.0, 1.0, 0.0, 15 / 20]))


def test_the_means_of_19_classes_hold_those_of_every_smaller_set():
    confusion = torch.eye(19, dtype=torch.int64)
    assert Evaluation(confusion, label_set(19)).means == {"19": 1.0, "16": 1.0, "13": 1.0, "7": 1.0}


def test_pixels_of_other_classes_are_errors_under_count_only():
    counts = {("car", "car"): 30, ("other", "car"): 10, ("road", "road"): 5}
    confusion = matrix(counts, extra_rows=1)
    ignore, count = (Evaluation(confusion, label_set(16), rule) for rule in ("ignore", "count"))
    car = label_set(16).names.index("car")
    assert ignore.iou[car] == 1.0 and count.iou[car] == 0.75
    assert count.miou == pytest.approx((0.75 + 1) / 2)
    assert ignore.means["7"] == 1.0 and count.means["7"] == pytest.approx((0.75 + 1) / 2)


def test_the_table_lists_every_class_and_mean_with_a_dash_for_absent_classes():
    text = table(
        {
            "source-only": Evaluation(matrix(COUNTS), label_set(16)),
            "adapted": Evaluation(matrix({("road", "road"): 1}), label_set(16)),
        }
    )
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    assert rows["IoU (%)"] == ["source-only", "adapted"]
    assert set(label_set(16).names) <= set(rows)
    assert rows["road"] == ["75.0", "100.0"] and rows["rider"] == ["-", "-"] and rows["wall"] == ["25.0", "-"]
    assert rows["sky"] == ["0.0", "-"]  # labelled and never found is 0, not absent
    assert rows["mIoU 13, over 1 or 7 of 13 classes"][1] == "100.0"
    assert len({len(line) for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    ("cells", "said", "headline"),
    [
        ({("a", "a"): 3}, "mIoU 2, over 1 of 2 classes", "mIoU 100.00 over 1 of 2 classes"),
        ({("a", "b"): 3}, "mIoU 2", "mIoU 0.00"),
        ({("a", "a"): 3, ("b", "b"): 1}, "mIoU 2", "mIoU 100.00"),
        ({}, "mIoU 2, over 0 of 2 classes", "mIoU nan over 0 of 2 classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:mean IoU is NaN")
def test_a_mean_says_how_many_classes_it_covers_where_that_is_not_all(cells, said, headline):
    confusion = torch.zeros(2, 2, dtype=torch.int64)
    for (label, prediction), pixels in cells.items():
        confusion["ab".index(label), "ab".index(prediction)] = pixels
    found = Evaluation(confusion, own_classes(("a", "b")))
    assert table({"model_1": found}).splitlines()[-1].rpartition("  ")[0].strip() == said
    assert found.headline() == headline
    assert found.as_dict()["classes_in_mean"] == {"2": sum("ab"[k] in set(sum(cells, ())) for k in range(2))}


def test_the_dictionary_is_json_with_percentages_and_null_for_absent_classes():
    read = json.loads(to_json(Evaluation(matrix(COUNTS), label_set(16)).as_dict()))
    assert read["IoU"]["road"] == 75.0 and read["IoU"]["rider"] is None
    assert read["mIoU"]["13"] == pytest.approx(100 * np.mean([0.75, 0.5, 0.75, 0.8, 0, 0, 0.75]), abs=1e-4)
    assert read["confusion"] == matrix(COUNTS).tolist()


@pytest.mark.filterwarnings("ignore:mean IoU is NaN")
def test_a_mean_over_no_class_at_all_is_null_in_json():
    nothing = Evaluation(matrix({("wall", "wall"): 0}), label_set(16))
    assert json.loads(to_json(nothing.as_dict()))["mIoU"] == {"16": None, "13": None, "7": None}


# --- both class rules, from files on disk --------------------------------------------------------------------


ROAD, CAR, TERRAIN, TRUCK, TRAIN, UNLABELLED = 7, 26, 22, 27, 31, 0  # Cityscapes label ids


@pytest.fixture
def cityscapes(tmp_path):
    """Two images of 8x4 that show, in red, the train id of 16 that `Answer` predicts; the labels hold all of these ids."""
    road, car, vegetation = (label_set(16).names.index(n) for n in ("road", "car", "vegetation"))
    label = np.array([[ROAD] * 4 + [CAR] * 4, [TERRAIN] * 8, [TRUCK] * 4 + [TRAIN] * 4, [UNLABELLED] * 8], np.uint8)
    shown = np.array([[road] * 4 + [car] * 4, [vegetation] * 8, [car] * 8, [car] * 8], np.uint8)
    for name in ("ulm_000000_000019", "ulm_000001_000019"):
        for folder, end, array in (
            ("leftImg8bit", "leftImg8bit", np.stack([shown] * 3, -1)),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = tmp_path / folder / "val" / "ulm" / f"{name}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    cfg_from_list(
        [
            f"DATA_DIRECTORY_TARGET={tmp_path}",
            "NUM_WORKERS=0",
            "TEST.INPUT_SIZE_TARGET=[8, 4]",
            "TEST.BATCH_SIZE_TARGET=2",
            "GPU_ID=-1",
        ]
    )


def evaluated(rule: str, num_classes: int = 16) -> Evaluation:
    cfg_from_list([f"TEST.CLASS_RULE={rule}", f"NUM_CLASSES={num_classes}"])
    loader = build_eval_loader(cfg, TORCHVISION_RGB)
    return evaluate(Predictor([Answer(num_classes)]), loader, label_set(num_classes), CPU, rule)


def test_rule_ignore_leaves_terrain_truck_and_train_out(cityscapes):
    evaluation = evaluated("ignore")
    iou = dict(zip(label_set(16).names, evaluation.iou.tolist()))
    assert iou["road"] == iou["car"] == 1.0 and np.isnan(iou["vegetation"])
    assert evaluation.confusion.sum() == 2 * 8 and evaluation.miou == 1.0


def test_rule_count_takes_predictions_on_terrain_truck_and_train_as_errors(cityscapes):
    evaluation = evaluated("count")
    iou = dict(zip(label_set(16).names, evaluation.iou.tolist()))
    assert iou["road"] == 1.0 and iou["vegetation"] == 0.0
    assert iou["car"] == pytest.approx(4 / 12)  # 8 pixels of truck and train an image; the unlabelled row is no error
    assert evaluation.confusion.sum() == 2 * 24


def test_with_19_classes_both_rules_agree(cityscapes):
    a, b = evaluated("ignore", 19), evaluated("count", 19)
    assert np.array_equal(a.iou, b.iou, equal_nan=True)
    assert a.confusion.sum() == b.confusion.sum() == 2 * 24


def test_labels_may_be_scored_at_a_size_of_their_own(cityscapes):
    cfg_from_list(["TEST.OUTPUT_SIZE_TARGET=[16, 8]"])
    assert evaluated("ignore").confusion.sum() == 4 * 2 * 8


def test_images_and_labels_of_other_sizes_share_a_batch_size_and_are_all_counted(cityscapes, tmp_path):
    """The second image is twice as large, and as wide as high."""
    for path in tmp_path.rglob("ulm_000001*.png"):
        Image.open(path).resize((16, 16), Image.Resampling.NEAREST).save(path)
    cfg_from_list(["TEST.KEEP_RATIO=True"])
    batches = list(build_eval_loader(cfg, TORCHVISION_RGB))
    assert [tuple(b.image.shape) for b in batches] == [(1, 3, 4, 8), (1, 3, 4, 4)]
    assert [tuple(b.label.shape) for b in batches] == [(1, 4, 8), (1, 16, 16)]
    assert evaluated("ignore").confusion.sum() == 8 + 16 * 4


def test_images_enter_the_network_at_the_input_size_and_labels_keep_theirs(cityscapes):
    cfg_from_list(["TEST.INPUT_SIZE_TARGET=[12, 6]"])
    batch = next(iter(build_eval_loader(cfg, TORCHVISION_RGB)))
    assert batch.image.shape == (2, 3, 6, 12) and batch.label.shape == (2, 4, 8)
