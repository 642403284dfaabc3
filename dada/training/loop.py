"""The one training loop: every method, every network, both domains, from the first iteration or from where a run stopped."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from signal import Signals
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from dada.build import on_device
from dada.config import each_dataset, imported_sources, in_words, plain_cfg, save_cfg
from dada.dataset.conventions import warn_of_conventions
from dada.dataset.joined import parts_of
from dada.dataset.sample import Batch
from dada.files import remove_parts, write_whole
from dada.matmul_precision import products_in_use
from dada.model.batch_norm import batch_norms
from dada.model.weight_files import read_weights
from dada.parallel.device import choose_device
from dada.parallel.distributed import greatest
from dada.parallel.ranks import every_rank, from_main, is_main, rank, world_size
from dada.runs import Run, save_snapshot, set_aside
from dada.training.adabn import adapt_batch_norm, statistics_loader
from dada.training.bad_files import BadFiles
from dada.training.checkpoint import (
    check_unchanged,
    check_versions,
    find_checkpoint,
    fingerprint,
    fixed_options,
    must_fit,
    read_checkpoint,
    save_checkpoint,
)
from dada.training.idle import idle_parts, last_iteration
from dada.training.inputs import find_inputs
from dada.training.lock import lock
from dada.training.memory import explain_out_of_memory
from dada.training.monitor import Monitor
from dada.training.normalized_values import explain_single_values
from dada.training.post_mortem import save_post_mortem
from dada.training.prefetch import Prefetcher, paired
from dada.training.progress import Progress
from dada.training.rng import own_seed, rng_state, seed_all, set_rng_state
from dada.training.stopping import StopSignals, WaitEnded
from dada.training.trainer import Iteration, NonFiniteLoss, Trainer, build_trainer, check_weights
from dada.training.unlabelled import LabelledPixels
from dada.training.validation import Validation

log = logging.getLogger(__name__)


def is_finished(cfg: Any, run: Run) -> bool:
    """Whether `run` holds the last snapshot of a training whose cfg gives the same weights as this one."""
    # The cfg in the snapshot counts: train_cfg.yml may be that of a later run that was stopped on its way.
    snapshot = run.snapshots / f"model_{last_iteration(cfg)}.pth"
    if not snapshot.is_file():
        return False
    saved = read_weights(snapshot).cfg
    return bool(saved) and fixed_options(saved) == fixed_options(cfg)


def train(cfg: Any, run: Run, *, resume: str = "", tensorboard: bool = False, bar_position: int = 0) -> nn.Module:
    """Train as `cfg` says; write the resolved cfg, snapshots and checkpoints to the run's folder. Returns the network.

    Every input is opened and checked before the first file is written. No other process can train in the folder
    meanwhile. At SIGTERM, SIGUSR1 or SIGINT the run finishes its iteration, if it has begun, and writes a checkpoint; a second
    SIGTERM ends it at once.

    Args:
        resume: "" starts a run, and sets aside what an earlier one has left; "auto" goes on from the newest readable
            checkpoint of the run, if there is one; else the checkpoint to go on from. A run that has reached its last
            iteration is left as it is.
        tensorboard: log scalars and pictures there, besides TRAIN.LOGGERS.
        bar_position: line of the progress bar, for trainings that run side by side.

    Raises:
        FileNotFoundError, ValueError: data, weights, checkpoint or options that cannot be used.
        OSError: another process trains in the folder, or the disk is full.
        NonFiniteLoss: a term became NaN or infinite; the step is in the run's folder, see dada.training.post_mortem.
        OutOfMemory: with what to lower.
        SystemExit: a signal ended the run; the code is 128 and the signal's number, or 75 if no iteration was done.
    """
    locked = lock(run.snapshots) if is_main() else nullcontext()
    with (
        StopSignals() as signals,
        locked,
        explain_out_of_memory(cfg),
        explain_single_values(cfg),
        on_device(cfg, fixed_sizes=True),
    ):
        training = Training(cfg, run, resume)
        if training.finished:
            log.info("%s is finished: %s is at iteration %d of %d", run.name, training.path, training.start, training.stop)
        else:
            _run(training, signals, tensorboard, bar_position)
        return training.trainer.network


def _run(training: Training, signals: StopSignals, tensorboard: bool, bar_position: int) -> None:
    """From the first iteration that is due to the last one, or to the one after which a signal came."""
    cfg, run, start = training.cfg, training.run, training.start
    loggers = tuple(dict.fromkeys([*["tensorboard"] * tensorboard, *cfg.TRAIN.LOGGERS]))
    logs = run.logs if loggers and is_main() else None
    monitor = Monitor(logs, cfg, training.trainer.network.normalization, training.classes, start, loggers)
    progress = Progress(run.name, start, training.stop, bar_position, quiet=not is_main())
    with logging_redirect_tqdm(), monitor, progress:
        if training.own:  # a signal has ended the run before it was evaluated
            _validate(training, training.own, signals, monitor)
        try:
            for done, found in training.iterations(signals):
                if done == start + 1 and is_main():  # the run is sound: data, network and losses worked once
                    training.claim_folder()
                _show(done, found, progress, monitor, training.trainer)
                training.save_networks(done)
                _validate(training, done, signals, monitor)
                _save_checkpoint(training, done, signals)
        except WaitEnded:
            if training.done == start:  # there is nothing new to go on from
                sys.exit(130 if signals.received == Signals.SIGINT else 75)
            _save_checkpoint(training, training.done, signals)


def _show(done: int, found: Iteration, progress: Progress, monitor: Monitor, trainer: Trainer) -> None:
    terms = (term for term in trainer.objective.terms if term.name in found.values)
    values = {"loss": sum(term.weight * found.values[term.name] for term in terms), **found.values}
    progress.show(done, values)
    monitor.scalars(done - 1, values, trainer.optimizers[0])
    monitor.by_class(done - 1, found.step, found.notes)
    monitor.pictures(done - 1, found.step, found.notes)


def _validate(training: Training, done: int, signals: StopSignals, monitor: Monitor) -> None:
    """Unless a signal has come; one that comes meanwhile ends it."""
    if greatest(signals.received or 0):
        return
    found = training.validate(done, lambda: bool(signals.received))
    if found:
        monitor.evaluation(done - 1, found)


def _save_checkpoint(training: Training, done: int, signals: StopSignals) -> None:
    """If that is due, or the run is to stop here, which it then does."""
    signal = greatest(signals.received or 0)  # all processes stop after the same iteration
    training.save_checkpoint(done, now=bool(signal))
    if signal and done < training.stop:
        log.warning("%s after iteration %d; --resume auto continues from %s", Signals(signal).name, done, training.path)
        sys.exit(128 + signal)


class Training:
    """A run with everything open that it needs, at the iteration from which it goes on. Opening it writes nothing.

    Args:
        resume: see `train`.

    Attributes:
        trainer: network, objective and optimizers.
        path: the checkpoint that was read, or written since; None before.
        start, stop: iterations that are done, and that will have been.
        done: those that are done meanwhile.
        own: `start`, if the checkpoint lies in the folder of the run; 0 if the run begins there.
        finished: there is nothing left to do, and no data is open.
        classes: of the data.
    """

    def __init__(self, cfg: Any, run: Run, resume: str = "") -> None:
        self.cfg, self.run, self.device = cfg, run, choose_device(cfg)
        self.path, saved = _find_checkpoint(run.snapshots, resume)
        if saved:
            check_unchanged(self.path, fixed_options(saved["cfg"]), fixed_options(cfg), "cfg")
            check_versions(self.path, saved["versions"])
        elif resume:
            log.info("%s holds no checkpoint: %s starts from scratch", run.snapshots, run.name)
        self.start, self.stop = saved["iter"] if saved else 0, last_iteration(cfg)
        self.done = self.start
        # The checkpoints in the folder are this run's own up to where it goes on from; any other file is no part of it.
        self.own = self.start if saved and self.path.resolve().parent == run.snapshots.resolve() else 0
        self.finished = self.start >= self.stop
        weights = "" if saved else cfg.TRAIN.RESTORE_FROM
        loaders = {} if self.finished else find_inputs(cfg, weights, self.start, self.stop)
        seed_all(cfg.TRAIN.RANDOM_SEED)
        self.trainer = build_trainer(cfg, self.device, weights)
        if saved:
            with must_fit(self.path):
                self.trainer.load_state_dict(saved)
        if loaders:
            self._open_data(loaders, saved or {})
            self._tell(bool(saved))

    def _tell(self, goes_on: bool) -> None:
        """What is going to be trained, on what, and what of it cannot be."""
        if not (goes_on or self.cfg.TRAIN.RESTORE_FROM):
            log.warning(
                "TRAIN.RESTORE_FROM names no weights: %s starts from random ones, where published results start from ImageNet's. "
                "Set it to 'random' if you mean that",
                self.cfg.TRAIN.MODEL,
            )
        train, objective = self.cfg.TRAIN, self.trainer.objective
        begin = {t.name: f" from iteration {t.start} on" if t.start else "" for t in objective.terms}
        terms = ", ".join(f"{t.weight:g} {t.name}{begin[t.name]}" for t in objective.terms)
        method = train.DA_METHOD + " with CONTRASTIVE_LEARNING" * self.cfg.CONTRASTIVE_LEARNING
        method = "without the source" if train.SOURCE_FREE else method
        log.info("data: %s", "; ".join(self._images))
        log.info("training %s on %s, products in %s: %s: %s", self.run.name, self.device, products_in_use(), method, terms)
        for sentence in idle_parts(self.cfg, objective):
            log.warning("%s", sentence)

    def _open_data(self, loaders: Mapping[str, DataLoader], saved: Mapping[str, Any]) -> None:
        cfg, network = self.cfg, self.trainer.network
        source, target, labelled = (loaders.get(name) for name in ("source", "target", "labelled"))
        for loader in loaders.values():
            for part in parts_of(loader.dataset):
                part.transform.normalization = network.normalization
                if is_main():
                    warn_of_conventions(part, labels=loader is not target)
        self.classes = next(iter(loaders.values())).dataset.classes
        images = cfg.TRAIN.ADABN_IMAGES
        if cfg.TRAIN.SOURCE_FREE and next(batch_norms(network), None) is None:
            images = 0
        self._adabn = statistics_loader(cfg, network, images) if images else None
        if self._adabn is not None and cfg.TRAIN.SOURCE_FREE:
            if not saved:
                self._begin_with_statistics(self._adabn)
            self._adabn = None
        self._images = [
            f"{part.title} {one.TRAIN[f'SET_{role.upper()}']}, {len(part)} {images}"
            for role, loader, images in (("source", source, "labelled images"), ("target", target, "images without labels"))
            if loader is not None
            for part, one in zip(parts_of(loader.dataset), each_dataset(cfg, role))
        ]
        if labelled is not None:
            asked = in_words(cfg.TARGET_LABELLED)
            self._images.append(f"{len(labelled.dataset)} of the target with labels (TARGET_LABELLED {asked})")
        self._data = {f"{name} images": fingerprint(loader) for name, loader in loaders.items()}
        self._data |= {f"IMPORTS {name}": sha256(code).hexdigest() for name, code in imported_sources(cfg).items()}
        own_seed(cfg.TRAIN.RANDOM_SEED, rank(), self.start)
        if saved:
            check_unchanged(self.path, saved["data"], self._data, "the run")
            self._set_rng_state(saved)
            log.info("%s continues from %s", self.run.name, self.path)
        self._bad_files = BadFiles(saved.get("bad_files"))
        self._validation = None
        if cfg.TRAIN.EVAL_EVERY:
            self._validation = Validation(cfg, self.run.snapshots, network, self.device, saved.get("validation"))
        prefetcher = Prefetcher(paired(source, target, labelled), self.device)
        self.trainer.meanwhile = prefetcher.request
        self._batches = self._bad_files.counted(prefetcher)  # outermost: what is only requested does not count

    def _begin_with_statistics(self, images: Iterable[Batch]) -> None:
        """Once, since the weights then learn on these; a copy at each snapshot would be one that was never trained."""
        network, teacher = self.trainer.network, self.trainer.teacher
        adapt_batch_norm(network, (batch.image.to(self.device) for batch in images), self.cfg.TRAIN.ADABN_SHARE)
        if teacher is not None:
            teacher.network.load_state_dict(network.state_dict())

    def _set_rng_state(self, saved: Mapping[str, Any]) -> None:
        states = [saved["rng"], *saved.get("rng_of_others", [])]
        if len(states) != world_size():
            log.warning(
                "%s was written by a run of %d processes, this one has %d: its random numbers, and so the last bits, differ "
                "from those of the uninterrupted run",
                self.path,
                len(states),
                world_size(),
            )
        if rank() < len(states):
            with must_fit(self.path):
                set_rng_state(states[rank()], self.device)

    def _is_due(self, done: int, every: int) -> bool:
        """Whether what is done after every so many iterations, and after the last one, is due."""
        return done % every == 0 or done == self.stop

    def iterations(self, signals: StopSignals | None = None) -> Iterator[tuple[int, Iteration]]:
        """Train: after every iteration how many are done, and what there is to log of it.

        Raises:
            NonFiniteLoss: with the step saved for a post-mortem.
            WaitEnded: one of `signals` came while an iteration waited to begin; `done` are, and nothing has changed since.
        """
        batches = (signals or StopSignals()).ending_waits(self._batches, self.cfg.TRAIN.ITER_SIZE)
        steps = self.stop - self.start
        looks = {"source": LabelledPixels(steps), "labelled": LabelledPixels(steps, "TARGET_LABELLED")}
        for iteration in range(self.start, self.stop):
            self.done = iteration
            try:
                found = self.trainer.iterate(iteration, batches)
                for name, look in looks.items():
                    if name in found.step.batches:
                        look.look(found.step.batches[name].label)
            except NonFiniteLoss as error:
                raise self._with_post_mortem(error) from error
            yield iteration + 1, found

    def claim_folder(self) -> None:
        """Make the folder this run's: set aside what an earlier one has left there, write cfg and IMPORTS."""
        remove_parts(self.run.snapshots)
        if former := set_aside(self.run.snapshots, after=self.own, logs=self.run.logs):
            log.info("files of an earlier run, which are no part of this one, are now in %s", former)
        save_cfg(self.cfg, self.run.snapshots / "train_cfg.yml")
        for name, code in imported_sources(self.cfg).items():
            write_whole(self.run.snapshots / name, code)

    def save_networks(self, done: int) -> None:
        """If it is due, write the snapshot `model_{done}.pth`, and the teacher's, `teacher_{done}.pth`, if there is one."""
        if not self._is_due(done, self.cfg.TRAIN.SAVE_PRED_EVERY):
            return
        check_weights(self.trainer, done)
        networks = {"model": self._network()}
        if self.trainer.objective.uses_teacher:
            networks["teacher"] = self.trainer.teacher.network
        for name, network in networks.items():
            network = published(network, self._adabn, self.cfg.TRAIN.ADABN_SHARE)
            if is_main():
                save_snapshot(self.run.snapshots, network, done, plain_cfg(self.cfg), name)
        if self._bad_files.total:
            log.warning("%s", self._bad_files)

    def _network(self) -> nn.Module:
        """That of snapshots and evaluations, as TRAIN.SAVE_AVERAGE has it."""
        trainer = self.trainer
        return trainer.teacher.averaged(trainer.network) if self.cfg.TRAIN.SAVE_AVERAGE else trainer.network

    def validate(self, done: int, interrupted: Callable[[], bool]) -> Any:
        """Evaluate the network if that is due; see Validation."""
        if self._validation is None or not self._validation.due(done):
            return None
        share = self.cfg.TRAIN.ADABN_SHARE
        return self._validation.run(lambda: published(self._network(), self._adabn, share), done, interrupted)

    def save_checkpoint(self, done: int, now: bool) -> None:
        """If it is due, or `now`, write `checkpoint_{done}.pth`, from which the run can go on; all processes take part."""
        if not now and not self._is_due(done, self.cfg.TRAIN.CHECKPOINT_EVERY or self.cfg.TRAIN.SAVE_PRED_EVERY):
            return
        check_weights(self.trainer, done)
        first, *others = every_rank(rng_state(self.device))
        state = {**self.trainer.state_dict(), "rng": first, "bad_files": self._bad_files.state()}
        if others:
            state["rng_of_others"] = others
        if self._validation:
            state["validation"] = self._validation.state()
        if is_main():
            self.path = save_checkpoint(
                self.run.snapshots, done, state, cfg=plain_cfg(self.cfg), data=self._data, keep=self.cfg.TRAIN.KEEP_CHECKPOINTS
            )

    def _with_post_mortem(self, error: NonFiniteLoss) -> NonFiniteLoss:
        """Save the step that failed. Returns the error for the user, which says where.

        Of several processes those save it whose part of the batch it was; all return the same.
        """
        if world_size() > 1:
            saves = error.here | (not any(every_rank(error.here)))  # all ranks are asked
            told = [text for text in every_rank(str(self._save_failed(error)) if saves else "") if text]
            return NonFiniteLoss("\n".join(told))
        return self._save_failed(error)

    def _save_failed(self, error: NonFiniteLoss) -> NonFiniteLoss:
        trainer = self.trainer
        discriminators = [adversary.discriminator for adversary in trainer.objective.adversaries]
        teacher = None if trainer.teacher is None else trainer.teacher.network
        folder = self.run.snapshots
        try:
            path = save_post_mortem(folder, error.failed, trainer.network, discriminators, plain_cfg(self.cfg), teacher)
        except OSError as failure:  # what went wrong at first is what matters
            return NonFiniteLoss(f"{error}\nThe step could not be saved: {failure}")
        return NonFiniteLoss(f"{error}\nThe step is saved; to see where it began: dada replay {path}")


def _find_checkpoint(folder: Path, which: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to go on from, and its content; (None, None) without. The main process chooses for all."""
    found = (which and is_main() and find_checkpoint(folder, which)) or (None, None)
    path = from_main(found[0])
    return found if is_main() or path is None else (path, read_checkpoint(path))


def published(network: nn.Module, adabn: Iterable[Batch] | None, share: float = 1.0) -> nn.Module:
    """The network as snapshots have it: itself, or a copy with a `share` of batch-norm statistics from the images `adabn`."""
    if adabn is None:
        return network
    device = next(network.parameters()).device
    rng = rng_state(device)  # loaders draw a seed
    try:
        images = (batch.image.to(device, non_blocking=True) for batch in adabn)
        return adapt_batch_norm(copy.deepcopy(network), images, share)
    finally:
        set_rng_state(rng, device)
