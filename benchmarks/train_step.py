"""How fast a training step is: the published way, ours, and ours with each switch that is said to make it faster.

    python benchmarks/train_step.py --cfg toycity.yml --set TRAIN.DA_METHOD=MinEnt CONTRASTIVE_LEARNING=False
    python benchmarks/train_step.py --cfg toycity.yml --variants published plain packed channels_last bf16 compile

A round is a number of whole iterations in each variant, one after the other, from loading to the optimizer's step; each variant
is a process of its own (see turns.py). On a GPU a turn begins with an iteration that is not counted, in which the memory is taken
that the others have had. `images/s` counts both domains, `waiting` is the share of the time in which the loop waits for data,
`peak` what the process held at most, on a GPU what its tensors took. Ratios are medians over the rounds of the quotient within a
round, to `published` where it runs, else to the first variant.

The variants all train the network of the cfg on the same files:

    published      their loading and their order of passes, for MinEnt and for the association of features; see published.py
    plain          ours, in float32, without any of the following
    packed         plain, from packed copies, which are made first
    channels_last, bf16, compile, recompute    plain with the switch of TRAIN that has this name
    both           plain with channels_last and bf16

Terms of weight 0 are left out of the objective. The published step associates features alone, leaves the source as it is, and is
refused beside a cfg that asks for more; to compare: --set TRAIN.APPLY_MULTILAYER_ASSOCIATION=False TRAIN.COLOR_TRANSFER=False
TRAIN.LAMBDA_CONSISTENCY=0 TRAIN.LAMBDA_ENTROPY=0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from turns import Variants, answer, median, peak, ratio, restart_peak, wait_for

from dada.cli.shared import add_cfg_flags, load_cfg, reporting_errors

SWITCHES = {
    "channels_last": ("CHANNELS_LAST",),
    "bf16": ("BF16",),
    "compile": ("COMPILE",),
    "recompute": ("RECOMPUTE",),
    "both": ("CHANNELS_LAST", "BF16"),
}
PUBLISHED = {  # the terms of the published step, by CONTRASTIVE_LEARNING
    True: ("loss_seg_src_main", "loss_lovasz", "loss_fass"),
    False: ("loss_seg_src_main", "loss_ent_main"),
}
VARIANTS = ("published", "plain", "packed", *SWITCHES)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cfg_flags(parser)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="in a round (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["published", "plain", "packed"])
    parser.add_argument("--threads", type=int, help="CPU threads of a process (default: as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--packed", help=argparse.SUPPRESS)
    return parser.parse_args()


class Timed(Iterator):
    """Passes batches on, and adds up how long they took to come."""

    def __init__(self, batches: Iterator) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self):
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def run_variant(args: argparse.Namespace) -> None:
    from dada.build import source_loader, target_loader
    from dada.config import cfg
    from dada.training.prefetch import Prefetcher, paired
    from dada.training.rng import seed_all
    from dada.training.trainer import build_trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    for switch in ("CHANNELS_LAST", "BF16", "COMPILE", "RECOMPUTE"):
        cfg.TRAIN[switch] = switch in SWITCHES.get(args.variant, ())
    cfg.DEVICE = args.device
    device = torch.device(args.device)
    if args.variant == "packed":
        cfg.DATA_DIRECTORY_SOURCE, cfg.DATA_DIRECTORY_TARGET = f"{args.packed}/source", f"{args.packed}/target"
    seed_all(cfg.TRAIN.RANDOM_SEED)
    trainer = build_trainer(cfg, device, cfg.TRAIN.RESTORE_FROM)
    objective = trainer.objective = trainer.objective._replace(terms=[t for t in trainer.objective.terms if t.weight])
    normalization = trainer.network.normalization
    source = source_loader(cfg, normalization, steps=10**6)
    target = target_loader(cfg, normalization, steps=10**6, second_view=objective.uses_view)
    if args.variant == "published":
        iterate, batches = _as_published(cfg, trainer, source, target, device)
    else:
        prefetcher = Prefetcher(paired(source, target if objective.uses_target else None), device)
        trainer.meanwhile = prefetcher.request
        batches = Timed(prefetcher)

        def iterate(number: int) -> None:
            trainer.iterate(number, batches)

    done = 0

    def turn() -> dict:
        nonlocal done
        if device.type == "cuda":
            iterate(done)
            done += 1
        batches.seconds = 0.0
        restart_peak(device)
        wait_for(device)
        start = time.perf_counter()
        for _ in range(args.iterations):
            iterate(done)
            done += 1
        wait_for(device)
        seconds = time.perf_counter() - start
        return {"seconds": seconds / args.iterations, "waiting": batches.seconds / seconds, "peak": peak(device)}

    turn()
    turn()  # allocators and kernels have settled
    images = cfg.TRAIN.ITER_SIZE * (cfg.TRAIN.BATCH_SIZE_SOURCE + cfg.TRAIN.BATCH_SIZE_TARGET * objective.uses_target)
    answer({"images": images, "terms": [term.name for term in objective.terms]}, turn)


def _as_published(cfg, trainer, source, target, device: torch.device):
    from published import association_step, minent_step, pillow_loader

    train = cfg.TRAIN
    if not cfg.CONTRASTIVE_LEARNING and train.DA_METHOD != "MinEnt":
        raise ValueError(
            "the published step is written for TRAIN.DA_METHOD MinEnt and for CONTRASTIVE_LEARNING, not for this cfg"
        )
    objective = trainer.objective
    more = [term.name for term in objective.terms if term.name not in PUBLISHED[cfg.CONTRASTIVE_LEARNING]]
    if more := more + ["TRAIN.COLOR_TRANSFER"] * (objective.style is not None):
        raise ValueError(f"the published step has no {', '.join(more)}, so that ours would do more: turn them off to compare")
    loaders = [
        pillow_loader(loader, cfg, tuple(size))
        for loader, size in ((source, train.INPUT_SIZE_SOURCE), (target, train.INPUT_SIZE_TARGET))
    ]
    batches = Timed(zip(*map(iter, loaders)))

    def iterate(number: int) -> None:
        trainer.begin(number)
        for _ in range(train.ITER_SIZE):
            s, t = next(batches)
            s, t = [x.to(device) for x in s], [x.to(device) for x in t]
            if cfg.CONTRASTIVE_LEARNING:
                association_step(trainer.network, s, t, train.LAMBDA_CONTRASTIVE_MAIN, train.LAMBDA_LOVASZ)
            else:
                minent_step(trainer.network, s, t, train.LAMBDA_ENT_MAIN)
        for optimizer in trainer.optimizers:
            optimizer.step()

    return iterate, batches


def main() -> None:
    args = parsed()
    load_cfg(args)
    from dada.config import cfg

    if args.variant:
        from dada.build import cudnn_search
        from dada.matmul_precision import matmul_precision

        with matmul_precision(cfg.TRAIN.MATMUL_PRECISION, args.device), cudnn_search(args.device == "cuda"):
            run_variant(args)
        return
    from dada.commands.pack_dataset import pack

    if args.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch finds no CUDA device")
        return
    with contextlib.ExitStack() as stack:
        arguments = sys.argv[1:]
        if "packed" in args.variants:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            for role in ("source", "target"):
                pack(cfg, role, Path(folder, role), splits=("train",))
            arguments += ["--packed", folder]
        variants = Variants(args.variants, arguments)
        rounds = variants.rounds(args.repeat)
        variants.close()
    base = rounds["published" if "published" in rounds else args.variants[0]]
    print(f"{'variant':<15}{'images/s':>9}{'s/step':>9}{'waiting':>9}{'peak MB':>9}{'time ratio':>12}{'memory ratio':>14}  terms")
    rows = []
    for name, mine in rounds.items():
        seconds, ready = median(mine, "seconds"), variants.ready[name]
        rows.append(
            {
                "variant": name,
                "images/s": ready["images"] / seconds,
                "s/step": seconds,
                "waiting": median(mine, "waiting"),
                "peak MB": median(mine, "peak") / 1e6,
                "time ratio": ratio(mine, base, "seconds"),
                "memory ratio": ratio(mine, base, "peak"),
                "terms": ready["terms"] if name != "published" else ["as they order them"],
            }
        )
        row = rows[-1]
        print(
            f"{name:<15}{row['images/s']:>9.2f}{row['s/step']:>9.3f}{row['waiting']:>9.1%}{row['peak MB']:>9.0f}"
            f"{row['time ratio']:>12.2f}{row['memory ratio']:>14.2f}  {', '.join(row['terms'])}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    reporting_errors(main)
