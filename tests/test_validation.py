"""Evaluations in training: they find the best network, in a run that is stopped as well, and change nothing else."""

import json
import logging
import os
import signal

import pytest
import torch
from tiny import TinyNetwork, same
from torch import nn

from dada import config
from dada.config import cfg, cfg_from_dict, cfg_from_list
from dada.evaluation.tester import evaluate_run as run_test
from dada.model.outputs import Outputs
from dada.normalization import TORCHVISION_RGB
from dada.runs import find_snapshots, run_of
from dada.training import loop as training_module
from dada.training import trainer as trainer_module
from dada.training import validation as module
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.trainer import Trainer

EVALUATED = ["TRAIN.EVAL_EVERY=2", "TRAIN.EVAL_SPLIT=target:val"]


class SmallNetwork(TinyNetwork):
    """With batch norm and a dropout, in evaluation too, as some networks have."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6), nn.Dropout(0.2))

    def forward(self, image: torch.Tensor) -> Outputs:
        torch.rand(3)  # draws, whatever it is asked
        return super().forward(image)


@pytest.fixture
def small(tiny_cfg, monkeypatch):
    """The tiny cfg for six iterations of a small network. Returns the run's folder."""
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES))
    cfg_from_list(["TRAIN.MAX_ITERS=6", "TRAIN.CHECKPOINT_EVERY=2", "DATA_TRANSFORM.CROPSIZE=32", "TRAIN.LEARNING_RATE=0.01"])
    return run_of(cfg).snapshots


@pytest.fixture
def scores(monkeypatch):
    """mIoU of the evaluations to come, by iteration; a number that is not there is the true one."""
    planned = {}
    original = module.evaluate

    class Told:
        def __init__(self, found, miou):
            self.classes, self.means, self.miou = found.classes, {"16": miou}, miou
            self.headline = lambda: f"mIoU {100 * miou:.2f}"

    def evaluate(predictor, batches, classes, device, rule):
        found = original(predictor, batches, classes, device, rule)
        done = evaluate.done
        return Told(found, planned[done]) if done in planned else found

    original_run = module.Validation.run

    def run(self, network, done, *rest):
        evaluate.done = done
        return original_run(self, network, done, *rest)

    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module.Validation, "run", run)
    return planned


def run(*pairs: str, **options) -> None:
    cfg_from_list(pairs)
    train(cfg, run_of(cfg), **options)


def state_of(folder, iteration: int = 6) -> dict:
    content = read_checkpoint(folder / f"checkpoint_{iteration}.pth")
    return {key: content[key] for key in ("state_dict", "optimizers", "rng")}


@pytest.mark.parametrize("split", ["target:val", "source:all"])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluations_change_nothing_of_the_training(small, split, workers):
    run()
    plain = state_of(small)
    run("EXP_NAME=evaluated", f"NUM_WORKERS={workers}", "TRAIN.EVAL_EVERY=2", f"TRAIN.EVAL_SPLIT={split}")
    folder = run_of(cfg).snapshots
    assert same(state_of(folder), plain)
    best = torch.load(folder / "model_best.pth", weights_only=True)
    assert best["chosen"]["by"]["split"] == split and best["iter"] in (2, 4, 6)
    if best["iter"] == 6:
        assert same(best["state_dict"], plain["state_dict"])


def test_the_best_is_kept_beside_the_last_and_the_last_stays_the_headline(small, scores, caplog):
    scores.update({2: 0.3, 4: 0.5, 6: 0.4})
    caplog.set_level(logging.INFO)
    run(*EVALUATED, "TRAIN.SAVE_PRED_EVERY=2", "TRAIN.KEEP_CHECKPOINTS=1")
    best = torch.load(small / "model_best.pth", weights_only=True)
    assert best["iter"] == 4 and best["chosen"]["mIoU"] == 0.5
    assert same(best["state_dict"], torch.load(small / "model_4.pth", weights_only=True)["state_dict"])
    assert [p.name for p in find_snapshots(small)] == ["model_2.pth", "model_4.pth", "model_6.pth"]
    assert "iteration 4: mIoU 50.00 on target:val" in caplog.text
    assert "model_best.pth is chosen by labels of the target (TRAIN.EVAL_SPLIT target:val)" in caplog.text
    assert read_checkpoint(small / "checkpoint_6.pth")["validation"]["best"] == {"iter": 4, "mIoU": 0.5}
    config.reset()
    cfg_from_dict(best["cfg"], "model_best.pth")  # a snapshot like any other


def test_the_report_of_its_test_says_how_it_was_chosen(tiny_cfg, capsys):
    run(*EVALUATED, "TRAIN.EVAL_EVERY=1")
    folder = run_of(cfg).snapshots
    run_test(cfg, run_of(cfg))
    assert "chosen" not in capsys.readouterr().out and "chosen" not in json.loads((folder / "test_model_2.json").read_text())
    cfg_from_list([f"TEST.RESTORE_FROM=[{folder / 'model_best.pth'}]"])
    (evaluation,) = run_test(cfg, run_of(cfg)).values()
    chosen = json.loads((folder / "test_model_best.json").read_text())["chosen"]["model_best.pth"]
    assert chosen["mIoU"] == evaluation.miou and chosen["by"]["split"] == "target:val"  # the number is that of the test
    assert (
        "model_best.pth was chosen among others by labels of the target (target:val): not a headline" in capsys.readouterr().out
    )


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_that_is_killed_finds_the_same_best(small, scores, monkeypatch, at):
    scores.update({2: 0.5, 4: 0.6, 6: 0.4})
    run(*EVALUATED, "EXP_NAME=whole")
    whole = torch.load(run_of(cfg).snapshots / "model_best.pth", weights_only=True)
    original, save = Trainer.iterate, training_module.save_checkpoint

    def killed(*_, **__):
        raise KeyboardInterrupt

    def iterate(self, iteration, batches):
        if iteration == at:
            monkeypatch.setattr(training_module, "save_checkpoint", killed)  # after an evaluation, before its checkpoint
        return original(self, iteration, batches)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    with pytest.raises(KeyboardInterrupt):
        run("EXP_NAME=tiny")
    monkeypatch.setattr(Trainer, "iterate", original)
    monkeypatch.setattr(training_module, "save_checkpoint", save)
    run(resume="auto")
    best = torch.load(small / "model_best.pth", weights_only=True)
    assert best["iter"] == whole["iter"] == 4 and same(best["state_dict"], whole["state_dict"])
    assert same(state_of(small), state_of(run_of(cfg).snapshots.parent / "whole"))


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_signal_comes_first_and_the_evaluation_is_made_up_for(small, scores, monkeypatch, moment):
    scores.update({2: 0.5, 4: 0.6, 6: 0.4})
    run(*EVALUATED, "EXP_NAME=whole")
    original = {Trainer: Trainer.iterate, module: module.build_predictor}

    def stop(function):
        def call(*arguments):
            result = function(*arguments)
            monkeypatch.setattr(Trainer, "iterate", original[Trainer])
            monkeypatch.setattr(module, "build_predictor", original[module])
            os.kill(os.getpid(), signal.SIGUSR1)
            return result

        return call

    if moment == "before":
        steps = iter(range(9))
        monkeypatch.setattr(
            Trainer, "iterate", lambda *a: (stop(original[Trainer]) if next(steps) == 3 else original[Trainer])(*a)
        )
    else:
        calls = iter(range(9))
        monkeypatch.setattr(
            module, "build_predictor", lambda *a: (stop(original[module]) if next(calls) == 1 else original[module])(*a)
        )
    with pytest.raises(SystemExit):
        run("EXP_NAME=tiny")
    saved = read_checkpoint(small / "checkpoint_4.pth")
    assert saved["validation"]["last"] == 2 and saved["validation"]["best"]["iter"] == 2
    run(resume="auto")
    assert torch.load(small / "model_best.pth", weights_only=True)["iter"] == 4
    assert same(state_of(small), state_of(small.parent / "whole"))


def test_numbers_that_were_measured_otherwise_are_not_compared(small, scores, caplog):
    scores.update({2: 0.9, 4: 0.1, 6: 0.2})
    run(*EVALUATED, "TRAIN.EARLY_STOP=2")
    run("TRAIN.EARLY_STOP=0", "TRAIN.EVAL_SPLIT=source:all", resume="auto")
    assert "was measured in another way: the choice starts over" in caplog.text
    assert read_checkpoint(small / "checkpoint_6.pth")["validation"]["best"]["mIoU"] == 0.9  # 2 is evaluated again


def test_a_new_run_does_not_keep_the_best_of_another(small):
    run(*EVALUATED)
    run("TRAIN.EVAL_EVERY=0")
    assert not (small / "model_best.pth").exists() and (small / "former_1" / "model_best.pth").exists()
    assert "validation" not in read_checkpoint(small / "checkpoint_6.pth")


@pytest.mark.parametrize(
    "split, message",
    [
        ("", "expected 'source:' or 'target:' and the name of a split"),
        ("val", "'source:val' for example"),
        ("target:nowhere", "nowhere"),
        ("target:", "TRAIN.EVAL_SPLIT is 'target:'"),
    ],
)
def test_a_split_that_cannot_be_evaluated_is_refused_before_the_run(small, split, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("TRAIN.EVAL_EVERY=1", f"TRAIN.EVAL_SPLIT={split}")
    assert not small.exists()
