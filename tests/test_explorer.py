"""The association explorer: its numbers against the definition, its file, and the page in a real browser."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, find_chromium
from tiny import TINY_NETWORK, TinyNetwork

from dada.config import cfg, plain_cfg
from dada.domain_adaptation.contrastive_learning import similarity
from dada.domain_adaptation.cycle_association import find_cycles
from dada.explorer.cycle_page import explore, page
from dada.explorer.pairs import Pair, View, datasets, read_pairs, view_of
from dada.explorer.prepare import page_maps, prepare
from dada.explorer.reduce import reduce, restore
from dada.label_sets import label_set
from dada.model import build_model
from dada.normalization import TORCHVISION_RGB

ROOT = Path(__file__).parent.parent
ABOUT = {"network": "net <b>", "checkpoint": "a.pth", "source": "S", "target": "T"}
CHROMIUM = find_chromium()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


def smooth_pair(size=(12, 16), channels=24, num_classes=5, seed=0, truth=True, target_size=None):
    """Maps as networks give them: blobs of a class, each with its direction and some noise; a corner is unlabelled."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(num_classes, channels, generator=g)

    def view(name, size):
        coarse = torch.randn(1, num_classes, 4, 5, generator=g)
        scores = 3 * torch.nn.functional.interpolate(coarse, size, mode="bicubic")
        mix = torch.einsum("bkhw,kc->bchw", scores.softmax(1), prototypes)
        features = mix + 0.3 * torch.randn(1, channels, *size, generator=g)
        labels = scores.argmax(1)
        labels[:, :2, :2] = 255
        image = torch.randint(256, (*size, 3), generator=g).byte().repeat_interleave(4, 0).repeat_interleave(4, 1)
        return View(name, image.numpy(), features, (scores + torch.randn(scores.shape, generator=g)).softmax(1), labels)

    target = view("</script><b>target.png", target_size or size)
    return Pair(view("source.png", size), target if truth else target._replace(labels=None))


def decoded(document):
    """What the page reads: the JSON, and the arrays of every pair."""
    meta = json.loads(re.search(r'id="meta">(.*?)</script>', document, re.S).group(1))
    arrays = []
    for n, entry in enumerate(meta["pairs"]):
        data = base64.b64decode(re.search(rf'id="pair-{n}">(.*?)</script>', document, re.S).group(1))
        arrays.append({k: np.frombuffer(data, t, count, start) for k, (t, start, count) in entry["places"].items()})
    return meta, arrays


def test_reduction_with_all_directions_is_off_by_the_rounding_alone():
    x = np.random.default_rng(0).normal(size=(200, 12))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    planes = reduce(x, 24)
    assert planes.dimensions == 12 and planes.kept == pytest.approx(1)
    # Every direction has one plane at least, so that each number is off by half a step of at most 1 / 127.
    error = np.abs(restore(planes) @ restore(planes).T - x @ x.T).max()
    assert error <= 2 * np.sqrt(12) / 2 / 127 + 12 * (0.5 / 127) ** 2


def test_planes_are_spent_where_they_take_away_most_error():
    x = np.random.default_rng(0).normal(size=(300, 10)) * np.array([100.0, *[1] * 4, *[1e-3] * 5])
    planes = reduce(x, 6)
    assert sorted(planes.direction.tolist()) == [0, 0, 1, 2, 3, 4]  # the large one is rounded less, the small ones are left out
    error = [np.square(x @ x.T - restore(reduce(x, n)) @ restore(reduce(x, n)).T).sum() for n in (3, 6, 9)]
    assert error[0] > 10 * error[1] > 10 * error[2]


def test_reduction_keeps_products_better_than_any_choice_of_channels():
    x = np.random.default_rng(1).normal(size=(100, 30)) @ np.random.default_rng(2).normal(size=(30, 30))
    kept = restore(reduce(x, 10))
    largest = x[:, np.argsort(np.square(x).sum(0))[-10:]]
    assert np.linalg.norm(kept @ kept.T - x @ x.T) < 0.7 * np.linalg.norm(largest @ largest.T - x @ x.T)


def test_stored_cycles_are_those_of_the_definition():
    pair = smooth_pair(target_size=(10, 14))
    _, (arrays,) = decoded(page([pair], 1, label_set(13), 0.3, ABOUT))
    for level, metric, source, target in (
        ("features", "cos", pair.source.features, pair.target.features),
        ("classes", "kl", pair.source.probabilities, pair.target.probabilities),
    ):
        for n, alpha in enumerate((0.0, 0.3, 1.0)):
            options = {"metric": metric, "aggregate": alpha > 0, "alpha": alpha, "impl": "dense"}
            cycles = find_cycles(source, target, pair.source.labels, **options)
            assert np.array_equal(arrays[f"{level} {n} target"], cycles.target_index[0])
            assert np.array_equal(arrays[f"{level} {n} source"], cycles.source_index[0])
            assert np.array_equal(arrays[f"{level} {n} closed"], cycles.closed[0])
    assert np.array_equal(arrays["labels"], pair.source.labels.flatten())
    assert np.array_equal(arrays["predicted"], pair.target.probabilities.argmax(1).flatten())
    assert np.array_equal(arrays["truth"], pair.target.labels.flatten())


def test_stated_exactness_is_that_of_the_stored_maps():
    pair = smooth_pair(channels=40)
    prepared = prepare(pair, [0.0, 0.5], most_planes=8)
    for (level, alpha), stated in prepared.exactness.items():
        source, target = page_maps(prepared, level, alpha)
        metric = "cos" if level == "features" else "kl"
        own = similarity(source.flatten(2).mT, target.flatten(2).mT, metric)
        exact = prepared.cycles[level, alpha]
        assert (own.argmax(-1) == exact.target_index).double().mean() == pytest.approx(stated.target_index)
        assert 0 < stated.closed <= 1
        if alpha == 0:
            maps = [view.features if level == "features" else view.probabilities for view in pair]
            difference = similarity(*(x.flatten(2).mT for x in maps), metric) - own
            assert difference.abs().max().item() == pytest.approx(stated.error, rel=1e-3)
    fewer, more = (prepare(pair, [0.0], p).exactness["features", 0.0] for p in (8, 60))
    assert fewer.target_index < more.target_index > 0.98
    assert fewer.error > 10 * more.error


def test_pixels_without_direction_close_no_cycle_and_are_aggregated_still():
    pair = smooth_pair()
    pair.source.features[..., 5, 5] = 0
    pair.target.features[..., 3, 4] = 0
    prepared = prepare(pair, [0.0, 1.0], most_planes=48)
    assert not prepared.cycles["features", 0.0].closed[0, 5 * 16 + 5]
    assert all(e.closed > 0.99 and e.error < 1e-3 for (level, _), e in prepared.exactness.items() if level == "features")


@pytest.mark.parametrize("channels", [64, 512])
def test_file_keeps_to_its_size_and_uses_it(channels):
    pairs = [smooth_pair((40, 40), channels, 16, seed) for seed in (0, 1)]
    document = page(pairs, 2, label_set(16), 0.0, ABOUT, megabytes=1.2)
    assert (0.9 if channels > 64 else 0.6) * 1.2e6 < len(document.encode()) <= 1.2e6


def test_page_refers_to_nothing_outside_itself():
    document = page([smooth_pair()], 1, label_set(13), 0.5, ABOUT)
    assert not re.search(r"https?:|//\w+\.\w+|@import|\bfetch\(|XMLHttpRequest|<link [^>]*href=\"(?!data:)", document)
    assert document.count("</script>") == 4  # file names and the network's name cannot end an element
    assert "net <b>" not in document


def test_too_small_a_file_is_refused_with_what_to_change():
    with pytest.raises(ValueError, match=r"bytes for the features of a pixel of source.png.*lower --pairs, raise --megabytes"):
        page([smooth_pair()], 1, label_set(13), 0.5, ABOUT, megabytes=0.08)


def test_features_of_zeros_are_refused():
    pair = smooth_pair()
    pair.target.features.zero_()
    with pytest.raises(ValueError, match="all features of .*target.png are zero"):
        prepare(pair, [0.0], 8)


class Fails(TinyNetwork):
    normalization = TORCHVISION_RGB

    def __init__(self, change):
        super().__init__(16)
        self.change = change

    def forward(self, image):
        return self.change(super().forward(image))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda o: o._replace(features=None), "Fails gives no features"),
        (lambda o: o._replace(features=o.features * torch.inf), "features of .* are not all finite"),
        (lambda o: o._replace(features=torch.ones(1, 2, 300, 300)), "300x300 pixels.*TEST.INPUT_SIZE_TARGET"),
    ],
)
def test_network_whose_features_cannot_be_shown_is_refused(tiny_cfg, change, message):
    dataset = datasets(cfg, TORCHVISION_RGB, False)[0]
    with pytest.raises(ValueError, match=message):
        view_of(Fails(change).eval(), dataset, 0, 0, torch.device("cpu"))


@pytest.mark.parametrize("count", [0, 99])
def test_number_of_pairs_must_be_there(tiny_cfg, count):
    network = Fails(lambda o: o)
    source, target = datasets(cfg, TORCHVISION_RGB, False)
    with pytest.raises(ValueError, match=rf"--pairs is {count}; expected 1 to 4: there are 4 images of the source SYNTHIA"):
        next(read_pairs(network, source, target, count, torch.device("cpu")))


def test_target_labels_are_read_only_when_asked_for(tiny_cfg):
    for asked in (False, True):
        source, target = datasets(cfg, TORCHVISION_RGB, asked)
        (pair,) = read_pairs(Fails(lambda o: o).eval(), source, target, 1, torch.device("cpu"))
        assert (pair.target.labels is not None) == asked
        assert pair.source.labels.shape == pair.source.features[:, 0].shape
        assert pair.source.image.shape == (64, 128, 3)


def test_script_writes_a_page_from_a_snapshot_alone(tiny_cfg, tmp_path, monkeypatch, run_script):
    network = build_model(TINY_NETWORK, 16, multi_level=tiny_cfg.TRAIN.MULTI_LEVEL)
    torch.save({"state_dict": network.state_dict(), "iter": 2, "cfg": plain_cfg(cfg)}, tmp_path / "model_2.pth")

    monkeypatch.chdir(tmp_path)
    run_script("explore.py", "--checkpoint", "model_2.pth", "--pairs", 1)
    meta, (arrays,) = decoded((tmp_path / "explorer.html").read_text())
    assert meta["about"] == {
        "network": TINY_NETWORK,
        "checkpoint": "model_2.pth",
        "source": "SYNTHIA, all",
        "target": "Cityscapes, train",
    }
    assert "truth" not in arrays and meta["alphas"] == [0.0, 0.5, 1.0]


def test_another_ending_than_that_of_a_page_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="the explorer is a page, but --out is 'page.txt'"):
        explore(cfg, "none.pth", "page.txt", 1)


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with Browser(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    pairs = [smooth_pair(seed=seed, target_size=(10, 14)) for seed in (0, 1)]
    path.write_text(page(pairs, 2, label_set(13), 0.5, ABOUT))
    return path, [prepare(pair, [0.0, 0.25, 0.5, 1.0], 300) for pair in pairs]


def middle(browser, side, index, width, height):
    """Where a cell of an image is in the window."""
    box = browser.value(f"document.querySelector('#{side} .stage').getBoundingClientRect().toJSON()")
    return box["x"] + (index % width + 0.5) / width * box["width"], box["y"] + (index // width + 0.5) / height * box["height"]


def shown(browser):
    """The cycle as the page follows it."""
    return browser.value("follow(state.chosen)")


@needs_chromium
@pytest.mark.parametrize("level, metric, close", [("features", "cos", 1e-5), ("classes", "kl", 1e-4)])
def test_hovering_and_clicking_show_the_cycles_of_the_definition(browser, small, level, metric, close):
    path, prepared = small
    browser.size(1280, 900)
    browser.open(path, f"level={level}&class=all")
    cycles = prepared[0].cycles[level, 0.5]
    source, target = (x.flatten(2).mT for x in page_maps(prepared[0], level, 0.5))
    sim, sim_back = similarity(source, target, metric)[0], similarity(target, source, metric)[0]
    for i in (37, 100, 150):
        browser.mouse("mouseMoved", *middle(browser, "source", i, 16, 12))
        browser.settle()
        cycle = shown(browser)
        assert (cycle["side"], cycle["start"]) == ("source", i)
        assert cycle["turn"] == cycles.target_index[0, i] and cycle["end"] == cycles.source_index[0, i]
        verdict = browser.value("document.querySelector('.verdict').textContent")
        assert verdict == ("✓ closed" if cycles.closed[0, i] else "✕ open")
        # What is drawn: the similarities of i to the target, and of its turning pixel to the source.
        there, back = browser.value("[[...similar.target], [...similar.source]]")
        assert np.allclose(there, sim[i], atol=close) and np.allclose(back, sim_back[cycle["turn"]], atol=close)
        assert cycle["there"] == pytest.approx(sim[i, cycle["turn"]].item(), abs=close)
    browser.mouse("mouseMoved", 5, 5)
    browser.settle()
    assert browser.value("state.chosen") is None  # the cells of all cycles again
    browser.click(*middle(browser, "source", 20, 16, 12))
    browser.mouse("mouseMoved", *middle(browser, "source", 90, 16, 12))
    browser.settle()
    assert shown(browser)["start"] == 20 and "source=20" in browser.value("location.hash")  # pinned: the pointer does nothing
    browser.click(*middle(browser, "target", 33, 14, 10))
    cycle = shown(browser)
    assert (cycle["side"], cycle["start"], cycle["turn"]) == ("target", 33, sim_back[33].argmax())
    assert not browser.errors()


@needs_chromium
def test_figures_by_class_are_those_of_the_cycles(browser, small):
    path, prepared = small
    browser.open(path, "pair=1&level=classes")
    cycles, labels = prepared[1].cycles["classes", 0.5], prepared[1].pair.source.labels.flatten()
    truth = prepared[1].pair.target.labels.flatten()
    rows = browser.value(
        "[...document.querySelectorAll('#figures tbody tr')]"
        ".map((row) => [row.dataset.class, ...[...row.cells].map((cell) => cell.innerText)])"
    )
    assert [row[0] for row in rows] == ["all", *map(str, sorted(set(labels.tolist()) - {255}))]
    for key, _, pixels, _, closed, correct, coverage in rows:
        own = labels != 255 if key == "all" else labels == int(key)
        on = own & cycles.closed[0]
        turn = cycles.target_index[0, on]
        known = truth[turn] != 255
        right = (truth[turn] == labels[on])[known]
        assert int(pixels) == own.sum()
        assert closed == f"{100 * on.sum().item() / own.sum().item():.1f} %"
        assert correct == (f"{100 * right.double().mean().item():.1f} %" if known.any() else "–")
        assert coverage == f"{100 * len(set(turn.tolist())) / truth.numel():.1f} %"
    # Choosing a class marks its cells, and those only.
    browser.value("document.querySelector('#figures tr[data-class=\"0\"] button').click()")
    marked = browser.value(
        "[...document.querySelector('#source .cells').getContext('2d').getImageData(0, 0, 16, 12).data]"
        ".filter((_, n) => n % 4 == 3).map(Boolean)"
    )
    assert marked == (labels == 0).tolist()


@needs_chromium
def test_slider_and_worker_follow_all_cycles_of_another_share(browser, small):
    path, prepared = small
    browser.open(path)
    browser.value("$('#alpha').value = 0.25; $('#alpha').dispatchEvent(new Event('input', {bubbles: true}))")
    browser.wait("document.documentElement.dataset.done === '1'")
    assert browser.value("$('#basis').textContent") == "computed here"
    for level in ("features", "classes"):
        browser.value(f"$('input[value={level}]').click()")
        browser.wait("document.documentElement.dataset.done === '1' && !cycles.exact")
        there, closed = browser.value("[[...cycles.there], [...cycles.closed]]")
        exact, stated = prepared[0].cycles[level, 0.25], prepared[0].exactness[level, 0.25]
        same = np.mean(np.array(there) == exact.target_index[0].numpy())
        assert same == pytest.approx(stated.target_index, abs=0.01)  # as Python foretold; ties aside
        assert np.mean(np.array(closed) == exact.closed[0].numpy()) == pytest.approx(stated.closed, abs=0.01)
    browser.value("$('#alpha').value = 0.5; $('#alpha').dispatchEvent(new Event('input', {bubbles: true}))")
    assert browser.value("$('#basis').textContent") == "exact cycles"
    assert not browser.errors()


@needs_chromium
def test_keyboard_alone_reaches_everything(browser, small):
    path, _ = small
    browser.open(path, "source=20")
    order = []
    for _ in range(9):
        browser.key("Tab")
        order.append(
            browser.value(
                "document.activeElement.id || document.activeElement.closest('figure')?.id || document.activeElement.name"
            )
        )
    assert order[:6] == ["theme", "pair", "level", "alpha", "source", "target"]
    browser.open(path)
    browser.value("document.querySelector('#source .cells').focus()")
    browser.key("Escape")
    start = shown(browser)["start"]
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    assert shown(browser)["start"] == start + 1 + 16
    browser.key("ArrowLeft", shift=True)
    assert shown(browser)["start"] == start + 1 + 16 - 5
    browser.key("Enter")
    assert browser.value("state.pinned") and "Unpin" in browser.value("document.querySelector('#cycle').textContent")
    browser.wait("document.querySelector('#said').textContent.startsWith('From source')")
    browser.key("Escape")
    assert not browser.value("state.pinned")


@needs_chromium
def test_phone_shows_one_image_below_the_other_and_takes_taps(browser, small):
    path, _ = small
    try:
        browser.size(360, 740, phone=True)
        browser.open(path)
        source, target = (
            browser.value(f"document.querySelector('#{s} .stage').getBoundingClientRect().toJSON()") for s in ("source", "target")
        )
        assert target["y"] > source["y"] + source["height"] and source["width"] > 320
        assert browser.value("document.documentElement.scrollWidth") == 360
        browser.tap(*middle(browser, "source", 66, 16, 12))
        assert shown(browser)["start"] == 66 and browser.value("state.pinned")
    finally:
        browser.size(1280, 900)


@needs_chromium
def test_page_follows_the_colour_scheme_and_asks_for_no_other_file(browser, small):
    path, _ = small
    paper = {}
    for scheme in ("light", "dark"):
        browser.media(prefers_color_scheme=scheme)
        browser.open(path)
        paper[scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper["light"] == "rgb(251, 251, 250)" and paper["dark"] == "rgb(20, 23, 26)"
    browser.value("$('#theme').click()")  # from auto to light
    assert browser.value("getComputedStyle(document.body).backgroundColor") == paper["light"]
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data", "blob", "about"}


@needs_chromium
@pytest.mark.slow
def test_two_pairs_of_full_size_open_at_once_and_answer_within_a_frame(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page([smooth_pair((92, 92), 128, 19, seed) for seed in (0, 1)], 2, label_set(19), 0.5, ABOUT))
    assert path.stat().st_size < 8e6
    for level in ("features", "classes"):
        browser.open(path, f"level={level}&class=all")
        figures = browser.value("({...document.documentElement.dataset})")
        for n in range(60):
            browser.mouse("mouseMoved", *middle(browser, "source", 137 * n % 8464, 92, 92))
            browser.settle()
        figures = browser.value("({...document.documentElement.dataset})")
        print(level, figures)
        assert float(figures["firstPaint"]) < 1000 and float(figures["ready"]) < 1000
        assert float(figures["hoverMedian"]) < 16 and int(figures["hoverCount"]) > 40
