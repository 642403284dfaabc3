"""Launches and memory of the cycle-association loss as a GPU would run it, counted without one.

    python benchmarks/association_counts.py
    python benchmarks/association_counts.py --cases cos-2048-92 --batch 1 --rows 512

Forward and backward run on tensors that have shapes and no values, with the schedule and the tile sizes of a GPU. An
operation that writes a tensor is one launch; views and empty tensors are none. A compiled epilogue is as many launches
as its text has passes over the tile, and writes a tile of its own. A kernel is one; where triton is not installed, the rows
of kernels are left out. Memory is the peak of what is alive, without the two inputs. Libraries' workspaces, and kernels that a
reduction has twice, are not seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from dada.domain_adaptation.association import aggregation, form, streamed_loss, tiles

triton = importlib.util.find_spec("triton") is not None
CASES = ("cos-512-92", "cos-2048-92", "kl-19-92")
ALPHA = 0.5
STATIC = form.Form(static=True)
FORMS = {"streaming": STATIC, "kernels": form.Form(static=True, kernels=True)}
# Passes that a compiler cannot join: a sum over rows ends before what needs it; sums over columns go the other way.
PASSES = {"_weigh_pair_": 1, "_pull_pair_": 2}


class Counter(TorchDispatchMode):
    """Counts launches, and bytes of storages from when they are first seen until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = self.peak = 0
        self.inside_epilogue = False
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not self.inside_epilogue:
            writes = function.namespace == "aten" and not (function.is_view or "empty" in str(function))
            self.launches += writes
            self.note(result)
        return result

    def note(self, result) -> None:
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[storage] = None
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.forget, storage.nbytes())
        self.peak = max(self.peak, self.bytes)

    def forget(self, count: int) -> None:
        self.bytes -= count

    def compiled(self, epilogue: Callable) -> Callable:
        """`epilogue` as a compiler would run it: out of place, nothing between its passes is stored."""

        def run(*arguments):
            self.inside_epilogue = True
            try:
                result = epilogue(*tree_map_only(Tensor, torch.clone, arguments))
            finally:
                self.inside_epilogue = False
            self.launches += PASSES[epilogue.__name__]
            self.note(result)
            return result

        return run


@contextmanager
def like_a_gpu(counter: Counter, rows: int | None) -> Iterator[None]:
    """Shapes of a GPU for tensors of a CPU; `rows` sets the height of stripes."""
    form.STATIC_DEVICES = form.GPUS = ("cpu",)
    aggregation._compiled = counter.compiled
    if rows:
        tiles.stripe_height = lambda *_: rows
    aggregation.pair_side = lambda channels, device: 2048
    if triton:
        from dada.domain_adaptation.association import launch

        launch.Launcher.__call__ = lambda *_: setattr(counter, "launches", counter.launches + 1)
    with FakeTensorMode(), counter, torch.no_grad():
        yield


def count(case: str, batch: int, choice: form.Form, rows: int | None) -> Counter:
    metric, channels, side = case.split("-")
    counter = Counter()
    with like_a_gpu(counter, rows):
        source, target = torch.empty(2, batch, int(channels), int(side), int(side)).unbind()
        inputs = counter.bytes
        mixed, *softmax = aggregation.aggregate(target, metric, ALPHA, choice)
        j, back, usable = streamed_loss.ways(source, mixed, metric, choice)
        weights = usable.to(source.dtype)
        _, *grads = streamed_loss.sum_over_cycles(source, mixed, j, back, weights, metric, (True, True), choice)
        for grad in grads:
            grad.mul_(grad.new_empty(()))
        kept = aggregation.aggregate_backward(target, mixed, *softmax, grads[1], metric, ALPHA, choice)
    assert kept.shape == target.shape
    counter.peak -= inputs
    return counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help="metric-channels-side")
    parser.add_argument("--batch", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument("--rows", type=int, help="of a stripe (default: as on a GPU)")
    args = parser.parse_args()
    print(f"{'case':<14}{'form':<11}{'launches':>9}{'extra MB':>10}")
    for case in args.cases:
        for name, choice in FORMS.items():
            if choice.kernels and not triton:
                continue
            counted = count(case, args.batch, choice, args.rows)
            print(f"{case:<14}{name:<11}{counted.launches:>9}{counted.peak / 1e6:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
