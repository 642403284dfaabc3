"""Before a training fetches, reads or writes anything it tells all that is not there."""

import logging
import re

import pytest

from dada.config import cfg, cfg_from_file, cfg_from_list
from dada.model import imagenet
from dada.runs import run_of
from dada.training.loop import Training, train

CAFFE = "pretrained_models/DeepLab_resnet_pretrained_imagenet.pth"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    def fetched(*_):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(imagenet, "_from_hub", fetched)
    monkeypatch.setattr(imagenet, "PACKAGED", re.compile("(?!)"))  # no package carries any


@pytest.mark.parametrize("name", ["synthia2cityscapes.yml", "synthia2cityscapes_source_only.yml", "gta2cityscapes_advent.yml"])
def test_a_published_configuration_without_its_weights_says_where_they_are_had_and_writes_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg_from_file(name)
    cfg_from_list(["DEVICE=cpu"])
    with pytest.raises(FileNotFoundError) as error:
        train(cfg, run_of(cfg))
    told = str(error.value)
    assert f"{CAFFE} does not exist" in told and "https://github.com/valeoai/ADVENT/releases" in told
    assert "TRAIN.RESTORE_FROM=random" in told and "DATA_DIRECTORY_SOURCE" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "pairs, told",
    [
        (
            ["TRAIN.DA_METHOD=MinEntropy", "TRAIN.RESTORE_FROM=gone.pth"],
            ["'MinEntropy' is not one of", "gone.pth does not exist"],
        ),
        (["TRAIN.MODEL=resnet-19", "DATA_DIRECTORY_TARGET=/nowhere"], ["unknown network 'resnet-19'", "/nowhere"]),
        (["DATA_DIRECTORY_SOURCE=/gone", "DATA_DIRECTORY_TARGET=/nowhere"], ["/gone", "/nowhere"]),
        (["TRAIN.RESTORE_FROM=imagenet", "DATA_DIRECTORY_SOURCE=/gone"], ["/gone"]),  # before the hub is asked
    ],
)
def test_all_that_is_missing_is_told_at_once(tiny_cfg, tmp_path, pairs, told):
    cfg_from_list(["TRAIN.DA_METHOD=MinEnt", *pairs])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train(cfg, run_of(cfg))
    assert all(words in str(error.value) for words in told)
    assert not (tmp_path / "runs").exists()


def test_a_target_that_no_term_reads_may_be_missing(tiny_cfg):
    cfg_from_list(["DATA_DIRECTORY_TARGET=/nowhere"])
    assert not Training(cfg, run_of(cfg)).finished


@pytest.mark.parametrize("start, said", [("", True), ("random", False)])
def test_random_weights_are_told_of_unless_they_are_asked_for(tiny_cfg, caplog, start, said):
    caplog.set_level(logging.WARNING)
    cfg_from_list([f"TRAIN.RESTORE_FROM={start}"])
    Training(cfg, run_of(cfg))
    assert ("TRAIN.RESTORE_FROM names no weights" in caplog.text) == said


def test_images_are_prepared_for_the_network_that_its_weights_turn_out_to_be(tiny_cfg):
    cfg_from_list(["TRAIN.IMG_MODE=BGR"])
    training = Training(cfg, run_of(cfg))
    source, _ = next(training._batches)
    assert training.trainer.network.normalization.mean == tuple(cfg.TRAIN.IMG_MEAN)
    assert source.image.abs().max() > 20  # of 0..255, not of 0..1
