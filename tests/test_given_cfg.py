"""A function that is given a cfg reads that cfg: two of them side by side in one process."""

import json

import pytest
import torch
import yaml
from tiny import TINY_NETWORK, tiny_options

from dada.build import build_network
from dada.commands.check_data import check_data
from dada.commands.data_report import as_dict
from dada.commands.merge import merge
from dada.config import cfg, cfg_from_list, default_cfg, plain_cfg
from dada.evaluation.tester import protocol
from dada.model.weight_files import read_metadata
from dada.publishing.release_file import write_release
from dada.runs import run_of, save_snapshot
from dada.training.loop import is_finished, train

GTA = ["SOURCE=GTA5", "NUM_CLASSES=19", "TEST.FLIP=True"]


@pytest.fixture
def own(city, tmp_path):
    """Of 19 classes and flipped, for the toy city; the global cfg stays at its defaults, SYNTHIA and 16."""
    return cfg_from_list(["NUM_CLASSES=19", "TEST.FLIP=True"], cfg_from_list(tiny_options(city, tmp_path / "own"), default_cfg()))


def test_filling_a_cfg_leaves_others_alone():
    before = plain_cfg(cfg)
    one, other = default_cfg(), default_cfg()
    assert cfg_from_list(GTA, one) is one and one.NUM_CLASSES == 19 and one.TEST.FLIP
    assert plain_cfg(other) == plain_cfg(cfg) == before


def test_a_protocol_is_that_of_the_cfg(own):
    assert {k: protocol(own)[k] for k in ("NUM_CLASSES", "FLIP")} == {"NUM_CLASSES": 19, "FLIP": True}
    assert {k: protocol(cfg)[k] for k in ("NUM_CLASSES", "FLIP")} == {"NUM_CLASSES": 16, "FLIP": False}


def test_a_release_says_what_its_own_network_was_trained_on(tmp_path):
    one = cfg_from_list([*GTA, f"TRAIN.MODEL={TINY_NETWORK}", "GPU_ID=3", "DEVICE=cuda:3"], default_cfg())
    path = save_snapshot(tmp_path, build_network(one, ""), 3, plain_cfg(one))
    metadata = write_release(one, path, tmp_path / "gta.safetensors")
    assert read_metadata(tmp_path / "gta.safetensors") == metadata
    stored = json.loads(metadata["dada_cfg"])
    assert (stored["SOURCE"], stored["NUM_CLASSES"], stored["TEST"]["FLIP"]) == ("GTA5", 19, True)
    assert "GTA5 to Cityscapes" in metadata["model_card"] and "SYNTHIA" not in metadata["model_card"]
    local = {"GPU_ID", "DEVICE", "EXP_NAME", "EXP_ROOT", "DATA_DIRECTORY_SOURCE", "DATA_LIST_TARGET"}
    assert not local & set(stored) and not {"RESTORE_FROM", "INFO_SOURCE"} & set(stored["TRAIN"])
    assert stored["TRAIN"].keys() >= {"MODEL", "DA_METHOD", "BATCH_SIZE_SOURCE"}


def test_a_check_of_data_reports_the_cfg_that_it_checked(own):
    found = as_dict(check_data(own))
    assert found["cfg"] == plain_cfg(own) and len(found["domains"][0]["classes"]) == 19


def test_a_run_writes_its_own_cfg_into_all_its_files(own):
    run = run_of(own)
    assert run.snapshots.is_relative_to(own.EXP_ROOT)
    train(
        cfg_from_list(["TRAIN.MAX_ITERS=2", "TRAIN.SAVE_PRED_EVERY=1", "TRAIN.EVAL_EVERY=1", "TRAIN.EVAL_SPLIT=target:val"], own),
        run,
    )
    merge(own, [run.snapshots / "model_2.pth"], run.snapshots / "adapted_2.pth", refresh=1)
    for name in ("model_1", "model_2", "model_best", "checkpoint_2", "adapted_2"):
        assert torch.load(run.snapshots / f"{name}.pth", weights_only=True)["cfg"] == plain_cfg(own), name
    assert yaml.safe_load((run.snapshots / "train_cfg.yml").read_text()) == plain_cfg(own)
    assert is_finished(own, run) and not is_finished(cfg, run)
