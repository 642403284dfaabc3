"""Our scores beside those of Cityscapes' own evaluation script, on the toy city."""

import numpy as np
import pytest
import torch
from PIL import Image

from dada.build import eval_loader as build_eval_loader
from dada.config import cfg, cfg_from_list
from dada.evaluation.evaluator import evaluate
from dada.label_sets import LABEL_SETS, cityscapes_id_map
from dada.normalization import TORCHVISION_RGB

official = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="pip install cityscapesScripts"
)

# The script's names of our classes.
NAMES = {"light": "traffic light", "sign": "traffic sign"}


class Guess:
    """In place of a Predictor: the label of a shifted image, with noise; the same for the same image."""

    def __init__(self, dataset) -> None:
        self.labels = [np.array(dataset.read_label(k)) for k in range(len(dataset))]
        self.position = 0
        self.made = []

    def __call__(self, image, size):
        g = np.random.default_rng(self.position)
        ids = np.roll(self.labels[self.position], 5, axis=1)
        noise = g.random(ids.shape) < 0.2
        ids = np.where(noise | (ids > 18), g.integers(0, 19, ids.shape), ids)
        self.position += 1
        self.made.append(ids)
        return torch.nn.functional.one_hot(torch.from_numpy(ids)[None].long(), 19).permute(0, 3, 1, 2).float()


@pytest.fixture
def compared(city, tmp_path, monkeypatch):
    """Our evaluation of 19 classes, and the official confusion matrix of the same predictions."""
    cfg_from_list(
        [
            f"DATA_DIRECTORY_TARGET={city / 'Cityscapes'}",
            "NUM_CLASSES=19",
            "NUM_WORKERS=0",
            "GPU_ID=-1",
            "TEST.INPUT_SIZE_TARGET=[128, 64]",
        ]
    )
    loader = build_eval_loader(cfg, TORCHVISION_RGB)
    guess = Guess(loader.dataset)
    ours = evaluate(guess, loader, loader.dataset.classes, torch.device("cpu"))

    monkeypatch.setattr(official.args, "evalInstLevelScore", False)  # needs instance files
    monkeypatch.setattr(official.args, "quiet", True)
    file_id = np.array([np.flatnonzero(cityscapes_id_map(19) == k)[0] for k in range(19)], dtype=np.uint8)
    matrix = official.generateMatrix(official.args)
    for item, ids in zip(loader.dataset.items, guess.made):
        path = tmp_path / f"{item.name.replace('/', '_')}"
        Image.fromarray(file_id[ids]).save(path)
        # The script adds to the matrix in place, and does so with or without its compiled part.
        official.evaluatePair(str(path), item.label, matrix, None, {}, official.args)
    return ours, matrix


def test_every_class_scores_as_in_the_official_script(compared):
    ours, matrix = compared
    ids = {label.name: label.id for label in official.labels}
    scores = {n: official.getIouScoreForLabel(ids[NAMES.get(n, n)], matrix, official.args) for n in LABEL_SETS[19].names}
    assert sum(not np.isnan(score) for score in scores.values()) >= 15
    np.testing.assert_allclose(ours.iou, list(scores.values()), rtol=0, atol=1e-6)
    every = {
        label.name: official.getIouScoreForLabel(label.id, matrix, official.args) for label in official.labels if label.id >= 0
    }
    assert ours.miou == pytest.approx(official.getScoreAverage(every, official.args), abs=1e-6)


def test_every_category_scores_as_in_the_official_script(compared):
    ours, matrix = compared
    scores = {c: official.getIouScoreForCategory(c, matrix, official.args) for c in official.category2labels}
    assert set(scores) == {*LABEL_SETS[7].names, "void"} and np.isnan(scores["void"])
    assert ours.means["7"] == pytest.approx(official.getScoreAverage(scores, official.args), abs=1e-6)
