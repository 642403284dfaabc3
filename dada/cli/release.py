"""Write a trained network for others, as safetensors, with its model card beside it.

    dada release --checkpoint model_3000.pth --out model.safetensors

The file holds cfg, classes, normalization, versions and test result; train, test and predict read it like any other.
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_cfg_flags, load_cfg, print_facts
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .safetensors")
    parser.add_argument("--licence", default="", help="of the weights, for the model card, for example CC-BY-NC-4.0")
    add_cfg_flags(parser, required=False)


def main(args: argparse.Namespace) -> list[object]:
    load_cfg(args, otherwise=[args.checkpoint])

    from dada.publishing.release_file import write_release
    from dada.runs import file_hash

    print_facts(write_release(cfg, args.checkpoint, args.out, args.licence))
    print(f"written: {args.out}, sha256 {file_hash(args.out)}; model card: {Path(args.out).with_suffix('.md')}")
    return ["export", "--checkpoint", args.out, "--out", Path(args.out).with_suffix(".onnx")]
