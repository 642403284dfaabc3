"""Kernels are checked before they are trusted: `impl="auto"` compares them with the plain operations first.

The first time that a process would take the fused form on a device, a small case is computed in both forms: values and gradients,
for every metric. It takes milliseconds beyond the compilation that would come anyhow, and later steps neither
repeat it nor wait for anything. `impl="fused"` is not checked.
"""

from __future__ import annotations

import logging
from importlib import metadata

import torch
from torch import Tensor

from dada.domain_adaptation.association import aggregation, streamed_loss
from dada.domain_adaptation.association.form import Form, form_for
from dada.domain_adaptation.association.products import aside

log = logging.getLogger(__name__)

# Of the largest value of a result. Products are the same ones in both forms, so that only sums in another order differ
# (1e-6 of float32), and where products round their operands, a few of these to the other side.
TOLERANCE = 5e-3
# Unequal and odd, so that nothing divides them; more than the rows of a stripe, so that the last stripe is lower.
SOURCE, TARGET, CHANNELS, ALPHA = (47, 47), (33, 67), 19, 0.5

_passed: dict[tuple[torch.device, str], bool] = {}


def auto_takes_fused(x: Tensor, metric: str) -> bool:
    """Whether `impl="auto"` takes the fused form for maps like x (B, C, H, W): where there are kernels, which are of float32, and
    they were found right.

    Where nothing can be tried (while a model is traced, on fake tensors, while a CUDA graph is recorded), only what
    was tried before is trusted.
    """
    if x.dtype is torch.float64 or not form_for(x.device, fused=True).kernels:
        return False
    kind = x.device, metric
    if kind not in _passed and not torch.compiler.is_compiling() and _has_values(x):
        _passed[kind] = _passes(*kind)
    return _passed.get(kind, False)


def _has_values(x: Tensor) -> bool:
    if type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _passes(device: torch.device, metric: str) -> bool:
    try:
        with aside(device):
            error, name = max(_differences(device, metric))
        if error <= TOLERANCE:
            return True
        problem = f"{name} differs by {error:.1e} of its largest value, rounding is at most {TOLERANCE:.0e}"
    except Exception as reason:  # no triton; of a compiler, a driver, or for want of memory: each raises its own
        problem = f"{type(reason).__name__}: {_first_line(reason)}"
    log.warning(
        "compiled kernels of the association (%s) are not used on %s: %s. impl='auto' takes the plain tiles, exact but slower.",
        metric,
        _machine(device),
        problem,
    )
    return False


def _differences(device: torch.device, metric: str) -> list[tuple[float, str]]:
    """How far the fused form is from the tiled one, result by result, relative to the largest value of each."""
    generator = torch.Generator("cpu").manual_seed(0)  # torch's own is the user's

    def draw(*size: int) -> Tensor:
        x = torch.randn(1, CHANNELS, *size, generator=generator, dtype=torch.float64, device="cpu")
        return (x.softmax(1) if metric == "kl" else x).to(device, torch.float32)

    source, target = draw(*SOURCE), draw(*TARGET)
    fused, tiled = (form_for(device, fused=choice) for choice in (True, False))
    # Each step from the same input, so that a difference does not grow from one to the next.
    mixed, scale, level = aggregation.aggregate(target, metric, ALPHA, tiled)
    j, back, usable = streamed_loss.ways(source, target, metric, tiled)
    weights = usable * (torch.arange(usable.shape[1], device=device) % 3).float()  # a third does not count

    def results(form: Form) -> dict[str, Tensor | None]:
        ways = streamed_loss.ways(source, target, metric, form)
        sums = streamed_loss.sum_over_cycles(source, target, j, back, weights, metric, (True, True), form)
        value = streamed_loss.sum_over_cycles(source, target, j, back, weights, metric, (False, False), form)[0]
        aggregated, *_ = aggregation.aggregate(target, metric, ALPHA, form)
        grad = aggregation.aggregate_backward(target, mixed, scale, level, mixed, metric, ALPHA, form)
        return {
            "the aggregated map": aggregated,
            "the gradient of the aggregation": grad,
            "the way to the target": ways[0],
            "the way back": ways[1],
            "the loss": sums[0],
            "the loss without gradients": value,
            "the gradient of the source": sums[1],
            "the gradient of the target": sums[2],
        }

    got, want = results(fused), results(tiled)
    return [(_difference(got[name], want[name]), name) for name in want]


def _difference(got: Tensor | None, want: Tensor | None) -> float:
    if got is None or want is None:
        return float(got is not want)
    if not want.is_floating_point():  # places: one is right or wrong
        return float((got != want).any())
    error = ((got - want).abs().max() / want.abs().max()).item()
    return error if error == error else torch.inf  # NaN would be less than nothing


def _machine(device: torch.device) -> str:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return f"{card} (torch {torch.__version__}, triton {triton}, CUDA {torch.version.cuda or 'none'})"


def _first_line(error: Exception) -> str:
    """The message of an error, without the lines that compilers put around it."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
