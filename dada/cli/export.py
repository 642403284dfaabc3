"""Write a trained network for other programs, as ONNX or torch.export; uint8 RGB images in, classes out.

dada export --checkpoint model_3000.pth --out model.onnx
dada export --checkpoint model_3000.pth --out model.pt2 --layout NHWC
"""

import argparse

from dada.cli.shared import add_network_flags, print_facts


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="snapshot, release, or published weights")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .onnx or .pt2")
    add_network_flags(parser, device=False)
    parser.add_argument("--layout", default="NCHW", help="of the images, NCHW or NHWC (%(default)s)")
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="of all images; else they are of any size")
    parser.add_argument("--no-resize", action="store_true", help="leave resizing to TEST.INPUT_SIZE_TARGET to the caller")


def main(args: argparse.Namespace) -> list[str]:
    from dada.commands.export import export, require_onnx
    from dada.runs import file_hash
    from dada.segmenter import Segmenter

    if args.out.endswith(".onnx"):
        require_onnx()
    segmenter = Segmenter.from_checkpoint(args.checkpoint, args.cfg, "cpu", args.set)
    size = tuple(args.size) if args.size else None
    print_facts(export(segmenter, args.out, layout=args.layout, size=size, resize=not args.no_resize))
    print(f"written: {args.out}, sha256 {file_hash(args.out)}")
    return ["test", "--cfg", *(args.cfg or [args.checkpoint]), "--set", *args.set, f"TEST.RESTORE_FROM={args.checkpoint}"]
