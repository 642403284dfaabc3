"""Train a network: python scripts/train.py --cfg synthia2cityscapes.yml [--set KEY=VALUE ...] [--tensorboard]"""

import argparse
import secrets

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description="Train as a configuration says; snapshots go to EXP_ROOT/snapshots.")
    add_cfg_flags(parser)
    parser.add_argument("--random-train", action="store_true", help="draw a seed instead of TRAIN.RANDOM_SEED")
    parser.add_argument("--tensorboard", action="store_true", help="write scalars and pictures for TensorBoard")
    parser.add_argument("--viz-every-iter", type=int, help="period of pictures, TRAIN.TENSORBOARD_VIZRATE")
    args = parser.parse_args()
    load_cfg(args)

    from dada.config import cfg, cfg_from_list
    from dada.domain_adaptation.runs import run_of
    from dada.domain_adaptation.trainer import train

    if args.random_train:
        cfg_from_list([f"TRAIN.RANDOM_SEED={secrets.randbelow(2**31)}"])
    if args.viz_every_iter is not None:
        cfg_from_list([f"TRAIN.TENSORBOARD_VIZRATE={args.viz_every_iter}"])
    run = run_of(cfg, args.exp_suffix)
    train(cfg, run, tensorboard=args.tensorboard)
    print(f"snapshots: {run.snapshots}")


if __name__ == "__main__":
    run_script(main)
