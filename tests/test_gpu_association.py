"""Association on the device, in every form and precision, against the definition in float64 on the CPU."""

from contextlib import contextmanager

import pytest
import torch
from test_streaming_association import random_case, run

from dada.domain_adaptation import cycle_association
from dada.domain_adaptation.cycle_association import spatial_aggregation

pytestmark = pytest.mark.gpu

# What products are rounded to: the norm of the error of a gradient over that of the gradient, and the error of the loss.
# TF32 keeps 10 bits of a factor and bfloat16 7, and the contrast of a row multiplies the error of a similarity by about 10.
LIMITS = {"float64": (1e-8, 1e-9), "highest": (1e-4, 1e-5), "high": (3e-2, 1e-2), "medium": (1e-1, 3e-2)}
TILED = ("streaming", "fused")


def distance(got, want):
    got, want = got.detach().double().cpu(), want.detach().double()
    return ((got - want).norm() / want.norm()).item()


def to(device, x, precision):
    return x.to(device, torch.float64 if precision == "float64" else torch.float32)


@contextmanager
def products(precision):
    """While the block runs, float32 products have the precision; "float64" changes nothing."""
    torch.set_float32_matmul_precision("highest" if precision == "float64" else precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("impl", ["dense", *TILED])
def test_loss_and_gradients_are_those_of_float64_up_to_rounding(impl, metric, precision, device, record_property):
    if impl == "fused" and device.type == "cpu":
        pytest.skip("takes a minute to compile for a CPU, and has tests of its own for it")
    if impl == "dense" and precision in ("high", "medium"):
        pytest.skip("the dense form rounds what decides an argmax as well, and other cycles are another loss")
    case = random_case(0, 2, 24, (30, 23), (21, 29), metric, classes=3)
    # Aggregation may be rounded as well, and has a test of its own: of maps that differ other cycles may be the right ones.
    options = {"metric": metric, "aggregate": precision in ("float64", "highest")}
    want, want_grads = run(*case, impl="dense", **options)
    source, target = (to(device, x, precision) for x in case[:2])
    with products(precision):
        got, grads = run(source, target, case[2].to(device), impl=impl, **options)
    errors = [distance(grad, want_grad) for grad, want_grad in zip(grads, want_grads)]
    loss_error = abs(got.loss.item() / want.loss.item() - 1)
    changed = max((a.cpu() != b).double().mean().item() for a, b in zip(got.cycles, want.cycles))
    record_property("error of the loss", loss_error)
    record_property("error of the gradients", max(errors))
    record_property("share of other cycles", changed)
    limit, loss_limit = LIMITS[precision]
    assert want.closed > 0 and changed == 0
    assert max(errors) <= limit and loss_error <= loss_limit


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_aggregation_is_that_of_float64_up_to_rounding(metric, precision, device, record_property, monkeypatch):
    target = random_case(0, 2, 24, (30, 23), (21, 29), metric)[1]
    want = spatial_aggregation(target, metric=metric)
    monkeypatch.setattr(cycle_association, "DENSE_ELEMENTS", 0)  # in tiles, as maps of a network are
    with products(precision):
        got = spatial_aggregation(to(device, target, precision), metric=metric)
    record_property("error of the aggregation", distance(got, want))
    assert distance(got, want) <= LIMITS[precision][1]


def test_half_precision_features_are_associated_in_float32(device):
    source, target, labels = (x.to(device) for x in random_case(1, 1, 24, (20, 21), (19, 22), "cos"))
    half = [x.bfloat16() for x in (source, target)]
    want, want_grads = run(half[0].float(), half[1].float(), labels, impl="streaming")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got, grads = run(*half, labels, impl="streaming")
    assert got.loss.dtype == torch.float32 and got.closed == want.closed
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0)
    for grad, want_grad in zip(grads, want_grads):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.float(), want_grad, rtol=1e-2, atol=1e-3 * want_grad.abs().max().item())
