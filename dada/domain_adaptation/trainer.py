"""The one training loop: every method, every network, both domains."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dada.config import plain_cfg, save_cfg
from dada.dataset.sample import Batch
from dada.domain_adaptation.bad_files import BadFiles
from dada.domain_adaptation.build import build_network, choose_device, source_loader, target_loader
from dada.domain_adaptation.checkpoint import (
    check_unchanged,
    check_versions,
    find_checkpoint,
    fingerprint,
    fixed_options,
    save_checkpoint,
)
from dada.domain_adaptation.legacy import RepeatingSGD, times_listed
from dada.domain_adaptation.lock import lock
from dada.domain_adaptation.memory import explain_out_of_memory
from dada.domain_adaptation.monitor import Monitor
from dada.domain_adaptation.objectives import Objective, build_objective
from dada.domain_adaptation.post_mortem import FailedStep, not_finite, save_post_mortem
from dada.domain_adaptation.rng import rng_state, seed_all, set_rng_state, torch_rng_state
from dada.domain_adaptation.runs import Run, save_snapshot, set_aside
from dada.domain_adaptation.schedule import PolySchedule
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.stopping import StopSignals
from dada.files import remove_parts

log = logging.getLogger(__name__)


class NonFiniteLoss(ArithmeticError):
    """A loss term, or a weight, became NaN or infinite.

    Attributes:
        values: of all terms that were computed in the step; empty if it was a weight.
        failed: the step, for a post-mortem.
    """

    def __init__(self, message: str, values: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.values = dict(values or {})
        self.failed: FailedStep | None = None


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

    def state_dict(self) -> dict[str, Any]:
        """Everything that `iterate` changes; the network under the name that weights have in a snapshot."""
        return {
            "state_dict": self.network.state_dict(),
            "discriminators": [a.discriminator.state_dict() for a in self.objective.adversaries],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned, into a trainer that was built in the same way."""
        self.network.load_state_dict(state["state_dict"])
        for adversary, saved in zip(self.objective.adversaries, state["discriminators"], strict=True):
            adversary.discriminator.load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def iterate(self, iteration: int, batches: Iterator[tuple[Batch, Batch | None]]) -> tuple[dict[str, float], Step]:
        """One iteration. Returns the values of all terms, unweighted and averaged over its steps, and the last step.

        Raises:
            NonFiniteLoss: before anything moves; the message names the term, `failed` holds the step.
        """
        for schedule, optimizer in zip(self.schedules, self.optimizers):
            schedule.set(iteration)
            optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for _ in range(self.iter_size):
            source, target = next(batches)
            rng = torch_rng_state(source.image.device)
            step = self.step(source, target)
            try:
                values = self.backward(step, iteration)
            except NonFiniteLoss as error:
                error.failed = FailedStep(iteration, step.source, step.target, error.values, rng)
                raise
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value / self.iter_size
        for optimizer in self.optimizers:
            optimizer.step()
        names, stacked = list(totals), torch.stack([v.double() for v in totals.values()])
        return dict(zip(names, stacked.tolist())), step

    def step(self, source: Batch, target: Batch | None) -> Step:
        return Step(self.network, source, target, align_corners=self.align_corners, autocast=self.autocast)

    def backward(self, step: Step, iteration: int, *, check: bool = True) -> dict[str, Tensor]:
        """Add the gradients of one step; return every loss and note, detached.

        Raises:
            NonFiniteLoss: if `check`, at the first losses that are not finite.
        """
        losses = self.objective(step, iteration)
        values = {name: value.detach() for name, (_, value) in losses.items()}
        if check:
            _check_finite(values, step, iteration)
        total = sum(weight * value for weight, value in losses.values())
        (total / self.iter_size).backward()
        for adversary in self.objective.adversaries:
            values.update(adversary.learn(step, scale=1 / self.iter_size))
            if check:
                _check_finite(values, step, iteration)
        return {**values, **{name: note.detach() for name, note in step.notes.items()}}


def _check_finite(values: dict[str, Tensor], step: Step, iteration: int) -> None:
    if torch.stack([value.double() for value in values.values()]).isfinite().all():
        return  # one host synchronisation for all terms, before anything moves
    numbers = {name: value.item() for name, value in values.items()}
    bad = [f"{name} = {number}" for name, number in numbers.items() if not math.isfinite(number)]
    images = step.source.name + (step.target.name if step.target is not None else [])
    raise NonFiniteLoss(
        f"iteration {iteration}: {', '.join(bad)}; nothing was updated. Images of the step: {', '.join(images)}. "
        "Lower TRAIN.LEARNING_RATE, turn TRAIN.BF16 off, or lower the weight of the named term.",
        numbers,
    )


def build_trainer(cfg: Any, device: torch.device, weights: str = "") -> Trainer:
    """Network, objective and optimizers as `cfg` says; the network starts from `weights`, or at random."""
    network = build_network(cfg, weights=weights).to(device).train()
    return Trainer(
        network,
        build_objective(cfg, device),
        build_optimizer(network, cfg),
        max_iterations=cfg.TRAIN.MAX_ITERS,
        power=cfg.TRAIN.POWER,
        warmup=cfg.TRAIN.WARMUP_ITERS,
        iter_size=cfg.TRAIN.ITER_SIZE,
        align_corners=cfg.ALIGN_CORNERS,
        autocast=cfg.TRAIN.BF16,
    )


def build_optimizer(network: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    """TRAIN.OPTIMIZER over the network's parameter groups; heads at LR_MULT times the learning rate."""
    train = cfg.TRAIN
    rates = {"backbone": train.LEARNING_RATE, "head": train.LEARNING_RATE * train.LR_MULT}
    groups = [{"params": p, "lr": rates[name]} for name, p in network.parameter_groups().items() if p]
    if cfg.LEGACY.DUPLICATE_STEPS and train.OPTIMIZER != "SGD":
        raise ValueError(f"LEGACY.DUPLICATE_STEPS is about SGD, but TRAIN.OPTIMIZER is {train.OPTIMIZER!r}")
    if train.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=train.LEARNING_RATE, weight_decay=train.WEIGHT_DECAY)
    options = {"lr": train.LEARNING_RATE, "momentum": train.MOMENTUM, "weight_decay": train.WEIGHT_DECAY}
    if cfg.LEGACY.DUPLICATE_STEPS:
        return RepeatingSGD(groups, times_listed(network), **options)
    return torch.optim.SGD(groups, **options)


def last_iteration(cfg: Any) -> int:
    """Number of iterations that `cfg` runs."""
    return min(cfg.TRAIN.EARLY_STOP or cfg.TRAIN.MAX_ITERS, cfg.TRAIN.MAX_ITERS)


def is_finished(cfg: Any, run: Run) -> bool:
    """Whether `run` holds the last snapshot of a training whose cfg gives the same weights as this one."""
    # The cfg in the snapshot counts: train_cfg.yml may be that of a later run that was stopped on its way.
    snapshot = run.snapshots / f"model_{last_iteration(cfg)}.pth"
    if not snapshot.is_file():
        return False
    saved = torch.load(snapshot, map_location="cpu", weights_only=True)
    return "cfg" in saved and fixed_options(saved["cfg"]) == fixed_options(plain_cfg())


def paired(source: Iterable[Batch], target: Iterable[Batch] | None, device: torch.device) -> Iterator[tuple]:
    """Batches of both domains, step by step, on the device; None for the target where no term reads it."""
    targets = iter(target) if target is not None else None
    for batch in source:
        other = next(targets).to(device, non_blocking=True) if targets is not None else None
        yield batch.to(device, non_blocking=True), other


def train(cfg: Any, run: Run, *, resume: str = "", tensorboard: bool = False, bar_position: int = 0) -> nn.Module:
    """Train as `cfg` says; write the resolved cfg, snapshots and checkpoints to the run's folder. Returns the network.

    Every input is opened and checked before the first file is written. No other process can train in the folder
    meanwhile. At SIGTERM, SIGUSR1 or SIGINT the run finishes its iteration and writes a checkpoint.

    Args:
        resume: "" starts a run, and sets aside what an earlier one has left; "auto" goes on from the newest readable
            checkpoint of the run, if there is one; else the checkpoint to go on from. A run that has reached its last
            iteration is left as it is.
        tensorboard: log scalars and pictures.
        bar_position: line of the progress bar, for trainings that run side by side.

    Raises:
        FileNotFoundError, ValueError: data, weights, checkpoint or options that cannot be used.
        OSError: another process trains in the folder, or the disk is full.
        NonFiniteLoss: a term became NaN or infinite; the step is in the run's folder, see dada.domain_adaptation.post_mortem.
        OutOfMemory: with what to lower.
        SystemExit: a signal ended the run; the code is 128 and the signal's number.
    """
    with StopSignals() as signals, lock(run.snapshots), explain_out_of_memory(cfg):
        return _train(cfg, run, resume, signals, tensorboard, bar_position)


def _train(cfg: Any, run: Run, resume: str, signals: StopSignals, tensorboard: bool, bar_position: int) -> nn.Module:
    path, saved = (resume and find_checkpoint(run.snapshots, resume)) or (None, None)
    start, stop = saved["iter"] if saved else 0, last_iteration(cfg)
    if saved:
        check_unchanged(path, fixed_options(saved["cfg"]), fixed_options(plain_cfg()), "cfg")
        check_versions(path, saved["versions"])
    elif resume:
        log.info("%s holds no checkpoint: %s starts from scratch", run.snapshots, run.name)
    device = choose_device(cfg)
    seed_all(cfg.TRAIN.RANDOM_SEED)
    trainer = build_trainer(cfg, device, "" if saved else cfg.TRAIN.RESTORE_FROM)
    network, objective = trainer.network, trainer.objective
    if saved:
        trainer.load_state_dict(saved)
        if start >= stop:
            log.info("%s is finished: %s is at iteration %d of %d", run.name, path, start, stop)
            return network
    steps = {"start_step": start * cfg.TRAIN.ITER_SIZE, "steps": stop * cfg.TRAIN.ITER_SIZE}
    source = source_loader(cfg, network.normalization, **steps)
    target = None
    if objective.uses_target:
        target = target_loader(cfg, network.normalization, second_view=objective.uses_view, **steps)
    data = {f"{name} images": fingerprint(d) for name, d in (("source", source), ("target", target)) if d is not None}
    if saved:
        check_unchanged(path, saved["data"], data, "the run")
        set_rng_state(saved["rng"], device)
        log.info("%s goes on from %s", run.name, path)
    bad_files = BadFiles(saved.get("bad_files") if saved else None)
    # The checkpoints in the folder are this run's own up to where it goes on from; any other file is no part of it.
    own = start if path is not None and path.resolve().parent == run.snapshots.resolve() else 0
    del saved  # as large as the network and its optimizer
    log.info("training %s on %s: %s", run.name, device, ", ".join(f"{t.weight:g} {t.name}" for t in objective.terms))
    batches = bad_files.counted(paired(source, target, device))
    monitor = Monitor(run.logs if tensorboard else None, cfg, network.normalization, source.dataset.classes, start)
    # Closed on the way out of an error too, so that the message starts on a line of its own.
    with logging_redirect_tqdm(), monitor, tqdm(
        range(start, stop), run.name, stop, initial=start, unit="it", dynamic_ncols=True, position=bar_position
    ) as progress:
        for iteration in progress:
            try:
                values, step = trainer.iterate(iteration, batches)
            except NonFiniteLoss as error:
                raise _with_post_mortem(error, run.snapshots, trainer) from error
            done = iteration + 1
            if done == start + 1:  # the run is sound: data, network and losses worked once
                remove_parts(run.snapshots)
                if former := set_aside(run.snapshots, after=own):
                    progress.write(f"files of an earlier run, which are no part of this one, are now in {former}")
                save_cfg(run.snapshots / "train_cfg.yml")
            progress.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
            monitor.scalars(iteration, values, trainer.optimizers[0])
            monitor.pictures(iteration, step)
            if done % cfg.TRAIN.SAVE_PRED_EVERY == 0 or done == stop:
                check_weights(trainer, done)
                save_snapshot(run.snapshots, network, done, plain_cfg())
                if bad_files.total:
                    log.warning("%s", bad_files)
            signal = signals.received
            if signal or done % (cfg.TRAIN.CHECKPOINT_EVERY or cfg.TRAIN.SAVE_PRED_EVERY) == 0 or done == stop:
                check_weights(trainer, done)
                path = save_checkpoint(
                    run.snapshots,
                    done,
                    {**trainer.state_dict(), "rng": rng_state(device), "bad_files": bad_files.state()},
                    cfg=plain_cfg(),
                    data=data,
                    keep=cfg.TRAIN.KEEP_CHECKPOINTS,
                )
            if signal and done < stop:
                break
    if signal and done < stop:
        log.warning("%s after iteration %d; --resume auto goes on from %s", signal.name, done, path)
        sys.exit(128 + signal)
    return network


def check_weights(trainer: Trainer, done: int) -> None:
    """Raise NonFiniteLoss if a weight is not finite, so that no run goes on from such weights.

    That is what a gradient leaves behind that overflowed while all losses were finite. Looking at every gradient would
    cost a pass over all of them and a synchronisation a step; the next loss tells as well, and this looks before it is
    too late.
    """
    networks = (trainer.network, *(adversary.discriminator for adversary in trainer.objective.adversaries))
    bad = [name for network in networks for name in not_finite(network.state_dict())]
    if bad:
        raise NonFiniteLoss(
            f"{len(bad)} of the weights and statistics are not finite after iteration {done - 1}, {bad[0]} among them, "
            "though the losses were: a gradient was not. They are not saved. Lower TRAIN.LEARNING_RATE, or turn TRAIN.BF16 "
            "off, and start again; TRAIN.RESTORE_FROM takes the last snapshot."
        )


def _with_post_mortem(error: NonFiniteLoss, folder: Path, trainer: Trainer) -> NonFiniteLoss:
    """Save the step that failed. Returns the error for the user, which says where."""
    discriminators = [adversary.discriminator for adversary in trainer.objective.adversaries]
    try:
        path = save_post_mortem(folder, error.failed, trainer.network, discriminators, plain_cfg())
    except OSError as failure:  # what went wrong at first is what matters
        return NonFiniteLoss(f"{error}\nThe step could not be saved: {failure}")
    return NonFiniteLoss(f"{error}\nThe step is saved; to see where it began: python scripts/replay.py {path}")
