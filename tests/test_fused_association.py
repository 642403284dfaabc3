"""The form for GPUs is the dense form too: a schedule that never waits for a value, and kernels that are checked first.

The schedule runs on a CPU as well; tests/test_kernels.py has the kernels. What only a CUDA device can show is marked `gpu`.
"""

import pytest
import torch
from golden_cases import assert_close_relative, golden_cases
from hypothesis import HealthCheck, given, settings
from test_streaming_association import assert_same, cases, random_case, run, small_tiles  # noqa: F401
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dada.domain_adaptation import cycle_association
from dada.domain_adaptation.association import aggregation, check, form, operators, pixels, streamed_loss, tiles
from dada.domain_adaptation.cycle_association import cycle_association_loss, find_cycles

METRICS = pytest.mark.parametrize("metric", ["cos", "kl"])
GOLDEN = golden_cases("plca_association.npz")


@pytest.fixture
def static(monkeypatch):
    """The schedule of a GPU, on the CPU."""
    monkeypatch.setattr(form, "STATIC_DEVICES", ("cpu", "cuda"))


def said(caplog):
    """What this project logged: torch's compiler has more to tell."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("dada.")]


# ---- the schedule that does not wait -------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small=cases())
def test_the_static_schedule_is_the_dense_form_on_any_shape(small, static):
    (source, target, labels), options = small
    assert_same(source, target, labels, 1e-9, impl="fused", **options)
    got, want = (find_cycles(source, target, labels, impl=i, **options) for i in ("fused", "dense"))
    assert all(map(torch.equal, got, want))


@METRICS
def test_rows_of_no_weight_add_nothing_even_where_their_softmax_is_steep(metric, static):
    """All rows are made; one whose exponent overflowed would turn the sum into NaN."""
    g = torch.Generator().manual_seed(0)
    source = torch.eye(40)[torch.zeros(5, 8, dtype=torch.long)].permute(2, 0, 1)[None].clone()
    source[0, 1, 0, 0], source[0, 0, 0, 0] = 1, 0  # one pixel unlike 39 others: 1 / std is large
    target = torch.eye(40)[torch.randint(0, 3, (5, 6), generator=g)].permute(2, 0, 1)[None]
    labels = torch.full((1, 5, 8), 255)
    labels[0, 0, 1] = 0
    result, grads = run(source, target, labels, metric=metric, impl="fused", aggregate=False)
    assert torch.isfinite(result.loss) and all(grad.isfinite().all() for grad in grads)
    want, want_grads = run(source, target, labels, metric=metric, impl="dense", aggregate=False)
    torch.testing.assert_close(result, want)
    torch.testing.assert_close(grads, want_grads)


@METRICS
def test_the_static_schedule_never_looks_at_a_value(metric):
    """It runs on tensors that have shapes only: nothing could be waited for."""
    static = form.Form(static=True)
    source, target, labels = random_case(0, 1, 5, (3, 5), (5, 2), metric)

    def everything(choice):
        j, back, usable = streamed_loss.ways(source, target, metric, choice)
        weights = usable.to(source.dtype)
        results = streamed_loss.sum_over_cycles(source, target, j, back, weights, metric, (True, True), choice)
        mixed, *softmax = aggregation.aggregate(target, metric, 0.5, choice)
        grad = aggregation.aggregate_backward(target, mixed, *softmax, mixed, metric, 0.5, choice)
        return *results, grad, j, back, usable

    real = everything(static)
    with FakeTensorMode() as mode:
        source, target, labels = map(mode.from_tensor, (source, target, labels))
        fake = everything(static)
        with pytest.raises(Exception, match="nonzero|unique"):  # as the schedule of a CPU does
            everything(form.PLAIN)
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]


def test_the_schedule_is_chosen_by_the_device():
    assert form.form_for(torch.device("cuda"), fused=False) == form.Form(static=True)
    assert form.form_for(torch.device("cuda"), fused=True) == form.Form(static=True, kernels=True)
    assert form.form_for(torch.device("cpu"), fused=True) == form.form_for(torch.device("cpu"), fused=False) == form.PLAIN


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_golden_loss_and_gradients_with_the_static_schedule(case, static):
    s = case.settings
    result, grads = run(
        case.tensor("x1", torch.float64),
        case.tensor("x2", torch.float64),
        case.tensor("gt1"),
        impl="fused",
        metric=s["metric"],
        aggregate=s["spagg"],
        alpha=s["spagg_alpha"],
        ignore_index=s["ignore_label"],
    )
    assert_close_relative(result.loss, case.tensor("loss"), 1e-9)
    assert_close_relative(grads[0], 3 * case.tensor("grad_x1"), 1e-9)
    assert_close_relative(grads[1], 3 * case.tensor("grad_x2"), 1e-9)
    assert result.closed.item() == case.arrays["valid"].sum()


@METRICS
def test_ties_zero_vectors_and_open_cycles_with_the_static_schedule(metric, static):
    g = torch.Generator().manual_seed(1)
    source, target = (
        torch.eye(4, dtype=torch.float64)[torch.randint(0, 4, (2, *size), generator=g)].permute(0, 3, 1, 2)
        for size in ((5, 7), (6, 5))
    )
    labels = torch.randint(0, 3, (2, 5, 7), generator=g)
    options = {"metric": metric, "aggregate": False}
    got, want = (find_cycles(source, target, labels, impl=i, **options) for i in ("fused", "dense"))
    assert all(map(torch.equal, got, want))  # products are exact: many equal maxima, also across tiles
    assert_same(source, target, labels, 1e-9, impl="fused", **options)
    if metric == "cos":
        source, target = source.clone(), target.clone()
        source[0, :, 1, 1:3], target[0, :, 0, 2], target[1] = 0, 0, 0
        assert_same(source, target, torch.zeros_like(labels), 1e-9, impl="fused", **options)
    result, grads = run(source, target, torch.full_like(labels, 255), impl="fused", **options)
    assert result.loss.item() == 0 and result.closed.item() == 0 and not any(grad.any() for grad in grads)


@METRICS
def test_bfloat16_under_autocast_is_computed_in_float32(metric, static):
    source, target, labels = random_case(8, 1, 16, (6, 7), (5, 6), metric)
    source, target = source.bfloat16(), target.bfloat16()
    want, want_grads = run(source.float(), target.float(), labels, metric=metric, impl="dense")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = run(source, target, labels, metric=metric, impl="fused")
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-4, atol=1e-4)
    for grad, want_grad in zip(grads, want_grads):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad, want_grad.bfloat16(), rtol=2e-2, atol=1e-4)


# ---- "auto" takes what was checked ---------------------------------------------------------------


@pytest.fixture
def differences(static, monkeypatch):
    """The CPU as a device with kernels, none of which was tried yet. What is listed here is what the check finds."""
    monkeypatch.setattr(cycle_association, "DENSE_ELEMENTS", 0)
    monkeypatch.setattr(form, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(check, "_passed", {})
    found = []
    monkeypatch.setattr(check, "_differences", lambda device, metric: found.pop())  # asked once
    return found


def auto_form(metric="cos", dtype=torch.float32):
    source, target, _ = random_case(0, 1, 4, (3, 4), (4, 3), metric, dtype=dtype)
    return cycle_association.choose_form("auto", metric, source, target)


@METRICS
def test_auto_takes_the_fused_form_once_it_was_found_right(metric, differences, caplog):
    assert auto_form(metric, torch.float64) == "streaming"  # kernels are of float32
    differences.append([(1e-3, "the loss"), (0.0, "the way back")])
    before = torch.get_rng_state()
    assert auto_form(metric) == auto_form(metric, torch.bfloat16) == "fused"  # computed in float32
    assert torch.equal(torch.get_rng_state(), before)
    assert check._passed == {(torch.device("cpu"), metric): True} and not said(caplog)


@METRICS
def test_auto_refuses_kernels_that_err_and_says_so_once(metric, differences, caplog):
    differences.append([(0.0, "the loss"), (0.5, "the way back")])
    case = random_case(0, 2, 5, (5, 6), (6, 4), metric, dtype=torch.float32)
    got, grads = run(*case, metric=metric)
    run(*case, metric=metric)
    want, want_grads = run(*case, metric=metric, impl="streaming")
    assert torch.equal(got.loss, want.loss) and all(map(torch.equal, grads, want_grads))
    (message,) = said(caplog)
    assert f"({metric})" in message and f"torch {torch.__version__}" in message and "cpu" in message
    assert "the way back differs by 5.0e-01" in message and "rounding is at most" in message


def test_auto_refuses_kernels_that_do_not_compile(differences, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no such instruction\nand a long trace")

    monkeypatch.setattr(check, "_differences", fails)
    assert auto_form() == auto_form() == "streaming"
    (message,) = said(caplog)
    assert "no such instruction" in message and "trace" not in message


def test_nothing_is_checked_and_nothing_new_trusted_without_values(differences):
    """Tensors of a trace could only fail."""
    x = torch.rand(1, 4, 3, 4)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert not check.auto_takes_fused(fake, "cos")
    case = random_case(3, 1, 3, (3, 4), (4, 3), "cos", dtype=torch.float32)
    step = torch.compile(lambda *x: cycle_association_loss(*x).loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(step(*case), cycle_association_loss(*case, impl="dense").loss)
    assert not check._passed
    differences.append([(0.0, "the loss")])
    assert check.auto_takes_fused(x, "cos") and check.auto_takes_fused(fake, "cos")


@pytest.mark.parametrize("kernels, count", [(False, 5), (True, 3)])
def test_the_backward_of_the_aggregation_is_given_no_tiles_that_it_does_not_read(kernels, count, monkeypatch):
    given = []
    monkeypatch.setattr(aggregation, "tiles_in", lambda b, *size: given.append(len(b)) or tiles.tiles_in(b, *size))
    monkeypatch.setattr(aggregation, "_compiled", lambda f: torch.compile(f, dynamic=True, backend="aot_eager"))
    x = random_case(0, 1, 4, (3, 4), (3, 4), "cos", dtype=torch.float64)[1]
    choice = form.Form(static=True, kernels=kernels)
    mixed, *softmax = aggregation.aggregate(x, "cos", 0.5, choice)
    grad = aggregation.aggregate_backward(x, mixed, *softmax, mixed, "cos", 0.5, choice)
    want = aggregation.aggregate_backward(x, mixed, *softmax, mixed, "cos", 0.5)
    assert set(given[: len(given) // 2]) == {count}
    torch.testing.assert_close(grad, want)


# ---- sizes for a GPU -----------------------------------------------------------------------------


def test_stripes_of_a_gpu_fill_it_and_stay_bounded():
    gpu = torch.device("cuda")
    parts = tiles.even_parts(8464, tiles.stripe_height(8464, 2048, gpu))
    assert [part.stop - part.start for part in parts] == [1696] * 4 + [1680]
    for side in (128, 160, 512, 4096):
        rows = tiles.stripe_height(side**2, 2048, gpu)
        assert 1 <= rows <= 2048 and rows * side**2 <= 2**25
        assert tiles.stripe_height(side**2, 2048, gpu, tiles=4) == max(1, min(2048, 2**23 // side**2))
        assert 4 * tiles.stripe_height(side**2, 19, gpu, tiles=4) * side**2 <= max(14 * 2**20, 4 * side**2)


@pytest.mark.parametrize("channels, products", [(150, 1), (2048, 11)])
def test_sums_over_channels_on_a_gpu_take_as_many_at_once_as_a_tile_has(channels, products, monkeypatch):
    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten.mul.Tensor
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(form, "GPUS", ("cpu",))
    monkeypatch.setattr(pixels, "GPU_TILE_ELEMENTS", 200 * 9)
    x, y = torch.randn(2, channels, 9, dtype=torch.float64)
    with Counter() as counter:
        dot = pixels.channel_dot(x, y)
    assert counter.count == products
    torch.testing.assert_close(dot, torch.linalg.vecdot(x, y, dim=0))


# ---- as operators of torch -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric, needs", [("cos", (True, True)), ("cos", (False, False)), ("kl", (True, True)), ("kl", (True, False))]
)
def test_the_operators_keep_the_contract_of_torch(metric, needs):
    source, target, labels = random_case(1, 2, 3, (3, 4), (2, 5), metric, dtype=torch.float32)
    source.requires_grad_(needs[0]), target.requires_grad_(needs[1])
    j, back, usable = operators.follow_cycles(source.detach(), target.detach(), metric, True)
    weights = torch.rand(usable.shape) * usable
    torch.library.opcheck(operators.associate, (source, target, j, back, weights, metric, *needs, True))
    torch.library.opcheck(operators.aggregate, (target, metric, 0.5, True))
    torch.library.opcheck(operators.follow_cycles, (source, target, metric, True))
    mixed, *softmax = (x.detach() for x in operators.aggregate(target, metric, 0.5, True))
    torch.library.opcheck(operators.aggregate_backward, (target.detach(), mixed, *softmax, mixed, metric, 0.5, True))


class Model(torch.nn.Module):
    """A convolution with the loss and the cycles behind it."""

    def __init__(self, impl, metric):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 5, 1).double()
        self.options = {"impl": impl, "metric": metric}

    def forward(self, source, target, labels):
        source, target = self.convolution(source), self.convolution(target)
        if self.options["metric"] == "kl":
            source, target = source.softmax(1), target.softmax(1)
        result = cycle_association_loss(source, target, labels, **self.options)
        return (3 * result.loss, result.closed, find_cycles(source, target, labels, **self.options).closed)


@METRICS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("impl", ["streaming", "fused"])
def test_a_model_around_it_is_compiled_as_one_graph(impl, backend, metric):
    case = random_case(3, 2, 3, (5, 6), (6, 4), "cos")
    plain = Model(impl, metric)
    compiled = torch.compile(Model(impl, metric), backend=backend, fullgraph=True)
    want, got = plain(*case), compiled(*case)
    want[0].backward(), got[0].backward()
    assert got[1].item() > 0
    torch.testing.assert_close(got, want)
    for parameter, other in zip(compiled.parameters(), plain.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad)


@METRICS
def test_backward_of_a_compiled_model_may_be_called_again(metric):
    """Gradients are handed out scaled in place; a compiler has to see that as well."""
    source, target, labels = random_case(4, 1, 4, (3, 4), (4, 3), metric)
    source.requires_grad_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(x, y):
        return cycle_association_loss(x, y, labels, metric=metric, impl="fused").loss

    value = step(source, target)
    first, second = (torch.autograd.grad(f * value, source, retain_graph=True)[0] for f in (1, -2))
    torch.testing.assert_close(second, -2 * first)


@METRICS
def test_activation_checkpointing_recomputes_the_same(metric, static):
    source, target, labels = random_case(10, 1, 4, (3, 4), (4, 3), metric)
    _, want = run(source, target, labels, impl="dense", metric=metric)
    source.requires_grad_(), target.requires_grad_()
    for reentrant in (False, True):
        value = torch.utils.checkpoint.checkpoint(
            lambda s, t: 3 * cycle_association_loss(s, t, labels, impl="fused", metric=metric).loss,
            source,
            target,
            use_reentrant=reentrant,
        )
        grads = torch.autograd.grad(value, (source, target)) if not reentrant else None
        if reentrant:  # which knows .backward() only
            value.backward()
            grads = source.grad, target.grad
        for grad, want_grad in zip(grads, want):
            torch.testing.assert_close(grad, want_grad)


def test_a_second_derivative_is_refused():
    source, target, labels = random_case(0, 1, 4, (3, 4), (4, 3), "cos")
    source.requires_grad_(), target.requires_grad_()
    value = cycle_association_loss(source, target, labels, impl="fused").loss.square()
    grad, _ = torch.autograd.grad(value, (source, target), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@METRICS
@pytest.mark.parametrize("impl", ["streaming", "fused", "auto"])
def test_on_cuda_values_are_those_of_the_dense_form_and_nothing_waits(impl, metric, monkeypatch):
    monkeypatch.undo()  # tiles of their real size
    monkeypatch.setattr(cycle_association, "DENSE_ELEMENTS", 0)
    source, target, labels = random_case(0, 2, 32, (50, 33), (41, 39), metric, classes=3)
    want, want_grads = run(source, target, labels, metric=metric, impl="dense")
    case = [x.cuda() for x in (source, target, labels)]
    run(*case, metric=metric, impl=impl)  # compiles, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got, grads = run(*case, metric=metric, impl=impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [x.item() for x in got[1:]] == [x.item() for x in want[1:]]
    torch.testing.assert_close(got.loss.cpu(), want.loss, rtol=1e-9, atol=1e-9)
    for grad, want_grad in zip(grads, want_grads):
        torch.testing.assert_close(grad.cpu(), want_grad, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, share", [("high", 0.02), ("medium", 0.05)])
def test_on_cuda_rounded_products_move_gradients_by_their_rounding_and_no_cycle(precision, share):
    source, target, labels = (x.cuda() for x in random_case(0, 1, 64, (20, 20), (20, 20), "cos"))
    source, target = source.float(), target.float()
    want, want_grads = run(source, target, labels, impl="fused", aggregate=False)
    torch.set_float32_matmul_precision(precision)
    try:
        got, grads = run(source, target, labels, impl="fused", aggregate=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got.closed.item() == want.closed.item() and got.covered.item() == want.covered.item()
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-2, atol=0)
    for grad, want_grad in zip(grads, want_grads):
        torch.testing.assert_close(grad, want_grad, rtol=0, atol=share * want_grad.abs().max().item())
