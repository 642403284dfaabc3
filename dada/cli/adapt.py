"""Adapt a trained network to photographs of one's own: without labels, and without its source.

    dada adapt --checkpoint model.safetensors --images photos/
    dada adapt --checkpoint model_600.pth --cfg camvid2idd.yml      # to the target that a configuration names

A run like that of train, by the options of source_free.yml, with snapshots, checkpoints and logs; no file of the source is
opened. test, predict, release and export take what it writes. docs/methods.md says when it does harm.
"""

import argparse
import shutil
from pathlib import Path

from dada.cli import train
from dada.cli.shared import add_cfg_flags, load_cfg, photographs
from dada.config import CONFIGS, cfg, cfg_from_file, cfg_from_list
from dada.files import whole_file


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot or a release; other weights with --cfg")
    parser.add_argument("--images", metavar="FOLDER", help="photographs, in any folders below (the target of the cfg)")
    parser.add_argument("--iterations", type=int, metavar="N", help="how many; TRAIN.MAX_ITERS")
    parser.add_argument("--out", metavar="FILE", help="also write the last snapshot here, ending in .pth")
    add_cfg_flags(parser, required=False)
    train.add_run_flags(parser)


def main(args: argparse.Namespace) -> list[object]:
    if args.out and Path(args.out).suffix != ".pth":
        raise ValueError(f"a snapshot is a .pth file, but --out is {args.out!r}")
    train.run(args, lambda: fill_cfg(args))

    from dada.parallel.ranks import is_main
    from dada.runs import find_snapshots, run_of

    written = find_snapshots(run_of(cfg, args.exp_suffix).snapshots)[-1]
    if args.out and is_main():
        with whole_file(args.out) as part:
            shutil.copyfile(written, part)
        written = Path(args.out)
        print(f"written: {written}")
    if args.images:
        return ["predict", "--checkpoint", written, "--out", "predictions", args.images]
    return ["test", "--cfg", written, "--set", f"TEST.RESTORE_FROM={written}"]


def fill_cfg(args: argparse.Namespace) -> None:
    """The cfg of the network, source_free.yml, what the flags say, and --set over all."""
    load_cfg(argparse.Namespace(cfg=args.cfg, set=[]), otherwise=[args.checkpoint])
    name = cfg.EXP_NAME or Path(args.checkpoint).stem
    cfg_from_file(CONFIGS / "source_free.yml")
    options = [f"TRAIN.RESTORE_FROM={args.checkpoint}", f"EXP_NAME={name}_adapted"]
    if args.images:
        options += [*photographs(args.images), f"EXP_NAME={name}_on_{Path(args.images).resolve().name}"]
    if args.iterations is not None:
        options += [f"TRAIN.MAX_ITERS={args.iterations}", f"TRAIN.SAVE_PRED_EVERY={args.iterations}"]
    cfg_from_list([*options, *args.set])
