"""How far the association is from float64 in each precision of products: rounding, and apart from it, cycles that go elsewhere.

    python benchmarks/association_errors.py

Factors are rounded on the CPU as a GPU would: to 10 bits for TF32, to 7 for bfloat16; products that decide an argmax are not.
Loss and gradients follow the cycles of float64 in every precision, so that they differ by rounding alone. Cycles differ
as the aggregated map does, by its rounding: the last column is the share of source pixels with another way, there or back.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from association import make_case, parse_case
from torch import Tensor

from dada.domain_adaptation.association import aggregation, both_ways, cycle_search, pixels, streamed_loss

ALPHA = 0.5


def to_tf32(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "highest (float32)": lambda x: x,
    "high (TF32)": to_tf32,
    "medium (bfloat16)": lambda x: x.bfloat16().float(),
}


@contextlib.contextmanager
def factors(rounded: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Products of rounded factors, but for those that decide an argmax."""
    exact = False

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        nonlocal exact
        exact = True
        yield
        exact = False

    def factor(x: Tensor) -> Tensor:
        return x if exact else rounded(x)

    def mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mm(factor(a), factor(b), out=out)

    def addmm_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return total.addmm_(factor(a), factor(b))

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(cycle_search, "full_float32_products", full))
        for module in (pixels, both_ways, aggregation):
            patches.enter_context(mock.patch.multiple(module, mm=mm, addmm_=addmm_))
        yield


def associated(source: Tensor, target: Tensor, labels: Tensor, metric: str, cycles: tuple | None) -> tuple:
    """The cycles it finds; then, by those given or else its own, the loss and both gradients."""
    mixed, *softmax = aggregation.aggregate(target, metric, ALPHA)
    found = j, back, usable = streamed_loss.ways(source, mixed, metric)
    if cycles is None:
        cycles = j, back, usable & (labels == labels.gather(1, back.gather(1, j))) & (labels != 255)
    j, back, closed = cycles
    closed = closed.to(source.dtype)
    loss, grad, grad_mixed = streamed_loss.sum_over_cycles(source, mixed, j, back, closed, metric, (True, True))
    grads = grad, aggregation.aggregate_backward(target, mixed, *softmax, grad_mixed, metric, ALPHA)
    return found, cycles, loss / closed.sum(), grads


def measure(case: str) -> None:
    metric, channels, side = parse_case(case)
    source, target, labels = make_case(metric, channels, side, 1, "cpu")
    labels = labels.flatten(1)
    _, cycles, want, want_grads = associated(source.double(), target.double(), labels, metric, None)
    j, back, _ = cycles
    for name, rounded in ROUNDED.items():
        with factors(rounded):
            found, _, loss, grads = associated(source, target, labels, metric, cycles)
        other = (found[0] != j) | (found[1].gather(1, found[0]) != back.gather(1, j))
        errors = [((got - exact).norm() / exact.norm()).item() for got, exact in zip((loss, *grads), (want, *want_grads))]
        figures = "".join(f"{error:>12.1e}" for error in errors)
        print(f"{case:<14}{name:<20}{figures}{other.double().mean().item():>12.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["cos-512-46", "cos-2048-46", "kl-19-46"], metavar="CASE")
    args = parser.parse_args()
    print(f"{'case':<14}{'products':<20}{'loss':>12}{'source':>12}{'target':>12}{'other ways':>12}")
    for case in args.cases:
        measure(case)


if __name__ == "__main__":
    main()
