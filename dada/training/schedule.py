"""Learning rate as a function of the iteration: polynomial decay with a linear warm-up."""

from __future__ import annotations

from torch.optim import Optimizer

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
    """
    rate = base * max(0.0, 1 - iteration / max_iterations) ** power
    if iteration < warmup:
        rate *= WARMUP_RATIO + (1 - WARMUP_RATIO) * iteration / warmup
    return rate


def set_poly_lr(optimizer: Optimizer, iteration: int, max_iterations: int, power: float = 0.9, warmup: int = 0) -> None:
    """Write `poly_lr` into the groups of `optimizer`; to be called before each step.

    Each group decays from the rate that it was built with, which is kept in it as "initial_lr", like torch's own schedulers
    do, so that loading the optimizer's state does not lose it. There is no counter: a resumed run sets its iteration.
    """
    for group in optimizer.param_groups:
        group["lr"] = poly_lr(group.setdefault("initial_lr", group["lr"]), iteration, max_iterations, power, warmup)
