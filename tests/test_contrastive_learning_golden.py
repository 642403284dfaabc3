"""Cycle association against arrays computed by the published PLCA code."""

import pytest
import torch
from golden_cases import Case, assert_close_relative, golden_cases

from dada.domain_adaptation.contrastive_learning import contrast_normalize, cycle_associate, similarity
from dada.domain_adaptation.cycle_association import cycle_association_loss, spatial_aggregation

ASSOCIATION = golden_cases("plca_association.npz")
INTERMEDIATE = golden_cases("plca_intermediate.npz")


def name_of(case: Case) -> str:
    return case.name


def pixels(x):
    return x.flatten(2).mT


def run(case: Case, dtype: torch.dtype):
    source = case.tensor("x1", dtype).requires_grad_()
    target = case.tensor("x2", dtype).requires_grad_()
    s = case.settings
    result = cycle_association_loss(
        source,
        target,
        case.tensor("gt1"),
        metric=s["metric"],
        aggregate=s["spagg"],
        alpha=s["spagg_alpha"],
        ignore_index=s["ignore_label"],
    )
    result.loss.backward()
    return result, source.grad, target.grad


@pytest.mark.parametrize("case", ASSOCIATION, ids=name_of)
def test_golden_loss_and_gradients_in_float64(case):
    result, grad_source, grad_target = run(case, torch.float64)
    assert_close_relative(result.loss, case.tensor("loss"), 1e-9)
    assert_close_relative(grad_source, case.tensor("grad_x1"), 1e-9)
    assert_close_relative(grad_target, case.tensor("grad_x2"), 1e-9)
    assert result.closed.item() == case.arrays["valid"].sum()


@pytest.mark.parametrize("case", ASSOCIATION, ids=name_of)
def test_golden_loss_and_gradients_in_float32(case):
    result, grad_source, grad_target = run(case, torch.float32)
    assert_close_relative(result.loss, case.tensor("f32_loss"), 1e-5)
    assert_close_relative(grad_source, case.tensor("f32_grad_x1"), 5e-5)
    assert_close_relative(grad_target, case.tensor("f32_grad_x2"), 5e-5)


@pytest.mark.parametrize("case", ASSOCIATION, ids=name_of)
def test_golden_cycles_and_pair_scores(case):
    s = case.settings
    source, target = case.tensor("x1", torch.float64), case.tensor("x2", torch.float64)
    if s["spagg"]:
        target = spatial_aggregation(target, alpha=s["spagg_alpha"], metric=s["metric"])
        assert_close_relative(target, case.tensor("x2_aggregated"), 1e-9)
    sim = similarity(pixels(source), pixels(target), s["metric"])
    back = similarity(pixels(target), pixels(source), s["metric"])
    cycles = cycle_associate(sim, back, case.tensor("gt1").flatten(1), ignore_index=s["ignore_label"])
    assert torch.equal(cycles.target_index, case.tensor("mid_index"))
    assert torch.equal(cycles.source_index, case.tensor("back_index"))
    assert torch.equal(cycles.closed, case.tensor("valid").flatten(1))
    there = contrast_normalize(sim).softmax(-1).gather(2, cycles.target_index[..., None])[..., 0]
    rows = contrast_normalize(back).softmax(-1).gather(1, cycles.target_index[..., None].expand(-1, -1, sim.shape[1]))
    pair = there * rows.gather(2, cycles.source_index[..., None])[..., 0]
    assert_close_relative(pair, case.tensor("pair_score").flatten(1), 1e-9)


@pytest.mark.parametrize("case", INTERMEDIATE, ids=name_of)
def test_golden_intermediate_matrices(case):
    metric = case.settings.get("metric", case.name)
    source, target = case.tensor("x1", torch.float64), case.tensor("x2", torch.float64)
    sim = similarity(pixels(source), pixels(target), metric)
    back = similarity(pixels(target), pixels(source), metric)
    assert_close_relative(sim, case.tensor("similarity_12"), 1e-9)
    assert_close_relative(back, case.tensor("similarity_21"), 1e-9)
    assert_close_relative(contrast_normalize(sim).softmax(-1), case.tensor("score_12"), 1e-9)
    assert_close_relative(contrast_normalize(back).softmax(-1), case.tensor("score_21"), 1e-9)
    assert_close_relative(spatial_aggregation(target, alpha=1.0, metric=metric), case.tensor("aggregated_x2"), 1e-9)
    mixed = spatial_aggregation(target, alpha=0.5, metric=metric)
    if "mixed_x2" in case.arrays:
        assert_close_relative(mixed, case.tensor("mixed_x2"), 1e-9)
    if "row" in case.arrays:
        row = contrast_normalize(case.tensor("row", torch.float64)).softmax(-1)
        assert_close_relative(row, case.tensor("row_scored"), 1e-9)
