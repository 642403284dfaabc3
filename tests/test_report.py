"""The page that compares runs: what it finds, what it says of it, and that it needs nothing but a browser."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from browser import Browser, find_chromium

from dada.build import build_network
from dada.config import cfg, cfg_from_list, plain_cfg, reset
from dada.evaluation.evaluator import Evaluation, to_json
from dada.evaluation.reports import read_report
from dada.evaluation.tester import protocol
from dada.label_sets import label_set
from dada.report.comparison_page import page, write_page
from dada.report.groups import Value, best, classes_of_groups, common_options, differing_options, differing_protocols, group_runs
from dada.report.prediction_grid import columns
from dada.report.run_records import find_runs
from dada.runs import run_of, save_snapshot


def confusion(hits: int, size: int = 16) -> torch.Tensor:
    """Of 100 pixels a class `hits` right, the others predicted as the next class."""
    matrix = torch.eye(size, dtype=torch.int64) * hits
    return matrix + torch.roll(torch.eye(size, dtype=torch.int64) * (100 - hits), 1, dims=1)


def run(root: Path, name: str, hits: dict[int, int], *options: str, logs: int = 0) -> Path:
    """A run as train.py and test.py leave it, without its weights: a test for each iteration of `hits`."""
    reset()
    cfg_from_list([f"EXP_ROOT={root}", f"EXP_NAME={name}", *options])
    place = run_of(cfg)
    place.snapshots.mkdir(parents=True)
    (place.snapshots / "train_cfg.yml").write_text(yaml.safe_dump(plain_cfg(cfg)))
    for iteration, right in hits.items():
        report = {
            **Evaluation(confusion(right), label_set(16)).as_dict(),
            "protocol": protocol(cfg),
            "seed": cfg.TRAIN.RANDOM_SEED,
            "checkpoints": [{"file": str(place.snapshots / f"model_{iteration}.pth"), "sha256": "ab" * 32}],
            "versions": {"dada": "1.2.3"},
            "cfg": plain_cfg(cfg),
        }
        (place.snapshots / f"test_model_{iteration}.json").write_bytes(to_json(report))
    if logs:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(place.logs)) as writer:
            for step in range(logs):
                writer.add_scalar("data/loss_<b>", cfg.TRAIN.RANDOM_SEED + 1 / (step + 1), step, walltime=1e9 + 2 * step)
                writer.add_scalar("classes/road", 1.0, step)
            writer.add_scalar("cost/peak memory (GB)", 3.25, 1)
    reset()
    return place.snapshots


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A plain run, and two seeds of another; the first is tested twice."""
    root = tmp_path_factory.mktemp("experiments")
    run(root, "plain", {10: 30, 20: 50}, "TRAIN.BATCH_SIZE_SOURCE=4", "TRAIN.RANDOM_SEED=1", logs=5)
    for seed, hits in ((1, 60), (2, 70)):
        options = ("TRAIN.BATCH_SIZE_SOURCE=4", f"TRAIN.RANDOM_SEED={seed}", "CONTRASTIVE_LEARNING=True")
        run(root, f"joined_seed{seed}", {20: hits}, *options, logs=5 + seed)
    return root


@pytest.fixture
def groups(root):
    return group_runs(find_runs([root / "plain", root / "joined_seed1", root / "joined_seed2"]))


def iou_of(hits: int) -> float:
    return 100 * hits / (200 - hits)


def test_seeds_of_a_method_are_one_with_their_spread(groups):
    assert [(g.name, [r.seed for r in g.runs]) for g in groups] == [("plain", [1]), ("joined", [1, 2])]
    expected = np.array([iou_of(60), iou_of(70)])
    assert groups[1].score("mIoU 16")[:2] == pytest.approx((expected.mean(), expected.std(ddof=1)), abs=1e-3)
    assert groups[0].score("road").mean == pytest.approx(iou_of(50), abs=1e-3)  # the last test
    assert groups[0].score("nothing").count == 0


def test_only_what_differs_is_listed_and_names_and_folders_are_no_difference(groups):
    assert differing_options(groups) == {"CONTRASTIVE_LEARNING": [False, True]}
    assert common_options(groups) == {"TRAIN.BATCH_SIZE_SOURCE": 4}


def test_options_that_an_older_configuration_lacks_are_the_defaults(root, tmp_path):
    folder = Path(shutil.copytree(root / "snapshots/plain", tmp_path / "snapshots/old"))
    stored = yaml.safe_load((folder / "train_cfg.yml").read_text())
    del stored["TRAIN"]["LR_MULT"]
    stored["TRAIN"].update(POWER=0.5, FORMER_OPTION=3)
    (folder / "train_cfg.yml").write_text(yaml.safe_dump(stored))
    groups = group_runs(find_runs([root / "plain", folder]))
    assert differing_options(groups) == {"TRAIN.POWER": [0.9, 0.5], "TRAIN.FORMER_OPTION": [None, 3]}


def test_a_folder_of_runs_stands_for_all_and_each_counts_once(root):
    names = ["joined_seed1", "joined_seed2", "plain"]
    assert [r.name for r in find_runs([root])] == names == [r.name for r in find_runs([root / "snapshots", root / "plain"])]


def test_published_weights_with_a_test_are_a_run(root, tmp_path):
    report = tmp_path / "weights/test_DADA_published.json"
    report.parent.mkdir()
    shutil.copy(root / "snapshots/plain/test_model_20.json", report)
    for path in (report, report.parent):
        (found,) = find_runs([path])
        assert (found.name, found.headline.name, found.parameters) == ("DADA_published", "DADA_published", None)
    assert 'class="note">No run has logs' in page(group_runs(find_runs([report])))


def test_cost_is_that_of_the_logs(groups):
    plain = groups[0].runs[0]
    assert plain.seconds_per_iteration == pytest.approx(2) and plain.wall_seconds == pytest.approx(10)
    assert plain.images_per_second == pytest.approx(2) and plain.peak_memory == 3.25
    for name, values in (("source images a second", ["2.00", "2.00"]), ("training time (minutes)", ["0.2", "0.2"])):
        row = re.search(rf"{re.escape(name)}.*?</tr>", page(groups)).group()
        assert re.findall("<td>(.*?)</td>", row) == values
    assert "parameters" not in page(groups)  # which nobody knows here


def test_the_page_opens_with_who_is_best_and_a_bar_with_the_interval_of_each(groups):
    document = page(groups)
    opening = document[: document.index('id="curves"')]
    scores = np.array([iou_of(60), iou_of(70)])
    gain = scores.mean() - iou_of(50)
    assert f"<b>joined</b> is best: {scores.mean():.1f} % mIoU over 16 classes, {gain:.1f} above plain." in opening
    assert "Seeds differ by as much" not in opening
    plain, joined = re.findall(r'<div class="bar">(.*?)</div>', opening)
    longest = scores.mean() + scores.std(ddof=1)
    assert f"width:{100 * iou_of(50) / longest:.1f}%" in plain and "<b" not in plain and "1 seed<" in plain
    assert "right:calc(100% - 100.0%)" in joined and f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}" in joined


def test_a_gain_within_the_spread_of_seeds_is_said_to_be_so(tmp_path):
    for name, hits, options in (("plain", (50, 60), ()), ("joined", (51, 61), ("CONTRASTIVE_LEARNING=True",))):
        for seed, right in enumerate(hits, 1):
            run(tmp_path, f"{name}_seed{seed}", {5: right}, f"TRAIN.RANDOM_SEED={seed}", *options)
    groups = group_runs(find_runs([tmp_path / f"plain_seed{n}" for n in (1, 2)] + [tmp_path / f"joined_seed{n}" for n in (1, 2)]))
    assert "<b>joined</b> is best" in page(groups) and "above plain. Seeds differ by as much." in page(groups)


def test_curves_are_drawn_for_every_scalar_and_said_what_they_are(groups):
    document = page(groups)
    drawn = re.findall(r"<figcaption><b>(.*?)</b> (.*?)</figcaption>(<svg.*?</svg>)", document, re.S)
    assert [name for name, *_ in drawn] == ["test/mIoU 16", "test/mIoU 13", "test/mIoU 7", "loss_&lt;b&gt;"]
    assert drawn[0][1].startswith("mean IoU of the test reports")
    for _, _, svg in drawn:
        assert "var(--run0)" in svg and "currentColor" in svg and "<b>" not in svg


def test_the_table_marks_the_best_and_gives_differences_and_colours(groups):
    document = page(groups)
    row = re.search(
        r'<tr><th scope="row"><span class="patch" style="background:#804080"></span>road</th>(.*?)</tr>', document
    ).group(1)
    first, second = iou_of(50), (iou_of(60) + iou_of(70)) / 2
    spread = abs(iou_of(60) - iou_of(70)) / np.sqrt(2)
    assert row == f"<td>{first:.1f}</td><td class=best>{second:.1f} ± {spread:.1f} <small>{second - first:+.1f}</small></td>"
    assert classes_of_groups(groups).names == label_set(16).names
    assert best([Value(1.04, 0, 1), Value(1.0, 0, 1)]) is None  # as they are printed


def test_tests_that_were_not_made_alike_are_said_to_be_so(root, tmp_path):
    other = run(tmp_path, "other", {5: 40}, "TEST.FLIP=True")
    groups = group_runs(find_runs([root / "plain", other]))
    assert differing_protocols(groups) == {"FLIP": [False, True]}
    assert "are not comparable: FLIP: False, True" in page(groups)


def test_the_page_refers_to_nothing_outside_itself_and_names_cannot_break_it(root, tmp_path):
    strange = run(tmp_path, "<script>alert(1)", {5: 40})
    out = tmp_path / "out/report.html"
    write_page([root / "plain", strange], out, images=0)
    document = out.read_text()
    assert not re.search(r"https?:|@import|\bfetch\(|XMLHttpRequest|<script>alert|src=\"(?!data:)", document)
    assert "<script" not in document and "prefers-color-scheme: dark" in document and 'name="viewport"' in document


def test_pictures_are_those_of_the_data_and_a_method_without_weights_has_a_note(tiny_cfg, root, tmp_path):
    torch.manual_seed(0)
    folder = run_of(tiny_cfg).snapshots
    save_snapshot(folder, build_network(tiny_cfg, ""), 3, plain_cfg(cfg))
    groups = group_runs(find_runs([folder, root / "plain"]))
    names, found = columns(groups, images=2)
    assert [c.title for c in found] == ["target image", "label", "tiny", "plain"] and len(names) == 2
    assert [len(c.pictures) for c in found] == [2, 2, 2, 0] and "model_20.pth does not exist" in found[3].note
    document = page(groups, names, found)
    assert document.count("<img ") == 6 and "No pictures of plain: " in document
    assert len(re.findall(r'<img [^>]* width="\d+" height="\d+"', document)) == 6  # nothing jumps when they are decoded
    assert groups[0].runs[0].parameters == sum(p.numel() for p in build_network(tiny_cfg, "").parameters())
    _, (only,) = columns(groups[:1], images=2, overrides=[f"DATA_DIRECTORY_TARGET={tmp_path}"])
    assert "not found" in only.note and not only.pictures


def test_bad_input_is_one_message_each(root, tmp_path, run_script):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.json").write_text("[]")
    for flags, message in (
        ([str(tmp_path / "gone")], "gone does not exist; give folders of runs"),
        ([str(tmp_path / "empty")], "empty holds no run: neither train_cfg.yml"),
        ([str(tmp_path / "note.json")], "note.json is not a test report: it lacks mIoU"),
        ([str(root), "--out", "page.txt"], "expected a name that ends in .html"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_script("report.py", *flags)
        assert str(stopped.value).startswith("error: ") and message in str(stopped.value)


def test_a_report_with_classes_of_its_own_has_colours(root, tmp_path):
    content = json.loads((root / "snapshots/plain/test_model_20.json").read_text())
    content.update(IoU={"grass": 1.0, "trunk": None}, confusion=[[1, 0], [0, 0]], cfg={})
    (tmp_path / "test_own.json").write_text(json.dumps(content))
    report = read_report(tmp_path / "test_own.json")
    assert report.classes.names == ("grass", "trunk") and len(np.unique(report.classes.palette, axis=0)) == 2
    assert np.isnan(report.iou["trunk"])
    content["confusion"] = [[1, 0, 0]]
    (tmp_path / "test_own.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"confusion is \(1, 3\), expected a column for each of 2 classes"):
        read_report(tmp_path / "test_own.json")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_nothing_is_wider_than_a_phone_or_cut_off_and_columns_stay_columns(root, tmp_path):
    names = ", ".join(f"{k}: class_of_a_long_name_{k}" for k in range(16))
    run(tmp_path, "named", {20: 60}, f"FOLDER_SOURCE.LABEL_MAP={{{names}}}")
    groups = group_runs(find_runs([root / "plain", root / "joined_seed1", tmp_path / "named"]))
    (tmp_path / "report.html").write_text(page(groups))
    with Browser(find_chromium()) as browser:
        browser.size(390, 800, phone=True)
        browser.open(tmp_path / "report.html")
        assert browser.value("document.documentElement.scrollWidth") == 390
        # Methods stay beside each other, and what is wider scrolls by itself.
        tops = browser.value(
            "[...document.querySelectorAll('#classes thead th')].map((cell) => cell.getBoundingClientRect().top)"
        )
        assert len(tops) == 4 and len(set(tops)) == 1
        cells = "[...document.querySelectorAll('td')].filter((cell) => cell.textContent.includes('long_name'))"
        assert browser.value(f"{cells}.length") >= 1
        assert browser.value(f"{cells}.every((cell) => cell.scrollWidth <= cell.clientWidth && cell.clientWidth < 390)")
        bars = browser.value("[...document.querySelectorAll('.track')].map((bar) => bar.getBoundingClientRect().width)")
        assert min(bars) > 300
        assert browser.errors() == []
