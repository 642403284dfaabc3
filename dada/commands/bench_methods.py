"""Which methods `bench.py` compares, on which benchmarks: tables that import nothing heavy, as the flags are made from them."""

from __future__ import annotations

from typing import NamedTuple

START, LONGER, ORACLE = "source-only", "source-only, longer", "oracle"
START_LENGTH, FURTHER = 800, 600  # iterations of the start; of every method from there, or of the source alone in their time
BUDGETS = {"iterations": "equal iterations", "time": "equal time"}
PLAIN = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only", "TRAIN.LAMBDA_LOVASZ=0")
LOVASZ = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only", "TRAIN.LAMBDA_LOVASZ=0.75")
OURS = ("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=0")  # as the file of the benchmark has it
NO_ASSOCIATION = ("TRAIN.LAMBDA_CONTRASTIVE_MAIN=0", "TRAIN.LSR_W=0")
NO_CONSISTENCY_OR_ENTROPY = ("TRAIN.LAMBDA_CONSISTENCY=0", "TRAIN.LAMBDA_ENTROPY=0")
PLCA = (*OURS, *NO_CONSISTENCY_OR_ENTROPY, "TRAIN.COLOR_TRANSFER=False")
DEPTH = ("USE_DEPTH=True",)


class Method(NamedTuple):
    """What a method changes in the configuration of a benchmark, from the source-only start on."""

    options: tuple[str, ...]
    start: tuple[str, ...] = ()  # what its start is trained with besides; a start of its own for every different tuple
    suggested: int = 0  # labelled images of the target, which the network of `ours` of the same seed suggests


METHODS = {
    LONGER: Method(PLAIN),
    "+ Lovász": Method(LOVASZ),
    "MinEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=MinEnt")),
    "AdvEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=AdvEnt")),
    "DADA": Method((*LOVASZ, *DEPTH, "TRAIN.DA_METHOD=DADA"), start=DEPTH),
    "feature association": Method((*PLCA, "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False")),
    "PLCA": Method(PLCA),
    "colours": Method((*OURS, *NO_ASSOCIATION, *NO_CONSISTENCY_OR_ENTROPY)),
    "PLCA + colours": Method((*OURS, *NO_CONSISTENCY_OR_ENTROPY)),
    "ours": Method(OURS),
    ORACLE: Method(LOVASZ),
}
# What did not become a part of ours, each added to it; by name only: `--methods`.
CANDIDATES = {
    f"ours + {name}": Method((*OURS, *options))
    for name, options in {
        "rare classes": ("TRAIN.RARE_CLASS_TEMPERATURE=0.1",),
        "domain batch norm": ("TRAIN.DOMAIN_BN=True",),
        "ClassMix": ("SELF_TRAINING.LAMBDA_MIX=1",),
        "MIC": ("SELF_TRAINING.LAMBDA_MIC=1", "SELF_TRAINING.MIC_PATCH=32"),
        "AdaBN": ("TRAIN.ADABN_IMAGES=64",),
        "strong jitter": ("DATA_TRANSFORM.COLOR_JITTER=0.5",),
    }.items()
}
LABELS = (2, 4, 8, 16)  # images of the target


def labelled(count: int, how: str) -> str:
    """The name of ours with so many labelled images, "random" or "suggested"."""
    return f"ours + {count} labelled, {how}"


_LABELLED = (*OURS, "TRAIN.BATCH_SIZE_LABELLED=2")
LABELLED = {
    **{labelled(n, "random"): Method((*_LABELLED, f"TARGET_LABELLED=random {n}")) for n in LABELS},
    **{labelled(n, "suggested"): Method(_LABELLED, suggested=n) for n in LABELS},
}
# Each adds one part to the one before; the first three are the ablation of the fork.
STEPS = (LONGER, "+ Lovász", "feature association", "PLCA", "PLCA + colours", "ours")


class Benchmark(NamedTuple):
    """A pair of domains on which all methods run.

    Attributes:
        config: its configuration, from a source-only start on.
        source, target: folders of the data, as `Plan.folder` knows them.
        held_out: what makes labelled source images that no training sees the test, beside their folder.
        has_depth: whether the source has depth.
    """

    config: str
    source: str
    target: str
    held_out: tuple[str, ...]
    held_out_folder: str = ""  # where they are not in the folder of the source
    has_depth: bool = False


BENCHMARKS = {
    "ToyCity": Benchmark(
        "toycity.yml", "city/SYNTHIA", "city/Cityscapes", ("TEST.SET_TARGET=all",), "held_out/SYNTHIA", has_depth=True
    ),
    "CamVid day to dusk": Benchmark("camvid_day2dusk.yml", "camvid", "camvid", ("TEST.SET_TARGET=val",)),
    "CamVid to IDD-lite": Benchmark(
        "camvid2idd.yml", "camvid", "idd", ("TEST.SET_TARGET=val", "TEST.INPUT_SIZE_TARGET=[320,240]")
    ),
}
