"""Adaptation without the source: `dada adapt`, TRAIN.SOURCE_FREE, mixed statistics and averaged snapshots."""

import copy
import io
import logging
import math
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny import TINY_NETWORK, TinyNetwork, random_batch, same, tiny_options, untrained_snapshot
from torch import nn

from dada import Segmenter
from dada.build import build_network, target_loader
from dada.cli import main, parser_of
from dada.cli.adapt import fill_cfg
from dada.commands.replay import replay
from dada.config import cfg, cfg_from_file, cfg_from_list, reset
from dada.domain_adaptation import losses
from dada.domain_adaptation.objectives import METHODS, build_objective
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.teacher import Teacher
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training import trainer as trainer_module
from dada.training.adabn import adapt_batch_norm
from dada.training.checkpoint import read_checkpoint
from dada.training.idle import idle_parts
from dada.training.loop import train
from dada.training.post_mortem import read_post_mortem

CPU = torch.device("cpu")
_opened: list[list[str]] = []  # while a test looks


def _note(event: str, args: tuple) -> None:
    if _opened and event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, os.PathLike)):
        _opened[-1].append(os.path.realpath(os.fsdecode(args[0])))


class Adapted(NamedTuple):
    """A run of three iterations, done once for all tests that look at it."""

    snapshot: Path
    photos: Path
    folder: Path
    opened: list[str]
    printed: str
    logged: str


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, city):
    sys.addaudithook(_note)  # stays for good, and does nothing but here
    root = tmp_path_factory.mktemp("adapted")
    snapshot, photos = _snapshot(root, city), _photos(root, city)
    printed, records = io.StringIO(), io.StringIO()
    handler, level = logging.StreamHandler(records), logging.getLogger("dada").level
    logging.getLogger("dada").addHandler(handler)
    logging.getLogger("dada").setLevel("INFO")
    _opened.append([])
    try:
        with redirect_stdout(printed):
            folder = adapt(snapshot, photos, "--out", root / "kept/mine.pth")
        opened = _opened[-1]
    finally:
        _opened.clear()
        logging.getLogger("dada").removeHandler(handler)
        logging.getLogger("dada").setLevel(level)
    reset()
    return Adapted(snapshot, photos, folder, opened, printed.getvalue(), records.getvalue())


def _snapshot(root, city):
    return untrained_snapshot(root, city, "CONTRASTIVE_LEARNING=True", "TRAIN.DA_METHOD=AdvEnt")


def _photos(root, city):
    for k, image in enumerate(sorted((city / "Cityscapes").rglob("leftImg8bit/train/**/*.png"))):
        (root / f"photos/tour_{k}").mkdir(parents=True)
        shutil.copy(image, root / f"photos/tour_{k}/a.png")
    return root / "photos"


def adapt(snapshot, photos, *more):
    reset()
    main(
        [
            "adapt",
            "--checkpoint",
            str(snapshot),
            "--images",
            str(photos),
            "--iterations",
            "3",
            "--set",
            "TRAIN.ADABN_IMAGES=4",
            *map(str, more),
        ]
    )
    return run_of(cfg).snapshots


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_no_file_of_the_source_is_opened(adapted, city):
    source = os.path.realpath(city / "SYNTHIA")
    assert os.path.isdir(source) and not [path for path in adapted.opened if path.startswith(source)]
    images = {path for path in adapted.opened if path.endswith("a.png")}
    assert images == {os.path.realpath(p) for p in adapted.photos.rglob("*.png")} and len(images) == 4
    assert "data: target folder train, 4 images without labels" in adapted.logged and "labelled images" not in adapted.logged
    out = adapted.snapshot.parent / "kept/mine.pth"
    assert f" --checkpoint {out} --out predictions {adapted.photos}" in adapted.printed.splitlines()[-1]
    assert adapted.printed.splitlines()[-1].startswith("next: ") and f"written: {out}" in adapted.printed


def test_what_it_writes_is_a_network_like_any_other_close_to_the_one_that_it_began_with(adapted, tmp_path, capsys):
    out = adapted.snapshot.parent / "kept/mine.pth"
    before, after = weights(adapted.snapshot), weights(out)
    assert adapted.folder.name == "tiny_on_photos" and same(dict(after), dict(weights(adapted.folder / "model_3.pth")))
    head = [name for name in before if name.startswith("decoder") and name.endswith("weight") and before[name].ndim == 4]
    assert head and not any(torch.equal(before[name], after[name]) for name in head)
    assert all((before[name] - after[name]).abs().max() < 1e-3 for name in head)  # small steps
    content = torch.load(out, weights_only=True)
    assert content["iter"] == 3 and content["cfg"]["SOURCE"] == "SYNTHIA" and content["cfg"]["TRAIN"]["SOURCE_FREE"]
    assert Segmenter.from_checkpoint(out).predict(next(adapted.photos.rglob("*.png"))).ids.shape == (64, 128)
    main(["release", "--checkpoint", str(out), "--out", str(tmp_path / "mine.safetensors")])
    assert "adapted to the target without the source" in (tmp_path / "mine.md").read_text()
    flags = ["--checkpoint", str(tmp_path / "mine.safetensors"), "--images", str(adapted.photos), "--set", "EXP_NAME=own"]
    reset()
    fill_cfg(parser_of("adapt").parse_args(flags))  # and a release can be adapted
    assert cfg.TRAIN.MODEL == TINY_NETWORK and cfg.EXP_NAME == "own" and flags[1] == cfg.TRAIN.RESTORE_FROM


def test_statistics_begin_half_way_to_the_target_and_stay(adapted):
    cfg_from_file(adapted.folder / "train_cfg.yml")
    network, after = build_network(cfg, str(adapted.snapshot)), weights(adapted.folder / "model_3.pth")
    images = [b.image for b in target_loader(cfg, network.normalization, steps=2, plain=True)]
    old = {name: x.clone() for name, x in network.state_dict().items()}
    new = adapt_batch_norm(network, images).state_dict()
    names = [name for name in old if name.endswith(("running_mean", "running_var"))]
    for name in names:
        torch.testing.assert_close(after[name], (old[name] + new[name]) / 2, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[names[0]], old[names[0]], rtol=1e-2)


class Network(TinyNetwork):
    """With batch norm, and no more."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes, norm=nn.BatchNorm2d):
        super().__init__(num_classes)
        self.stem = nn.Sequential(self.stem, norm(6))


@pytest.fixture
def small(monkeypatch, adapted):
    """`adapt` with a network that costs next to nothing in place of that of the snapshot."""

    def run(*more, norm=nn.BatchNorm2d):
        monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: Network(cfg.NUM_CLASSES, norm))
        return adapt(adapted.snapshot, adapted.photos, "EXP_NAME=small", *more)

    return run


def test_a_run_goes_on_exactly_where_it_stopped(small):
    whole = read_checkpoint(small("TRAIN.CHECKPOINT_EVERY=1") / "checkpoint_3.pth")
    more = ("EXP_NAME=again", "TRAIN.CHECKPOINT_EVERY=1")
    small(*more, "TRAIN.EARLY_STOP=2")
    torch.manual_seed(77)
    resumed = read_checkpoint(small(*more, "--resume", "auto") / "checkpoint_3.pth")
    assert all(same(resumed[key], whole[key]) for key in ("state_dict", "teacher", "optimizers", "rng"))
    assert not same(dict(whole["teacher"]), dict(whole["state_dict"]))


def test_a_network_without_batch_norm_is_adapted_without_statistics(small):
    assert (small(norm=lambda channels: nn.GroupNorm(2, channels)) / "model_3.pth").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_terms_are_those_of_the_target_and_have_the_values_that_they_have_beside_the_source(method):
    more = ["SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.LAMBDA_MIC=1", "TRAIN.LAMBDA_CONSISTENCY=1", "TRAIN.LAMBDA_ENTROPY=1"]
    cfg_from_list(["NUM_CLASSES=5", f"TRAIN.DA_METHOD={method}", "CONTRASTIVE_LEARNING=True", *more])
    cfg_from_list(["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", "TRAIN.COLOR_TRANSFER=False"])
    network, source, target = TinyNetwork(5), random_batch(seed=1), random_batch(seed=2)
    everything = build_objective(cfg, CPU)
    torch.manual_seed(3)
    with_source = {
        t.name: t.compute(Step(network, source, target, teacher=Teacher(network, 0.9))) for t in everything.terms[::-1]
    }
    cfg_from_list(["TRAIN.SOURCE_FREE=True"])
    objective = build_objective(cfg, CPU)
    assert not objective.adversaries and objective.style is None
    names = [t.name for t in objective.terms]
    ours = ["loss_lsr_trg", "loss_consistency", "loss_entropy", "loss_mic"]
    assert names == (["loss_ent_main"] if method == "MinEnt" else []) + ours
    left = {"loss_fass", "loss_cass", "loss_lsr_src", "loss_mix"} | {n for n in with_source if n.startswith("loss_adv")}
    assert set(objective.left_out) == left
    assert any("left out" in line and "loss_fass" in line for line in idle_parts(cfg, objective))
    torch.manual_seed(3)  # mic, last of its list, was the first to draw
    found = objective(Step(network, None, target, teacher=Teacher(network, 0.9)), 0).terms
    for name in names:
        value = with_source[name]
        assert torch.equal(found[name][1], getattr(value, "loss", value)), name


def test_a_term_that_needs_the_source_says_so():
    step = Step(TinyNetwork(5), None, random_batch())
    for read in (lambda: step.source.label, lambda: step.source_outputs, lambda: step.source_logits):
        with pytest.raises(ValueError, match="needs images of the source, which this step was not given"):
            read()
    assert list(step.batches) == ["target"]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["TRAIN.RESTORE_FROM=imagenet", "SELF_TRAINING.LAMBDA_MIC=1"],
            "begins with a network that has learnt the source.*'imagenet'",
        ),
        (
            ["CONTRASTIVE_LEARNING=True", "TRAIN.LSR_W=0", "TRAIN.LAMBDA_CONSISTENCY=0", "TRAIN.LAMBDA_ENTROPY=0"],
            "no term of this configuration does; loss_fass, loss_cass would read",
        ),
        (
            ["TRAIN.EVAL_EVERY=1", "TRAIN.EVAL_SPLIT=source:val"],
            "opens no file of the source, but TRAIN.EVAL_SPLIT is 'source:val'",
        ),
    ],
)
def test_what_cannot_do_without_the_source_is_refused_at_the_start(tmp_path, city, options, message):
    found = untrained_snapshot(tmp_path, city)
    options = [f"TRAIN.RESTORE_FROM={found}", "TRAIN.SOURCE_FREE=True", *options]
    if "EVAL" in options[-1]:
        options.append("SELF_TRAINING.LAMBDA_MIC=1")
    cfg_from_list([*tiny_options(city, tmp_path / "none"), *options])
    with pytest.raises(ValueError, match=message):
        train(cfg, run_of(cfg))
    assert not run_of(cfg).snapshots.exists()


def test_an_encoder_alone_is_no_network_to_adapt(tmp_path, city):
    path = untrained_snapshot(tmp_path, city)
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {name: x for name, x in content["state_dict"].items() if name.startswith("encoder.")}
    torch.save(content, path)
    with pytest.raises(SystemExit, match="holds no trained network"):
        adapt(path, city / "Cityscapes/leftImg8bit/train")
    with pytest.raises(SystemExit, match="--images nowhere is not a folder"):
        adapt(path, "nowhere")


def test_a_step_that_fails_is_kept_and_computed_again(small, monkeypatch):
    of_a_batch = losses.entropy_loss_from_logits
    monkeypatch.setattr(losses, "entropy_loss_from_logits", lambda logits: of_a_batch(logits) * math.nan)
    with pytest.raises(SystemExit, match=r"loss_entropy = nan(.|\n)*Images of the step: tour_"):
        small()
    content = read_post_mortem(run_of(cfg).snapshots / "post_mortem_0.pth")
    assert content["source"] is None and len(content["target"].name) == 2
    found = replay(cfg, content)
    assert found.reproduced and found.exact


# --- mixed statistics, averaged weights ------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_statistics_is_that_of_the_images(share):
    network = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3)).eval()
    norm = network[0]
    norm.running_mean.copy_(torch.tensor([10.0, 20.0]))
    norm.running_var.copy_(torch.tensor([5.0, 7.0]))
    images = [torch.tensor([[[[1.0, 3.0]], [[4.0, 8.0]]]]), torch.tensor([[[[3.0, 5.0]], [[4.0, 4.0]]]])]
    adapt_batch_norm(network, images, share)  # means 2, 4 and 6, 4; variances (n - 1) 2, 2 and 8, 0
    mean, var = torch.tensor([3.0, 5.0]), torch.tensor([2.0, 4.0])
    torch.testing.assert_close(norm.running_mean, (1 - share) * torch.tensor([10.0, 20.0]) + share * mean)
    torch.testing.assert_close(norm.running_var, (1 - share) * torch.tensor([5.0, 7.0]) + share * var)
    assert norm.momentum == 0.3 and not norm.training


def test_snapshots_may_hold_the_average_of_the_weights(tiny_cfg, monkeypatch):
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: Network(cfg.NUM_CLASSES))
    cfg_from_list(["TRAIN.SAVE_PRED_EVERY=1", "TRAIN.CHECKPOINT_EVERY=1", "TRAIN.LEARNING_RATE=0.01", "TRAIN.SAVE_AVERAGE=True"])
    cfg_from_list(["TRAIN.EVAL_EVERY=2", "TRAIN.EVAL_SPLIT=source:all"])
    train(cfg, run_of(cfg))
    folder = run_of(cfg).snapshots
    one, two = (read_checkpoint(folder / f"checkpoint_{k}.pth")["state_dict"] for k in (1, 2))
    saved = weights(folder / "model_2.pth")
    for name, x in saved.items():
        if "running" in name or "tracked" in name:
            assert torch.equal(x, two[name])
        else:
            torch.testing.assert_close(x, (one[name] + two[name]) / 2)
            assert not torch.equal(x, two[name])
    assert same(dict(weights(folder / "model_best.pth")), dict(saved))  # and what is evaluated
    assert not list(folder.glob("teacher_*.pth"))


def test_an_averaged_copy_leaves_student_and_teacher_alone():
    student = nn.Sequential(nn.Linear(1, 1, bias=False))
    student[0].weight.data.fill_(1.0)
    teacher = Teacher(student, 0.75)
    student[0].weight.data.fill_(5.0)
    teacher.update(student, 10)  # 0.75 * 1 + 0.25 * 5
    before = copy.deepcopy(student.state_dict())
    assert teacher.averaged(student)[0].weight.item() == 2.0
    assert same(dict(before), dict(student.state_dict())) and teacher.network[0].weight.item() == 2.0
