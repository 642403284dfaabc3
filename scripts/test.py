"""Measure a trained network: python scripts/test.py --cfg synthia2cityscapes.yml [--set KEY=VALUE ...]

On N GPUs: torchrun --nproc_per_node=N scripts/test.py ..., with the same result.
"""

import argparse

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, add_device_flag, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description="Print and save the mIoU of a run on the target's labelled split.")
    add_cfg_flags(parser)
    add_device_flag(parser)
    args = parser.parse_args()
    load_cfg(args)

    from dada.config import cfg
    from dada.evaluation.tester import evaluate_run
    from dada.parallel.distributed import processes
    from dada.runs import run_of

    with processes(cfg):
        evaluate_run(cfg, run_of(cfg, args.exp_suffix))


if __name__ == "__main__":
    run_script(main)
