"""A run on the device that was ended and goes on: its last weights beside those of runs that nobody ended."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, missing, options
from tiny import tiny_options

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent
ITERATIONS, EVERY = (8, 2) if DEVICE.type == "cpu" else (40, 10)
# On a CPU runs are equal. On a GPU sums in any order part them, and a step of AdamW is as long for a small gradient as for
# a large one: what two runs that nobody ended are apart, a resumed one may be several times.
SEVERAL = 5
WHOLE = ("whole",) if DEVICE.type == "cpu" else ("whole", "again")
SECONDS = 150


class Runs:
    def __init__(self, city: Path, out: Path) -> None:
        self._options = [
            *(o for o in tiny_options(city, out) if not o.startswith(("GPU_ID", "EXP_NAME", "TRAIN.MAX_ITERS"))),
            *options(DEVICE),
            *("TRAIN.DA_METHOD=MinEnt", "TRAIN.OPTIMIZER=AdamW", "TRAIN.LEARNING_RATE=0.001", "TRAIN.RESTORE_FROM=random"),
            *("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=1"),
            *(f"TRAIN.MAX_ITERS={ITERATIONS}", f"TRAIN.SAVE_PRED_EVERY={ITERATIONS}", f"TRAIN.CHECKPOINT_EVERY={EVERY}"),
        ]
        self._out = out

    def start(self, name: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, "scripts/train.py", "--cfg", "toycity.yml", "--set", *self._options, f"EXP_NAME={name}", *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def folder(self, name: str) -> Path:
        return self._out / "snapshots" / name

    def weights(self, name: str) -> torch.Tensor:
        state = torch.load(self.folder(name) / f"model_{ITERATIONS}.pth", map_location="cpu", weights_only=True)["state_dict"]
        return torch.cat([value.double().flatten() for value in state.values() if value.is_floating_point()])


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said[-1000:]
    return said


@pytest.fixture(scope="module")
def runs(city, tmp_path_factory):
    if missing():
        pytest.skip(missing())
    runs = Runs(city, tmp_path_factory.mktemp("runs"))
    for process in [runs.start(name) for name in WHOLE]:
        finish(process)
    return runs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_that_was_ended_goes_on_to_the_same_weights(number, runs, device, record_property):
    name = number.name
    process, end = runs.start(name), time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end and not list(runs.folder(name).glob("checkpoint_*.pth")):
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM), said[-1000:]
    assert not (runs.folder(name) / f"model_{ITERATIONS}.pth").exists()
    finish(runs.start(name, "--resume", "auto"))

    whole = runs.weights("whole")
    apart, usual = (((runs.weights(other) - whole).norm() / whole.norm()).item() for other in (name, WHOLE[-1]))
    record_property("distance from the whole run", apart)
    record_property("distance of two whole runs", usual)
    assert apart <= SEVERAL * usual
