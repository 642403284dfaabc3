"""A network on the device predicts what it predicts on the CPU, and is exported from there."""

import numpy as np
import pytest
from tiny import untrained_snapshot

from dada.commands.export import TOLERANCE, export
from dada.segmenter import Segmenter

pytestmark = pytest.mark.gpu

WAYS = [{}, {"flip": True, "scales": (1.0, 0.75)}, {"aggregate": True}, {"window": (96, 64)}]


@pytest.fixture(scope="module")
def snapshot(city, tmp_path_factory):
    return untrained_snapshot(tmp_path_factory.mktemp("untrained"), city)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_predictions_are_those_of_the_cpu(way, snapshot, device, record_property):
    image = (255 * np.random.default_rng(0).random((97, 131, 3))).astype(np.uint8)
    want, got = (Segmenter.from_checkpoint(snapshot, device=where).predict(image, **way) for where in ("cpu", device))
    error = float(abs(want.probabilities - got.probabilities).max())
    others = float((want.ids != got.ids).mean())
    record_property("error of the probabilities", error)
    record_property("share of other classes", others)
    assert len(np.unique(want.ids)) > 1
    assert error <= TOLERANCE and others <= 0.01


@pytest.mark.parametrize("name", ["network.pt2", "network.onnx"])
def test_export_agrees_with_the_network_on_the_device(name, snapshot, device, tmp_path, record_property):
    if name.endswith(".onnx"):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    metadata = export(Segmenter.from_checkpoint(snapshot, device=device), tmp_path / name, size=(128, 64))
    record_property("error of the probabilities", float(metadata["max_abs_difference"]))
    assert float(metadata["max_abs_difference"]) <= TOLERANCE and (tmp_path / name).stat().st_size > 0
