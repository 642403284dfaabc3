"""Train a network: python scripts/train.py --cfg synthia2cityscapes.yml [--set KEY=VALUE ...] [--resume auto]

Exit codes: 0, the run has reached its last iteration; 1, an error, with one message; 128 + N, signal N asked the run to
stop (SIGINT 130, SIGUSR1 138, SIGTERM 143), its checkpoint is written, and the same command with --resume auto goes on.
"""

import argparse
import secrets

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description="Train as a configuration says; snapshots go to EXP_ROOT/snapshots.")
    add_cfg_flags(parser)
    parser.add_argument(
        "--resume", default="", metavar="auto|FILE", help="go on from the run's newest readable checkpoint, or FILE"
    )
    parser.add_argument("--random-train", action="store_true", help="draw a seed instead of TRAIN.RANDOM_SEED")
    parser.add_argument("--tensorboard", action="store_true", help="write scalars and pictures for TensorBoard")
    parser.add_argument("--viz-every-iter", type=int, help="period of pictures, TRAIN.TENSORBOARD_VIZRATE")
    args = parser.parse_args()
    load_cfg(args)

    import yaml

    from dada.config import cfg, cfg_from_list
    from dada.domain_adaptation.runs import run_of
    from dada.domain_adaptation.trainer import is_finished, train

    run = run_of(cfg, args.exp_suffix)
    if args.random_train:
        started = run.snapshots / "train_cfg.yml"
        seed = secrets.randbelow(2**31)
        if args.resume and started.is_file():  # the run that goes on has drawn its seed
            seed = yaml.safe_load(started.read_text(encoding="utf-8"))["TRAIN"]["RANDOM_SEED"]
        cfg_from_list([f"TRAIN.RANDOM_SEED={seed}"])
    if args.viz_every_iter is not None:
        cfg_from_list([f"TRAIN.TENSORBOARD_VIZRATE={args.viz_every_iter}"])
    if args.resume == "auto" and is_finished(cfg, run):
        print(f"{run.name} is finished")
    else:
        train(cfg, run, resume=args.resume, tensorboard=args.tensorboard)
    print(f"snapshots: {run.snapshots}")


if __name__ == "__main__":
    run_script(main)
