"""One iteration of any method: losses, gradients, optimizers, and what must never go unnoticed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dada.build import build_network
from dada.dataset.sample import Batch
from dada.domain_adaptation.objectives import Objective, build_objective
from dada.domain_adaptation.step import Notes, Step
from dada.domain_adaptation.teacher import Teacher
from dada.model.compiling import compile_network
from dada.model.layer_rates import layered_groups
from dada.parallel.device import widest
from dada.parallel.distributed import accumulating, sum_gradients, with_joint_gradients
from dada.parallel.joint_batch_norm import join_batch_norms
from dada.parallel.ranks import alone, world_size
from dada.training.post_mortem import FailedStep, not_finite
from dada.training.prefetch import Pair
from dada.training.repeating_sgd import RepeatingSGD, times_listed
from dada.training.rng import torch_rng_state
from dada.training.schedule import set_poly_lr

log = logging.getLogger(__name__)


class NonFiniteLoss(ArithmeticError):
    """A loss term, or a weight, became NaN or infinite.

    Attributes:
        values: of all terms that were computed in the step; empty if it was a weight.
        failed: the step, for a post-mortem.
        here: whether it was this process's part of the batch.
    """

    def __init__(self, message: str, values: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.values = dict(values or {})
        self.failed: FailedStep | None = None
        self.here = True


class Iteration(NamedTuple):
    """What there is to log of an iteration."""

    values: dict[str, float]  # of all losses, unweighted, and scalar notes, averaged over its steps
    step: Step  # the last one
    notes: Notes  # of that step


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
        teacher: moves with the network after every iteration, for objectives that use one.
        of_steps: align_corners, autocast and num_classes of Step.
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
        teacher: Teacher | None = None,
        **of_steps: Any,
    ) -> None:
        self.network = network
        self.teacher = teacher
        self.objective = objective
        self._losses = with_joint_gradients(objective, network)
        self.optimizers = [optimizer, *(a.optimizer for a in objective.adversaries)]
        self._schedule = {"max_iterations": max_iterations, "power": power, "warmup": warmup}
        self.iter_size = iter_size
        self._of_steps = of_steps
        self.meanwhile: Callable[[], None] = lambda: None  # called when the work of a step is launched, before it is done

    def state_dict(self) -> dict[str, Any]:
        """Everything that `iterate` changes; the network under the name that weights have in a snapshot."""
        return {
            "state_dict": self.network.state_dict(),
            "discriminators": [a.discriminator.state_dict() for a in self.objective.adversaries],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **({} if self.teacher is None else {"teacher": self.teacher.network.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned, into a trainer that was built in the same way."""
        self.network.load_state_dict(state["state_dict"])
        for adversary, saved in zip(self.objective.adversaries, state["discriminators"], strict=True):
            adversary.discriminator.load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.teacher is not None:
            self.teacher.network.load_state_dict(state["teacher"])

    def iterate(self, iteration: int, batches: Iterator[Pair]) -> Iteration:
        """One iteration: gradients of `iter_size` steps, then every optimizer moves.

        Raises:
            NonFiniteLoss: before anything moves; the message names the term, `failed` holds the step.
        """
        self.begin(iteration)
        values = []
        for k in range(self.iter_size):
            step = self.step(*next(batches))
            found, notes = self._add_gradients(step, iteration, more=k < self.iter_size - 1)
            values.append(found)
        self._move(iteration)
        return Iteration(_means(values), step, notes)

    def begin(self, iteration: int) -> None:
        """Set the learning rates of an iteration, and no gradients."""
        for optimizer in self.optimizers:
            set_poly_lr(optimizer, iteration, **self._schedule)
            optimizer.zero_grad(set_to_none=True)

    def _add_gradients(self, step: Step, iteration: int, more: bool) -> tuple[dict[str, Tensor], Notes]:
        """Those of one step, of which `more` follow in this iteration. Returns its losses and scalar notes; its notes."""
        batches = step.batches
        rng = torch_rng_state(next(iter(batches.values())).image.device)
        try:
            with accumulating(self._losses, more):
                values, notes = self.backward(step, iteration)
        except NonFiniteLoss as error:
            error.failed = FailedStep(iteration, batches.get("source"), step.target, error.values, rng, step.labelled)
            error.here = world_size() == 1 or self._fails_alone(step, iteration)
            raise
        self.meanwhile()
        return {**values, **{name: note.detach() for name, note in notes.scalars.items()}}, notes

    def step(self, source: Batch | None, target: Batch | None, labelled: Batch | None = None) -> Step:
        options = {"teacher": self.teacher, "style": self.objective.style, "labelled": labelled, **self._of_steps}
        return Step(self.network, source, target, **options)

    def backward(self, step: Step, iteration: int, *, check: bool = True) -> tuple[dict[str, Tensor], Notes]:
        """Add the gradients of one step; return every loss, detached, and the notes.

        Raises:
            NonFiniteLoss: if `check`, at the first losses that are not finite.
        """
        losses = self._losses(step, iteration)
        values = {name: value.detach() for name, (_, value) in losses.terms.items()}
        if check:
            _check_finite(values, step, iteration)
        (losses.total / self.iter_size).backward()
        for adversary in self.objective.adversaries:
            values.update(adversary.learn(step, scale=1 / self.iter_size))
            if check:
                _check_finite(values, step, iteration)
        return values, losses.notes

    def _move(self, iteration: int) -> None:
        for adversary in self.objective.adversaries:
            sum_gradients(adversary.discriminator.parameters())
        for optimizer in self.optimizers:
            optimizer.step()
        if self.teacher is not None:
            self.teacher.update(self.network, iteration)

    def _fails_alone(self, step: Step, iteration: int) -> bool:
        """Whether this rank's own part of a loss is not finite."""
        with alone(), torch.no_grad():  # on the outputs that are there
            return not all(value.isfinite() for _, value in self.objective(step, iteration).terms.values())


def _means(steps: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of each value over the steps of an iteration, brought to the host at once; a step that lacks it counts as 0."""
    totals: dict[str, Tensor] = {}
    for values in steps:
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value / len(steps)
    return dict(zip(totals, torch.stack([v.to(widest(v.device)) for v in totals.values()]).tolist()))


def _check_finite(values: dict[str, Tensor], step: Step, iteration: int) -> None:
    if torch.stack([value.to(widest(value.device)) for value in values.values()]).isfinite().all():
        return  # one host synchronisation for all terms, before anything moves
    numbers = {name: value.item() for name, value in values.items()}
    bad = [f"{name} = {number}" for name, number in numbers.items() if not math.isfinite(number)]
    images = [name for batch in step.batches.values() for name in batch.name]
    raise NonFiniteLoss(
        f"iteration {iteration}: {', '.join(bad)}; nothing was updated. Images of the step: {', '.join(images)}. "
        "Lower TRAIN.LEARNING_RATE, turn TRAIN.BF16 off, or lower the weight of the named term.",
        numbers,
    )


def build_trainer(cfg: Any, device: torch.device, weights: str = "") -> Trainer:
    """Network, objective and optimizers as `cfg` says; the network starts from `weights`, or at random."""
    trained = cfg.TRAIN.SOURCE_FREE and bool(weights)
    network = build_network(cfg, weights=weights, head=cfg.TRAIN.RESTORE_HEAD, trained=trained)
    network = join_batch_norms(network.to(device).train(), device)
    objective = build_objective(cfg, device, network.normalization)
    if cfg.TRAIN.COMPILE:
        compile_network(network)
    return Trainer(
        network,
        objective,
        build_optimizer(network, cfg),
        max_iterations=cfg.TRAIN.MAX_ITERS,
        power=cfg.TRAIN.POWER,
        warmup=cfg.TRAIN.WARMUP_ITERS,
        iter_size=cfg.TRAIN.ITER_SIZE,
        align_corners=cfg.ALIGN_CORNERS,
        autocast=cfg.TRAIN.BF16,
        num_classes=cfg.NUM_CLASSES,
        teacher=Teacher(network, cfg.SELF_TRAINING.EMA_DECAY) if objective.uses_teacher or cfg.TRAIN.SAVE_AVERAGE else None,
    )


def build_optimizer(network: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    """TRAIN.OPTIMIZER over the network's parameter groups; heads at LR_MULT times the learning rate."""
    train = cfg.TRAIN
    rates = {"backbone": train.LEARNING_RATE, "head": train.LEARNING_RATE * train.LR_MULT}
    groups = [{"params": p, "lr": rates[name]} for name, p in network.parameter_groups().items() if p]
    if train.LAYER_DECAY != 1 or not train.DECAY_NORMS:
        groups = layered_groups(
            network, rates, layer_decay=train.LAYER_DECAY, weight_decay=train.WEIGHT_DECAY, decay_norms=train.DECAY_NORMS
        )
    if cfg.LEGACY.DUPLICATE_STEPS and train.OPTIMIZER != "SGD":
        raise ValueError(f"LEGACY.DUPLICATE_STEPS needs SGD, but TRAIN.OPTIMIZER is {train.OPTIMIZER!r}")
    if train.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=train.LEARNING_RATE, weight_decay=train.WEIGHT_DECAY)
    options = {"lr": train.LEARNING_RATE, "momentum": train.MOMENTUM, "weight_decay": train.WEIGHT_DECAY}
    if cfg.LEGACY.DUPLICATE_STEPS:
        return RepeatingSGD(groups, times_listed(network), **options)
    return torch.optim.SGD(groups, **options)


def check_weights(trainer: Trainer, done: int) -> None:
    """Raise NonFiniteLoss if a weight is not finite, so that no run goes on from such weights.

    That is what a gradient leaves behind that overflowed while all losses were finite. Looking at every gradient would
    cost a pass over all of them and a synchronisation a step; the next loss tells as well, and this looks before it is
    too late.
    """
    networks = [trainer.network, *(adversary.discriminator for adversary in trainer.objective.adversaries)]
    if trainer.teacher is not None:
        networks.append(trainer.teacher.network)
    bad = [name for network in networks for name in not_finite(network.state_dict())]
    if bad:
        raise NonFiniteLoss(
            f"{len(bad)} of the weights and statistics are not finite after iteration {done - 1}, {bad[0]} among them, "
            "although the losses were: a gradient was not. They are not saved. Lower TRAIN.LEARNING_RATE, or turn TRAIN.BF16 "
            "off, and start again; TRAIN.RESTORE_FROM takes the last snapshot."
        )
