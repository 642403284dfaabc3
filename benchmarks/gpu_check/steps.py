"""Whole training steps, from loading to the optimizer, beside the published way: association of features, random weights."""

from __future__ import annotations

import os

from gpu_check.check import Check, Skip
from gpu_check.programs import benchmark, city_options

# Options of the network, side of the crops, images of each domain.
NETWORKS = {
    "ResNet-101": (
        ("TRAIN.MODEL=DeepLabv2", "TRAIN.OPTIMIZER=SGD", "TRAIN.LEARNING_RATE=2.5e-4", "TRAIN.OUTPUT_STRIDE=8"),
        730,
        4,
    ),
    "EfficientNet-Lite0": (("TRAIN.MODEL=timm:tf_efficientnet_lite0", "TRAIN.OUTPUT_STRIDE=8"), 512, 4),
    "DINOv2-S": (("TRAIN.MODEL=timm:vit_small_patch14_dinov2", "TRAIN.OUTPUT_STRIDE=8"), 512, 4),
}
TINY = (("TRAIN.MODEL=timm:test_efficientnet",), 64, 1)
ALIKE = (  # what the published step does too
    "CONTRASTIVE_LEARNING=True",
    "TRAIN.CONTRASTIVE_START=0",
    "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False",
    "TRAIN.COLOR_TRANSFER=False",
    "TRAIN.LAMBDA_CONSISTENCY=0",
    "TRAIN.LAMBDA_ENTROPY=0",
    "DATA_TRANSFORM.COLOR_JITTER=0",
    "TRAIN.RESTORE_FROM=random",
    "TRAIN.CHANNELS_LAST=False",
)
PRECISION = "TRAIN.MATMUL_PRECISION"


def run(check: Check) -> None:
    if check.small and check.section != "ResNet-101":
        raise Skip("with --small all networks are the one of the section ResNet-101")
    network, side, images = TINY if check.small else NETWORKS[check.section]
    options = [
        *city_options(check),
        *network,
        *ALIKE,
        f"DATA_TRANSFORM.LOADSIZE={side}",
        f"DATA_TRANSFORM.CROPSIZE={side}",
        f"TRAIN.BATCH_SIZE_SOURCE={images}",
        f"TRAIN.BATCH_SIZE_TARGET={images}",
        f"NUM_WORKERS={0 if check.small else min(6, len(os.sched_getaffinity(0)) // 2)}",
    ]
    turns = ["--repeat", "1", "--iterations", "1"] if check.small else ["--repeat", "2", "--iterations", "2"]
    for precision, variants in _rounds(check.small):
        chosen = [f"{PRECISION}={precision}"] if precision else []
        with check.noting(variants=variants, precision=precision or "default") as row:
            rows = benchmark(
                check, "train_step", "--cfg", "toycity.yml", "--variants", *variants, *turns, "--set", *options, *chosen
            )
            row["steps"] = rows


def _rounds(small: bool) -> list[tuple[str, list[str]]]:
    """Precision of float32 products, and the variants that are compared in it; the most telling ones first."""
    if small:
        return [("", ["published", "plain"])]
    return [
        ("", ["published", "plain", "both"]),
        ("highest", ["published", "plain"]),
        ("", ["plain", "bf16", "channels_last"]),
        ("", ["plain", "compile"]),
    ]
