"""Test images a second: our evaluation beside ADVENT's loop, on the same network and the same images in memory."""

from __future__ import annotations

import numpy as np
import torch
from published import evaluation_loop

from dada.dataset.sample import Batch
from dada.evaluation.evaluator import evaluate
from dada.evaluation.predictor import Predictor
from dada.label_sets import label_set
from dada.model import build_model
from gpu_check.check import Check
from gpu_check.measure import seconds

CLASSES = 19


def run(check: Check) -> None:
    device = torch.device(check.device)
    name, size, labels, images = (
        ("timm:test_efficientnet", (64, 128), (128, 256), 2) if check.small else ("DeepLabv2", (512, 1024), (1024, 2048), 16)
    )
    torch.manual_seed(0)
    network = build_model(name, CLASSES).to(device).eval()
    batches = [_batch(size, labels) for _ in range(images)]
    predictor = Predictor([network])
    counts = {}

    def ours() -> None:
        counts["ours"] = evaluate(predictor, batches, label_set(CLASSES), device).confusion.numpy()

    def theirs() -> None:
        counts["published"] = evaluation_loop(network, batches, CLASSES, device)

    row = {"network": name, "images": f"{size[1]}x{size[0]}", "labels": f"{labels[1]}x{labels[0]}"}
    for way, function in (("published", theirs), ("ours", ours)):
        with check.noting(**row, way=way) as found:
            found["images/s"] = images / seconds(function, check.device, repeat=1 if check.small else 2)
    other = np.abs(counts["ours"] - counts["published"]).sum() / counts["published"].sum() / 2
    check.note(**row, **{"share of pixels counted elsewhere": float(other)})
    if other > 0.001:
        raise SystemExit(f"the two ways count {100 * other:.2f} % of the pixels differently")


def _batch(size: tuple[int, int], labels: tuple[int, int]) -> Batch:
    label = torch.randint(CLASSES, (1, *labels))
    label[:, : labels[0] // 8] = 255
    return Batch(torch.randn(1, 3, *size), label, None, ["image.png"], [labels])
