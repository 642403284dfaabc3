"""Write a trained network for others: python scripts/release.py --checkpoint model_3000.pth --out model.safetensors"""

import argparse
from pathlib import Path

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a checkpoint as safetensors, with its cfg, classes, normalization, versions and test result, and its "
        "model card beside it; train.py, test.py and predict.py read the file like any other."
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .safetensors")
    parser.add_argument("--licence", default="", help="of the weights, for the model card, for example CC-BY-NC-4.0")
    add_cfg_flags(parser, required=False)
    args = parser.parse_args()
    args.cfg = args.cfg or [args.checkpoint]
    load_cfg(args)

    from dada.commands.release import write_release
    from dada.config import cfg
    from dada.runs import file_hash

    for key, value in write_release(cfg, args.checkpoint, args.out, args.licence).items():
        if key != "model_card":
            print(f"{key}: {value}")
    print(f"written: {args.out}, sha256 {file_hash(args.out)}; model card: {Path(args.out).with_suffix('.md')}")


if __name__ == "__main__":
    run_script(main)
