"""Cycle association in tiles is the dense form: values, cycles and gradients, whatever the shapes."""

import importlib.util
import itertools
from pathlib import Path
from unittest import mock

import pytest
import torch
from golden_cases import assert_close_relative, golden_cases
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dada.domain_adaptation import cycle_association
from dada.domain_adaptation.association import aggregation, attention, tiles
from dada.domain_adaptation.association.pixels import Distributions
from dada.domain_adaptation.contrastive_learning import contrast_scale
from dada.domain_adaptation.cycle_association import cycle_association_loss, find_cycles, spatial_aggregation

IGNORE = 255
PAIR_SIDE = 7
ASSOCIATION = golden_cases("plca_association.npz")
METRICS = pytest.mark.parametrize("metric", ["cos", "kl"])
AGGREGATE = pytest.mark.parametrize("aggregate", [False, True])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of a few rows, so that small maps make many of them, the last one of odd size."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 70)
    monkeypatch.setattr(tiles, "PRODUCT_ROWS", 3)
    monkeypatch.setattr(tiles, "BLOCK", 4)
    monkeypatch.setattr(aggregation, "pair_side", lambda channels, device: PAIR_SIDE)


def random_case(seed, batch, channels, source_size, target_size, metric, classes=2, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, channels, *source_size, generator=g, dtype=dtype)
    target = torch.randn(batch, channels, *target_size, generator=g, dtype=dtype)
    if metric == "kl":
        source, target = source.softmax(1), target.softmax(1)
    labels = torch.randint(0, classes + 1, (batch, *source_size), generator=g)
    labels[labels == classes] = IGNORE
    return source, target, labels


def run(source, target, labels, **options):
    """The association, and the gradients of 3 times its loss."""
    source, target = source.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()
    result = cycle_association_loss(source, target, labels, **options)
    return result, torch.autograd.grad(3 * result.loss, (source, target))


def assert_same(source, target, labels, tolerance, impl="streaming", **options):
    """`impl` against dense; gradients relative to the largest entry, which one-pixel maps leave at 0."""
    got, got_grads = run(source, target, labels, impl=impl, **options)
    want, want_grads = run(source, target, labels, impl="dense", **options)
    assert [x.item() for x in got[1:4]] == [x.item() for x in want[1:4]]
    assert all(map(torch.equal, got.cycles, want.cycles))
    assert got.loss.dtype == want.loss.dtype
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=tolerance, abs=tolerance)
    for got_grad, want_grad in zip(got_grads, want_grads):
        assert got_grad.shape == want_grad.shape and got_grad.dtype == want_grad.dtype
        error = (got_grad - want_grad).abs().max().item()
        assert error <= tolerance * max(want_grad.abs().max().item(), 1e-6), error


# ---- the same numbers ----------------------------------------------------------------------------


@st.composite
def cases(draw, dtype=torch.float64):
    sizes = [draw(st.tuples(st.integers(1, 6), st.integers(1, 6))) for _ in range(2)]
    metric = draw(st.sampled_from(["cos", "kl"]))
    case = random_case(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 3)),
        draw(st.integers(2, 9)),
        *sizes,
        metric,
        draw(st.integers(1, 4)),
        dtype,
    )
    return case, {"metric": metric, "aggregate": draw(st.booleans()), "alpha": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(cases())
def test_values_counts_and_gradients_are_those_of_the_dense_form_on_any_shape(small):
    case, options = small
    assert_same(*case, tolerance=1e-9, **options)


def steepest_row(source, target, labels, **options):
    """The greatest 1 / std of any row: how much softmax amplifies the rounding of similarities."""
    scales = [torch.ones(1, 1)]
    record = mock.Mock(side_effect=lambda mean, std: scales.append(contrast_scale(mean, std)) or scales[-1])
    with mock.patch.object(tiles, "contrast_scale", record):
        cycle_association_loss(source, target, labels, impl="streaming", **options)
    return max(scale.max().item() for scale in scales)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(cases(torch.float32))
def test_float32_agrees_to_rounding(small):
    """Held to float64 where the cycles are the same: a near-tie may go either way in float32."""
    (source, target, labels), options = small
    double = source.double(), target.double(), labels
    cycles = [find_cycles(*c, impl="streaming", **options) for c in ((source, target, labels), double)]
    if not all(map(torch.equal, *cycles)):
        return
    tolerance = max(1e-4, 100 * torch.finfo(torch.float32).eps * steepest_row(*double, **options))
    got, grads = run(source, target, labels, impl="streaming", **options)
    want, want_grads = run(*double, impl="dense", **options)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=tolerance, abs=tolerance)
    for grad, want_grad in zip(grads, want_grads):
        assert (grad - want_grad).abs().max().item() <= tolerance * max(want_grad.abs().max().item(), 1.0)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(cases())
def test_cycles_are_those_of_the_dense_form_on_any_shape(small):
    (source, target, labels), options = small
    got = find_cycles(source, target, labels, impl="streaming", **options)
    want = find_cycles(source, target, labels, impl="dense", **options)
    assert all(map(torch.equal, got, want))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(cases())
@example((random_case(0, 1, 3, (1, 1), (1, 1), "cos"), {"metric": "cos", "aggregate": True, "alpha": 1.0}))
def test_aggregation_is_that_of_the_dense_form_on_any_shape(small):
    (_, x, _), options = small
    x = x.requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    got, want = (
        spatial_aggregation(x, alpha=options["alpha"], metric=options["metric"], impl=impl) for impl in ("streaming", "dense")
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad((y * upstream).sum(), x)[0] for y in (got, want)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", ASSOCIATION, ids=lambda case: case.name)
def test_golden_loss_and_gradients(case, dtype, tolerance):
    s = case.settings
    result, grads = run(
        case.tensor("x1", dtype),
        case.tensor("x2", dtype),
        case.tensor("gt1"),
        impl="streaming",
        metric=s["metric"],
        aggregate=s["spagg"],
        alpha=s["spagg_alpha"],
        ignore_index=s["ignore_label"],
    )
    assert_close_relative(result.loss, case.tensor("loss"), tolerance)
    assert_close_relative(grads[0], 3 * case.tensor("grad_x1"), tolerance)
    assert_close_relative(grads[1], 3 * case.tensor("grad_x2"), tolerance)
    assert result.closed.item() == case.arrays["valid"].sum()


@METRICS
def test_tiles_of_their_real_size_give_the_same_on_a_map_of_several(metric, monkeypatch):
    monkeypatch.undo()
    source, target, labels = random_case(0, 1, 5, (49, 51), (43, 41), metric, classes=3)
    pixels = target[0, 0].numel()
    assert labels.numel() * pixels > 2 * tiles.TILE_ELEMENTS
    assert pixels > 2 * aggregation.pair_side(5, torch.device("cpu"))
    assert_same(source, target, labels, 1e-9, metric=metric)


# ---- edges ---------------------------------------------------------------------------------------


@METRICS
@AGGREGATE
@pytest.mark.parametrize("sizes", [((1, 1), (1, 1)), ((1, 1), (3, 5)), ((3, 5), (1, 1)), ((1, 40), (40, 1))])
def test_maps_of_one_pixel_and_one_line(sizes, metric, aggregate):
    source, target, labels = random_case(0, 2, 4, *sizes, metric, classes=1)
    assert_same(source, target, labels.zero_(), 1e-9, metric=metric, aggregate=aggregate)


@METRICS
def test_no_closed_cycle_gives_zero_loss_and_zero_gradient(metric):
    source, target, labels = random_case(0, 2, 4, (3, 4), (4, 3), metric)
    result, grads = run(source, target, torch.full_like(labels, IGNORE), metric=metric, impl="streaming")
    assert result.loss.item() == 0 and result.closed.item() == 0 and result.covered.item() == 0
    assert not grads[0].any() and not grads[1].any()


@METRICS
def test_one_image_without_labels_adds_nothing(metric):
    source, target, labels = random_case(1, 2, 4, (3, 4), (4, 3), metric)
    labels[1] = IGNORE
    both, both_grads = run(source, target, labels, metric=metric, impl="streaming")
    alone, alone_grads = run(source[:1], target[:1], labels[:1], metric=metric, impl="streaming")
    assert both.loss.item() == pytest.approx(alone.loss.item(), rel=1e-12)
    for grad, alone_grad in zip(both_grads, alone_grads):
        torch.testing.assert_close(grad[:1], alone_grad)
        assert not grad[1].any()


@AGGREGATE
def test_zero_vectors_are_treated_as_in_the_dense_form(aggregate):
    source, target, labels = random_case(2, 1, 4, (4, 5), (5, 4), "cos", classes=1)
    source[0, :, 1, 1:3], target[0, :, 0, 2] = 0, 0
    assert_same(source, target, labels.zero_(), 1e-9, aggregate=aggregate)
    _, (grad_source, grad_target) = run(source, target, labels, aggregate=False, impl="streaming")
    assert not grad_source[0, :, 1, 1:3].any() and not grad_target[0, :, 0, 2].any()


@AGGREGATE
def test_maps_of_zeros_are_treated_as_in_the_dense_form(aggregate):
    source, target, labels = random_case(2, 1, 4, (4, 5), (5, 4), "cos")
    assert_same(source, torch.zeros_like(target), labels, 1e-9, aggregate=aggregate)
    assert_same(torch.zeros_like(source), target, labels, 1e-9, aggregate=aggregate)


@METRICS
@AGGREGATE
@pytest.mark.parametrize("seed", range(3))
def test_ties_go_to_the_first_pixel_across_tiles(seed, metric, aggregate):
    """One-hot pixels: products are exact, so rows have many equal maxima, some in later tiles and blocks."""
    g = torch.Generator().manual_seed(seed)
    source, target = (
        torch.eye(4, dtype=torch.float64)[torch.randint(0, 4, (2, *size), generator=g)].permute(0, 3, 1, 2)
        for size in ((5, 7), (6, 5))
    )
    labels = torch.randint(0, 3, (2, 5, 7), generator=g)
    got, want = (find_cycles(source, target, labels, metric=metric, aggregate=False, impl=i) for i in ("streaming", "dense"))
    assert all(map(torch.equal, got, want))
    assert len(set(got.target_index[0].tolist())) <= 4  # of 30: only the first pixel of each kind is ever chosen
    assert_same(source, target, labels, 1e-9, metric=metric, aggregate=False)
    if aggregate:
        torch.testing.assert_close(
            *(spatial_aggregation(target, metric=metric, impl=i) for i in ("streaming", "dense")), rtol=1e-9, atol=1e-12
        )


@METRICS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_target_pixels_give_a_uniform_choice_not_amplified_rounding(metric, dtype):
    source, target, labels = random_case(3, 1, 16, (4, 5), (1, 1), metric, dtype=dtype)
    target = target.expand(1, 16, 5, 5)
    for impl in ("streaming", "dense"):
        result, grads = run(source, target, labels.zero_(), metric=metric, impl=impl, aggregate=False)
        assert result.loss.item() >= torch.tensor(25.0).log().item() - 1e-5
        assert grads[1].abs().max() < 100  # amplified rounding would be 1e8


def test_nearly_orthogonal_equal_pixels_have_no_contrast_either():
    """Their similarities nearly cancel, the rounding of the terms does not."""
    g = torch.Generator().manual_seed(0)
    source, pixel = torch.randn(1, 64, 4, 5, generator=g), torch.randn(1, 64, 1, 1, generator=g)
    source -= pixel * (source * pixel).sum(1, keepdim=True) / pixel.square().sum()
    target = pixel.expand(1, 64, 5, 5)
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    for impl in ("streaming", "dense"):
        _, grads = run(source, target, labels, impl=impl, aggregate=False)
        assert grads[1].abs().max() < 100  # amplified rounding would be 1e8


# ---- autograd ------------------------------------------------------------------------------------


@METRICS
def test_backward_may_be_called_again(metric):
    source, target, labels = random_case(4, 2, 4, (3, 4), (4, 3), metric)
    source.requires_grad_(), target.requires_grad_()
    loss = cycle_association_loss(source, target, labels, metric=metric, impl="streaming").loss
    first = torch.autograd.grad(loss, (source, target), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(-2 * loss, (source, target), retain_graph=True)
    third = torch.autograd.grad(loss, (source, target))
    for before, grad, doubled, again in zip(kept, first, second, third):
        assert torch.equal(before, grad)  # not written to by later calls
        torch.testing.assert_close(doubled, -2 * before)
        torch.testing.assert_close(again, before)


@METRICS
@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_one_side_alone(which, metric):
    source, target, labels = random_case(5, 2, 4, (3, 4), (4, 3), metric)
    _, want = run(source, target, labels, metric=metric, impl="dense")
    maps = [source, target]
    maps[which].requires_grad_()
    (3 * cycle_association_loss(*maps, labels, metric=metric, impl="streaming").loss).backward()
    torch.testing.assert_close(maps[which].grad, want[which], rtol=1e-9, atol=1e-12)
    assert maps[1 - which].grad is None


@METRICS
def test_without_grad_mode_the_loss_is_the_same_and_nothing_is_kept(metric):
    source, target, labels = random_case(6, 1, 4, (3, 4), (4, 3), metric)
    source.requires_grad_(), target.requires_grad_()
    want = cycle_association_loss(source, target, labels, metric=metric, impl="streaming").loss
    with torch.no_grad():
        got = cycle_association_loss(source, target, labels, metric=metric, impl="streaming").loss
    assert not got.requires_grad and got.item() == pytest.approx(want.item(), rel=1e-12)


def test_gradcheck_of_what_has_no_temperature():
    """Aggregation of probabilities is differentiable as it stands; the rest once temperatures are frozen."""
    x = random_case(7, 2, 3, (2, 3), (4, 3), "kl")[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: spatial_aggregation(p, metric="kl", alpha=0.7, impl="streaming"), x)


@METRICS
@AGGREGATE
def test_gradcheck_at_frozen_temperature(metric, aggregate, monkeypatch):
    """Every scale that a row gets at the first evaluation is kept for the evaluations at the moved inputs."""
    source, target, labels = random_case(5, 1, 3, (2, 4), (3, 3), metric)
    recorded = []

    def record(mean, std):
        recorded.append(contrast_scale(mean, std))
        return recorded[-1]

    monkeypatch.setattr(tiles, "contrast_scale", record)
    source.requires_grad_(), target.requires_grad_()
    first = spatial_aggregation(target, metric=metric, impl="streaming") if aggregate else target
    of_aggregation = len(recorded)
    cycle_association_loss(source, first, labels, metric=metric, aggregate=False, impl="streaming")

    def frozen_loss(s, t):
        of_loss = itertools.cycle(recorded[of_aggregation:])  # computed again when backward is called again
        replay = itertools.chain(recorded[:of_aggregation], of_loss)
        monkeypatch.setattr(tiles, "contrast_scale", lambda mean, std: next(replay))
        return cycle_association_loss(s, t, labels, metric=metric, aggregate=aggregate, impl="streaming").loss

    assert torch.autograd.gradcheck(frozen_loss, (source, target))


def test_a_second_derivative_is_refused():
    source, target, labels = random_case(0, 1, 4, (3, 4), (4, 3), "cos")
    source.requires_grad_()
    loss = cycle_association_loss(source, target, labels, aggregate=False, impl="streaming").loss
    (grad,) = torch.autograd.grad(loss, source, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


@METRICS
def test_half_precision_is_computed_in_float32_also_under_autocast(metric):
    source, target, labels = random_case(8, 1, 16, (6, 7), (5, 6), metric)
    source, target = source.bfloat16(), target.bfloat16()
    want, want_grads = run(source.float(), target.float(), labels, metric=metric, impl="streaming")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = run(source, target, labels, metric=metric, impl="streaming")
    assert got.loss.dtype == torch.float32 and got.loss.item() == want.loss.item()
    for grad, want_grad in zip(grads, want_grads):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad, want_grad.bfloat16())


@METRICS
@pytest.mark.parametrize("layout", ["channels last", "transposed", "every second pixel"])
def test_strided_inputs_give_the_same_result(layout, metric):
    source, target, labels = random_case(9, 2, 4, (4, 6), (6, 4), metric)
    strided = {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda x: x.mT.contiguous().mT,
        "every second pixel": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    }[layout]
    want, want_grads = run(source, target, labels, metric=metric, impl="streaming")
    a, b = strided(source).detach().requires_grad_(), strided(target).detach().requires_grad_()
    assert not a.is_contiguous()
    got = cycle_association_loss(a, b, labels, metric=metric, impl="streaming")
    grads = torch.autograd.grad(3 * got.loss, (a, b))
    torch.testing.assert_close(got.loss, want.loss)
    for grad, want_grad in zip(grads, want_grads):
        torch.testing.assert_close(grad, want_grad)


def test_activation_checkpointing_recomputes_the_same():
    source, target, labels = random_case(10, 1, 4, (3, 4), (4, 3), "cos")
    _, want = run(source, target, labels, impl="streaming")
    source.requires_grad_(), target.requires_grad_()
    loss = torch.utils.checkpoint.checkpoint(
        lambda s, t: 3 * cycle_association_loss(s, t, labels, impl="streaming").loss, source, target, use_reentrant=False
    )
    for grad, want_grad in zip(torch.autograd.grad(loss, (source, target)), want):
        torch.testing.assert_close(grad, want_grad)


def test_a_compiled_model_around_it_gives_the_same():
    source, target, labels = random_case(11, 1, 4, (3, 4), (4, 3), "cos")
    want, _ = run(2 * source, target, labels, impl="streaming")

    def step(s, t):
        return cycle_association_loss(2 * s, t, labels, impl="streaming").loss * 3

    (grad,) = torch.autograd.grad(step(source.requires_grad_(), target), source)
    loss = torch.compile(step, backend="eager")(source, target)
    torch.testing.assert_close(loss, 3 * want.loss)
    torch.testing.assert_close(torch.autograd.grad(loss, source)[0], grad)


# ---- which form runs -----------------------------------------------------------------------------


STREAMED = {"stream_loss", "stream_aggregation", "stream_cycles"}
DENSE = {"dense_loss", "dense_aggregation", "dense_cycles"}


def parts_of(monkeypatch, source, target, labels, **options):
    called = []
    for name in STREAMED | DENSE:
        original = getattr(cycle_association, name)
        monkeypatch.setattr(cycle_association, name, lambda *a, o=original, n=name: called.append(n) or o(*a))
    cycle_association_loss(source, target, labels, **options)
    find_cycles(source, target, labels, **options)
    return set(called)


def test_auto_is_dense_only_while_every_matrix_of_the_batch_fits_into_one_tile(monkeypatch):
    monkeypatch.setattr(cycle_association, "DENSE_ELEMENTS", 12 * 12)
    assert parts_of(monkeypatch, *random_case(0, 1, 4, (3, 4), (3, 4), "cos")) == DENSE
    assert parts_of(monkeypatch, *random_case(0, 2, 4, (3, 4), (3, 4), "cos")) == STREAMED


@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("source, target", [((8, 8), (32, 32)), ((32, 32), (8, 8)), ((8, 8), (16, 16))])
def test_one_form_takes_the_aggregation_and_the_loss_of_a_call_whatever_the_sizes(metric, source, target, monkeypatch):
    """8x8 with 32x32 is small enough for the dense loss, and 32x32 with itself is not for the dense aggregation."""
    case = random_case(0, 1, 4, source, target, metric)
    form = DENSE if (source, target) != ((8, 8), (32, 32)) else STREAMED
    assert parts_of(monkeypatch, *case, metric=metric) == form
    assert parts_of(monkeypatch, *case, metric=metric, aggregate=False) == DENSE - {"dense_aggregation"}


def test_streaming_makes_no_matrix_of_source_by_target_size(monkeypatch):
    """Every tensor that any operation returns is smaller than the matrix, by the size of the tiles."""
    monkeypatch.setattr(attention, "SHARES", 1)  # no copy of the map for each head
    source, target, labels = random_case(0, 1, 3, (12, 10), (11, 12), "cos")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return result

    for metric in ("cos", "kl"):
        with Watch():
            run(source.softmax(1), target.softmax(1), labels, metric=metric, impl="streaming")
    assert largest <= 3 * 132 and largest < 120 * 132 / 10  # the maps themselves


def test_unknown_impl_is_refused_with_the_choices():
    source, target, labels = random_case(0, 1, 4, (3, 4), (4, 3), "cos")
    for call in (cycle_association_loss, find_cycles):
        with pytest.raises(ValueError, match=r"impl.*'auto', 'dense', 'streaming', 'fused'.*'fast'"):
            call(source, target, labels, impl="fast")


# ---- parts ---------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 100))
def test_row_argmax_is_the_first_of_equal_maxima(rows, columns, seed):
    x = torch.randint(0, 3, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(tiles.row_argmax(x), (x == x.amax(1, keepdim=True)).int().argmax(1))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 400), st.integers(1, 100))
def test_parts_are_as_few_as_can_be_and_all_but_the_last_suit_a_product(count, most):
    lengths = [part.stop - part.start for part in tiles.even_parts(count, most)]
    assert sum(lengths) == count and max(lengths) <= most and len(set(lengths[:-1])) <= 1
    if most >= tiles.ROWS_AT_ONCE:
        assert all(length % tiles.ROWS_AT_ONCE == 0 for length in lengths[:-1])
        most -= most % tiles.ROWS_AT_ONCE
    assert len(lengths) == -(-count // most)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(0, 300), st.integers(1, 200))
def test_stripes_cover_every_row_once_and_fit_into_the_tile(rows, columns):
    parts = list(tiles.stripes(rows, Distributions(torch.ones(3, columns)), tiles=2))
    assert [r for part, *_ in parts for r in range(part.start, part.stop)] == list(range(rows))
    for part, first, second in parts:
        assert first.shape == second.shape == (part.stop - part.start, columns)
        assert first.numel() <= max(tiles.TILE_ELEMENTS, columns) and first.data_ptr() != second.data_ptr()


# ---- what the benchmark compares with ------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    path = Path(__file__).parent.parent / "benchmarks" / "association.py"
    spec = importlib.util.spec_from_file_location("benchmark_association", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "case", [c for c in ASSOCIATION if c.settings["spagg"] and c.arrays["valid"].any()], ids=lambda c: c.name
)
def test_the_baseline_of_the_benchmark_is_the_published_loss(case, benchmark):
    loss = benchmark.published_loss(
        case.tensor("x1", torch.float64), case.tensor("x2", torch.float64), case.tensor("gt1"), case.settings["metric"]
    )
    assert_close_relative(loss, case.tensor("loss"), 1e-9)


def test_other_libraries_in_the_benchmark_compute_the_published_loss_or_say_why_not(benchmark):
    source, target, labels = random_case(0, 2, 16, (5, 4), (4, 6), "cos", dtype=torch.float32)
    with torch.no_grad():
        want = benchmark.published_loss(source, target, labels, "cos")
        torch.testing.assert_close(benchmark.PEERS["flex"](source, target, labels, "cos"), want, rtol=1e-4, atol=0)
    for name, why in (
        ("flex", "no backward on a CPU"),
        ("flash-sinkhorn", "not installed|CUDA"),
        ("inf-cl", "not installed|CUDA"),
    ):
        with pytest.raises(benchmark.Cannot, match=why):
            benchmark.PEERS[name](source, target.clone().requires_grad_(), labels, "cos")
    case = {"case": "cos-16-5", "impl": "flex", "device": "cpu", "seconds": None, "cannot": "no backward"}
    assert "not measured: no backward" in benchmark.line(case)


def test_the_benchmark_writes_the_named_fields_and_a_plot(tmp_path, benchmark):
    once = benchmark.run_once("cos-8-6", "streaming", "cpu", 1)
    assert {"seconds_forward", "seconds_backward", "input_bytes", "extra_bytes", "gemm_share"} <= once.keys()
    measured = {"impl": "streaming", "device": "cpu"} | once
    rows = [measured | {"case": f"cos-8-{side}", "extra_bytes": side} for side in (4, 6, 8)]
    (path,) = benchmark.plot(rows, tmp_path)
    assert path.stat().st_size > 1000
