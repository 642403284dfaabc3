"""Testing a run: which snapshots count, what the report holds, and what is refused."""

import hashlib
import io
import json
import sys

import pytest
import torch
from tiny import TINY_NETWORK

from dada import __version__
from dada.config import cfg, cfg_from_list, plain_cfg
from dada.evaluation.tester import evaluate_run as run_test
from dada.evaluation.tester import load_predictor, protocol
from dada.model import build_model
from dada.runs import run_of, save_snapshot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {iteration: build_model(TINY_NETWORK, 16) for iteration in (9, 10)}


@pytest.fixture
def run(tiny_cfg, networks):
    """A run with snapshots of two untrained networks; by name, model_9 comes after model_10."""
    found = run_of(tiny_cfg)
    for iteration, network in networks.items():
        save_snapshot(found.snapshots, network, iteration, plain_cfg(cfg))
    return found


def measure(cfg, run, *pairs):
    cfg_from_list(pairs)
    return run_test(cfg, run)


def test_single_tests_the_last_snapshot_of_the_run(tiny_cfg, run, capsys):
    results = measure(tiny_cfg, run)
    assert list(results) == ["model_10"]
    assert results["model_10"].confusion.sum() > 2 * 128 * 64 / 2  # both val images at the size of their labels
    printed = capsys.readouterr().out
    assert "mIoU 16" in printed and "CLASS_RULE ignore" in printed and "ALIGN_CORNERS True" in printed


def test_best_tests_every_snapshot_and_keeps_the_last_as_the_headline(tiny_cfg, run, capsys):
    results = measure(tiny_cfg, run, "TEST.MODE=best")
    assert list(results) == ["model_9", "model_10"]
    summary = capsys.readouterr().out.splitlines()[-2:]
    assert summary[0].startswith("last snapshot model_10: mIoU ")
    best = max(results, key=lambda name: results[name].miou)
    assert summary[1] == f"best snapshot {best}: mIoU {100 * results[best].miou:.2f} (chosen with target labels; not a headline)"
    assert sorted(p.name for p in run.snapshots.glob("*.json")) == ["test_model_10.json", "test_model_9.json"]


def test_the_report_says_under_which_protocol_with_which_weights_and_versions(tiny_cfg, run):
    results = measure(tiny_cfg, run, "TEST.FLIP=True", "TRAIN.RANDOM_SEED=77")
    report = json.loads((run.snapshots / "test_model_10.json").read_text())
    assert report["protocol"] == protocol(tiny_cfg)
    assert report["protocol"]["FLIP"] is True and report["protocol"]["INPUT_SIZE_TARGET"] == [128, 64]
    assert {"TARGET", "NUM_CLASSES", "ALIGN_CORNERS", "CLASS_RULE", "RESAMPLE", "SCALES"} <= set(report["protocol"])
    assert report["cfg"] == plain_cfg(cfg) and report["seed"] == 77
    assert report["versions"]["torch"] == str(torch.__version__) and report["versions"]["dada"] == __version__
    weights = run.snapshots / "model_10.pth"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert report["checkpoints"] == [{"file": str(weights), "sha256": digest}]
    assert report["mIoU"]["16"] == round(100 * results["model_10"].miou, 4)
    assert report["confusion"] == results["model_10"].confusion.tolist()


def test_the_report_is_written_before_anything_is_printed(tiny_cfg, run, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        measure(tiny_cfg, run)
    assert len(json.loads((run.snapshots / "test_model_10.json").read_text())["IoU"]) == 16


def test_the_batch_size_changes_no_count(tiny_cfg, run):
    one = measure(tiny_cfg, run)["model_10"].confusion
    two = measure(tiny_cfg, run, "TEST.BATCH_SIZE_TARGET=2")["model_10"].confusion
    assert (one - two).abs().sum() <= 0.001 * one.sum()  # a tie may fall either way by rounding
    assert one.sum() == two.sum()


def test_named_files_make_one_ensemble(tiny_cfg, run, networks):
    paths = [str(run.snapshots / f"model_{k}.pth") for k in (9, 10)]
    options = [
        f"TEST.RESTORE_FROM=[{', '.join(paths)}]",
        f"TEST.MODEL=['{TINY_NETWORK}', '{TINY_NETWORK}']",
        "TEST.MODEL_WEIGHT=[3, 1]",
        "TEST.MULTI_LEVEL=[False, False]",
    ]
    assert list(measure(tiny_cfg, run, *options)) == ["model_9+model_10"]
    report = json.loads((run.snapshots / "test_model_9+model_10.json").read_text())
    assert [c["file"] for c in report["checkpoints"]] == paths


def test_an_ensemble_of_other_numbers_is_refused_with_all_of_them(tiny_cfg, run):
    cfg_from_list([f"TEST.MODEL=['{TINY_NETWORK}', '{TINY_NETWORK}']", "TEST.MODEL_WEIGHT=[1]"])
    paths = [run.snapshots / "model_9.pth", run.snapshots / "model_10.pth"]
    with pytest.raises(ValueError, match=r"TEST.MODEL 2, TEST.MULTI_LEVEL 2, TEST.MODEL_WEIGHT 1, .*RESTORE_FROM\) 2"):
        load_predictor(tiny_cfg, paths, CPU)


def test_the_options_of_the_cfg_reach_the_predictor(tiny_cfg, run):
    cfg_from_list(["TEST.FLIP=True", "TEST.SCALES=[0.5, 1]", "TEST.WITH_AGGREGATION=True", "ALIGN_CORNERS=False"])
    predictor = load_predictor(tiny_cfg, [run.snapshots / "model_9.pth"], CPU)
    assert (predictor.flip, predictor.scales, predictor.aggregate) == (True, (0.5, 1.0), True)
    assert predictor.align_corners is False and not predictor.networks[0].training
    assert (predictor.average, predictor.window, predictor.via_input) == ("probabilities", None, False)


def test_sizes_of_windows_are_width_and_height_in_the_cfg_and_turned_for_the_predictor(tiny_cfg, run):
    cfg_from_list(
        ["TEST.SLIDE_CROP=[64, 32]", "TEST.SLIDE_STRIDE=[48, 16]", "TEST.UPSAMPLE_VIA_INPUT=True", "LEGACY.LOGIT_ENSEMBLE=True"]
    )
    predictor = load_predictor(tiny_cfg, [run.snapshots / "model_9.pth"], CPU)
    assert (predictor.window, predictor.stride, predictor.via_input) == ((32, 64), (16, 48), True)
    assert predictor.average == "logits"


@pytest.mark.parametrize("name", ["advent", "plca", "dacs", "daformer", "hrda"])
def test_each_protocol_runs_and_is_named_beside_the_number(tiny_cfg, run, name, capsys):
    sizes = ["TEST.INPUT_SIZE_TARGET=[64, 32]"]
    if name == "hrda":
        sizes += ["TEST.SLIDE_CROP=[32, 32]", "TEST.SLIDE_STRIDE=[16, 16]"]
    if name in ("advent", "dacs"):
        sizes += ["TEST.OUTPUT_SIZE_TARGET=[128, 64]"]
    results = measure(tiny_cfg, run, f"TEST.PROTOCOL={name}", *sizes)
    report = json.loads((run.snapshots / "test_model_10.json").read_text())
    assert report["protocol"]["PROTOCOL"].startswith(f"{name}, except INPUT_SIZE_TARGET [64, 32]")
    assert f"protocol: {report['protocol']['PROTOCOL']}\n" in capsys.readouterr().out
    assert results["model_10"].rule == report["protocol"]["CLASS_RULE"]


def test_a_run_without_snapshots_is_told(tiny_cfg, run):
    cfg_from_list(["EXP_NAME=elsewhere"])
    with pytest.raises(FileNotFoundError, match=r"no snapshot model_<iteration>.pth in .*elsewhere.*Train with the same"):
        run_test(tiny_cfg, run_of(tiny_cfg))


def test_nothing_is_written_when_the_data_is_missing(tiny_cfg, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="Set DATA_DIRECTORY_TARGET to"):
        measure(tiny_cfg, run, f"DATA_DIRECTORY_TARGET={tmp_path / 'nowhere'}")
    assert not list(run.snapshots.glob("*.json"))
