"""Time and memory of the cycle-association loss, forward and backward, beside the way it was published.

    python benchmarks/association.py                                 # the table, five runs each
    python benchmarks/association.py --cases main --impls published same-products streaming --precision ""
    python benchmarks/association.py --cases curve --repeat 1        # map sides 32 to 256, and the picture
    python benchmarks/association.py --cases cos-512-92 kl-16-128 --json association.json
    python benchmarks/association.py --cases main --impls published streaming compiled keops flex flash-sinkhorn inf-cl
    python benchmarks/association.py --device cuda --batch 4 --cases cos-2048-92 --precision high

A case is metric-channels-side. Every run is a process of its own, so that peaks of memory do not mix, and the
implementations take turns, so that a busy minute hits all of them. `extra` is the peak of memory above the
inputs, the gradients included. The features are made to be like those of a network: classes in patches,
shared between the domains; with independent noise no pixel would resemble another, and half of the work would
be idle. Kernels are compiled, and a GPU has seen the shapes, before anything is timed. Where there is no CUDA device,
`--device cuda` gives rows that say so, with null for every figure. So do other libraries (association_peers.py) that are not
installed, or have no such operation, or take longer than --limit.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would slow the other core's work; before torch

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from association_peers import PEERS, Cannot
from torch import Tensor

TABLE = ("cos-512-92", "cos-2048-92", "cos-512-128", "kl-16-92", "kl-16-128")
MAIN = ("cos-512-92", "cos-2048-92", "kl-16-92")
CURVE = tuple(f"{kind}-{side}" for kind in ("cos-512", "kl-16") for side in (32, 48, 64, 92, 128, 160, 192, 256))
# "published" has the products that torch has by itself on a CPU, "same-products" is the same form with those of --precision,
# "compiled" the same by torch.compile.
IMPLS = ("published", "same-products", "compiled", "dense", "streaming", "fused", *PEERS)
TILED = ("streaming", "fused")
IN_BLOCKS = (*TILED, *PEERS)  # without a matrix of source x target
FIGURES = (
    *("seconds", "seconds_forward", "seconds_backward", "input_bytes", "extra_bytes"),
    *("time_ratio", "memory_ratio", "gemm_share"),
)
PUBLISHED_MATRICES = 8  # source x target, alive at once in "published" and "dense": too many are not run
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
# Smooth noise and noise per pixel, on classes of size 1: at 92x92 two of three cycles close.
NOISE = {"cos": (5.0, 2.0), "kl": (1.0, 1.0)}
IGNORE = 255


# ---- the way it was published: whole matrices, probabilities before logarithms -------------------


def published_loss(source: Tensor, target: Tensor, labels: Tensor, metric: str) -> Tensor:
    """The loss of the PLCA release in its order of steps, image by image, with aggregation at alpha = 0.5."""
    losses = []
    for x_CHW, y_CHW, labels_HW in zip(source, target, labels):
        x_SC, y_TC = x_CHW.flatten(1).T, y_CHW.flatten(1).T
        own_TT = _published_similarity(y_TC, y_TC, metric)
        weight_TT = (_published_contrast(own_TT) if metric == "cos" else own_TT).softmax(dim=1)
        y_TC = 0.5 * y_TC + 0.5 * weight_TT @ y_TC
        sim_ST = _published_similarity(x_SC, y_TC, metric)
        sim_TS = sim_ST.T if metric == "cos" else _published_similarity(y_TC, x_SC, metric)
        there_ST, back_TS = (_published_contrast(sim_ST).softmax(dim=1), _published_contrast(sim_TS).softmax(dim=1))
        j_S = sim_ST.argmax(dim=1)
        i_back_S = sim_TS.argmax(dim=1)[j_S]
        labels_S = labels_HW.flatten()
        closed = ((labels_S == labels_S[i_back_S]) & (labels_S != IGNORE)).nonzero()[:, 0]
        product = there_ST[closed, j_S[closed]] * back_TS[j_S[closed], i_back_S[closed]]
        losses.append(F.binary_cross_entropy(product, torch.ones_like(product), reduction="none"))
    return torch.cat(losses).mean()


def _published_similarity(x: Tensor, y: Tensor, metric: str) -> Tensor:
    if metric == "cos":
        return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return x @ (y + 1e-10).log().T - (x * (x + 1e-10).log()).sum(dim=1, keepdim=True)


def _published_contrast(sim: Tensor) -> Tensor:
    mean, std = sim.mean(dim=1, keepdim=True).detach(), sim.std(dim=1, keepdim=True).detach()
    return (sim - mean) / (std + 1e-10)


# ---- one run -------------------------------------------------------------------------------------


def make_case(metric: str, channels: int, side: int, batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, labels: 16 classes in patches, a tenth of the labels ignored."""
    g = torch.Generator().manual_seed(0)

    def noise(*shape: int, coarse: int = 1) -> Tensor:
        small = torch.randn(batch, *shape, -(-side // coarse), -(-side // coarse), generator=g)
        return F.interpolate(small, size=(side, side), mode="bilinear") if coarse > 1 else small

    smooth, fine = NOISE[metric]
    prototypes = torch.randn(16, channels, generator=g) if metric == "cos" else 3.0 * torch.eye(16, channels)

    def domain(shift: Tensor) -> tuple[Tensor, Tensor]:
        labels = noise(16, coarse=8).argmax(dim=1)
        x = (prototypes + shift)[labels].permute(0, 3, 1, 2) + smooth * noise(channels, coarse=4) + fine * noise(channels)
        return (x.relu() if metric == "cos" else x.softmax(dim=1)).contiguous(), labels

    source, labels = domain(torch.zeros(channels))
    target, _ = domain(0.5 * torch.randn(16, channels, generator=g))
    labels[torch.rand(labels.shape, generator=g) < 0.1] = IGNORE
    return source.to(device), target.to(device), labels.to(device)


class PeakMemory:
    """Peak bytes above those in use when it was made. On a CPU it reads what Linux with glibc counts."""

    def __init__(self, device: str):
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            # What was freed but is still held by the allocator would hide as much of what comes.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self.start = self._status("VmRSS")

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def extra(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.device == "cuda" else self._status("VmHWM")) - self.start


def run_once(case: str, impl: str, device: str, batch: int) -> dict:
    """One forward and backward pass in this process."""
    from dada.domain_adaptation.cycle_association import cycle_association_loss

    metric, channels, side = parse_case(case)

    def compiled(*arguments: Tensor | str) -> Tensor:
        return torch.compile(published_loss)(*arguments)

    losses = PEERS | dict.fromkeys(("published", "same-products"), published_loss) | {"compiled": compiled}

    def forward(source: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, dict]:
        if impl in losses:
            return losses[impl](source, target, labels, metric), {}
        result = cycle_association_loss(source, target, labels, metric=metric, impl=impl)
        return result.loss, {name: getattr(result, name).item() for name in ("closed", "labelled", "covered")}

    def timed() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def fresh_case(channels: int, side: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        source, target, labels = make_case(metric, channels, side, batch, device)
        return source.requires_grad_(), target.requires_grad_(), labels

    # Libraries load and start their threads; kernels are compiled for the shapes they meet.
    # To compile for a CPU, 46x46 is enough: stripes of two heights, as with any larger map.
    small = (channels if impl in PEERS else 16, 46 if impl == "fused" else 16, 1)
    warm = fresh_case(*((channels, side, batch) if device == "cuda" or impl == "compiled" else small))
    forward(*warm)[0].backward()
    del warm
    rate = gemm_rate(device)

    source, target, labels = fresh_case(channels, side, batch)
    memory, start = PeakMemory(device), timed()
    loss, counts = forward(source, target, labels)
    middle = timed()
    loss.backward()
    end = timed()
    seconds = end - start
    return {
        "seconds_forward": middle - start,
        "seconds_backward": end - middle,
        "seconds": seconds,
        "input_bytes": sum(x.numel() * x.element_size() for x in (source, target)),
        "extra_bytes": memory.extra(),
        "gemm_share": products(metric, impl, counts, batch * side**2, device) * 2 * batch * side**4 * channels / seconds / rate,
        "loss": loss.item(),
        "grad_norms": [source.grad.norm().item(), target.grad.norm().item()],
        **counts,
    }


def gemm_rate(device: str) -> float:
    """FLOP/s of a matrix product of the shape of a stripe, in the precision that is set."""
    rows = channels = 2048 if device == "cuda" else 512
    a, b = torch.randn(rows, channels, device=device), torch.randn(channels, 8192, device=device)
    best = float("inf")
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * channels * 8192 / best


def products(metric: str, impl: str, counts: dict, pixels: int, device: str) -> float:
    """Products of N x N x C that forward and backward do: docs/association.md, "Counting the work". Of peers as if dense."""
    if impl not in TILED:
        return 9 if metric == "cos" else 12
    closed, covered = counts["closed"] / pixels, counts["covered"] / pixels
    if device == "cuda":  # makes all rows: which ones count is not waited for
        closed = covered = 1
    return 6.5 + 3 * (closed + covered) - 2 * closed * covered if metric == "cos" else 8 + 3 * closed + 4 * covered


# ---- many runs -----------------------------------------------------------------------------------


def parse_case(case: str) -> tuple[str, int, int]:
    metric, _, size = case.partition("-")
    channels, _, side = size.partition("-")
    if metric not in ("cos", "kl") or not (channels.isdigit() and side.isdigit()):
        raise SystemExit(f"unknown case {case!r}: expected metric-channels-side like cos-512-92, 'table', 'main' or 'curve'")
    return metric, int(channels), int(side)


def too_big(case: str, impl: str, batch: int, device: str) -> bool:
    _, _, side = parse_case(case)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return impl not in IN_BLOCKS and PUBLISHED_MATRICES * 4 * batch * side**4 > 0.8 * free


def in_fresh_process(case: str, impl: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--one", case, impl, "--device", args.device, "--batch", str(args.batch)]
    command += ["--precision", "highest" if impl == "published" and args.device == "cpu" else args.precision]
    if args.threads:
        command += ["--threads", str(args.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {"cannot": f"not done after {args.limit:.0f} s"}
    if done.returncode and impl in PEERS:
        return {"cannot": done.stderr.strip().splitlines()[-1]}
    if done.returncode:
        raise SystemExit(f"{case} {impl} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: str, args: argparse.Namespace) -> list[dict]:
    """One object per implementation: medians over interleaved runs, and ratios to the published way."""
    common = {"device": args.device, "precision": args.precision, "batch": args.batch}
    if args.device == "cuda" and not torch.cuda.is_available():
        return [{"case": case, "impl": impl} | common | dict.fromkeys(FIGURES) for impl in args.impls]
    impls = [impl for impl in args.impls if not too_big(case, impl, args.batch, args.device)]
    runs: dict[str, list[dict]] = {impl: [] for impl in impls}
    for _ in range(args.repeat):
        for impl in impls:
            if not (runs[impl] and "cannot" in runs[impl][0]):
                runs[impl].append(in_fresh_process(case, impl, args))
    cannot = {impl: done[0]["cannot"] for impl, done in runs.items() if "cannot" in done[0]}
    medians = {
        impl: {key: statistics.median(run[key] for run in done) for key in done[0] if key != "grad_norms"}
        for impl, done in runs.items()
        if impl not in cannot
    }
    base = medians.get("published")
    rows = [{"case": case, "impl": impl} | common | dict.fromkeys(FIGURES) | {"cannot": why} for impl, why in cannot.items()]
    for impl, median in medians.items():
        row = {"case": case, "impl": impl} | common | median
        row["time_ratio"] = median["seconds"] / base["seconds"] if base else None
        row["memory_ratio"] = median["extra_bytes"] / base["extra_bytes"] if base else None
        rows.append(row | {"runs": args.repeat, "grad_norms": runs[impl][0]["grad_norms"]})
    return rows


def line(row: dict) -> str:
    if row["seconds"] is None:
        why = row.get("cannot") or f"torch finds no {row['device'].upper()} device"
        return f"{row['case']:<14}{row['impl']:<15}  not measured: {why}"

    def ratio(name: str) -> str:
        return "     -" if row[name] is None else f"{row[name]:6.3f}"

    closed = f"{row['closed'] / row['labelled']:7.2f}" if "closed" in row else "      -"
    return (
        f"{row['case']:<14}{row['impl']:<15}{row['seconds_forward']:9.2f}{row['seconds_backward']:10.2f}"
        f"{ratio('time_ratio'):>8}{row['extra_bytes'] / 1e6:10.0f}{ratio('memory_ratio'):>8}"
        f"{row['gemm_share']:8.2f}{closed:>8}  {row['loss']:.5f}"
    )


HEADER = (
    f"{'case':<14}{'impl':<15}{'forward s':>9}{'backward':>10}{'ratio':>8}{'extra MB':>10}{'ratio':>8}"
    f"{'of GEMM':>8}{'closed':>8}  loss"
)


def plot(rows: list[dict], folder: Path) -> list[Path]:
    """One picture: time and memory against map side, for every metric and width that was run at three sides or more."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        curves.setdefault(parse_case(row["case"])[:2], []).append(row)
    curves = {kind: points for kind, points in curves.items() if len({row["case"] for row in points}) >= 3}
    if not curves:
        return []
    figure, axes = plt.subplots(len(curves), 2, figsize=(9, 3.4 * len(curves)), layout="constrained", squeeze=False)
    for (metric, channels), points, (time_axis, memory_axis) in zip(curves, curves.values(), axes):
        sides = sorted({parse_case(row["case"])[2] for row in points})
        for impl in dict.fromkeys(row["impl"] for row in points):
            mine = sorted(
                (parse_case(row["case"])[2], row["seconds"], row["extra_bytes"] / 1e6) for row in points if row["impl"] == impl
            )
            for axis, values in zip((time_axis, memory_axis), tuple(zip(*mine))[1:]):
                axis.plot([side for side, *_ in mine], values, marker="o", label=impl)
        title = f"{'cosine' if metric == 'cos' else 'Kullback-Leibler'}, {channels} channels"
        time_axis.set(ylabel="seconds, forward and backward", title=title)
        memory_axis.set(ylabel="peak memory above the inputs, MB", title=title)
        for axis in (time_axis, memory_axis):
            axis.set(xscale="log", yscale="log", xlabel="map side, pixels")
            axis.set_xticks(sides, [str(side) for side in sides], minor=False)
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axis.grid(alpha=0.3)
        time_axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"association_{rows[0]['device']}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return [path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--cases", nargs="+", default=["table"], metavar="CASE", help="'table', 'main', 'curve' or metric-channels-side"
    )
    parser.add_argument("--impls", nargs="+", default=["published", "streaming"], choices=IMPLS)
    parser.add_argument("--batch", type=int, default=1, help="images (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is taken (default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="highest",
        choices=("", "highest", "high", "medium"),
        help="of products, but those that decide an argmax; as TRAIN.MATMUL_PRECISION has it (default: %(default)s)",
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that one run may take (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the picture (default: docs/images)")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "IMPL"), help="one run in this process; prints JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        from dada.matmul_precision import matmul_precision

        with matmul_precision(args.precision, args.device):
            try:
                found = run_once(*args.one, args.device, args.batch)
            except Cannot as why:
                found = {"cannot": str(why)}
            print(json.dumps(found))
        return
    cases = [c for name in args.cases for c in {"table": TABLE, "main": MAIN, "curve": CURVE}.get(name, (name,))]
    for case in cases:
        parse_case(case)
    print(HEADER)
    rows = []
    for case in cases:
        for row in measure(case, args):
            rows.append(row)
            print(line(row), flush=True)
        if args.json:  # after every case: a run that is stopped keeps what it has
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    for path in plot([row for row in rows if row["seconds"] is not None], args.images):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
