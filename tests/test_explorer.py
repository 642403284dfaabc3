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
from dada.domain_adaptation.cycle_association import find_cycles, spatial_aggregation
from dada.explorer.cycle_page import explore, page
from dada.explorer.pairs import Pair, View, datasets, read_pairs, view_of
from dada.explorer.prepare import drawn_similarity, reduce, ways
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
    """What the page reads: the JSON of all, that of every pair, and their arrays."""
    read = lambda name: json.loads(re.search(rf'id="{name}">(.*?)</script>', document, re.S).group(1))  # noqa: E731
    meta = read("meta")
    pairs = [read(f"pair-{n}") for n in range(len(meta["pairs"]))]
    return meta, pairs, [{k: np.frombuffer(base64.b64decode(v), t) for k, (t, v) in p["arrays"].items()} for p in pairs]


def maps(pair, level):
    return [view.features if level == "features" else view.probabilities for view in pair]


def test_stored_cycles_are_those_of_the_definition():
    pair = smooth_pair(target_size=(10, 14))
    meta, _, (arrays,) = decoded(page([pair], 1, label_set(13), 0.3, ABOUT))
    assert meta["alphas"] == [0.0, 0.3, 1.0]
    for level, metric in (("features", "cos"), ("classes", "kl")):
        source, target = maps(pair, level)
        for n, alpha in enumerate(meta["alphas"]):
            mixed = spatial_aggregation(target, alpha=alpha, metric=metric)
            cycles = find_cycles(source, mixed, pair.source.labels, metric=metric, aggregate=False, impl="dense")
            there, back = arrays[f"{level} {n} there"], arrays[f"{level} {n} back"]
            assert np.array_equal(there, cycles.target_index[0])
            assert np.array_equal(back[there], cycles.source_index[0])
            assert np.array_equal(back, similarity(mixed.flatten(2).mT, source.flatten(2).mT, metric)[0].argmax(1))
            assert np.array_equal(arrays[f"{level} {n} closed"], cycles.closed[0])
    assert np.array_equal(arrays["labels"], pair.source.labels.flatten())
    assert np.array_equal(arrays["predicted"], pair.target.probabilities.argmax(1).flatten())
    assert np.array_equal(arrays["truth"], pair.target.labels.flatten())


@pytest.mark.parametrize("level, metric", [("features", "cos"), ("classes", "kl")])
def test_stated_error_is_that_of_the_similarities_that_the_page_draws(level, metric):
    pair = smooth_pair(channels=40)
    source, target = (x.flatten(2)[0].T for x in maps(pair, level))
    errors = []
    for most in (8, 40):
        steps, scale, error = reduce(pair, level, [0.0], most)
        drawn = (torch.from_numpy(steps).float() * torch.from_numpy(scale)).split([len(source), len(target)])
        both = [(source, target, *drawn), (target, source, *drawn[::-1])]
        exact = [similarity(x[None], y[None], metric)[0] for x, y, *_ in both]
        found = [drawn_similarity(level, u, v) - (e if level == "features" else e.exp()) for e, (*_, u, v) in zip(exact, both)]
        assert max(f.abs().max().item() for f in found) == pytest.approx(error, rel=1e-3, abs=1e-6)
        errors.append(error)
    assert errors[1] < 0.01 and (level == "classes" or errors[0] > 5 * errors[1])  # more directions are nearer


def test_pixels_without_direction_close_no_cycle():
    pair = smooth_pair()
    pair.source.features[..., 5, 5] = 0
    pair.target.features[..., 3, 4] = 0
    for alpha in (0.0, 1.0):
        assert not ways(pair, "features", alpha).closed[5 * 16 + 5]
    assert reduce(pair, "features", [0.0, 1.0]).error < 0.02


@pytest.mark.parametrize("channels", [64, 512])
def test_file_keeps_to_its_size_and_uses_it(channels):
    pairs = [smooth_pair((40, 40), channels, 16, seed) for seed in (0, 1)]
    document = page(pairs, 2, label_set(16), 0.0, ABOUT, megabytes=1.2)
    assert (0.9 if channels > 64 else 0.6) * 1.2e6 < len(document.encode()) <= 1.2e6


def test_page_refers_to_nothing_outside_itself():
    document = page([smooth_pair()], 1, label_set(13), 0.5, ABOUT)
    assert not re.search(r"https?:|//\w+\.\w+|@import|\bfetch\(|XMLHttpRequest|<link [^>]*href=\"(?!data:)", document)
    assert document.count("</script>") == 3  # file names and the network's name cannot end an element
    assert "net <b>" not in document


def test_too_small_a_file_is_refused_with_what_to_change():
    with pytest.raises(ValueError, match=r"bytes for the features of a pixel of source.png.*lower --pairs, raise --megabytes"):
        page([smooth_pair()], 1, label_set(13), 0.5, ABOUT, megabytes=0.08)


def test_features_of_zeros_are_refused():
    pair = smooth_pair()
    pair.target.features.zero_()
    with pytest.raises(ValueError, match="all features of .*target.png are zero"):
        reduce(pair, "features", [0.0], 8)


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
    meta, _, (arrays,) = decoded((tmp_path / "explorer.html").read_text())
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
    return path, pairs


def middle(browser, side, index, width, height):
    """Where a cell of an image is in the window."""
    box = browser.value(f"document.querySelector('#{side} .stage').getBoundingClientRect().toJSON()")
    return box["x"] + (index % width + 0.5) / width * box["width"], box["y"] + (index // width + 0.5) / height * box["height"]


def shown(browser):
    """The cycle that the page shows."""
    return browser.value("(({heat, ...cycle}) => cycle)(shown())")


@needs_chromium
@pytest.mark.parametrize("level, metric", [("features", "cos"), ("classes", "kl")])
def test_hovering_and_clicking_show_the_cycles_and_similarities_of_the_definition(browser, small, level, metric):
    path, (pair, _) = small
    browser.size(1280, 900)
    browser.open(path, f"level={level}")
    source, target = maps(pair, level)
    cycles = find_cycles(source, target, pair.source.labels, metric=metric, alpha=0.5)
    x, y = (m.flatten(2).mT for m in (source, spatial_aggregation(target, alpha=0.5, metric=metric)))
    sim, sim_back = (similarity(*both, metric)[0] for both in ((x, y), (y, x)))
    height = browser.value("document.documentElement.scrollHeight")
    for i in (37, 100, 150):
        browser.mouse("mouseMoved", *middle(browser, "source", i, 16, 12))
        browser.settle()
        cycle = shown(browser)
        turn = cycles.target_index[0, i].item()
        assert (cycle["side"], cycle["start"], cycle["turn"]) == ("source", i, turn)
        assert cycle["end"] == cycles.source_index[0, i]
        verdict = browser.value("document.querySelector('.verdict').textContent")
        assert verdict == ("✓ closed" if cycles.closed[0, i] else "✕ open")
        there, back = browser.value("[[...shown().heat.target], [...shown().heat.source]]")
        for drawn, exact in ((there, sim[i]), (back, sim_back[turn])):
            assert np.allclose(drawn, exact if level == "features" else exact.exp(), atol=0.02)
        assert browser.value("getComputedStyle($('#source .heat')).visibility") == "visible"
    browser.mouse("mouseMoved", 5, 5)
    browser.settle()
    # Nothing is pointed at: the photographs, with the example. And nothing has moved the page.
    assert browser.value("state.chosen") is None and "Example" in browser.value("$('#cycle').textContent")
    assert browser.value("getComputedStyle($('#source .heat')).visibility") == "hidden"
    assert browser.value("document.documentElement.scrollHeight") == height
    browser.click(*middle(browser, "source", 20, 16, 12))
    browser.mouse("mouseMoved", *middle(browser, "source", 90, 16, 12))
    browser.settle()
    assert shown(browser)["start"] == 20 and "source=20" in browser.value("location.hash")  # pinned: the pointer does nothing
    browser.click(*middle(browser, "target", 33, 14, 10))
    cycle = shown(browser)
    assert (cycle["side"], cycle["start"], cycle["turn"]) == ("target", 33, sim_back[33].argmax())
    assert not browser.errors()


@needs_chromium
def test_figures_by_class_are_those_of_the_cycles_at_the_chosen_share(browser, small):
    path, (_, pair) = small
    browser.open(path, "pair=1&level=classes")
    labels, truth = pair.source.labels.flatten(), pair.target.labels.flatten()
    for n, alpha in enumerate((0.0, 0.5, 1.0)):
        browser.value(f"$('[name=alpha][value=\"{n}\"]').click()")
        cycles = find_cycles(*maps(pair, "classes"), pair.source.labels, metric="kl", aggregate=alpha > 0, alpha=alpha)
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
def test_keyboard_alone_reaches_everything(browser, small):
    path, _ = small
    browser.open(path, "source=20")
    order = []
    for _ in range(8):
        browser.key("Tab")
        order.append(
            browser.value(
                "document.activeElement.closest('figure')?.id || document.activeElement.id || document.activeElement.name"
            )
        )
    assert order == ["theme", "pair", "level", "alpha", "opacity", "source", "target", "pin"]
    browser.open(path)
    start = shown(browser)["start"]
    browser.value("document.querySelector('#source .cells').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    assert shown(browser)["start"] == start + 1 + 16
    browser.key("ArrowLeft", shift=True)
    assert shown(browser)["start"] == start + 1 + 16 - 5
    browser.key("Enter")
    assert browser.value("state.pinned") and browser.value("$('#pin').textContent") == "Unpin"
    browser.wait("document.querySelector('#said').textContent.startsWith('From source')")
    browser.key("Escape")
    assert browser.value("state.chosen") is None


@needs_chromium
def test_phone_shows_one_image_below_the_other_takes_taps_and_explains_terms(browser, small):
    path, _ = small
    try:
        browser.size(360, 740, phone=True)
        browser.open(path)
        source, target = (
            browser.value(f"document.querySelector('#{s} .stage').getBoundingClientRect().toJSON()") for s in ("source", "target")
        )
        assert target["y"] > source["y"] + source["height"] and source["width"] > 320
        assert browser.value("document.documentElement.scrollWidth") == 360
        browser.value("for (const name of document.querySelectorAll('.name')) name.textContent = 'a_long_name/'.repeat(9)")
        assert browser.value("[...document.querySelectorAll('figcaption')].every((said) => said.scrollWidth <= said.clientWidth)")
        shift = """new Promise((done) => {
            let total = 0;
            const add = (list) => list.getEntries().forEach((move) => (total += move.value));
            new PerformanceObserver(add).observe({type: "layout-shift", buffered: true});
            requestAnimationFrame(() => setTimeout(() => done(total), 100));
        })"""
        browser.open(path)
        assert browser.value(shift) < 0.05  # nothing jumps while the page is filled
        browser.tap(*middle(browser, "source", 66, 16, 12))
        assert shown(browser)["start"] == 66 and browser.value("state.pinned")
        x, y = browser.value("(({x, y}) => [x, y])($('#alpha legend').getBoundingClientRect())")
        browser.tap(x + 5, y + 5)
        assert browser.value("$('#tip').textContent").startswith("Spatial aggregation: ")
        box = browser.value("$('#tip').getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] < box["right"] <= 360 and box["height"] > 20
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
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data", "about"}
