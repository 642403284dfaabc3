"""Learning rate as a function of the iteration: polynomial decay with a linear warm-up."""

from __future__ import annotations

import math

from torch.optim import Optimizer

__all__ = ["PolySchedule", "poly_lr"]

WARMUP_RATIO = 1e-6  # share of the rate at iteration 0, as in DAFormer


def poly_lr(base: float, iteration: int, max_iterations: int, power: float = 0.9, warmup: int = 0) -> float:
    """base * (1 - t)^power * ramp, with t = iteration / max_iterations held at 1 past the end.

    The ramp rises linearly from WARMUP_RATIO at iteration 0 to 1 at iteration `warmup` and is 1 from there
    on; it multiplies the decaying rate, as in the transformer schedules of DAFormer (Hoyer et al., CVPR
    2022). Without warm-up this is the "poly" policy of DeepLab (Chen et al., arXiv:1606.00915) that ADVENT,
    DADA and PLCA use.

    Args:
        base: learning rate at iteration 0 without warm-up.
        iteration: 0-based index of the step about to be taken.
        max_iterations: where the rate reaches 0, in steps. Training may stop earlier, or go on at rate 0.
        power: at least 0; 0 keeps the rate constant.
        warmup: steps of warm-up, 0 for none.

    Raises:
        ValueError: an argument is out of its range.
    """
    if iteration < 0:
        raise ValueError(f"iteration must be at least 0, got {iteration}")
    _check(max_iterations, power, warmup)
    rate = base * max(0.0, 1 - iteration / max_iterations) ** power
    if iteration < warmup:
        rate *= WARMUP_RATIO + (1 - WARMUP_RATIO) * iteration / warmup
    return rate


def _check(max_iterations: int, power: float, warmup: int) -> None:
    if not max_iterations > 0:
        raise ValueError(f"max_iterations must be positive, got {max_iterations}")
    if not (power >= 0 and math.isfinite(power)):
        raise ValueError(f"power must be at least 0, got {power}")
    if not warmup >= 0:
        raise ValueError(f"warmup must be at least 0 iterations, got {warmup}")


class PolySchedule:
    """Writes `poly_lr` into the groups of an optimizer; call `set(iteration)` before each step.

    It keeps no counter, so nothing of it belongs into a checkpoint: a resumed run sets its iteration.

    Args:
        optimizer: any torch optimizer.
        max_iterations, power, warmup: see `poly_lr`.

    Each group decays from the rate that it was built with, which is kept in it as "initial_lr", like torch's own schedulers
    do, so that loading the optimizer's state does not lose it.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, max_iterations: int, power: float = 0.9, warmup: int = 0) -> None:
        _check(max_iterations, power, warmup)
        self.optimizer = optimizer
        self.base_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.max_iterations = max_iterations
        self.power = power
        self.warmup = warmup

    def rates(self, iteration: int) -> list[float]:
        """Learning rate of each group at `iteration`."""
        return [poly_lr(base, iteration, self.max_iterations, self.power, self.warmup) for base in self.base_lrs]

    def set(self, iteration: int) -> list[float]:
        """Write the rates of `iteration` into the optimizer and return them."""
        rates = self.rates(iteration)
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        return rates
