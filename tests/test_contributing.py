"""The worked examples of CONTRIBUTING.md: each is written to a file, imported by IMPORTS as the page says, and trained."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import LONG
from pages import ROOT, blocks
from PIL import Image

from dada.config import cfg, cfg_from_file, cfg_from_list, imports
from dada.dataset import DATASETS, IGNORE_LABEL
from dada.domain_adaptation.objectives import METHODS
from dada.evaluation.tester import evaluate_run as run_test
from dada.model import MODELS, build_model, check_parameter_groups
from dada.runs import run_of
from dada.training.loop import train

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What an example registers, and that it was imported, is gone after its test."""
    before = [(registry, dict(registry)) for registry in (METHODS, DATASETS, MODELS)]
    monkeypatch.setattr(imports, "_sources", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in imports._sources:
        del sys.modules[name.removesuffix(".py")]
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.fixture
def example(tmp_path):
    """`example(word)`: the module of the block that holds `word`, imported by a YAML file beside it."""

    def imported(word: str) -> ModuleType:
        (text,) = [b for b in blocks(PAGE, "python") if word in b]
        name = f"my_{word.lower()}"
        (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "own.yml").write_text(f"IMPORTS: [{name}.py]")
        cfg_from_file(tmp_path / "own.yml")
        return sys.modules[name]

    return imported


def trained(*options: str) -> None:
    cfg_from_list(["CONTRASTIVE_LEARNING=False", *options])
    run = run_of(cfg)
    train(cfg, run)
    assert [p.name for p in run.snapshots.glob("*.py")] == list(cfg.IMPORTS)


def test_the_method_is_the_formula_and_trains(tiny_cfg, example):
    module = example("max_squares")

    class OneStep:
        upsample = staticmethod(lambda logits, like: logits)
        target = type("Batch", (), {"image": None})
        target_outputs = type("Outputs", (), {"logits": torch.randn(2, 3, 4, 5)})

    p = OneStep.target_outputs.logits.softmax(dim=1)
    want = -sum(float(q) ** 2 for q in p.flatten()) / (2 * 2 * 4 * 5)
    assert module.max_squares(OneStep).item() == pytest.approx(want)
    trained("TRAIN.DA_METHOD=MaxSquares")


def test_the_dataset_is_read_trained_on_and_tested(tiny_cfg, tmp_path, example):
    example("BDD100K")
    root = tmp_path / "bdd"
    ids = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96) % 20
    for split in ("train", "val"):
        for folder, ending, picture in (
            ("images/10k", "jpg", Image.new("RGB", (96, 64), "gray")),
            ("labels/sem_seg/masks", "png", Image.fromarray(np.where(ids == 19, 255, ids).astype(np.uint8))),
        ):
            (root / folder / split).mkdir(parents=True)
            for name in ("a", "b"):
                picture.save(root / folder / split / f"{name}.{ending}")
    for num_classes in (19, 16, 13):
        dataset = DATASETS["BDD100K"](root, "val", num_classes, transform=None)
        found = np.array(dataset.read_label(0))
        assert set(np.unique(found)) == {*range(num_classes), IGNORE_LABEL}
    assert dataset.classes.names[found[0, 18]] == "bicycle" and found[0, 9] == IGNORE_LABEL  # 9 is terrain
    sent = pickle.loads(pickle.dumps(dataset))  # as to a loader process
    assert sent.items == dataset.items and np.array_equal(np.array(sent.read_label(0)), found)

    trained("TARGET=BDD100K", f"DATA_DIRECTORY_TARGET={root}", "TRAIN.DA_METHOD=MinEnt")
    (evaluation,) = run_test(cfg, run_of(cfg)).values()
    assert evaluation.confusion.sum() > 64 * 96

    (root / "labels/sem_seg/masks/val/a.png").unlink()
    with pytest.raises(FileNotFoundError, match="labels of BDD100K images"):
        DATASETS["BDD100K"](root, "val", 19, transform=None)


def test_the_network_keeps_what_is_promised_and_trains(tiny_cfg, example):
    example("SmallCNN")
    network = build_model("small-cnn", 5, multi_level=True, with_depth=True, bn_policy="frozen_affine")
    check_parameter_groups(network, network.parameter_groups())
    outputs = network(torch.randn(2, 3, 33, 47))
    assert outputs.logits.shape == outputs.aux_logits.shape == (2, 5, 5, 6)
    assert outputs.depth.shape == (2, 1, 5, 6) and outputs.features.shape == (2, 64, 5, 6)
    torch.testing.assert_close(network.classify(outputs.features), outputs.logits)
    trained("TRAIN.MODEL=small-cnn", "CONTRASTIVE_LEARNING=True", "TRAIN.DA_METHOD=DADA", "USE_DEPTH=True")
    with pytest.raises(ValueError, match="no ImageNet weights are known for SmallCNN; give the path of a file"):
        build_model("small-cnn", 5, weights="imagenet")


def test_the_files_that_make_check_leaves_out_are_there():
    assert [name for name in LONG if not (ROOT / "tests" / f"test_{name}.py").is_file()] == []
    assert len(set(LONG)) == len(LONG)
