"""Which target images to label next: what a pixel is worth, which regions and images are chosen, and the command."""

import math
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from browser import Browser, find_chromium
from PIL import Image
from tiny import tiny_options, untrained_snapshot

from dada.build import labelled_target
from dada.cli import main
from dada.commands.suggest import Suggestion, _as_page
from dada.config import cfg, cfg_from_list, reset
from dada.evaluation.next_labels import Region, best_regions, spread_choice, worth
from dada.label_sets import label_set


def worth_by_hand(p: torch.Tensor, side: int) -> torch.Tensor:
    """Pixel by pixel, of one image (K, H, W)."""
    k, height, width = p.shape
    found = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            rows = range(max(0, y - side // 2), min(height, y + side // 2 + 1))
            columns = range(max(0, x - side // 2), min(width, x + side // 2 + 1))
            square = [p[:, i, j] for i in rows for j in columns]
            uncertainty = sum(-(q * q.log()).sum().item() for q in square) / len(square)
            shares = [sum(int(q.argmax()) == c for q in square) / len(square) for c in range(k)]
            impurity = -sum(s * math.log(s) for s in shares if s)
            found[y, x] = uncertainty * impurity / math.log(k) ** 2
    return found


def test_a_pixel_is_worth_uncertainty_times_impurity_of_the_square_around_it():
    p = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(0)).mul(2).softmax(dim=1)
    found = worth(p, 3)
    for image, expected in zip(found, p):
        torch.testing.assert_close(image, worth_by_hand(expected, 3))
    assert found.min() >= 0 and found.max() <= 1


def test_a_sure_or_a_pure_square_is_worth_nothing_and_an_even_mix_nearly_all():
    sure = torch.eye(2)[torch.arange(36) % 2].T.reshape(1, 2, 6, 6)  # both classes, each certain
    pure = torch.tensor([0.51, 0.49]).view(1, 2, 1, 1).expand(1, 2, 6, 6)  # one class, hardly
    mixed = 0.5 + 0.01 * (sure - 0.5)
    assert worth(sure, 3).abs().max() == 0 and worth(pure, 3).abs().max() == 0
    assert worth(mixed, 3).min() > 0.9


def test_regions_are_the_best_squares_within_the_image_and_do_not_overlap():
    score = torch.zeros(20, 30)
    score[0, 0], score[10, 10], score[10, 13], score[11, 22] = 1.0, 0.9, 0.8, 0.7  # a corner has no room; a neighbour overlaps
    first, second, third = best_regions(score, 5, 3)
    assert first == (8, 8, 13, 13, pytest.approx(0.9)) and second == (20, 9, 25, 14, pytest.approx(0.7))
    assert third.score == 0 and not (third.x0 < 13 and third.x1 > 8 and third.y0 < 13 and third.y1 > 8)
    for region in best_regions(torch.rand(20, 30, generator=torch.Generator().manual_seed(1)), 5, 50):
        assert region.x0 >= 0 and region.x1 <= 30 and region.y0 >= 0 and region.y1 <= 20
    assert [tuple(r[:4]) for r in best_regions(score, 99, 3)] == [(0, 0, 30, 20)]


def test_images_are_chosen_for_their_score_and_unlike_those_before():
    features = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.0, 5.0], [-1.0, 0.0]])
    scores = torch.tensor([0.9, 0.89, 0.5, 0.3])
    # After 0: distances 0.1, 1.41, 2 times the scores: 0.09, 0.71, 0.6; after 2 as well: 0.09 and 0.3 * 1.41.
    assert spread_choice(scores, features, 4) == [0, 2, 3, 1]
    assert [spread_choice(scores, features, k) for k in (1, 2, 3)] == [[0], [0, 2], [0, 2, 3]]
    assert spread_choice(scores, features, 2, taken=torch.tensor([[7.0, 0.0]])) == [2, 3]
    assert sorted(spread_choice(torch.zeros(3), torch.ones(3, 2), 3)) == [0, 1, 2]  # nothing to choose by


@pytest.fixture
def unlabelled(city, tmp_path):
    """A snapshot, and the target without the labels of its training split. Returns both."""
    root = tmp_path / "target"
    shutil.copytree(city / "Cityscapes", root, ignore=lambda folder, _: ["train"] if folder.endswith("gtFine") else [])
    return untrained_snapshot(tmp_path, city), root


def suggested(out) -> list[str]:
    return [line for line in out.read_text().splitlines() if not line.startswith("#")]


def test_the_command_writes_a_list_that_training_takes_and_a_page_without_looking_at_a_label(
    unlabelled, city, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["dada"])
    snapshot, root = unlabelled
    out = tmp_path / "next.txt"
    options = ["--set", f"DATA_DIRECTORY_TARGET={root}", "--region", "9"]
    main(["suggest", "--checkpoint", str(snapshot), "--count", "2", "--out", str(out), *options])
    said = capsys.readouterr().out
    first = suggested(out)
    assert len(set(first)) == 2 and all(
        re.fullmatch(r"leftImg8bit/train/(\w+)/\1_000000_000000_leftImg8bit.png", p) for p in first
    )
    expected = f"next: dada train --cfg {snapshot} --exp-suffix labelled --set DATA_DIRECTORY_TARGET={root} TARGET_LABELLED={out}"
    assert expected in said and all(path in said for path in first)
    boxes = [tuple(map(int, box)) for box in re.findall(r"(\d+),(\d+) to (\d+),(\d+) \(0\.\d{3}\)", out.read_text())]
    assert len(boxes) == 6 and all(x1 - x0 == y1 - y0 == 9 and x1 <= 128 and y1 <= 64 for x0, y0, x1, y1 in boxes)
    page = (tmp_path / "next.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 6 and "http" not in page and all(path in page for path in first)
    sizes = re.findall(r'<img [^>]* width="(\d+)" height="(\d+)"', page)
    assert sizes == [("128", "64")] * 6  # known before a picture is decoded, so that nothing jumps
    reset()
    cfg_from_list([*tiny_options(city, tmp_path), f"TARGET_LABELLED={out}"])
    assert [f"leftImg8bit/train/{item.name}" for item in labelled_target(cfg).items] == first
    # The rest, unlike those that have labels: the list holds all.
    again = tmp_path / "again.txt"
    reset()
    main(["suggest", "--checkpoint", str(snapshot), "--count", "2", "--out", str(again), "--exclude", str(out), *options])
    assert suggested(again)[:2] == first and len(set(suggested(again))) == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--count", "5"], r"--count is 5, but there are 4 images of the target to choose from"),
        (["--count", "0"], r"--count is 0"),
        (["--region", "8"], r"--region 8; expected .* odd number"),
        (["--page", "page.txt"], r"expected a name that ends in .html"),
        (["--exclude", "/gone.txt"], r"list file /gone.txt not found. Correct --exclude"),
        (["--set", "TRAIN.MODEL=resnet-18"], r"fit|weights"),
        (["--set", "DATA_DIRECTORY_TARGET=/gone"], r"/gone"),
        (["--images", "/gone"], r"--images /gone is not a folder"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_written(unlabelled, city, tmp_path, flags, message):
    snapshot, root = unlabelled
    out = tmp_path / "next.txt"
    given = flags if "--set" in flags else [*flags, "--set", f"DATA_DIRECTORY_TARGET={root}"]
    with pytest.raises(SystemExit) as error:
        main(["suggest", "--checkpoint", str(snapshot), "--out", str(out), *given])
    assert re.search(message, str(error.value)) and not out.exists()


def test_a_folder_of_photographs_is_looked_at_for_a_network_of_the_same_classes(unlabelled, tmp_path, capsys):
    snapshot, root = unlabelled
    photos, out = root / "leftImg8bit", tmp_path / "next.txt"
    asked = ["suggest", "--checkpoint", str(snapshot), "--images", str(photos), "--count", "1"]
    main([*asked, "--out", str(out)])
    (path,) = suggested(out)
    said = capsys.readouterr().out
    assert (
        photos / path
    ).is_file() and f"label these images, as train ids, each at its own path below {photos / 'masks'}, and" in said
    # Its label, there, is what the next command learns, and no image to choose from.
    mask = photos / "masks" / path
    mask.parent.mkdir(parents=True)
    Image.fromarray(np.full((64, 128), 3, np.uint8)).save(mask)
    reset()
    cfg_from_list([*tiny_options(root, tmp_path), *shlex.split(said.partition("--set ")[2])])
    (item,) = labelled_target(cfg).items
    assert (item.image, item.label) == (str(photos / path), str(mask))
    reset()
    with pytest.raises(SystemExit, match="there are 6 images of the target to choose from, 1 of which --exclude names"):
        main([*asked[:-1], "6", "--out", str(tmp_path / "again.txt"), "--exclude", str(out)])


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_the_page_is_no_wider_than_a_phone_and_its_pictures_stay_beside_each_other(tmp_path):
    region = Region(0, 0, 33, 33, 0.5)
    found = [Suggestion("a_folder_with_a_long_name/" * 5 + "image.png", 0.5, [region] * 3)] * 2
    picture, numbers = Image.new("RGB", (640, 480)), torch.zeros(480, 640)
    page = _as_page(found, [(picture, numbers.to(torch.uint8), numbers, [region])] * 2, label_set(19), "data", "model.pth")
    (tmp_path / "next.html").write_text(page)
    with Browser(find_chromium()) as browser:
        for width in (390, 1280):
            browser.size(width, 800, phone=width < 1000)
            browser.open(tmp_path / "next.html")
            assert browser.value("document.documentElement.scrollWidth") == width
            boxes = browser.value(
                "[...document.images].map((i) => { const b = i.getBoundingClientRect(); return [b.top, b.width]; })"
            )
            assert len({top for top, _ in boxes[:3]}) == 1 and all(image > 0.25 * width for _, image in boxes)
        assert browser.errors() == []
