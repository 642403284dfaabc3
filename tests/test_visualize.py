"""Figures: that they show the numbers they are given, in the colours of the classes, and say what is wrong with bad input."""

import itertools
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from dada.build import build_network
from dada.commands import visualize
from dada.config import cfg, cfg_from_list, plain_cfg
from dada.domain_adaptation.contrastive_learning import Cycles
from dada.domain_adaptation.objectives import METHODS, build_objective
from dada.evaluation.evaluator import Evaluation, to_json
from dada.figures import style
from dada.figures.curves import chosen_tags, draw_curves
from dada.figures.cycle_arrows import centres, class_maps, draw_arrows, draw_class_maps, sample_cycles, scene
from dada.figures.embedding import draw_embedding, principal_components, sample_points
from dada.figures.meanings import meaning
from dada.figures.panels import ERRORS, error_map
from dada.figures.scalars import Curve, read_scalars, smoothed, thinned
from dada.figures.scores import draw_classes, draw_confusion, shares_of_labels
from dada.label_sets import LabelSet, label_set
from dada.runs import save_snapshot
from dada.segmenter import Segmenter

THREE = LabelSet(("road", "car", "sky"), np.array([[128, 64, 128], [0, 0, 142], [70, 130, 180]]))


def write_report(path: Path, confusion: list[list[int]], classes: LabelSet = THREE) -> Path:
    evaluation = Evaluation(torch.tensor(confusion), classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json({**evaluation.as_dict(), "protocol": {}, "checkpoints": []}))
    return path


@pytest.fixture
def of():
    """Labels 0 0 1 / 1 1 255 over a target of 1x2 pixels; every car but one comes back to a car."""
    labels = torch.tensor([[[0, 0, 1], [1, 1, 255]]])
    cycles = Cycles(
        torch.tensor([[0, 0, 1, 1, 0, 1]]), torch.tensor([[0, 1, 2, 2, 0, 2]]), torch.tensor([[1, 1, 1, 1, 0, 0]]).bool()
    )
    images = np.full((8, 12, 3), 200, np.uint8), np.full((6, 12, 3), 120, np.uint8)
    return scene(*images, labels, (1, 2), cycles)


def texts(figure) -> list[str]:
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text)]


def test_class_maps_count_the_cycles_of_the_class_where_they_start_turn_and_end(of):
    maps = class_maps(of, 1)
    nan = np.nan
    assert (maps.cycles, maps.closed) == (3, 2)
    np.testing.assert_array_equal(maps.start, [[nan, nan, 1], [1, 0, nan]])
    np.testing.assert_array_equal(maps.turn, [[0, 1]])
    np.testing.assert_array_equal(maps.end, [[0, nan, 1], [nan, nan, nan]])
    with pytest.raises(ValueError, match="no source pixel of this pair is of class 2"):
        class_maps(of, 2)


def test_cycles_are_sampled_evenly_over_the_classes_from_their_middle_and_alike_every_time():
    labels = np.zeros((20, 20), int)
    labels[:2], labels[19], labels[5, :3] = 255, 1, 2
    chosen = sample_cycles(labels, 15)
    assert np.bincount(labels.ravel()[chosen]).tolist() == [6, 6, 3]
    assert np.array_equal(chosen, sample_cycles(labels, 15)) and not np.array_equal(chosen, sample_cycles(labels, 15, seed=1))
    assert (labels.ravel()[sample_cycles(labels, 9, [2])] == 2).all()
    assert sample_cycles(labels, 1).item() // 20 in (10, 11)  # the middle of the largest class
    assert 5 * 20 + 1 in sample_cycles(labels, 3) and {9, 10} & set((sample_cycles(labels, 3) - 19 * 20).tolist())
    assert len(sample_cycles(np.full((3, 3), 255), 5)) == 0


def test_arrows_have_the_colour_of_the_class_and_dots_where_the_cycle_is_open(of):
    import matplotlib.colors
    from matplotlib.patches import ConnectionPatch

    figure = draw_arrows({"": of}, THREE, count=5)
    arrows = figure.findobj(ConnectionPatch)
    assert len(arrows) == 2 * 5  # there and back
    colours = [matplotlib.colors.to_hex(a.get_edgecolor()) for a in arrows]
    assert colours == [matplotlib.colors.to_hex(c / 255) for c in THREE.palette[[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]]
    assert [a.get_linestyle() for a in arrows] == ["-"] * 8 + [":"] * 2
    assert arrows[8].xy1 == pytest.approx((0.5, 0.75)) and arrows[8].xy2 == pytest.approx((0.25, 0.5))
    np.testing.assert_allclose(centres(np.array([4]), (2, 3)), [[0.5, 0.75]])
    assert "source: 80 % of 5 cycles close" in texts(figure)
    assert "source: 67 % of 3 cycles close" in texts(draw_arrows({"": of}, THREE, count=5, only=1))


def test_maps_say_how_many_close_in_each_row(of):
    figure = draw_class_maps({"plain": of, "aggregated": of._replace(closed=np.ones(6, bool))}, THREE, 1)
    shown = texts(figure)
    assert "source, i of car: 67 % of 3 close" in shown and "source, i of car: 100 % of 3 close" in shown
    assert "target, j*, aggregated" in shown


def test_principal_components_are_those_of_the_covariance():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 1, 1])
    places, shares = principal_components(x, 2)
    values, vectors = np.linalg.eigh(np.cov(x.T.numpy().astype(float)))
    np.testing.assert_allclose(places.var(axis=0, ddof=1), values[::-1][:2], rtol=1e-6)
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-6)
    own = np.abs((x - x.mean(0)).numpy() @ vectors[:, -1])
    np.testing.assert_allclose(np.abs(places[:, 0]), own, atol=1e-4)


def test_features_are_sampled_alike_from_classes_and_domains_and_drawn_in_their_colours():
    g = torch.Generator().manual_seed(0)
    labels = torch.zeros(1, 6, 10, dtype=torch.int64)
    labels[:, 4], labels[:, 5] = 1, 255
    maps = [(domain, torch.randn(1, 4, 6, 10, generator=g), labels) for domain in ("source", "target", "source")]
    points = sample_points(maps, per_class=8)
    assert points.labels.tolist() == [0] * 8 + [1] * 8 + [0] * 8 + [1] * 8
    assert points.domains.tolist() == ["source"] * 16 + ["target"] * 16
    torch.testing.assert_close(points.features.norm(dim=1), torch.ones(32))
    places = principal_components(points.features, 2)[0]
    figure = draw_embedding({"source-only": (places, points), "adapted": (-places, points)}, THREE, "by labels")
    (source, target), (_, other) = (axis.collections for axis in figure.axes)
    np.testing.assert_allclose(source.get_facecolors()[[0, -1], :3], [to_rgb(c) for c in style.POINTS[:2]])
    np.testing.assert_allclose(target.get_offsets(), -other.get_offsets())
    assert len(source.get_paths()[0].vertices) != len(target.get_paths()[0].vertices)  # another marker
    assert {"road", "car", "target (by labels)"} <= set(texts(figure)) and "sky" not in texts(figure)
    with pytest.raises(ValueError, match="no pixel of these images has a class"):
        sample_points([("source", maps[0][1], torch.full_like(labels, 255))], 8)


def test_error_map_tells_what_only_one_network_has_right():
    label = np.array([[0, 0, 0, 0, 255]])
    picture = error_map(label, np.array([[0, 0, 1, 1, 0]]), np.array([[0, 1, 0, 1, 0]]), 3)
    assert [tuple(c) for c in picture[0].tolist()] == [
        ERRORS["right"],
        ERRORS["fixed"],
        ERRORS["broken"],
        ERRORS["wrong"],
        (0, 0, 0),
    ]
    alone = error_map(label, np.array([[0, 0, 1, 1, 0]]), None, 3)
    assert {tuple(c) for c in alone[0].tolist()} == {ERRORS["right"], ERRORS["wrong"], (0, 0, 0)}
    grey = sorted(np.array(list(ERRORS.values())) @ [0.299, 0.587, 0.114])
    assert np.diff(grey).min() > 40  # told apart in grey print


def test_confusion_matrix_shows_shares_of_each_label():
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0], [5, 0, 5]])
    np.testing.assert_array_equal(shares_of_labels(counts), [[0.8, 0.2, 0], [0.25, 0.75, 0], [np.nan] * 3, [0.5, 0, 0.5]])
    shown = texts(draw_confusion(counts, THREE))
    assert {"80", "20", "25", "75", "-", "other", "sky"} <= set(shown)


def test_bars_show_the_scores_and_their_differences():
    scores = {"a": {"road": 50.0, "car": 20.0, "sky": float("nan")}, "b": {"road": 60.0, "car": 15.0, "sky": 10.0}}
    figure = draw_classes(scores, {"a": {"3": 35.0}, "b": {"3": 28.3}}, THREE)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [50, 20, 0, 35, 60, 15, 10, 28.3]
    assert len({bar.get_hatch() for bar in figure.axes[0].patches}) == 2
    shown = texts(figure)
    assert {"+10.0", "-5.0", "-6.7", "mIoU 3", "difference\nfrom a"} <= set(shown) and "+nan" not in shown


def test_curves_are_thinned_smoothed_and_told_apart_without_colour():
    steps = np.arange(1000.0)
    thin = thinned(Curve(steps, steps * 2, steps))
    assert len(thin.step) == 200 and thin.value[0] == pytest.approx(2 * thin.step[0]) == 4
    noisy = [Curve(steps, k + (-1) ** (steps // 5), steps) for k in range(3)]  # a thinned value has one sign or the other
    runs = {"a": [{"data/loss": noisy[0], "lr/group_0": thin}], "b": [{"data/loss": noisy[1]}, {"data/loss": noisy[2]}]}
    assert chosen_tags({name: seeds[0] for name, seeds in runs.items()}) == ["data/loss"]
    axis = draw_curves(runs, ["data/loss"]).axes[0]
    smooth, pale, seeds = axis.lines
    assert smooth.get_linestyle() != seeds.get_linestyle() and smooth.get_color() != seeds.get_color()
    assert np.abs(smooth.get_ydata()[10:-10]).max() < 0.01 and np.abs(pale.get_ydata()).max() == 1
    assert seeds.get_ydata()[10:-10] == pytest.approx(1.5, abs=0.01)  # the mean of the two, with a band
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - band.min() == pytest.approx(2 * np.sqrt(0.5), rel=0.3)
    with pytest.raises(ValueError, match="no logged scalar is called nothing; there are data/loss, lr/group_0"):
        chosen_tags({"a": runs["a"][0]}, ["nothing"])


def test_values_that_are_not_finite_count_for_nothing_in_a_curve():
    values = np.ones(100)
    values[50] = np.inf
    assert smoothed(values).tolist() == [1.0] * 100
    assert np.isnan(smoothed(np.array([np.nan, 1.0]))).tolist() == [True, False]


@pytest.mark.parametrize("method", METHODS)
def test_every_term_that_a_method_logs_is_explained(method, tiny_cfg):
    options = ["USE_DEPTH=True", "CONTRASTIVE_LEARNING=True", "SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.LAMBDA_MIC=1"]
    cfg_from_list([f"TRAIN.DA_METHOD={method}", "TRAIN.MULTI_LEVEL=True", *options])
    names = [term.name for term in build_objective(cfg, torch.device("cpu")).terms]
    assert len(names) > 5 and [name for name in names if not meaning(f"data/{name}")] == []
    assert "cycle association of features" in meaning("data/loss_fass") and meaning("data/loss_of_mine") == ""


@pytest.mark.parametrize("opened", [0, 9])  # before, in this process and second: the tenth file's name sorts before the ninth's
def test_logs_are_read_back_with_what_a_resumed_run_has_replaced_left_out(opened, tmp_path, monkeypatch):
    from tensorboard.summary.writer import event_file_writer
    from torch.utils.tensorboard import SummaryWriter

    number = itertools.count(opened)
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: next(number)))
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: 1e9))
    for start, value in ((0, 1.0), (2, 5.0)):
        with SummaryWriter(str(tmp_path / "log"), purge_step=start or None) as writer:
            for step in range(start, 4):
                writer.add_scalar("data/loss", value, step)
    curve = read_scalars(tmp_path / "log")["data/loss"]
    assert curve.step.tolist() == [0, 1, 2, 3] and curve.value.tolist() == [1, 1, 5, 5]
    with pytest.raises(FileNotFoundError, match="holds no TensorBoard logs.*--tensorboard"):
        read_scalars(tmp_path)


def test_pdf_has_truetype_letters_and_the_same_bytes_every_time(tmp_path):
    figure = draw_curves({"a": [{"data/x": Curve(*np.ones((3, 5)))}]}, ["data/x"])
    style.save_figure(figure, tmp_path / "a.pdf", tmp_path / "a.png")
    style.save_figure(figure, tmp_path / "b.pdf")
    content = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content and content == (tmp_path / "b.pdf").read_bytes()
    width, _ = Image.open(tmp_path / "a.png").size
    assert width == pytest.approx(style.PAGE * 200, abs=2)


def test_script_draws_reports_and_names_what_it_cannot_read(tmp_path, capsys, run_script):
    a = write_report(tmp_path / "plain/test_model_5.json", [[5, 5, 0], [0, 4, 0], [0, 0, 3]])
    b = write_report(tmp_path / "better/test_model_5.json", [[9, 1, 0], [0, 4, 0], [0, 0, 3]])
    assert visualize._ends([a, b]) == ["plain", "better"] and visualize._ends([a]) == ["test_model_5"]
    run_script("visualize.py", "classes", str(a), str(b), "--out", str(tmp_path / "c.pdf"))
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF") and "written: " in capsys.readouterr().out
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "half.json").write_text("{")
    for flags, message in (
        (["confusion", str(tmp_path / "gone.json")], "test report .*gone.json does not exist; `dada test` writes"),
        (["confusion", str(tmp_path / "no.json")], "no.json is not a test report: it lacks mIoU, IoU, confusion"),
        (["confusion", str(tmp_path / "half.json")], "half.json is not valid JSON"),
        (["confusion", str(a), "--out", "x.gif"], "figures are written as png or pdf or jpg.*'x.gif'"),
        (["classes", str(a), str(b), "--names", "one"], "--names are 1 for 2 reports"),
        (["curves", str(tmp_path)], "holds no TensorBoard logs"),
        (["panels", str(tmp_path / "gone.pth")], "gone.pth does not exist"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_script("visualize.py", *flags)
        assert str(stopped.value).startswith("error: ") and re.search(message, str(stopped.value)), stopped.value


def test_a_checkpoint_gives_panels_arrows_and_maps(tiny_cfg, tmp_path, city):
    torch.manual_seed(0)
    path = save_snapshot(tmp_path / "run", build_network(tiny_cfg, ""), 3, plain_cfg(cfg))
    read = partial(Segmenter.from_checkpoint, options=["TEST.INPUT_SIZE_TARGET=[256, 128]"])
    style.save_figure(visualize.panels([path], read, images=1), tmp_path / "p.png")
    palette = [tuple(c) for c in label_set(16).palette.tolist()]
    pixels = {c for _, c in Image.open(tmp_path / "p.png").convert("RGB").getcolors(1 << 20)}
    assert palette[0] in pixels and palette[2] in pixels and ERRORS["wrong"] in pixels
    style.save_figure(visualize.cycles(path, read, count=4), tmp_path / "c.png")
    style.save_figure(visualize.maps(path, read, of="road"), tmp_path / "m.png")
    assert min((tmp_path / name).stat().st_size for name in ("c.png", "m.png")) > 10_000
    other = save_snapshot(tmp_path / "other", build_network(tiny_cfg, ""), 3, plain_cfg(cfg))  # the test has two images
    style.save_figure(visualize.features([path, other], read, names=["one", "another"]), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="3 pairs of images are asked for, but the data hold 4 and 2"):
        visualize.features([path, other], read, names=["one", "another"], pairs=3)
    with pytest.raises(ValueError, match="there is no class 'lorry'; the classes are road, sidewalk"):
        visualize.maps(path, read, of="lorry")
    with pytest.raises(ValueError, match="41 pairs of images are asked for, but the data hold 4 and"):
        visualize.cycles(path, read, pair=40)
    with pytest.raises(FileNotFoundError, match="DATA_DIRECTORY_TARGET"):
        visualize.panels([path], partial(Segmenter.from_checkpoint, options=[f"DATA_DIRECTORY_TARGET={tmp_path}"]))
