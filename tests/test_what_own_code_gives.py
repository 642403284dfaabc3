"""What a method, a network or a dataset of one's own gives is looked at where it comes in, and named."""

import numpy as np
import pytest
from tiny import TinyNetwork, random_batch
from torch import nn

from dada.build import source_loader
from dada.config import cfg, cfg_from_list
from dada.dataset import DATASETS
from dada.dataset.published import PublishedDataset
from dada.domain_adaptation.objectives import Objective, Term
from dada.domain_adaptation.step import Step
from dada.model.outputs import Outputs
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.loop import train


def logits(step):
    return step.target_outputs.logits


def of_each_image(step):
    return logits(step).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    "compute, found",
    [
        (of_each_image, r"a tensor of shape \(2,\) and type float32"),
        (lambda step: logits(step).mean()[None], r"a tensor of shape \(1,\)"),
        (lambda step: logits(step).argmax(), r"a tensor of shape \(\) and type int64"),
        (lambda step: None, "a NoneType"),
        (lambda step: 0.5, "a float"),
    ],
)
def test_a_loss_that_is_no_scalar_of_the_network_is_named_with_its_place(compute, found):
    step = Step(TinyNetwork(5), random_batch(), random_batch(seed=1))
    with pytest.raises(ValueError, match=rf"the term loss_mine \({__file__}, line \d+\) gives {found}.*expected a scalar"):
        Objective([Term("loss_mine", 1.0, compute)], [])(step, 0)


class Bare(nn.Module):
    """Returns what `of` makes of its logits."""

    def __init__(self, of) -> None:
        super().__init__()
        self.network, self.of = TinyNetwork(7), of

    def forward(self, image):
        return self.of(self.network(image))


@pytest.mark.parametrize(
    "of, found",
    [
        (lambda outputs: outputs, r"predicts 7 classes, but the cfg has 5 \(NUM_CLASSES\)"),
        (lambda outputs: outputs.logits, r"returns a Tensor, expected dada\.model\.Outputs"),
        (tuple, "returns a tuple"),
        (lambda outputs: {"out": outputs.logits}, "returns a dict"),
    ],
)
def test_a_network_that_gives_something_else_is_named(of, found):
    step = Step(Bare(of), random_batch(), random_batch(seed=1), num_classes=5)
    with pytest.raises(ValueError, match=f"the network Bare {found}"):
        logits(step)


def test_a_network_with_the_classes_of_the_cfg_is_fine():
    assert isinstance(Step(Bare(lambda outputs: outputs), random_batch(), None, num_classes=7).source_outputs, Outputs)


class Empty(PublishedDataset):
    title, splits, usual_role, label_sets, num_ids, holds, download = "Empty", ("train",), "source", (19,), 19, "x/", "none."

    def find(self):
        return []

    def map_of(self, num_classes):
        return np.where(np.arange(256) < num_classes, np.arange(256), 255).astype(np.uint8)


def test_a_dataset_without_images_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, "Empty", Empty)
    cfg_from_list(["SOURCE=Empty", "NUM_CLASSES=19", "TRAIN.SET_SOURCE=train", f"DATA_DIRECTORY_SOURCE={tmp_path}"])
    with pytest.raises(ValueError, match="SOURCE Empty: there are no images in the split 'train' of"):
        source_loader(cfg, TORCHVISION_RGB, steps=1)


def test_a_batch_norm_over_one_value_names_batch_crop_and_stride(tiny_cfg):
    cfg_from_list(["TRAIN.BATCH_SIZE_SOURCE=1", "TRAIN.OUTPUT_STRIDE=32", "DATA_TRANSFORM.CROPSIZE=32"])
    with pytest.raises(
        ValueError, match=r"a single value.*BATCH_SIZE_SOURCE.*\(now 1 and 2\).*CROPSIZE \(now 32\).*STRIDE \(now 32\)"
    ):
        train(cfg, run_of(cfg))


def test_the_size_of_the_images_is_named_where_nothing_is_cropped(tiny_cfg):
    options = ["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False", "TRAIN.INPUT_SIZE_SOURCE=[32, 32]", "TRAIN.OUTPUT_STRIDE=32"]
    cfg_from_list(["TRAIN.BATCH_SIZE_SOURCE=1", *options])
    with pytest.raises(ValueError, match=r"TRAIN.INPUT_SIZE_SOURCE and TRAIN.INPUT_SIZE_TARGET \(now 32x32 and 1024x512\)"):
        train(cfg, run_of(cfg))
