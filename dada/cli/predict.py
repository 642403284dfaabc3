"""Predict the classes of images or of a video.

    dada predict --checkpoint model_3000.pth --out predictions photo.jpg
    dada predict --checkpoint model.safetensors --out predictions photos/ --write overlay cityscapes
    dada predict --checkpoint model_3000.pth --out predictions 'drive/**/*.png' drive.mp4

Writes predictions/overlay/photo.png, predictions/palette/photo.png and so on; the folders of the input are kept. If interrupted,
repeat the command: it continues where it stopped.
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_network_flags, network_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, videos, folders of images, patterns in quotes")
    parser.add_argument(
        "--checkpoint", required=True, action="append", metavar="FILE", help="snapshot, release or weights; several: an ensemble"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    add_network_flags(
        parser, "override options, such as TEST.SLIDE_CROP=[512,512] TEST.FLIP=True TEST.KEEP_RATIO=True ON_BAD_FILE=skip"
    )
    parser.add_argument(
        "--write",
        nargs="+",
        default=["overlay", "palette"],
        metavar="KIND",
        choices=("overlay", "palette", "cityscapes", "confidence"),
        help="overlay: image under colours; palette: train ids in colours; cityscapes: labelIds for the benchmark; confidence: "
        "probability times 255 (default: overlay palette)",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the colours in overlays (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images that are predicted together (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing predictions")


def main(args: argparse.Namespace) -> list[object]:
    from dada.commands.predict import find_inputs, predict_files
    from dada.segmenter import Segmenter

    find_inputs(args.inputs, args.out)  # a wrong path is reported before the network is read
    segmenter = Segmenter.from_checkpoint(args.checkpoint, args.cfg, options=args.set)
    done = predict_files(
        segmenter, args.inputs, args.out, kinds=args.write, alpha=args.alpha, batch=args.batch, overwrite=args.overwrite
    )
    print(f"{done}: {args.out}")
    first = args.checkpoint[0]
    return ["export", "--checkpoint", first, *network_flags(args), "--out", Path(first).with_suffix(".onnx")]
