"""The one training loop: every method, every network, both domains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dada.config import plain_cfg, save_cfg
from dada.dataset.sample import Batch
from dada.domain_adaptation.build import build_network, choose_device, source_loader, target_loader
from dada.domain_adaptation.monitor import Monitor
from dada.domain_adaptation.objectives import Objective, build_objective
from dada.domain_adaptation.runs import Run, save_snapshot, set_aside
from dada.domain_adaptation.schedule import PolySchedule
from dada.domain_adaptation.step import Step

log = logging.getLogger(__name__)


class NonFiniteLoss(ArithmeticError):
    """A loss term became NaN or infinite."""


class Trainer:
    """Minimise an objective over batches of both domains.

    One iteration averages the gradients of `iter_size` steps and moves the network once; discriminators move with it.

    Args:
        network: the segmentation network, on its device.
        objective: terms and discriminators.
        optimizer: of the network; its groups carry the base learning rates.
        max_iterations: horizon of the poly schedule.
        power, warmup: of the schedule.
        iter_size: steps in an iteration.
        align_corners, autocast: see Step.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        max_iterations: int,
        power: float = 0.9,
        warmup: int = 0,
        iter_size: int = 1,
        align_corners: bool = True,
        autocast: bool = False,
    ) -> None:
        self.network = network
        self.objective = objective
        self.optimizers = [optimizer, *(a.optimizer for a in objective.adversaries)]
        self.schedules = [PolySchedule(o, max_iterations=max_iterations, power=power, warmup=warmup) for o in self.optimizers]
        self.iter_size = iter_size
        self.align_corners = align_corners
        self.autocast = autocast

    def iterate(self, iteration: int, batches: Iterator[tuple[Batch, Batch | None]]) -> tuple[dict[str, float], Step]:
        """One iteration. Returns the values of all terms, unweighted and averaged over its steps, and the last step.

        Raises:
            NonFiniteLoss: before anything moves; the message names the term.
        """
        for schedule, optimizer in zip(self.schedules, self.optimizers):
            schedule.set(iteration)
            optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for _ in range(self.iter_size):
            source, target = next(batches)
            step = Step(
                self.network, source, target, align_corners=self.align_corners, autocast=self.autocast
            )
            values = self._backward(step, iteration)
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value / self.iter_size
        for optimizer in self.optimizers:
            optimizer.step()
        names, stacked = list(totals), torch.stack([v.double() for v in totals.values()])
        return dict(zip(names, stacked.tolist())), step

    def _backward(self, step: Step, iteration: int) -> dict[str, Tensor]:
        """Add the gradients of one step; return every loss and note, detached."""
        losses = self.objective(step, iteration)
        self._check_finite({name: value for name, (_, value) in losses.items()}, step, iteration)
        total = sum(weight * value for weight, value in losses.values())
        (total / self.iter_size).backward()
        values = {name: value.detach() for name, (_, value) in losses.items()}
        for adversary in self.objective.adversaries:
            learnt = adversary.learn(step, scale=1 / self.iter_size)
            self._check_finite(learnt, step, iteration)
            values.update(learnt)
        return {**values, **{name: note.detach() for name, note in step.notes.items()}}

    def _check_finite(self, values: dict[str, Tensor], step: Step, iteration: int) -> None:
        finite = torch.stack([value.detach().float() for value in values.values()]).isfinite()
        if finite.all():  # one host synchronisation for all terms, before anything moves
            return
        bad = [f"{name} = {values[name].item()}" for name, ok in zip(values, finite.tolist()) if not ok]
        images = step.source.name + (step.target.name if step.target is not None else [])
        raise NonFiniteLoss(
            f"iteration {iteration}: {', '.join(bad)}; nothing was updated. Images of the step: {', '.join(images)}. "
            "Lower TRAIN.LEARNING_RATE, turn TRAIN.BF16 off, or lower the weight of the named term."
        )


def build_optimizer(network: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    """TRAIN.OPTIMIZER over the network's parameter groups; heads at LR_MULT times the learning rate."""
    train = cfg.TRAIN
    rates = {"backbone": train.LEARNING_RATE, "head": train.LEARNING_RATE * train.LR_MULT}
    groups = [{"params": p, "lr": rates[name]} for name, p in network.parameter_groups().items() if p]
    if train.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=train.LEARNING_RATE, weight_decay=train.WEIGHT_DECAY)
    return torch.optim.SGD(
        groups, lr=train.LEARNING_RATE, momentum=train.MOMENTUM, weight_decay=train.WEIGHT_DECAY
    )


def last_iteration(cfg: Any) -> int:
    """Number of iterations that `cfg` runs."""
    return min(cfg.TRAIN.EARLY_STOP or cfg.TRAIN.MAX_ITERS, cfg.TRAIN.MAX_ITERS)


def is_finished(cfg: Any, run: Run) -> bool:
    """Whether `run` holds the last snapshot of a training with exactly this cfg."""
    # The cfg in the snapshot counts: train_cfg.yml may be that of a later run that was stopped on its way.
    snapshot = run.snapshots / f"model_{last_iteration(cfg)}.pth"
    return snapshot.is_file() and torch.load(snapshot, map_location="cpu", weights_only=True).get("cfg") == plain_cfg()


def paired(source: Iterable[Batch], target: Iterable[Batch] | None, device: torch.device) -> Iterator[tuple]:
    """Batches of both domains, step by step, on the device; None for the target where no term reads it."""
    targets = iter(target) if target is not None else None
    for batch in source:
        other = next(targets).to(device, non_blocking=True) if targets is not None else None
        yield batch.to(device, non_blocking=True), other


def train(cfg: Any, run: Run, *, tensorboard: bool = False, bar_position: int = 0) -> nn.Module:
    """Train as `cfg` says; write the resolved cfg and snapshots to the run's folder. Returns the trained network.

    Every input is opened and checked before the first file is written.

    Args:
        tensorboard: log scalars and pictures.
        bar_position: line of the progress bar, for trainings that run side by side.

    Raises:
        FileNotFoundError, ValueError: data, weights or options that cannot be used.
        NonFiniteLoss: a term became NaN or infinite.
    """
    device = choose_device(cfg)
    torch.manual_seed(cfg.TRAIN.RANDOM_SEED)
    network = build_network(cfg, weights=cfg.TRAIN.RESTORE_FROM).to(device).train()
    objective = build_objective(cfg, device)
    stop = last_iteration(cfg)
    steps = stop * cfg.TRAIN.ITER_SIZE
    source = source_loader(cfg, network.normalization, steps)
    target = None
    if objective.uses_target:
        target = target_loader(cfg, network.normalization, steps, second_view=objective.uses_view)
    trainer = Trainer(
        network,
        objective,
        build_optimizer(network, cfg),
        max_iterations=cfg.TRAIN.MAX_ITERS,
        power=cfg.TRAIN.POWER,
        warmup=cfg.TRAIN.WARMUP_ITERS,
        iter_size=cfg.TRAIN.ITER_SIZE,
        align_corners=cfg.ALIGN_CORNERS,
        autocast=cfg.TRAIN.BF16,
    )
    log.info("training %s on %s: %s", run.name, device, ", ".join(f"{t.weight:g} {t.name}" for t in objective.terms))
    batches = paired(source, target, device)
    monitor = Monitor(run.logs if tensorboard else None, cfg, network.normalization, source.dataset.classes)
    # Closed on the way out of an error too, so that the message starts on a line of its own.
    with monitor, tqdm(
        range(stop), desc=run.name, unit="it", dynamic_ncols=True, position=bar_position
    ) as progress:
        for iteration in progress:
            values, step = trainer.iterate(iteration, batches)
            done = iteration + 1
            if done == 1:  # the run is sound: data, network and losses worked once
                if former := set_aside(run.snapshots):
                    progress.write(f"files of an earlier run of this name are now in {former}")
                save_cfg(run.snapshots / "train_cfg.yml")
            progress.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
            monitor.scalars(iteration, values, trainer.optimizers[0])
            monitor.pictures(iteration, step)
            if done % cfg.TRAIN.SAVE_PRED_EVERY == 0 or done == stop:
                save_snapshot(run.snapshots, network, done, plain_cfg())
    return network
