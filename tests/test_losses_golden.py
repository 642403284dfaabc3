"""Losses against arrays from the published implementations: value and gradient, float64 and float32."""

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_close_relative, golden_cases

from dada.domain_adaptation import losses

FLOAT64 = 1e-9
FLOAT32_LOSS, FLOAT32_GRADIENT = 2e-6, 1e-5


def check(case, name, loss_of, *, gradient_tolerance=FLOAT32_GRADIENT, compare_gradient=True):
    """Compare loss_of(input) and its gradient with the case's `loss` and `grad_<name>` in both precisions."""
    gradient_name = f"grad_{name}" if f"grad_{name}" in case.arrays else "grad"
    settings = ((torch.float64, "", FLOAT64, FLOAT64), (torch.float32, "f32_", FLOAT32_LOSS, gradient_tolerance))
    for dtype, prefix, loss_tolerance, tolerance in settings:
        x = case.tensor(name, dtype).requires_grad_()
        loss = loss_of(x)
        assert loss.dtype == dtype and loss.shape == ()
        assert_close_relative(loss.detach(), case.tensor(prefix + "loss"), loss_tolerance)
        if compare_gradient:
            loss.backward()
            assert_close_relative(x.grad, case.tensor(prefix + gradient_name), tolerance)


def cases(file, prefix=""):
    return pytest.mark.parametrize("case", golden_cases(file, prefix), ids=lambda case: case.name)


@cases("advent_losses.npz", "ce_")
def test_cross_entropy_agrees_with_golden(case):
    labels = case.tensor("labels")
    check(case, "pred", lambda x: losses.cross_entropy(x, labels, case.settings["ignore_label"]))


@cases("lovasz_softmax.npz")
def test_lovasz_softmax_agrees_with_golden(case):
    labels = case.tensor("labels")
    check(
        case,
        "probs",
        lambda x: losses.lovasz_softmax(x, labels, case.settings["ignore_label"]),
        gradient_tolerance=5e-5,
        compare_gradient=case.settings["compare_grad"],
    )


@cases("advent_losses.npz", "prob_2_entropy_")
def test_entropy_map_agrees_with_golden(case):
    for dtype, prefix, tolerance, gradient_tolerance in (
        (torch.float64, "", FLOAT64, FLOAT64),
        (torch.float32, "f32_", FLOAT32_LOSS, FLOAT32_GRADIENT),
    ):
        p = case.tensor("probs", dtype).requires_grad_()
        output = losses.entropy_map(p)
        output.sum().backward()
        assert_close_relative(output.detach(), case.tensor(prefix + "output"), tolerance)
        assert_close_relative(p.grad, case.tensor(prefix + "grad_probs"), gradient_tolerance)


@cases("advent_losses.npz", "entropy_loss_")
def test_entropy_losses_agree_with_golden(case):
    if "logits" in case.arrays:
        check(case, "logits", losses.entropy_loss_from_logits)
    else:
        check(case, "probs", lambda x: losses.entropy_map(x).sum(dim=1).mean())


@cases("plca_lsr.npz")
def test_lsr_agrees_with_golden(case):
    threshold = case.settings["threshold"]
    check(case, "logits", lambda x: losses.lsr(x, threshold))
    # The gradient at the log-probabilities, carried through log_softmax, is the gradient at the logits.
    x = case.tensor("logits", torch.float64).requires_grad_()
    F.log_softmax(x, dim=1).backward(case.tensor("grad_logprob"))
    (got,) = torch.autograd.grad(losses.lsr(x, threshold), x)
    assert_close_relative(got, x.grad, FLOAT64)


@cases("dada_depth_loss.npz")
def test_berhu_agrees_with_golden(case):
    check(case, "pred", lambda x: losses.berhu(x, case.tensor("label", x.dtype)))


@cases("advent_losses.npz", "bce_")
def test_domain_bce_agrees_with_golden(case):
    check(case, "pred", lambda x: losses.domain_bce(x, case.settings["label"]))


@cases("plca_total_objective.npz")
def test_parts_of_the_plca_objective_agree_with_golden(case):
    assert case.settings["upsample"] == "bilinear, align_corners=False"
    ignore, threshold = case.settings["ignore_label"], case.settings["lsr_threshold"]
    labels = case.tensor("gt_S")
    source, target = (case.tensor(f"preds_{domain}", torch.float64) for domain in "ST")
    logits = losses.upsample(source, labels.shape[1:], align_corners=False)
    cross_entropy = losses.cross_entropy(logits, labels, ignore)
    lovasz = losses.lovasz_softmax(logits.softmax(dim=1), labels, ignore)
    assert_close_relative(cross_entropy, case.tensor("cross_entropy"), FLOAT64)
    assert_close_relative(lovasz, case.tensor("lovasz"), FLOAT64)
    weight = (case.settings["lovasz_weight"] * case.settings["world_size"]) * case.settings["iter_size"]
    assert_close_relative(cross_entropy + weight * lovasz, case.tensor("ce_loss"), FLOAT64)
    for domain, predictions in (("S", source), ("T", target)):
        assert_close_relative(losses.lsr(predictions, threshold), case.tensor(f"lsr_{domain}"), FLOAT64)
