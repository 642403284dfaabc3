"""Print and save the mIoU of a run on the target's labelled split.

dada test --cfg synthia2cityscapes.yml [--set KEY=VALUE ...]
torchrun --nproc_per_node=N -m dada test ...   # on N GPUs, with the same result
"""

import argparse

from dada.cli.shared import add_cfg_flags, add_device_flag, load_cfg
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_cfg_flags(parser)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[object]:
    load_cfg(args)

    from dada.evaluation.tester import evaluate_run
    from dada.parallel.distributed import processes
    from dada.runs import run_of

    run = run_of(cfg, args.exp_suffix)
    with processes(cfg):
        evaluate_run(cfg, run)
    return ["report", run.snapshots]
