"""What training less than the encoder saves: a step of all of it, of the heads alone, and of low-rank adapters.

    python benchmarks/adapters.py --threads 1
    python benchmarks/adapters.py --device cuda --sizes small base large

A step is forward pass, cross-entropy on labels of full size, backward pass and AdamW, on one image of --side squared, in float32,
with random weights of DINOv2, which cost what others cost. Variants are processes of their own that take turns (see turns.py).
Seconds are those of the clock on a GPU and of processor time elsewhere, which other work on the machine disturbs less.
`peak` is what a process held at most in a step, its libraries included (on a GPU what its tensors took); `trained` counts the
numbers that move; `snapshot` is a file that a run writes again and again, besides one base for all of them where the encoder is
frozen. Ratios are medians over the rounds of the quotient within a round, to `full` of the same size.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F
from turns import Variants, answer, median, peak, ratio, restart_peak, wait_for

WAYS = {"full": [], "frozen": ["TRAIN.FREEZE_ENCODER=True"], "lora": ["TRAIN.ADAPTER=lora"]}
CLASSES = 19


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=("small", "base", "large"))
    parser.add_argument("--side", type=int, default=512, help="of the image, in pixels (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of one step each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of a process (default: as torch chooses)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="further options, for example TRAIN.LORA_RANK=16"
    )
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_variant(args: argparse.Namespace) -> None:
    from dada.build import build_network
    from dada.config import cfg, cfg_from_list
    from dada.runs import save_snapshot
    from dada.training.trainer import build_optimizer

    if args.threads:
        torch.set_num_threads(args.threads)
    size, way = args.variant.split("-")
    network = f"TRAIN.MODEL=timm:vit_{size}_patch14_dinov2"
    cfg_from_list([network, f"NUM_CLASSES={CLASSES}", "TRAIN.OPTIMIZER=AdamW", *WAYS[way], *args.set])
    torch.manual_seed(0)
    device = torch.device(args.device)
    model = build_network(cfg, "random").to(device).train()
    optimizer = build_optimizer(model, cfg)
    image = torch.randn(1, 3, args.side, args.side, device=device)
    label = torch.randint(CLASSES, (1, args.side, args.side), device=device)

    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def turn() -> dict:
        restart_peak(device)
        wait_for(device)
        start = clock()
        optimizer.zero_grad()
        logits = F.interpolate(model(image).logits, size=label.shape[1:], mode="bilinear", align_corners=False)
        F.cross_entropy(logits, label).backward()
        optimizer.step()
        wait_for(device)
        return {"seconds": clock() - start, "peak": peak(device)}

    turn()  # allocators and kernels settle, and the optimizer's state is there
    with tempfile.TemporaryDirectory() as folder:
        snapshot = save_snapshot(Path(folder), model, 1, {}).stat().st_size
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    answer({"trained": trained, "snapshot": snapshot}, turn)


def main() -> None:
    args = parsed()
    if args.variant:
        run_variant(args)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch finds no CUDA device")
        return
    columns = f"{'trained M':>11}{'snapshot MB':>13}{'s/step':>9}{'peak MB':>9}{'time ratio':>12}{'memory ratio':>14}"
    print(f"{'encoder':<10}{'way':<8}{columns}")
    for size in args.sizes:  # one after the other, so that three processes are alive at a time
        variants = Variants([f"{size}-{way}" for way in WAYS], sys.argv[1:])
        rounds = variants.rounds(args.repeat)
        variants.close()
        for name, mine in rounds.items():
            ready, base = variants.ready[name], rounds[f"{size}-full"]
            print(
                f"{size:<10}{name.split('-')[1]:<8}{ready['trained'] / 1e6:>11.2f}{ready['snapshot'] / 1e6:>13.1f}"
                f"{median(mine, 'seconds'):>9.3f}{median(mine, 'peak') / 1e6:>9.0f}"
                f"{ratio(mine, base, 'seconds'):>12.2f}{ratio(mine, base, 'peak'):>14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
