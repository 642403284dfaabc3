"""Where scalars and pictures of a run go: TensorBoard, Weights & Biases, MLflow, Trackio; each is imported where a run names it.

All have the methods of TensorBoard's SummaryWriter that Monitor calls: add_scalar, add_image, add_histogram and close.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dada.config import plain_cfg

log = logging.getLogger(__name__)


def check_installed(names: Sequence[str]) -> None:
    """Raise ImportError that names a logger whose package is not there."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without origin: a mere folder, such as wandb leaves where it runs
            raise ImportError(f"TRAIN.LOGGERS names {name}, which is not installed: pip install {name}")


def open_loggers(names: Sequence[str], folder: Path, cfg: Any, start: int) -> Any:
    """One object that writes to all loggers of these names; `folder` is of the run's name, `start` where the run goes on."""
    opened = [_tensorboard(folder, start) if name == "tensorboard" else _Service(name, folder, cfg, start) for name in names]
    return opened[0] if len(opened) == 1 else _All(opened)


def _tensorboard(folder: Path, start: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=start)


class _All:
    def __init__(self, loggers: list[Any]) -> None:
        self._loggers = loggers

    def __getattr__(self, method: str) -> Callable[..., None]:
        def of_all(*args: Any, **kwargs: Any) -> None:
            for logger in self._loggers:
                getattr(logger, method)(*args, **kwargs)

        return of_all


class _Client(NamedTuple):
    """A run at a service.

    Args:
        send: takes the iteration, and numbers and pictures by name.
        picture: makes what `send` takes of (H, W, 3) uint8.
        end: of the run.
        identity: by which a later process goes on with it.
    """

    send: Callable[[int, dict[str, Any]], None]
    picture: Callable[[np.ndarray], Any]
    end: Callable[[], None]
    identity: str


class _Service:
    """All scalars of an iteration as one message; pictures as they come, some later and from another thread.

    A message that fails ends the logging there, not the run.
    """

    def __init__(self, name: str, folder: Path, cfg: Any, start: int) -> None:
        self._name, self._iteration = name, start
        self._scalars: dict[str, float] = {}
        self._lock, self._works = threading.Lock(), True
        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / f"{name}.id"
        try:
            self._client = _CLIENTS[name](folder, cfg, identity.read_text() if start and identity.is_file() else None)
        except Exception as error:
            raise ValueError(f"TRAIN.LOGGERS: {name} begins no run: {type(error).__name__}: {error}") from error
        identity.write_text(self._client.identity)

    def _attempt(self, call: Callable[..., None], *args: Any) -> None:
        try:
            if self._works:
                call(*args)
        except Exception as error:
            self._works = False
            log.warning("nothing more is logged to %s: %s: %s", self._name, type(error).__name__, error)

    def _send_scalars(self) -> None:
        if self._scalars:
            self._attempt(self._client.send, self._iteration, self._scalars)
            self._scalars = {}

    def add_scalar(self, name: str, value: float, iteration: int) -> None:
        with self._lock:
            if iteration != self._iteration:
                self._send_scalars()
                self._iteration = iteration
            self._scalars[name] = float(value)

    def add_image(self, name: str, pixels: Any, iteration: int, dataformats: str = "CHW") -> None:
        array = pixels.detach().cpu().numpy() if isinstance(pixels, torch.Tensor) else np.asarray(pixels)
        array = array.transpose(1, 2, 0) if dataformats == "CHW" else array
        if array.dtype != np.uint8:  # 0..1, as TensorBoard takes it
            array = (array.clip(0, 1) * 255).round().astype(np.uint8)
        array = np.broadcast_to(array, (*array.shape[:2], 3))
        with self._lock:
            self._attempt(lambda: self._client.send(iteration, {name: self._client.picture(array)}))

    def add_histogram(self, name: str, values: Any, iteration: int) -> None:
        """TensorBoard alone has histograms."""

    def close(self) -> None:
        with self._lock:
            self._send_scalars()
            self._attempt(self._client.end)


def _project(variable: str) -> str:
    return os.environ.get(variable, "dada")


def _wandb(folder: Path, cfg: Any, known: str | None) -> _Client:
    import wandb

    run = wandb.init(
        project=_project("WANDB_PROJECT"),
        name=folder.name,
        dir=str(folder),
        config=plain_cfg(cfg),
        id=known,
        resume="allow" if known else None,
    )
    # Its own steps only go up: a figure that is drawn later would be dropped.
    run.define_metric("iteration")
    run.define_metric("*", step_metric="iteration")
    return _Client(lambda iteration, values: run.log({"iteration": iteration, **values}), wandb.Image, run.finish, run.id)


def _trackio(folder: Path, cfg: Any, known: str | None) -> _Client:
    import trackio

    resume = "allow" if known else "never"
    run = trackio.init(_project("TRACKIO_PROJECT"), name=folder.name, config=plain_cfg(cfg), resume=resume, embed=False)
    return _Client(lambda iteration, values: run.log(values, step=iteration), trackio.Image, run.finish, folder.name)


def _mlflow(folder: Path, cfg: Any, known: str | None) -> _Client:
    import mlflow

    client = mlflow.MlflowClient()  # with the run's id: the run that `mlflow.log_...` writes to is another in each thread
    if not known:
        experiment = mlflow.set_experiment(_project("MLFLOW_EXPERIMENT_NAME"))
        known = client.create_run(experiment.experiment_id, run_name=folder.name).info.run_id
        client.log_dict(known, plain_cfg(cfg), "train_cfg.yml")

    def send(iteration: int, values: dict[str, Any]) -> None:
        numbers = []
        for name, value in values.items():
            name = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)  # what MLflow accepts
            if isinstance(value, float):
                numbers.append(mlflow.entities.Metric(name, value, int(time.time() * 1000), iteration))
            else:
                client.log_image(known, value, key=name, step=iteration)
        if numbers:
            client.log_batch(known, metrics=numbers)

    return _Client(send, np.asarray, lambda: client.set_terminated(known), known)


_CLIENTS = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
