"""Every shipped configuration gives a network, an objective and an optimizer, and says so where nobody ran it here."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dada.build import build_network, eval_transform
from dada.config import CONFIGS, cfg, cfg_from_file
from dada.domain_adaptation.objectives import build_objective
from dada.model.weights import RANDOM
from dada.training.trainer import build_optimizer

PARTS = ("defaults_", "source_free")  # what is laid under a configuration, or over one
SHIPPED = sorted(path for path in CONFIGS.glob("*.yml") if not path.name.startswith(PARTS))
FULL_SIZE = [path for path in SHIPPED if path.name.startswith(("gta2", "synthia2", "thesis"))]


@pytest.fixture
def undrawn(monkeypatch):
    """Weights without memory have no values, and drawing these takes most of the time."""
    for name in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, name, lambda x, *_, **options: x)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_it_builds_on_a_device_without_memory(path):
    cfg_from_file(path)
    with torch.device("meta"):
        network = build_network(cfg, weights="")
        objective = build_objective(cfg, torch.device("meta"))
        optimizer = build_optimizer(network, cfg)
    assert "seg_src_main" in [term.name.removeprefix("loss_") for term in objective.terms]
    trained = sum(parameter.requires_grad for parameter in network.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == trained > 0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_it_names_the_weights_that_it_starts_from(path):
    assert cfg_from_file(path).TRAIN.RESTORE_FROM not in RANDOM


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda p: p.name)
def test_what_needs_a_benchmark_says_whether_it_was_run_here(path):
    head = " ".join(line.lstrip("# ") for line in Path(path).read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    assert "Not run here" in head


@pytest.mark.usefixtures("undrawn")
def test_the_large_vision_transformer_is_an_override_away():
    cfg_from_file("gta2cityscapes_dinov2.yml")
    cfg.TRAIN.MODEL = "timm:vit_large_patch14_dinov2"
    with torch.device("meta"):
        network = build_network(cfg, weights="")
    assert network.indices == [5, 11, 17, 23] and network.patch == 14
    assert len(build_optimizer(network, cfg).param_groups) == 2 * (24 + 1) + 3  # the head's two and the final norm's one


def test_the_example_keeps_the_shape_of_pictures_as_its_comment_says():
    """The comment beside INPUT_SIZE_TARGET: fitted, shape kept, padded at the right and the bottom."""
    text = (CONFIGS / "folder_example.yml").read_text(encoding="utf-8")
    assert "their shape kept, and padded at the right and the bottom" in text
    cfg_from_file("folder_example.yml")
    transform = eval_transform(cfg, lambda image: image.float())
    image = transform(Image.new("RGB", (200, 100), "white")).image
    assert image.shape == (3, 1024, 1024) and (image[:, :512] > 0).all() and not image[:, 512:].any()
