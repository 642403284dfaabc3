"""Ranking networks without target labels: each criterion against its formula, and the script on real snapshots."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import untrained_snapshot

from dada.config import cfg, cfg_from_list, plain_cfg
from dada.evaluation.criteria import information, label_free_criteria
from dada.evaluation.criterion_names import MEANINGS
from dada.evaluation.selection import Candidate, candidates_of, judge, rank_correlation, ranking, report
from dada.evaluation.tester import evaluate_run as run_test
from dada.runs import find_snapshots, run_of
from dada.training.loop import train

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


class By:
    """A predictor whose class probabilities are a function of the image, at the size asked for."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def __call__(self, image, size):
        small = torch.nn.functional.adaptive_avg_pool2d(image, size)
        return self.probabilities(small)


def one_hot(classes, count=2):
    return torch.nn.functional.one_hot(classes, count).permute(0, 3, 1, 2).float()


def halves():
    """An image that is dark on its left and bright on its right."""
    return torch.cat([torch.zeros(3, 8, 16), torch.ones(3, 8, 16)], dim=2)


BRIGHT = By(lambda x: one_hot((x[:, 0] > 0.5).long()))
RIGHT = By(lambda x: one_hot((torch.arange(x.shape[-1]) >= x.shape[-1] // 2).long().expand(1, *x.shape[-2:])))
CONSTANT = By(lambda x: one_hot(torch.zeros(1, *x.shape[-2:], dtype=torch.long)))
UNDECIDED = By(lambda x: torch.full((1, 2, *x.shape[-2:]), 0.5))


@pytest.mark.parametrize(
    "predictor, information, certainty, agreement",
    [(BRIGHT, 1, 1, 1), (RIGHT, 1, 1, 0), (CONSTANT, 0, 1, 1), (UNDECIDED, 0, 0, 1)],
)
def test_criteria_of_networks_that_can_be_judged_by_eye(predictor, information, certainty, agreement):
    found = label_free_criteria(predictor, [halves(), None, halves()], CPU)
    assert (found.information, found.certainty, found.agreement) == pytest.approx((information, certainty, agreement))


def test_information_and_certainty_are_the_entropies_of_the_formula():
    p = torch.tensor([0.7, 0.2, 0.1])
    q = torch.tensor([0.1, 0.1, 0.8])
    mixed = By(lambda x: torch.where((x[:, :1] > 0.5), q[None, :, None, None], p[None, :, None, None]))
    found = label_free_criteria(mixed, [halves()], CPU)

    def entropy(x):
        return -(x * x.log()).sum().item() / math.log(3)

    conditional = (entropy(p) + entropy(q)) / 2
    assert found.certainty == pytest.approx(1 - conditional, rel=1e-6)
    assert found.information == pytest.approx(entropy((p + q) / 2) - conditional, rel=1e-6)
    # TensorBoard shows the same of one batch.
    assert information(mixed(halves()[None], (2, 4))) == pytest.approx(found.information, rel=1e-6)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="no image to judge"):
        label_free_criteria(CONSTANT, [None], CPU)


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3], [10, 20, 25]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 4, -1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4: (-1.5, 0, 0, 1.5) . (-0.5, -1.5, 0.5, 1.5) over the norms
    assert rank_correlation([0, 1, 1, 2], [2, 1, 3, 4]) == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def candidate(name, value, miou=None):
    return Candidate(Path(name), dict.fromkeys(MEANINGS, value), miou)


def test_ranking_is_best_first_and_the_report_shows_labels_only_if_asked():
    found = [candidate("a.pth", 0.1, 40.0), candidate("b.pth", 0.3, 50.0), candidate("c.pth", 0.2)]
    assert [c.path.name for c in ranking(found, "certainty")] == ["b.pth", "c.pth", "a.pth"]
    plain, labelled = report(found, "certainty"), report(found, "certainty", with_labels=True)
    assert "50.00" not in plain and "mIoU" not in plain.splitlines()[0]
    assert "50.00" in labelled and "rank correlation" in labelled
    assert plain.splitlines()[1].startswith("b.pth")


def test_a_network_without_its_source_has_no_closure_to_be_ranked_by(city, tmp_path):
    path = untrained_snapshot(tmp_path, city, "TRAIN.SOURCE_FREE=True")
    found = [judge(path, [f"DATA_DIRECTORY_SOURCE={tmp_path / 'gone'}"], images=1), candidate("b.pth", 0.1)]
    assert math.isnan(found[0].criteria["cycle closure"]) and 0 < found[0].criteria["information"] <= 1
    assert len(ranking(found, "information")) == 2 and "nan" in report(found, "information")
    with pytest.raises(ValueError, match="adapted without its source.*no cycle closure: take another --by"):
        ranking(found, "cycle closure")


def test_what_does_not_exist_or_says_nothing_of_its_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give snapshots"):
        candidates_of([tmp_path / "nothing"])
    with pytest.raises(FileNotFoundError, match="holds no snapshot .*, nor do the folders in it; give snapshots") as error:
        candidates_of([tmp_path])
    assert "--" not in str(error.value)  # no flags of other commands
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="bare.pth holds no configuration"):
        judge(tmp_path / "bare.pth")


def test_a_folder_of_runs_stands_for_the_snapshots_of_each(tmp_path):
    names = ["A/model_9.pth", "A/model_10.pth", "A/former_1/model_20.pth", "B/model_2.pth", "B/model_best.pth"]
    for name in (*names, "C/train_cfg.yml", "D/model_2_adabn.pth"):
        path = tmp_path / "snapshots" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    a9, a10, b2 = (tmp_path / "snapshots" / name for name in ("A/model_9.pth", "A/model_10.pth", "B/model_2.pth"))
    for runs in (tmp_path, tmp_path / "snapshots"):
        assert candidates_of([runs]) == [a10, b2] and candidates_of([runs], every=True) == [a9, a10, b2]
    assert candidates_of([tmp_path / "B", a9]) == [b2, a9]  # where training writes the run of that name
    with pytest.raises(FileNotFoundError, match="C holds no snapshot"):
        candidates_of([tmp_path / "snapshots" / "C"])


def test_a_snapshot_is_judged_without_its_target_labels_and_the_script_names_the_best(tiny_cfg, tmp_path, capsys, run_script):
    cfg_from_list(["TRAIN.SAVE_PRED_EVERY=1", "TEST.MODE=best"])
    run = run_of(cfg)
    train(cfg, run)
    run_test(cfg, run)
    snapshots = find_snapshots(run.snapshots)
    assert candidates_of([run.snapshots]) == snapshots[-1:]
    assert candidates_of([run.snapshots], every=True) == snapshots

    # No label file of the target is there to be opened.
    city = tmp_path / "city"
    os.symlink(Path(cfg.DATA_DIRECTORY_TARGET) / "leftImg8bit", _made(city) / "leftImg8bit")
    elsewhere = [f"DATA_DIRECTORY_TARGET={city}"]
    cfg_from_list(["TEST.FLIP=True", "NUM_CLASSES=19"])
    before = plain_cfg(cfg)
    found = judge(snapshots[-1], elsewhere, images=3, pairs=1)
    assert plain_cfg(cfg) == before  # who asks keeps the cfg that it had
    assert found.criteria.keys() == set(MEANINGS) and found.miou is not None
    assert all(0 <= value <= 1 for value in found.criteria.values())
    assert judge(snapshots[-1], elsewhere, images=3, pairs=1) == found

    out = tmp_path / "ranking.json"
    capsys.readouterr()
    run_script("select.py", run.snapshots, "--every", "--images", 2, "--pairs", 1, "--with-labels", "--json", out)
    printed = capsys.readouterr().out
    best = json.loads(out.read_text())["runs"][0]["snapshot"]
    assert f"best by information: {best}" in printed and "rank correlation" in printed


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_standard_librarys_select_is_found_from_the_folder_of_the_scripts():
    code = "import selectors, select; print(select.select.__module__, hasattr(select, 'epoll') or hasattr(select, 'poll'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert done.stdout.split() == ["select", "True"], done.stderr
