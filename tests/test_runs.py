"""Where a run keeps its files, and its snapshots."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from dada.config import cfg, cfg_from_list, plain_cfg
from dada.runs import file_hash, find_snapshots, run_of, save_snapshot, set_aside


def test_a_run_without_name_is_called_after_what_it_does():
    cfg_from_list(["TRAIN.MODEL=timm:some/encoder", "TRAIN.DA_METHOD=AdvEnt"])
    assert run_of(cfg).name == "SYNTHIA2Cityscapes_timm-some-encoder_AdvEnt"
    cfg_from_list(["CONTRASTIVE_LEARNING=True"])
    assert run_of(cfg).name == "SYNTHIA2Cityscapes_timm-some-encoder_AdvEnt_association"


def test_a_suffix_is_appended_to_the_name_and_to_the_folders():
    cfg_from_list(["EXP_NAME=mine"])
    run = run_of(cfg, "second")
    assert run.name == "mine_second"
    assert run.snapshots == Path("experiments/snapshots/mine_second")
    assert run.logs == Path("experiments/logs/tensorboard/mine_second")


def test_one_option_names_the_folder_of_all_that_a_run_writes():
    cfg_from_list(["EXP_NAME=mine", "EXP_ROOT=/here"])
    run = run_of(cfg)
    assert (run.snapshots, run.logs) == (Path("/here/snapshots/mine"), Path("/here/logs/tensorboard/mine"))


def test_a_snapshot_is_read_back_with_weights_iteration_cfg_and_versions(tmp_path):
    network = nn.Linear(2, 3)
    path = save_snapshot(tmp_path / "new", network, 12, plain_cfg(cfg))
    assert path == tmp_path / "new" / "model_12.pth"
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["state_dict"]["weight"], network.weight)
    assert content["iter"] == 12 and content["cfg"] == plain_cfg(cfg)
    assert content["versions"]["torch"] == str(torch.__version__)
    assert [p.name for p in path.parent.iterdir()] == ["model_12.pth"]


def test_files_of_a_former_run_are_set_aside_not_lost_nor_tested(tmp_path):
    assert set_aside(tmp_path) is None
    for iteration in (10, 20):
        save_snapshot(tmp_path, nn.Linear(2, 3), iteration, {})
    assert set_aside(tmp_path) == tmp_path / "former_1"
    save_snapshot(tmp_path, nn.Linear(2, 3), 5, {})
    assert [p.name for p in find_snapshots(tmp_path)] == ["model_5.pth"]
    assert [p.name for p in find_snapshots(tmp_path / "former_1")] == ["model_10.pth", "model_20.pth"]
    assert set_aside(tmp_path) == tmp_path / "former_2"


def test_a_run_that_goes_on_keeps_what_was_written_until_there(tmp_path):
    own = ("model_5.pth", "checkpoint_5.pth", "train_cfg.yml")
    later = ("model_10.pth", "checkpoint_11.pth", "test_model_10.json")
    for name in own + later:
        (tmp_path / name).touch()
    former = set_aside(tmp_path, after=5)
    assert {p.name for p in former.iterdir()} == set(later)
    assert set_aside(tmp_path, after=5) is None
    assert {p.name for p in set_aside(tmp_path).iterdir()} == set(own)


def test_curves_of_a_former_run_go_with_its_snapshots_unless_it_is_continued(tmp_path):
    logs, events = tmp_path / "logs", "events.out.tfevents.1.host.2.0"
    logs.mkdir()
    (logs / events).touch()
    assert set_aside(tmp_path, after=5, logs=logs) is None
    assert (logs / events).exists()
    assert set_aside(tmp_path, logs=logs) == tmp_path / "former_1"  # though there is no snapshot
    assert (tmp_path / "former_1" / events).exists() and not list(logs.iterdir())


def test_a_cfg_alone_is_not_set_aside(tmp_path):
    (tmp_path / "train_cfg.yml").touch()
    assert set_aside(tmp_path) is None


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    path = save_snapshot(tmp_path, nn.Linear(2, 3), 1, {})
    before = path.read_bytes()

    def fails_half_way(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(OSError, match="no space left"):
        save_snapshot(tmp_path, nn.Linear(2, 3), 1, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model_1.pth"]


def test_snapshots_are_found_in_order_of_iteration_and_other_files_left_out(tmp_path):
    for name in ("model_10.pth", "model_9.pth", "model_best.pth", ".model_11.pth.x.part", "test_model_9.json", "train_cfg.yml"):
        (tmp_path / name).touch()
    assert [p.name for p in find_snapshots(tmp_path)] == ["model_9.pth", "model_10.pth"]


def test_a_folder_without_snapshots_is_reported_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no snapshot model_<iteration>.pth in .*missing.*TEST.RESTORE_FROM"):
        find_snapshots(tmp_path / "missing")


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 8192  # two blocks
    (tmp_path / "weights").write_bytes(content + b"end")
    assert file_hash(tmp_path / "weights") == hashlib.sha256(content + b"end").hexdigest()
