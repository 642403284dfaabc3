"""Confusion counts and the scores that follow: by hand, by set arithmetic, against published evaluations."""

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close_relative, golden_cases

from dada.domain_adaptation.losses import upsample
from dada.evaluation.metrics import confusion_matrix, iou, mean_iou
from dada.label_sets import OTHER_LABEL


def iou_by_sets(labels, predictions, c, exists):
    """IoU of class c over the pixels for which exists(label) holds."""
    labelled = {i for i, y in enumerate(labels) if y == c}
    predicted = {i for i, (y, p) in enumerate(zip(labels, predictions)) if p == c and exists(y)}
    union = labelled | predicted
    return len(labelled & predicted) / len(union) if union else math.nan


def random_maps(num_labels, num_classes, shape=(2, 13, 17), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_labels, shape)
    predictions = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, num_classes, shape))
    labels[rng.random(shape) < 0.1] = 255
    return labels, np.where(predictions < num_classes, predictions, 0)


# ---- counting


def test_rows_are_labels_and_columns_are_predictions():
    labels, predictions = torch.tensor([[0, 0, 1], [2, 1, 1]]), torch.tensor([[0, 2, 1], [2, 1, 0]])
    matrix = confusion_matrix(labels, predictions, 3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 1]]


def test_labels_without_a_class_are_left_out():
    labels, predictions = torch.tensor([255, -1, 2, 254, 0]), torch.tensor([0, 1, 0, 1, 1])
    assert confusion_matrix(labels, predictions, 2).tolist() == [[0, 1], [0, 0]]


def test_other_labels_get_a_row_of_their_own_and_no_neighbouring_id_slips_into_it():
    labels, predictions = torch.tensor([OTHER_LABEL, OTHER_LABEL, 2, 255, 1]), torch.tensor([0, 1, 0, 1, 1])
    assert confusion_matrix(labels, predictions, 2, other=True).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_arrays_tensors_and_narrow_dtypes_count_alike_and_images_add_up():
    labels, predictions = random_maps(5, 5)
    whole = confusion_matrix(labels, predictions, 5)
    narrow = (torch.from_numpy(labels).to(torch.uint8), torch.from_numpy(predictions).to(torch.uint8))
    assert torch.equal(confusion_matrix(*narrow, 5), whole)
    assert torch.equal(sum(confusion_matrix(y, p, 5) for y, p in zip(labels, predictions)), whole)
    assert whole.sum() == (labels != 255).sum()


def test_no_pixels_give_an_empty_count():
    empty = torch.zeros(0, 4, 4, dtype=torch.int64)
    assert confusion_matrix(empty, empty, 3).tolist() == [[0] * 3] * 3


def test_a_prediction_out_of_range_is_refused_even_where_nothing_is_labelled():
    with pytest.raises(ValueError, match=r"ids \[-1, 16, 18\]; expected 0\.\.15.*outputs"):
        confusion_matrix(torch.tensor([0, 255, 1]), torch.tensor([16, 18, -1]), 16)


def test_maps_of_unequal_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(4, 6\) and predictions \(2, 3\)"):
        confusion_matrix(torch.zeros(4, 6), torch.zeros(2, 3), 2)


# ---- scores


def test_scores_of_a_matrix_worked_out_by_hand():
    matrix = torch.tensor([[6, 2, 0], [1, 3, 0], [4, 0, 0]])
    np.testing.assert_allclose(iou(matrix), [6 / 13, 3 / 6, 0 / 4], rtol=1e-15)
    assert mean_iou(iou(matrix)) == pytest.approx((6 / 13 + 3 / 6 + 0) / 3)


def test_an_absent_class_is_left_out_of_the_mean_but_a_wrongly_predicted_one_scores_zero():
    matrix = np.array([[5, 0, 1], [0, 0, 0], [0, 0, 0]])
    scores = iou(matrix)
    assert scores[0] == 5 / 6 and math.isnan(scores[1]) and scores[2] == 0
    assert mean_iou(scores) == pytest.approx(5 / 12)


def test_nothing_measured_is_nan_and_says_so():
    matrix = np.zeros((3, 3), dtype=np.int64)
    with pytest.warns(RuntimeWarning, match="no class was labelled or predicted"):
        assert math.isnan(mean_iou(iou(matrix)))


def test_counts_beyond_32_bits_stay_exact():
    pixels = 500 * 2048 * 1024 * 19
    matrix = torch.tensor([[pixels, 1], [0, pixels]])
    np.testing.assert_allclose(1 - iou(matrix), [1 / (pixels + 1)] * 2, rtol=1e-5)


# ---- sixteen of nineteen classes


SIXTEEN = [c for c in range(19) if c not in (9, 14, 16)]


@pytest.mark.parametrize("rule", ["ignore", "count"])
def test_16_of_19_labelled_classes_are_scored_by_either_rule(rule):
    """The outputs are numbered 0..15, and the three missing classes labelled OTHER_LABEL."""
    labels, predictions = random_maps(19, 19, seed=1)
    predictions = np.where(np.isin(predictions, SIXTEEN), predictions, 0)
    renumber = np.full(256, OTHER_LABEL)
    renumber[SIXTEEN] = range(16)
    renumber[255] = 255
    matrix = confusion_matrix(renumber[labels], renumber[predictions], 16, other=True)
    assert matrix.shape == (17, 16) and matrix[16].sum() > 0
    ys, ps = labels.flatten().tolist(), predictions.flatten().tolist()
    counted = set(SIXTEEN) if rule == "ignore" else set(range(19))
    assert iou(matrix, rule=rule).tolist() == [iou_by_sets(ys, ps, c, counted.__contains__) for c in SIXTEEN]


def test_the_rules_differ_by_the_false_positives_on_missing_classes():
    matrix = torch.tensor([[8, 2], [1, 9], [5, 0]])  # five pixels of a missing class taken for class 0
    np.testing.assert_allclose(iou(matrix, rule="ignore"), [8 / 11, 9 / 12])
    np.testing.assert_allclose(iou(matrix, rule="count"), [8 / 16, 9 / 12])


def test_the_rules_agree_where_every_label_has_a_class():
    matrix = confusion_matrix(*random_maps(7, 7), 7)
    np.testing.assert_array_equal(iou(matrix, rule="ignore"), iou(matrix, rule="count"))


def test_13_class_miou_is_a_mean_of_13_of_the_16_scores():
    matrix = confusion_matrix(*random_maps(16, 16), 16)
    thirteen = [c for c in range(16) if c not in (3, 4, 5)]
    scores = iou(matrix)
    assert mean_iou(scores[thirteen]) == pytest.approx(sum(scores[c] for c in thirteen) / 13)
    # Pixels of the dropped classes still count as errors of the others, unlike in a 13-class problem.
    alone = iou(matrix[thirteen][:, thirteen])
    assert mean_iou(scores[thirteen]) < mean_iou(alone)


def test_unusable_matrices_rules_and_classes_are_refused():
    square = np.eye(3, dtype=np.int64)
    with pytest.raises(ValueError, match=r"\(\.\.\., K, K\).*got \(2, 3\)"):
        iou(square[:2])
    with pytest.raises(ValueError, match="'counted'; expected one of 'ignore', 'count'"):
        iou(square, rule="counted")
    with pytest.raises(ValueError, match=r"must have shape \(K,\), got \(3, 3\)"):
        mean_iou(square)


# ---- published evaluations


def check_against_advent(matrix, case):
    assert torch.equal(matrix, case.tensor("hist"))
    scores = iou(matrix)
    assert np.array_equal(np.isnan(scores), case.arrays["iou_is_nan"])
    np.testing.assert_allclose(scores, case.arrays["iou"], rtol=1e-9)
    return mean_iou(scores)


@pytest.mark.parametrize("case", golden_cases("advent_metrics.npz"), ids=lambda case: case.name)
def test_counts_and_scores_agree_with_golden_advent(case):
    matrix = confusion_matrix(case.tensor("labels"), case.tensor("predictions"), case.settings["num_classes"])
    assert check_against_advent(matrix, case) == pytest.approx(float(case.arrays["miou"]), rel=1e-9)


@pytest.mark.parametrize("case", golden_cases("advent_eval.npz"), ids=lambda case: case.name)
def test_evaluation_agrees_with_golden_advent(case):
    width, height = case.settings["output_size_wh"]
    models = case.tensor("logits", torch.float64)
    upsampled = [upsample(logits, (height, width), align_corners=True) for logits in models]
    scores = sum(weight * s for weight, s in zip(case.settings["model_weights"], upsampled))
    matrix = confusion_matrix(case.tensor("labels"), scores.argmax(dim=1), case.settings["num_classes"])
    miou = check_against_advent(matrix, case)
    assert round(100 * miou, 2) == float(case.arrays["miou_percent_rounded"])


@pytest.mark.parametrize("case", golden_cases("plca_eval.npz"), ids=lambda case: case.name)
def test_evaluation_agrees_with_golden_plca(case):
    labels = case.tensor("labels")
    predictions = upsample(case.tensor("logits"), labels.shape[1:], align_corners=False).argmax(dim=1)
    assert torch.equal(predictions, case.tensor("predictions"))
    matrix = confusion_matrix(labels, predictions, case.settings["num_classes"])
    assert torch.equal(matrix, case.tensor("confusion"))
    scores = iou(matrix)
    for got, name in (
        (scores, "class_iou"),
        (matrix.diag() / matrix.sum(dim=1), "class_accuracy"),
        (100 * matrix.diag().sum() / matrix.sum(), "accuracy_percent"),
        (100 * mean_iou(scores), "miou_percent"),
        (np.nan_to_num(scores).mean(), "train_log_miou"),  # there an absent class scores 0
    ):
        assert_close_relative(torch.as_tensor(got), case.tensor(name), 1e-6)
