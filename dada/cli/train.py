"""Train a network as a configuration says.

    dada train --cfg synthia2cityscapes.yml [--set KEY=VALUE ...] [--resume auto]
    torchrun --nproc_per_node=N -m dada train ...   # on N GPUs; the batch sizes are those of all processes together

Snapshots go to EXP_ROOT/snapshots/EXP_NAME. Exit codes: 0, the run has reached its last iteration; 1, an error, with one
message; 128 + N, signal N asked the run to stop (SIGINT 130, SIGUSR1 138, SIGTERM 143), its checkpoint is written, and the same
command with --resume auto continues; 75, SIGUSR1 or SIGTERM came so early that there is nothing new to resume from.
"""

import argparse
import os
import secrets
import signal
from collections.abc import Callable

from dada.cli.shared import add_cfg_flags, add_device_flag, cfg_flags, load_cfg
from dada.config import cfg, cfg_from_list, read_cfg
from dada.parallel.signals import heard_at_once

EARLY = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_cfg_flags(parser)
    add_run_flags(parser)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Of any run that trains."""
    add_device_flag(parser)
    parser.add_argument("--resume", default="", metavar="auto|FILE", help="go on from the run's newest checkpoint, or FILE")
    parser.add_argument("--random-train", action="store_true", help="draw a seed instead of TRAIN.RANDOM_SEED")
    parser.add_argument("--tensorboard", action="store_true", help="write scalars and pictures for TensorBoard")
    parser.add_argument("--viz-every-iter", type=int, help="period of pictures, TRAIN.TENSORBOARD_VIZRATE")


def main(args: argparse.Namespace) -> list[str]:
    run(args, lambda: load_cfg(args))
    return ["test", *cfg_flags(args)]


def run(args: argparse.Namespace, fill_cfg: Callable[[], object]) -> None:
    """Train as the cfg says once `fill_cfg` has filled it; signals are heard from the first moment on."""
    for number in EARLY:
        signal.signal(number, lambda *_: None)  # a signal without a handler is not heard either
    with heard_at_once(_end):
        fill_cfg()

        from dada.parallel.distributed import processes

        with processes(cfg):
            run_training(args)


def _end(number: int) -> None:
    """Until the training listens itself: also in the middle of an import, or in the wait for other processes."""
    if number in EARLY or number == signal.SIGINT:
        os._exit(75 if number in EARLY else 130)


def run_training(args: argparse.Namespace) -> None:
    from dada.parallel.ranks import from_main, is_main
    from dada.runs import run_of
    from dada.training.checkpoint import fixed_options
    from dada.training.loop import is_finished, train

    run = run_of(cfg, args.exp_suffix)
    if args.random_train:
        started = run.snapshots / "train_cfg.yml"
        seed = secrets.randbelow(2**31)
        if args.resume and started.is_file():  # the run that goes on has drawn its seed
            seed = fixed_options(read_cfg(started))["TRAIN.RANDOM_SEED"]
        cfg_from_list([f"TRAIN.RANDOM_SEED={from_main(seed)}"])
    if args.viz_every_iter is not None:
        cfg_from_list([f"TRAIN.TENSORBOARD_VIZRATE={args.viz_every_iter}"])
    finished = args.resume == "auto" and is_finished(cfg, run)
    if not from_main(finished):
        train(cfg, run, resume=args.resume, tensorboard=args.tensorboard)
    elif is_main():
        print(f"{run.name} is finished")
    if is_main():
        print(f"snapshots: {run.snapshots}")
