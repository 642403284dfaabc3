"""Time and memory of the association loss, forward and backward, beside the published form, in each precision; and the time
of each of its steps by the kernels of Triton beside tiles."""

from __future__ import annotations

import itertools

import torch
from association import PeakMemory, make_case, published_loss
from association_peers import PEERS, Cannot

from dada.domain_adaptation.association import aggregation, streamed_loss
from dada.domain_adaptation.association.form import form_for
from dada.domain_adaptation.cycle_association import cycle_association_loss
from gpu_check.check import Check
from gpu_check.measure import seconds

PRECISIONS = ("highest", "high", "medium")
CASES = (("cos", 512, 92), ("cos", 2048, 92), ("kl", 19, 92))  # metric, channels, side of the map


def run(check: Check) -> None:
    if check.section == "other libraries":
        for name, case in itertools.product(PEERS, CASES if not check.small else (("cos", 16, 20),)):
            _peer(check, case, name)
        return
    cases, batches = (CASES, (1, 4)) if not check.small else ((("cos", 16, 20), ("kl", 5, 20)), (1,))
    for batch in reversed(batches):  # the large ones first: they are what a training does
        for case in cases:
            for precision in PRECISIONS if not check.small else PRECISIONS[:1]:
                _compare(check, case, batch, precision)
        for case in cases:
            _steps(check, case, batch)


def _compare(check: Check, case: tuple[str, int, int], batch: int, precision: str) -> None:
    metric, channels, side = case
    torch.set_float32_matmul_precision(precision)
    source, target, labels = make_case(metric, channels, side, batch, check.device)
    source.requires_grad_(), target.requires_grad_()
    losses = {"published": lambda: published_loss(source, target, labels, metric)}
    for impl in ("streaming",) if check.small else ("streaming", "fused"):
        losses[impl] = lambda impl=impl: cycle_association_loss(source, target, labels, metric=metric, impl=impl).loss
    published: dict = {}
    for impl, loss in losses.items():
        with check.noting(metric=metric, channels=channels, side=side, batch=batch, precision=precision, impl=impl) as row:
            row |= _measured(check, loss, source, target)
            if impl == "published":
                published = dict(row)
            row |= {name + " ratio": row[name] / published[name] for name in ("ms", "MB") if published.get(name)}
    torch.set_float32_matmul_precision("highest")


def _peer(check: Check, case: tuple[str, int, int], name: str) -> None:
    metric, channels, side = case
    source, target, labels = make_case(metric, channels, side, 1, check.device)
    source.requires_grad_(), target.requires_grad_()
    with check.noting(metric=metric, channels=channels, side=side, batch=1, precision="highest", impl=name) as row:
        try:
            row |= _measured(check, lambda: PEERS[name](source, target, labels, metric), source, target)
        except Cannot as why:
            row["cannot"] = str(why)


def _steps(check: Check, case: tuple[str, int, int], batch: int) -> None:
    """Kernels beside what they replace, in exact products."""
    metric, channels, side = case
    fused = form_for(torch.device(check.device), fused=check.device == "cuda")
    forms = {"kernels ms": fused, "tiles ms": fused._replace(kernels=False)}
    x, y, _ = make_case(metric, channels, side, batch, check.device)
    mixed, *softmax = aggregation.aggregate(y, metric, 0.5, forms["tiles ms"])
    j, back, usable = streamed_loss.ways(x, mixed, metric, forms["tiles ms"])
    steps = {
        "aggregation": lambda form: aggregation.aggregate(y, metric, 0.5, form),
        "its gradient": lambda form: aggregation.aggregate_backward(y, mixed, *softmax, mixed, metric, 0.5, form),
        "cycles": lambda form: streamed_loss.ways(x, mixed, metric, form),
        "loss and gradient": lambda form: streamed_loss.sum_over_cycles(
            x, mixed, j, back, usable.float(), metric, (True, True), form
        ),
    }
    for step, run_in in steps.items():
        with check.noting(metric=metric, channels=channels, batch=batch, step=step) as row, torch.no_grad():
            for name, form in forms.items():
                row[name] = 1e3 * seconds(lambda form=form: run_in(form), check.device)  # noqa: B023 (called at once)


def _measured(check: Check, loss, source: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    def both() -> torch.Tensor:
        source.grad = target.grad = None
        value = loss()
        value.backward()
        return value.detach()

    value = both()  # compiles, and the libraries choose
    if check.device == "cuda":
        torch.cuda.empty_cache()
    source.grad = target.grad = None
    memory = PeakMemory(check.device)
    both()
    extra = memory.extra()
    with torch.no_grad():
        forward = seconds(loss, check.device, repeat=1 if check.small else 3)
    time = seconds(both, check.device, repeat=1 if check.small else 5, warm=0)
    return {"ms": 1e3 * time, "forward ms, no gradient": 1e3 * forward, "MB": extra / 1e6, "loss": value.item()}
