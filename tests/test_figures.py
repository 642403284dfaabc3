"""Pictures of predictions."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyNetwork

from dada.dataset import Sample
from dada.evaluation.predictor import Predictor
from dada.figures.panels import draw_panel, predict_labels
from dada.figures.style import save_figure
from dada.label_sets import OTHER_LABEL, label_set
from dada.normalization import TORCHVISION_RGB


class Network(TinyNetwork):
    normalization = TORCHVISION_RGB


def sample(seed: int, label_size=(32, 64), image_size=(16, 32)) -> Sample:
    g = torch.Generator().manual_seed(seed)
    image = TORCHVISION_RGB(torch.randint(256, (3, *image_size), generator=g))
    return Sample(image, torch.randint(16, label_size, generator=g), None, f"{seed}.png", label_size)


def test_predictions_have_the_size_of_the_label_and_the_ids_of_the_classes():
    samples = [sample(0), sample(1, label_size=(30, 50))]
    predictor = Predictor([Network(16)])
    ids = predict_labels(predictor, samples, torch.device("cpu"))
    assert [p.shape for p in ids] == [(32, 64), (30, 50)] and ids[0].dtype == np.uint8
    expected = predictor(samples[1].image[None], (30, 50)).argmax(1)[0].numpy()
    assert np.array_equal(ids[1], expected)


def test_a_panel_shows_every_column_in_the_colours_of_the_classes(tmp_path):
    palette = [tuple(int(c) for c in colour) for colour in label_set(16).palette]
    person, car = label_set(16).names.index("person"), label_set(16).names.index("car")
    shown = sample(0)._replace(label=torch.full((32, 64), person))
    prediction = np.full((32, 64), car, np.uint8)
    path = tmp_path / "out" / "panel.png"
    save_figure(draw_panel([shown], {"adapted": [prediction]}, TORCHVISION_RGB, label_set(16)), path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    areas = {name: (pixels == palette[k]).all(-1).sum() for name, k in (("person", person), ("car", car), ("bus", 13))}
    # Label and prediction fill a panel each; a class that is not shown has its patch in the legend only.
    assert min(areas["person"], areas["car"]) > 20 * areas["bus"] > 0
    assert [p.name for p in path.parent.iterdir()] == ["panel.png"]


@pytest.mark.parametrize("unlabelled", [255, OTHER_LABEL])
def test_pixels_without_class_are_black(tmp_path, unlabelled):
    blank = sample(0)._replace(label=torch.full((32, 64), unlabelled))
    full = sample(0)._replace(label=torch.zeros(32, 64, dtype=torch.int64))
    black = []
    for name, one in (("blank", blank), ("full", full)):
        save_figure(draw_panel([one], {}, TORCHVISION_RGB, label_set(16)), tmp_path / f"{name}.png")
        black.append((np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) == 0).all(-1).sum())
    assert black[0] > black[1] + 10_000


def test_the_ending_of_the_name_chooses_the_format(tmp_path):
    save_figure(draw_panel([sample(0)], {}, TORCHVISION_RGB, label_set(16)), tmp_path / "panel.pdf")
    assert (tmp_path / "panel.pdf").read_bytes().startswith(b"%PDF")
