"""Replay a step whose loss was not finite.

    dada replay RUN/post_mortem_120.pth

Prints every term, the first module whose output is not finite, and the gradients that are not. `--set TRAIN.BF16=False`
shows whether another option would have helped. Exit codes: 0, the failure is reproduced; 2, it is not; 1, an error.
"""

import argparse
import sys
from pathlib import Path

from dada.cli.shared import add_device_flag, add_set_flag
from dada.config import cfg, cfg_from_dict, cfg_from_list


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="post_mortem_<iteration>.pth, from the folder of the run")
    add_set_flag(parser, "override options of the run")
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[object]:
    from dada.commands.replay import replay, report
    from dada.training.post_mortem import BATCHES, read_post_mortem

    content = read_post_mortem(args.file)
    cfg_from_dict(content["cfg"], str(args.file))
    cfg_from_list(args.set)
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    print(f"iteration {content['iter']} on {content['device']}, {versions}")
    for domain in BATCHES:
        if content[domain] is not None:
            print(f"{domain} images: {', '.join(content[domain].name)}")
    result = replay(cfg, content)
    print(report(result))
    if not result.reproduced:
        sys.exit(2)
    run = args.file.with_name("train_cfg.yml")
    if not run.is_file():  # it was sent here from another machine
        return ["env"]
    other = "TRAIN.BF16=False" if cfg.TRAIN.BF16 else f"TRAIN.LEARNING_RATE={cfg.TRAIN.LEARNING_RATE / 2:g}"
    return ["train", "--cfg", run, "--exp-suffix", "again", "--set", other]
