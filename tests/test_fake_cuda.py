"""On a GPU the host waits where it must and nowhere else, and no tensor is on the wrong device: seen without a GPU.

`fake_cuda` gives torch a CUDA device that computes nothing. All of `gpu_work` runs there, in a process of its own, which notes
where the project asks for a value of the device, and where it copies to the device and waits for the end of that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fake_cuda
import pytest
import torch
from gpu_work import STEPS, TESTS, works

TESTS_FOLDER = Path(__file__).resolve().parent

TRAINER = "training/trainer.py"
EVALUATION = "evaluation"


def intended_waits(name: str) -> Counter[str]:
    """Where the host waits for a value, and how often; docs/performance.md says why."""
    if name in STEPS:
        steps = 2 if name.startswith("two steps") else 1
        adversaries = {"AdvEnt": 2, "AdvEnt, association": 1}.get(name, int("DADA" in name or "PLCA_adv" in name))
        # Losses are finite: of the network, and of each discriminator. Then what the log shows, once.
        waits = Counter({f"{TRAINER} _check_finite": steps * (1 + adversaries), f"{TRAINER} _means": 1})
        if "small maps" in name:  # the plain form lists the cycles that close, for features and for classes
            waits["domain_adaptation/contrastive_learning.py dense_loss"] = 2
        return waits
    if name in TESTS:
        return EVALUATED
    return OTHERS[name]


# A batch: whether all predictions are classes, which pixels are labelled (twice), bincount's own look at the largest; the counts.
EVALUATED = Counter({f"{EVALUATION}/metrics.py confusion_matrix": 4, "evaluation/evaluator.py confusions": 1})
OTHERS = {
    "prediction": Counter({"segmenter.py own_size": 6}),  # of two images: ids, confidence, probabilities
    "criteria": Counter(
        {
            f"{EVALUATION}/criteria.py label_free_criteria": 3  # at the end of all images
        }
    ),
    "closure": Counter({"evaluation/cycle_closure.py cycle_closure": 5}),
    "export": Counter(),
    "batch norm statistics": Counter(
        {"model/timm_encoder.py forward": 12}
    ),  # torch reads the count of each layer for a plain mean
    "check before saving": Counter({"training/post_mortem.py not_finite": 4}),  # one a tensor of the network
}


@pytest.fixture(scope="module")
def noted(pytestconfig) -> dict[str, dict]:
    """By piece of work: `waits` and `copies` by function, `lines` of these, and the `error` that ended it."""
    if shutil.which("g++") is None:
        pytest.skip("fake CUDA is compiled with g++, which is not here")
    source = fake_cuda.SOURCE.read_bytes()
    kind = hashlib.sha256(torch.__version__.encode() + source).hexdigest()[:12]
    folder = Path(pytestconfig.cache.mkdir(f"fake_cuda_{kind}"))  # compiled once for each version of torch
    try:
        fake_cuda.build(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"fake CUDA does not compile with the headers of torch {torch.__version__}: {error.stderr[:300]}")
    paths = [str(TESTS_FOLDER.parent), str(TESTS_FOLDER), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "fake_cuda", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", works())
def test_the_host_waits_for_a_gpu_only_where_that_is_meant(name, noted):
    found = noted[name]
    assert not found["error"], found["error"]
    places = {place: f"{line} ({place.rpartition(' ')[2]})" for place, line in found["lines"].items()}
    copies = [f"{count} at {places.get(place, place)}" for place, count in found["copies"].items()]
    assert not copies, f"copies to the device that the host waits for: {', '.join(copies)}"
    surplus, missing = (Counter(found["waits"]) - intended_waits(name), intended_waits(name) - Counter(found["waits"]))
    waits = [f"{count} at {places.get(place, place)}" for place, count in surplus.items()]
    assert not waits, f"waits for values of the device that are not meant: {', '.join(waits)}"
    assert not missing, f"waits that are stated here and do not happen: {dict(missing)}"
