"""How far the association is from float64 in each precision of products: rounding, and apart from it, cycles that go elsewhere.

    python benchmarks/association_errors.py                          # made features
    python benchmarks/association_errors.py --golden                 # those of the golden cases, the worst of all
    python benchmarks/association_errors.py --checkpoint model.pth   # features and probabilities of a trained network

Factors are rounded on the CPU as a GPU would: to 10 bits for TF32, to 7 for bfloat16; products that decide an argmax are not.
Loss and gradients follow the cycles of float64 in every precision, so that they differ by rounding alone.

Cycles differ as the aggregated map does, by its rounding, where two candidates are nearly equal. "other cycles" is the share of
source pixels whose cycle runs through another pixel; "margin" the most that float64 prefers its own end of a step to the one
that was taken, in deviations of the similarities of that row; "own loss" and "own source" are the errors of the loss and of
the gradient of the source by the cycles that were found: rounding and other cycles together.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from association import make_case, parse_case
from torch import Tensor

from dada.domain_adaptation.association import aggregation, both_ways, cycle_search, pixels, streamed_loss
from dada.domain_adaptation.contrastive_learning import as_pixels, similarity

COLUMNS = ("loss", "source", "target", "other cycles", "margin", "own loss", "own source")


class Case(NamedTuple):
    """What is associated: maps (B, C, H, W) and labels (B, H, W)."""

    source: Tensor
    target: Tensor
    labels: Tensor
    metric: str
    alpha: float = 0.5  # 0: the target is not aggregated
    ignore_index: int = 255


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


class Result(NamedTuple):
    """What one precision gives; cycles are j*, the way back from there, and which of them count."""

    mixed: Tensor
    cycles: tuple[Tensor, Tensor, Tensor]
    loss: Tensor
    grads: tuple[Tensor, Tensor]


def associated(case: Case, cycles: tuple[Tensor, Tensor, Tensor] | None = None) -> Result:
    """By the cycles that it finds; loss and gradients by those that are given, if there are any."""
    source, target, labels, metric, alpha, ignore_index = case
    mixed, *softmax = aggregation.aggregate(target, metric, alpha) if alpha else (target,)
    j, back, usable = streamed_loss.ways(source, mixed, metric)
    i = back.gather(1, j)
    found = j, i, usable & (labels.flatten(1) == labels.flatten(1).gather(1, i)) & (labels.flatten(1) != ignore_index)
    followed_j, followed_i, closed = cycles or found
    # The way back from every pixel that is some j* at least, as those that were given have it.
    back = back.scatter(1, followed_j, followed_i)
    count = closed.sum().clamp(min=1)
    total, grad, grad_mixed = streamed_loss.sum_over_cycles(
        source, mixed, followed_j, back, closed.to(source.dtype), metric, (True, True)
    )
    grad_target = aggregation.aggregate_backward(target, mixed, *softmax, grad_mixed, metric, alpha) if alpha else grad_mixed
    return Result(mixed, found, total / count, (grad / count, grad_target / count))


def errors(case: Case) -> dict[str, list[float]]:
    """`COLUMNS` of one case for every precision."""
    exact = case._replace(source=case.source.double(), target=case.target.double())
    want = associated(exact)
    there, back = (_standardized(*maps, case.metric) for maps in ((exact.source, want.mixed), (want.mixed, exact.source)))
    rows = {}
    for name, rounded in ROUNDED.items():
        with factors(rounded):
            by_theirs, by_own = associated(case, want.cycles), associated(case)
        j, i, _ = by_own.cycles
        other = (j != want.cycles[0]) | (i != want.cycles[1])
        ends_back = back.gather(1, j[:, :, None].expand(-1, -1, back.shape[2]))
        margin = max(_lost(there, j), _lost(ends_back, i))
        by_rounding = [_error(by_theirs.loss, want.loss), *map(_error, by_theirs.grads, want.grads)]
        own = [_error(by_own.loss, want.loss), _error(by_own.grads[0], want.grads[0])]
        rows[name] = [*by_rounding, other.double().mean().item(), margin, *own]
    return rows


def _standardized(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Similarities of every row, in deviations of the row: what the softmax sees."""
    sim = similarity(as_pixels(x), as_pixels(y), metric)
    return sim / sim.std(dim=2, keepdim=True).clamp(min=1e-12)


def _lost(sim: Tensor, taken: Tensor) -> float:
    return (sim.amax(2) - sim.gather(2, taken[:, :, None])[:, :, 0]).max().item()


def _error(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item() if want.any() else float(got.any())


# ---- what is associated ---------------------------------------------------------------------------


def made(name: str) -> Case:
    metric, channels, side = parse_case(name)
    return Case(*make_case(metric, channels, side, 1, "cpu"), metric)


def golden() -> Iterator[tuple[str, list[Case]]]:
    """The cases of the published implementation, metric by metric."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from golden_cases import golden_cases

    cases = golden_cases("plca_association.npz")
    for metric in ("cos", "kl"):
        mine = [case for case in cases if case.settings["metric"] == metric]
        yield f"golden, {metric}, {len(mine)} cases", [_of_golden(case) for case in mine]


def _of_golden(case) -> Case:
    s, maps = case.settings, (case.tensor(name, torch.float32) for name in ("x1", "x2"))
    return Case(*maps, case.tensor("gt1"), s["metric"], s["spagg_alpha"] if s["spagg"] else 0.0, s["ignore_label"])


def trained(checkpoint: str, pairs: int, options: list[str]) -> Iterator[tuple[str, list[Case]]]:
    """Features and probabilities of the images that a network was trained with."""
    from dada.build import build_network
    from dada.cli.shared import load_cfg
    from dada.config import cfg
    from dada.explorer.pairs import datasets, read_pairs

    load_cfg(argparse.Namespace(cfg=None, set=options), otherwise=[checkpoint])
    network = build_network(cfg, checkpoint).eval()
    views = list(read_pairs(network, *datasets(cfg, network.normalization, False), pairs, torch.device("cpu")))
    for metric, name in (("cos", "features"), ("kl", "probabilities")):
        maps = [(getattr(pair.source, name), getattr(pair.target, name), pair.source.labels, metric) for pair in views]
        size = "x".join(map(str, maps[0][0].shape[1:]))
        yield f"trained, {metric}, {size}, {pairs} pairs", [Case(*one) for one in maps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["cos-512-46", "cos-2048-46", "kl-19-46"], metavar="CASE", help="made features"
    )
    parser.add_argument("--golden", action="store_true", help="the golden cases instead")
    parser.add_argument("--checkpoint", metavar="FILE", help="a snapshot instead, with the data of its cfg")
    parser.add_argument("--pairs", type=int, default=4, help="image pairs for --checkpoint (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of its cfg that are other ones here")
    args = parser.parse_args()
    groups: Iterator[tuple[str, list[Case]]] = ((name, [made(name)]) for name in args.cases)
    if args.golden or args.checkpoint:
        groups = golden() if args.golden else trained(args.checkpoint, args.pairs, args.set)
    print(f"{'case':<36}{'products':<20}" + "".join(f"{column:>13}" for column in COLUMNS))
    for name, cases in groups:
        found = [errors(case) for case in cases]
        for products in ROUNDED:  # of several cases the worst, column by column
            worst = [max(values) for values in zip(*(rows[products] for rows in found))]
            print(f"{name:<36}{products:<20}" + "".join(f"{value:>13.1e}" for value in worst), flush=True)


if __name__ == "__main__":
    main()
