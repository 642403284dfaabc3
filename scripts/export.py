"""Write a trained network for other programs, as ONNX or torch.export; uint8 RGB images in, classes out.

python scripts/export.py --checkpoint model_3000.pth --out model.onnx
python scripts/export.py --checkpoint model_3000.pth --out model.pt2 --layout NHWC
"""

import argparse

import _root  # noqa: F401

from dada.command_line import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="snapshot, release, or published weights")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .onnx or .pt2")
    parser.add_argument("--cfg", nargs="+", metavar="FILE", help="what describes published weights, as in test.py")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options of the cfg")
    parser.add_argument("--layout", default="NCHW", help="of the images, NCHW or NHWC (%(default)s)")
    parser.add_argument("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="of all images; else they are of any size")
    args = parser.parse_args()

    from dada.commands.export import export, require_onnx
    from dada.runs import file_hash
    from dada.segmenter import Segmenter

    if args.out.endswith(".onnx"):
        require_onnx()
    segmenter = Segmenter.from_checkpoint(args.checkpoint, args.cfg, "cpu", args.set)
    said = export(segmenter, args.out, layout=args.layout, size=tuple(args.size) if args.size else None)
    for key, value in said.items():
        if key != "model_card":
            print(f"{key}: {value}")
    print(f"written: {args.out}, sha256 {file_hash(args.out)}")


if __name__ == "__main__":
    run_script(main)
