"""Networks averaged by `dada merge`: values by hand, what is refused, and what the file says that it is made of."""

import copy
import logging

import pytest
import torch
from tiny import same, untrained_snapshot
from torch import tensor

from dada import Segmenter
from dada.build import build_network, target_loader
from dada.cli import main
from dada.cli.shared import photographs
from dada.config import cfg, reset
from dada.model.averaging import average, by_layers, greedy, layer_groups, uniform
from dada.model.registry import build_model
from dada.publishing.release_file import write_release
from dada.runs import file_hash
from dada.training.adabn import adapt_batch_norm


def state(weight, count=3):
    return {
        "layer1.w": tensor([weight, 2 * weight]),
        "head.w": tensor([10 * weight]),
        "layer1.num_batches_tracked": tensor(count),
    }


def value(found):
    return found["layer1.w"][0].item()


def test_the_average_is_the_mean_of_every_entry_and_the_largest_of_the_counters():
    found = uniform([state(1.0, 4), state(2.0, 9), state(6.0, 5)])
    assert same(found.state, state(3.0, 9)) and found.parts == {"all layers": [0, 1, 2]}
    halves = [{"w": tensor([x], dtype=torch.float16)} for x in (40000.0, 50048.0, 60096.0)]  # whose sum float16 lacks
    assert average(halves)["w"].dtype == torch.float16 and average(halves)["w"].item() == 50048


@pytest.mark.parametrize(
    "other, message",
    [
        ({"layer1.w": tensor([1.0])}, "their entries differ, first in head.w"),
        ({**state(1.0), "head.w": tensor([1.0, 2.0])}, r"shapes of head.w differ: \(1,\), \(2,\)"),
        ({**state(1.0), "head.w": tensor([float("nan")])}, "head.w holds numbers that are not finite"),
    ],
)
def test_what_has_no_average_is_said(other, message):
    with pytest.raises(ValueError, match=message):
        average([state(1.0), other])
    with pytest.raises(ValueError, match="index holds whole numbers, which differ"):
        average([{"index": tensor([1])}, {"index": tensor([2])}])


def test_a_network_joins_only_if_the_score_gets_no_worse():
    asked = []

    def score(found):
        asked.append(value(found))
        return -abs(value(found) - 4.0)  # 4 would be best

    found = greedy([state(9.0), state(3.0), state(7.0), state(1.0)], score)
    # alone -5, -1, -3, -3: begin with 3; with 7 it is 5, no worse; with 1 11/3, better; with 9 5, worse
    assert asked == [9.0, 3.0, 7.0, 1.0, 5.0, pytest.approx(11 / 3), 5.0]
    assert found.parts == {"all layers": [1, 2, 3]} and value(found.state) == pytest.approx(11 / 3)
    assert [name for name, _ in found.scores[4:]] == ["1 + 2", "1 + 2 + 3", "1 + 2 + 3 + 0"]
    assert found.scores[-1][1] == -1.0


def test_each_group_of_layers_is_the_average_or_one_networks():
    def score(found):
        return -abs(found["layer1.w"][0].item() - 2.0) - abs(found["head.w"][0].item() - 29.0)

    found = by_layers([state(2.0), state(4.0)], score)  # average 3 and 30
    assert found.parts == {"layer1": [0], "head": [0, 1]}
    assert found.state["layer1.w"].tolist() == [2.0, 4.0] and found.state["head.w"].tolist() == [30.0]
    assert found.scores == [
        ("average of all", -2.0),
        ("layer1 of 0", -1.0),
        ("layer1 of 1", -3.0),
        ("head of 0", -9.0),
        ("head of 1", -11.0),
    ]


@pytest.mark.parametrize(
    "model, groups",
    [
        ("DeepLabv2", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "layer6"}),
        ("timm:test_efficientnet", {"encoder.conv_stem", "encoder.bn1", *(f"encoder.blocks.{k}" for k in range(5)), "decoder"}),
    ],
)
def test_groups_are_the_stages_of_the_network(model, groups):
    with torch.device("meta"):
        names = list(build_model(model, 16, multi_level=False).state_dict())
    found = layer_groups(names)
    assert groups <= found.keys() and len(found) <= len(groups) + 2
    assert sorted(name for group in found.values() for name in group) == sorted(names)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshots(tmp_path, city):
    """Two networks that differ, 0 and 1, in folders of their own."""
    found = []
    for k in range(2):
        torch.manual_seed(k)
        (tmp_path / f"run_{k}").mkdir()
        found.append(untrained_snapshot(tmp_path / f"run_{k}", city, f"TRAIN.RANDOM_SEED={k}"))
    return found


def run(*arguments):
    reset()
    main(["merge", *map(str, arguments)])


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_merged_file_is_a_snapshot_that_says_what_it_is_made_of(snapshots, tmp_path, capsys):
    out = tmp_path / "both.pth"
    run(*snapshots, "--out", out)
    one, two, both = map(weights, (*snapshots, out))
    for name, x in both.items():
        expected = (one[name].double() + two[name].double()) / 2 if x.is_floating_point() else one[name]
        torch.testing.assert_close(x.double(), expected.double(), rtol=1e-6, atol=1e-8)
    content, first = (torch.load(path, weights_only=True) for path in (out, snapshots[0]))
    assert content["cfg"] == first["cfg"] and content["iter"] == 7
    assert [f["file"] for f in content["merged"]["files"]] == [str(p) for p in snapshots]
    assert content["merged"]["how"] == "uniform" and content["merged"]["parts"] == {"all layers": [0, 1]}
    assert Segmenter.from_checkpoint(out).predict(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()).ids.shape == (64, 64)
    assert "next: " in capsys.readouterr().out


@pytest.mark.parametrize("how", ["greedy", "layers"])
def test_a_choice_goes_by_a_criterion_on_target_images_and_is_told(snapshots, tmp_path, how, capsys):
    out = tmp_path / "chosen.pth"
    run(*snapshots, "--out", out, "--how", how, "--by", "certainty", "--judge-images", 1)
    said = torch.load(out, weights_only=True)["merged"]
    scores = dict(map(tuple, said["scores"]))
    assert said["by"] == "certainty" and len(scores) == len(said["scores"]) > 2
    states = [weights(path) for path in snapshots]
    chosen = weights(out)
    groups = layer_groups(states[0]) if how == "layers" else {"all layers": list(states[0])}
    assert said["parts"].keys() == groups.keys()
    for group, names in groups.items():
        part = average([{name: states[k][name] for name in names} for k in said["parts"][group]])
        assert same(part, {name: chosen[name] for name in names}), group
    assert f"{max(scores.values()):.4f}" in capsys.readouterr().out
    if how == "greedy":
        together = next(score for name, score in scores.items() if "+" in name)
        assert (len(said["parts"]["all layers"]) == 2) == (together >= max(scores["0"], scores["1"]))


def test_statistics_of_batch_norm_are_refreshed_on_the_average_and_may_be_mixed(snapshots, tmp_path):
    out, plain = tmp_path / "refreshed.pth", tmp_path / "plain.pth"
    run(*snapshots, "--out", plain)
    run(*snapshots, "--out", out, "--refresh-bn", 2, "--bn-share", 0.25)
    network = build_network(cfg, str(plain))
    images = [batch.image for batch in target_loader(cfg, network.normalization, steps=1, plain=True)]
    expected = adapt_batch_norm(copy.deepcopy(network), images, 0.25).state_dict()
    found, before = weights(out), weights(plain)
    assert all(torch.allclose(x, expected[name], rtol=1e-5, atol=1e-6) for name, x in found.items())
    moved = {name for name, x in found.items() if not torch.equal(x, before[name])}
    assert moved and all("running" in name or "tracked" in name for name in moved)
    assert torch.load(out, weights_only=True)["merged"]["statistics"]["share"] == 0.25


def test_the_model_card_of_a_merged_network_says_what_it_is_made_of(snapshots, tmp_path):
    out = tmp_path / "both.pth"
    run(*snapshots, "--out", out, "--refresh-bn", 2, "--bn-share", 0.25)
    card = write_release(cfg, out, tmp_path / "both.safetensors")["model_card"]
    (row,) = (line for line in card.splitlines() if line.startswith("| Merged from |"))
    assert "uniform average of" in row and all(f"`{p.parent.name}/{p.name}` (sha256 `{file_hash(p)}`)" in row for p in snapshots)
    assert row.endswith("batch norm refreshed on 2 target images, share 0.25 |") and str(tmp_path) not in card
    assert "Merged from" not in write_release(cfg, snapshots[0], tmp_path / "one.safetensors")["model_card"]


def test_photographs_stand_in_for_the_target_and_leave_the_cfg_as_it_is(snapshots, tmp_path, city):
    out = tmp_path / "photos.pth"
    photos = city / "Cityscapes/leftImg8bit/train"
    run(snapshots[0], "--out", out, "--refresh-bn", 4, "--images", photos)
    content = torch.load(out, weights_only=True)
    assert content["cfg"] == torch.load(snapshots[0], weights_only=True)["cfg"]
    assert content["merged"]["statistics"]["of"] == f"Folder in {photos}"
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        photographs("nowhere")


def test_the_old_name_does_the_same_and_tells_the_new_one(snapshots, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    run(snapshots[0], "--out", tmp_path / "new.pth", "--refresh-bn", 3)
    reset()
    main(["adapt-bn", "--checkpoint", str(snapshots[0]), "--out", str(tmp_path / "old.pth"), "--images", "3"])
    assert same(dict(weights(tmp_path / "new.pth")), dict(weights(tmp_path / "old.pth")))
    assert f"dada merge {snapshots[0]} --refresh-bn 3" in caplog.text


def test_networks_of_other_kinds_are_refused_by_what_differs(snapshots, tmp_path, city):
    (tmp_path / "other").mkdir()
    cases = {
        "NUM_CLASSES is 19 in .* and 16 in": ["NUM_CLASSES=19"],
        "TRAIN.MODEL is resnet-18_undilated in": ["TRAIN.MODEL=resnet-18_undilated"],
        "want images prepared in different ways": ["TRAIN.IMG_MODE=BGR"],
    }
    for message, options in cases.items():
        other = untrained_snapshot(tmp_path / "other", city, *options)
        with pytest.raises(SystemExit, match=message):
            run(snapshots[0], other, "--out", tmp_path / "x.pth")
    content = torch.load(snapshots[1], weights_only=True)
    next(iter(content["state_dict"].values())).view(-1)[0] = float("inf")
    torch.save(content, snapshots[1])
    with pytest.raises(SystemExit, match=f"{snapshots[1]}: 1 of its weights and statistics are not finite"):
        run(*snapshots, "--out", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_flags_that_cannot_be_followed_are_refused(snapshots, tmp_path):
    out = tmp_path / "x.pth"
    for message, flags in {
        "is one network, and there is nothing to do": [],
        "a share of 0 to 1, got .* and 1.5": ["--bn-share", 1.5, "--refresh-bn"],
        "at least 1 image .* got -2": ["--refresh-bn", -2],
    }.items():
        with pytest.raises(SystemExit, match=message):
            run(snapshots[0], "--out", out, *flags)
    with pytest.raises(SystemExit, match=r"a snapshot is a .pth file, but --out is .*x.bin"):
        run(*snapshots, "--out", tmp_path / "x.bin")
