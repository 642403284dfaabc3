"""Learning rate as a function of the iteration: polynomial decay with a linear warm-up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer

__all__ = ["PolySchedule", "poly_lr"]


def poly_lr(
    base: float,
    iteration: int,
    max_iterations: int,
    power: float = 0.9,
    warmup: int = 0,
    warmup_ratio: float = 1e-6,
) -> float:
    """base * (1 - t)^power * ramp, with t = iteration / max_iterations held at 1 past the end.

    The ramp rises linearly from `warmup_ratio` at iteration 0 to 1 at iteration `warmup` and is 1 from there
    on; it multiplies the decaying rate, as in the transformer schedules of DAFormer (Hoyer et al., CVPR
    2022). Without warm-up this is the "poly" policy of DeepLab (Chen et al., arXiv:1606.00915) that ADVENT,
    DADA and PLCA use.

    Args:
        base: learning rate at iteration 0 without warm-up.
        iteration: 0-based index of the step about to be taken.
        max_iterations: where the rate reaches 0, in steps. Training may stop earlier, or go on at rate 0.
        power: at least 0; 0 keeps the rate constant.
        warmup: steps of warm-up, 0 for none.
        warmup_ratio: share of the rate at iteration 0, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """
    if iteration < 0:
        raise ValueError(f"iteration must be at least 0, got {iteration}")
    _check(max_iterations, power, warmup, warmup_ratio)
    rate = base * max(0.0, 1 - iteration / max_iterations) ** power
    if iteration < warmup:
        rate *= warmup_ratio + (1 - warmup_ratio) * iteration / warmup
    return rate


def _check(max_iterations: int, power: float, warmup: int, warmup_ratio: float) -> None:
    if not max_iterations > 0:
        raise ValueError(f"max_iterations must be positive, got {max_iterations}")
    if not (power >= 0 and math.isfinite(power)):
        raise ValueError(f"power must be at least 0, got {power}")
    if not warmup >= 0:
        raise ValueError(f"warmup must be at least 0 iterations, got {warmup}")
    if not 0 <= warmup_ratio <= 1:
        raise ValueError(f"warmup_ratio must lie in [0, 1], got {warmup_ratio}")


class PolySchedule:
    """Writes `poly_lr` into the groups of an optimizer; call `set(iteration)` before each step.

    It keeps no counter, so nothing of it belongs into a checkpoint: a resumed run sets its iteration.

    Args:
        optimizer: any torch optimizer.
        max_iterations, power, warmup, warmup_ratio: see `poly_lr`.
        base_lrs: rate at iteration 0 of each parameter group (for example [lr, 10 * lr] for backbone and
            heads), or one number for all. None takes the rate that each group was built with; it is then kept
            in the group as "initial_lr", like torch's own schedulers do, so that loading the optimizer's
            state does not lose it.

    Raises:
        ValueError: an argument is out of its range, or the number of rates is not that of the groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_iterations: int,
        power: float = 0.9,
        warmup: int = 0,
        warmup_ratio: float = 1e-6,
        base_lrs: float | Sequence[float] | None = None,
    ) -> None:
        _check(max_iterations, power, warmup, warmup_ratio)
        groups = optimizer.param_groups
        if base_lrs is None:
            base_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in groups]
        elif isinstance(base_lrs, (int, float)):
            base_lrs = [float(base_lrs)] * len(groups)
        if len(base_lrs) != len(groups):
            raise ValueError(
                f"{len(base_lrs)} base learning rates for an optimizer of {len(groups)} parameter groups; "
                "give one for each group, or one number for all"
            )
        self.optimizer = optimizer
        self.base_lrs = [float(base) for base in base_lrs]
        self.max_iterations = max_iterations
        self.power = power
        self.warmup = warmup
        self.warmup_ratio = warmup_ratio

    def rates(self, iteration: int) -> list[float]:
        """Learning rate of each group at `iteration`."""
        options = (self.max_iterations, self.power, self.warmup, self.warmup_ratio)
        return [poly_lr(base, iteration, *options) for base in self.base_lrs]

    def set(self, iteration: int) -> list[float]:
        """Write the rates of `iteration` into the optimizer and return them."""
        rates = self.rates(iteration)
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        return rates
