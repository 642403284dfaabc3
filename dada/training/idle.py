"""What a cfg asks for but its run never does: reported at the start, since nothing else would show it."""

from __future__ import annotations

from typing import Any

from dada.domain_adaptation.objectives import Objective
from dada.training.schedule import poly_lr


def last_iteration(cfg: Any) -> int:
    """Number of iterations that `cfg` runs."""
    return min(cfg.TRAIN.EARLY_STOP or cfg.TRAIN.MAX_ITERS, cfg.TRAIN.MAX_ITERS)


def idle_parts(cfg: Any, objective: Objective) -> list[str]:
    """A sentence for each term, rate or option that cannot act before the run ends, with the numbers."""
    train, stop = cfg.TRAIN, last_iteration(cfg)
    end = f"the run ends after {stop} ({'TRAIN.MAX_ITERS' if stop == train.MAX_ITERS else 'TRAIN.EARLY_STOP'})"
    late: dict[str, list[str]] = {}
    for term in objective.terms:
        if term.start >= stop:
            option = f" ({term.start_option})" if term.start_option else ""
            late.setdefault(f"begin at iteration {term.start}{option}", []).append(term.name)
    found = [f"{', '.join(names)}: never computed; would {begin}, but {end}" for begin, names in late.items()]
    if not objective.adapts and (cfg.CONTRASTIVE_LEARNING or train.DA_METHOD != "source_only"):
        asked = "CONTRASTIVE_LEARNING" if cfg.CONTRASTIVE_LEARNING else f"TRAIN.DA_METHOD {train.DA_METHOD}"
        found.append(f"{asked} adds no term, since the weights of all are 0: the run trains on the source alone")
    if cfg.TARGET_LABELLED and not objective.uses_labelled:
        found.append("TARGET_LABELLED is not read, since TRAIN.LAMBDA_SEG_TARGET is 0")
    if objective.left_out:
        found.append(f"left out, as they read the source, which TRAIN.SOURCE_FREE does without: {', '.join(objective.left_out)}")
    if train.DA_METHOD == "DADA" and not cfg.USE_DEPTH:
        found.append(
            "TRAIN.DA_METHOD is DADA and USE_DEPTH False: there is no depth loss, and a discriminator sees entropy maps without "
            "depth. Set USE_DEPTH to True for DADA as published"
        )
    if (
        train.FREEZE_ENCODER
        and not (train.ADAPTER or cfg.USE_DEPTH)
        and any(term.name == "loss_fass" for term in objective.terms)
    ):
        found.append(
            "loss_fass: moves nothing, since it compares features of the encoder, which TRAIN.FREEZE_ENCODER keeps as they are"
        )
    if stop <= train.WARMUP_ITERS:
        schedule = {"max_iterations": train.MAX_ITERS, "power": train.POWER, "warmup": train.WARMUP_ITERS}
        highest = max(poly_lr(train.LEARNING_RATE, iteration, **schedule) for iteration in range(stop))
        found.append(
            f"the learning rate never gets above {highest:.3g}, TRAIN.LEARNING_RATE is {train.LEARNING_RATE:g}: warm-up takes "
            f"{train.WARMUP_ITERS} iterations (TRAIN.WARMUP_ITERS), and {end}"
        )
    if stop < train.EVAL_EVERY:
        found.append(f"no network is evaluated: TRAIN.EVAL_EVERY is {train.EVAL_EVERY}, and {end}")
    return found
