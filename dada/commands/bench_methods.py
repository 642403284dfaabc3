"""Which methods `bench.py` compares, on which benchmarks: tables that import nothing heavy, as the flags are made from them."""

from __future__ import annotations

from typing import NamedTuple

START, LONGER, ORACLE = "source-only", "source-only, longer", "oracle"
START_LENGTH, FURTHER = 800, 220  # iterations of the start; of the source alone in the time that every method gets from there
PLAIN = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only", "TRAIN.LAMBDA_LOVASZ=0")
LOVASZ = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only", "TRAIN.LAMBDA_LOVASZ=0.75")
OURS = ("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=0")  # as the file of the benchmark has it
NO_ASSOCIATION = ("TRAIN.LAMBDA_CONTRASTIVE_MAIN=0", "TRAIN.LSR_W=0")
PLCA = (*OURS, "TRAIN.COLOR_TRANSFER=False")
DEPTH = ("USE_DEPTH=True",)


class Method(NamedTuple):
    """What a method changes in the configuration of a benchmark, from the source-only start on."""

    options: tuple[str, ...]
    start: tuple[str, ...] = ()  # what its start is trained with besides; a start of its own for every different tuple


METHODS = {
    LONGER: Method(PLAIN),
    "+ Lovász": Method(LOVASZ),
    "MinEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=MinEnt")),
    "AdvEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=AdvEnt")),
    "DADA": Method((*LOVASZ, *DEPTH, "TRAIN.DA_METHOD=DADA"), start=DEPTH),
    "feature association": Method((*PLCA, "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False")),
    "PLCA": Method(PLCA),
    "colours": Method((*OURS, *NO_ASSOCIATION)),
    "ours": Method(OURS),
    ORACLE: Method(LOVASZ),
}
# What did not become a part of ours, each added to it; by name only: `--methods`.
CANDIDATES = {
    f"ours + {name}": Method((*OURS, *options))
    for name, options in {
        "rare classes": ("TRAIN.RARE_CLASS_TEMPERATURE=0.1",),
        "consistency": ("TRAIN.LAMBDA_CONSISTENCY=1",),
        "entropy": ("TRAIN.LAMBDA_ENTROPY=0.001",),
        "ClassMix": ("SELF_TRAINING.LAMBDA_MIX=1",),
        "MIC": ("SELF_TRAINING.LAMBDA_MIC=1", "SELF_TRAINING.MIC_PATCH=32"),
        "AdaBN": ("TRAIN.ADABN_IMAGES=64",),
        "strong jitter": ("DATA_TRANSFORM.COLOR_JITTER=0.5",),
    }.items()
}
# Each adds one part to the one before; the first three are the ablation of the fork.
STEPS = (LONGER, "+ Lovász", "feature association", "PLCA", "ours")


class Benchmark(NamedTuple):
    """A pair of domains on which all methods run."""

    config: str
    has_depth: bool
    oracle: tuple[str, ...]  # what makes the labelled target the source


BENCHMARKS = {
    "ToyCity": Benchmark("toycity.yml", True, ("SOURCE=Cityscapes", "TRAIN.SET_SOURCE=train")),
    "CamVid day to dusk": Benchmark("camvid_day2dusk.yml", False, ("TRAIN.SET_SOURCE=dusk",)),
}
