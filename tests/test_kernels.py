"""The kernels of Triton give what the dense form gives: in Triton's interpreter, or on a GPU if there is one."""

import pytest
import torch
from test_streaming_association import random_case, run
from torch.utils._python_dispatch import TorchDispatchMode

from dada.domain_adaptation.association import aggregation, check, form, products, streamed_loss, tiles
from dada.domain_adaptation.contrastive_learning import cycle_associate, dense_aggregation, direction, similarity

pytest.importorskip("triton", exc_type=ImportError)
from dada.domain_adaptation.association import stripe_kernel
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


# ---- aggregation and loss: all of it for few channels, stripes of cosines ---------------------------


SIZES = ((7, 5), (3, 6)), ((1, 1), (2, 3)), ((8, 8), (5, 7)), ((4, 9), (1, 1))
FEWER = ((3, 5), (2, 4)), ((1, 1), (2, 3)), ((3, 3), (1, 1))  # a program for each row: the interpreter takes 5 ms
CASES = [(metric, *case) for metric, sizes in (("kl", SIZES), ("cos", FEWER)) for case in enumerate(sizes)]


@pytest.fixture
def low_stripes(monkeypatch):
    """Of a few rows, the last one lower; and the plain forms of what the kernels do are not there."""
    monkeypatch.setattr(tiles, "stripe_height", lambda *_: 4)
    monkeypatch.setattr(tiles, "contrast_scale", None)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("metric, seed, sizes", CASES)
def test_aggregation_and_its_gradient_are_those_of_the_dense_form(metric, seed, sizes, alpha, low_stripes):
    x = random_case(seed, 2, 3 + 6 * seed, *sizes, metric)[0]
    if metric == "cos":
        x[0, :, 0, 0] = 0
    x.requires_grad_()
    want = dense_aggregation(x, alpha, metric)
    grad_mixed = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed), dtype=want.dtype)
    want_grad = torch.autograd.grad(want, x, grad_mixed)[0]
    p, g = (v.detach().float().to(DEVICE) for v in (x, grad_mixed))
    mixed, scale, level = aggregation.aggregate(p, metric, alpha, BY_KERNEL)
    grad = aggregation.aggregate_backward(p, mixed, scale, level, g, metric, alpha, BY_KERNEL)
    torch.testing.assert_close(mixed.cpu().double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.cpu().double(), want_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric, seed, sizes", CASES)
def test_loss_and_gradients_by_given_cycles_are_those_of_the_tiles_in_float64(metric, seed, sizes, request):
    source, target, _ = random_case(seed, 2, 3 + 6 * seed, *sizes, metric)
    target[1] = target[1, :, :1, :1]  # pixels alike: rows without contrast
    if metric == "cos":
        source[0, :, 0, 0] = 0
    j, back, _ = streamed_loss.ways(source, target, metric)
    weight = torch.randint(0, 3, j.shape, generator=torch.Generator().manual_seed(seed)).double()

    def results(dtype, device, form, needs=(True, True)):
        s, t, w = (x.to(device, dtype) for x in (source, target, weight))
        found = streamed_loss.sum_over_cycles(s, t, j.to(device), back.to(device), w, metric, needs, form)
        return [None if x is None else x.cpu().double() for x in found]

    want = results(torch.float64, "cpu", form.PLAIN)
    request.getfixturevalue("low_stripes")
    got = results(torch.float32, DEVICE, BY_KERNEL)
    for mine, plain in zip(got, want):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())
    alone = results(torch.float32, DEVICE, BY_KERNEL, (False, True))
    assert alone[1] is None and torch.equal(alone[2], got[2]) and torch.equal(alone[0], got[0])
    assert results(torch.float32, DEVICE, BY_KERNEL, (False, False))[1:] == [None, None]


def stripe(rows, columns):
    g = torch.Generator().manual_seed(0)
    product, unit = torch.randn(rows, columns, generator=g), torch.rand(columns, generator=g)
    return [x.to(DEVICE) for x in (product, unit, (product * unit).mean(1), (product * unit).argmax(1))]


def test_a_tile_may_be_written_in_bfloat16_and_statistics_are_not(monkeypatch):
    full, statistics = stripe_kernel.of_rows(*stripe(5, 37))
    monkeypatch.setattr(products, "rounded_to_half", lambda x: True)
    half, of_half = stripe_kernel.of_rows(*stripe(5, 37))
    assert half.dtype is torch.bfloat16 and all(map(torch.equal, of_half, statistics))
    torch.testing.assert_close(half.float(), full, rtol=2**-7, atol=0)  # the interpreter cuts off where a GPU rounds
    product, *rest = stripe(5, 37)
    unwritten, alone = stripe_kernel.of_rows(product, *rest, tile=False)
    assert torch.equal(unwritten, stripe(5, 37)[0]) and all(map(torch.equal, alone, statistics))


def test_float64_is_left_to_tiles(monkeypatch):
    monkeypatch.setattr(stripe_kernel, "of_rows", None)
    x = random_case(0, 1, 5, (3, 4), (1, 1), "cos")[0].to(DEVICE)
    mixed, *_ = aggregation.aggregate(x, "cos", 0.5, BY_KERNEL)
    torch.testing.assert_close(mixed, dense_aggregation(x, 0.5, "cos"))


@pytest.fixture
def like_cuda(monkeypatch):
    """A device with kernels, and small maps for the check."""
    for name in ("STATIC_DEVICES", "KERNEL_DEVICES"):
        monkeypatch.setattr(form, name, (DEVICE,))
    monkeypatch.setattr(aggregation, "_compiled", lambda epilogue: epilogue)
    for name, size in (("SOURCE", (5, 5)), ("TARGET", (3, 9))):
        monkeypatch.setattr(check, name, size)
    monkeypatch.setattr(check, "_passed", {})


@pytest.mark.parametrize("where", ["stripes", "pairs of tiles"])
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_auto_takes_kernels_only_if_no_row_is_wrong(error, where, like_cuda, monkeypatch, caplog):
    def wrong(right):
        def run(*arguments, **options):
            tile, *found = right(*arguments, **options)
            tile[-1] *= 1 - error
            return tile, *found

        return run

    if where == "stripes":
        monkeypatch.setattr(stripe_kernel, "of_rows", wrong(stripe_kernel.of_rows))
    else:
        monkeypatch.setattr(aggregation, "_compiled", wrong)
    assert check._passes(torch.device(DEVICE), "cos") == (error == 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(error)


@pytest.mark.parametrize("mode", ["inference", "autocast", "default device", "dispatch"])
def test_the_check_does_not_depend_on_where_it_is_made(mode, like_cuda):
    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise AssertionError("the check is seen by what watches the step")

    x = torch.rand(1, 4, 3, 4, device=DEVICE)
    modes = {
        "inference": torch.inference_mode(),
        "autocast": torch.autocast(DEVICE, dtype=torch.bfloat16),
        "default device": torch.device("meta"),
        "dispatch": Nothing(),
    }
    with modes[mode]:
        assert check.auto_takes_fused(x, "kl")


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_in_float32_nothing_waits_and_a_cuda_graph_gives_the_same(metric):
    case = [x.cuda() for x in random_case(0, 2, 19, (20, 23), (21, 19), metric, dtype=torch.float32)]
    run(*case, metric=metric, impl="fused")  # compiles, and tries the configurations
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        want, want_grads = run(*case, metric=metric, impl="fused")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got, grads = run(*case, metric=metric, impl="fused")
    graph.replay()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads, want_grads)
