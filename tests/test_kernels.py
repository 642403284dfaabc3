"""The Triton kernel that finds cycles is the argmax of the dense form: in Triton's interpreter, or on a GPU if there is one."""

import pytest
import torch
from test_streaming_association import random_case

from dada.domain_adaptation.association import aggregation, form, streamed_loss
from dada.domain_adaptation.contrastive_learning import cycle_associate, dense_aggregation, direction, similarity

pytest.importorskip("triton", exc_type=ImportError)
from dada.domain_adaptation.association.argmax_kernel import most_similar

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BY_KERNEL = form.Form(static=True, kernels=True)


def ways(source, target, metric):
    return [x.cpu() for x in streamed_loss.ways(source.to(DEVICE), target.to(DEVICE), metric, BY_KERNEL)]


def whole(*size, seed=0):
    """Small whole numbers: their products and sums have no rounding, and many are equal."""
    return torch.randint(-1, 2, size, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("batch, channels, rows, columns", [(1, 1, 1, 1), (2, 24, 70, 33), (1, 19, 33, 50), (3, 40, 16, 17)])
def test_places_are_the_first_of_the_greatest_of_rows_and_columns(batch, channels, rows, columns):
    x, y = whole(batch, channels, rows), whole(batch, channels, columns, seed=1)
    units = 2.0 ** whole(batch, rows, seed=2), 2.0 ** whole(batch, columns, seed=3)
    of_rows, of_columns = most_similar(*(v.to(DEVICE) for v in (x, y, *units)))
    sim = (x.mT @ y) * units[0][:, :, None] * units[1][:, None]
    assert torch.equal(of_rows.cpu(), sim.argmax(2)) and torch.equal(of_columns.cpu(), sim.argmax(1))


def test_similarities_below_zero_and_of_both_zeros_are_in_order():
    x = torch.tensor([[[1.0, -1.0, 0.0, -0.0]]])
    y = torch.tensor([[[-3.0, -2.0, -0.0, 0.0, -2.0]]])
    units = torch.ones(1, 4), torch.ones(1, 5)
    of_rows, of_columns = most_similar(*(v.to(DEVICE) for v in (x, y, *units)))
    assert of_rows.tolist() == [[2, 0, 0, 0]] and of_columns.tolist() == [[1, 1, 0, 0, 1]]


@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("seed", range(4))
def test_cycles_are_those_of_the_dense_form(metric, seed):
    sizes = ((7, 5), (3, 6)), ((1, 1), (2, 3)), ((8, 8), (5, 7)), ((4, 9), (1, 1))
    source, target, labels = random_case(seed, 2, 5 + 7 * seed, *sizes[seed], metric, dtype=torch.float32)
    if metric == "cos":
        source[0, :, 0, 0] = 0
        target[1, :, -1, -1] = 0
    j, back, usable = ways(source, target, metric)
    x, y = (v.double().flatten(2).mT for v in (source, target))
    want = cycle_associate(similarity(x, y, metric), similarity(y, x, metric), labels.flatten(1))
    assert torch.equal(j, want.target_index)
    assert torch.equal(back.gather(1, j), want.source_index)
    directed = [direction(v).any(2) | (metric == "kl") for v in (x, y)]
    assert torch.equal(usable, directed[0] & directed[1].gather(1, j))


def test_a_map_of_zeros_chooses_the_first_pixel_and_is_not_usable():
    j, back, usable = ways(torch.zeros(1, 3, 4, 5), torch.randn(1, 3, 2, 3), "cos")
    assert not j.any() and not back.any() and not usable.any()


# ---- aggregation and loss of few channels ---------------------------------------------------------


SIZES = ((7, 5), (3, 6)), ((1, 1), (2, 3)), ((8, 8), (5, 7)), ((4, 9), (1, 1))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_aggregation_and_its_gradient_are_those_of_the_dense_form(seed, alpha):
    x = random_case(seed, 2, 3 + 6 * seed, *SIZES[seed], "kl")[0].requires_grad_()
    want = dense_aggregation(x, alpha, "kl")
    grad_mixed = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed), dtype=want.dtype)
    want_grad = torch.autograd.grad(want, x, grad_mixed)[0]
    p, g = (v.detach().float().to(DEVICE) for v in (x, grad_mixed))
    mixed, scale, level = aggregation.aggregate(p, "kl", alpha, BY_KERNEL)
    grad = aggregation.aggregate_backward(p, mixed, scale, level, g, "kl", alpha, BY_KERNEL)
    torch.testing.assert_close(mixed.cpu().double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.cpu().double(), want_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradients_by_given_cycles_are_those_of_the_tiles_in_float64(seed):
    source, target, _ = random_case(seed, 2, 3 + 6 * seed, *SIZES[seed], "kl")
    target[1] = target[1, :, :1, :1]  # pixels alike: rows without contrast
    j, back, _ = streamed_loss.ways(source, target, "kl")
    weight = torch.randint(0, 3, j.shape, generator=torch.Generator().manual_seed(seed)).double()

    def results(dtype, device, form, needs=(True, True)):
        s, t, w = (x.to(device, dtype) for x in (source, target, weight))
        found = streamed_loss.sum_over_cycles(s, t, j.to(device), back.to(device), w, "kl", needs, form)
        return [None if x is None else x.cpu().double() for x in found]

    want, got = results(torch.float64, "cpu", form.PLAIN), results(torch.float32, DEVICE, BY_KERNEL)
    for mine, plain in zip(got, want):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())
    alone = results(torch.float32, DEVICE, BY_KERNEL, (False, True))
    assert alone[1] is None and torch.equal(alone[2], got[2]) and torch.equal(alone[0], got[0])
    assert results(torch.float32, DEVICE, BY_KERNEL, (False, False))[1:] == [None, None]
