"""Batches that are requested ahead come in their order, count when they are used, and never change a run."""

from functools import partial

import pytest
import torch
from tiny import TinyNetwork, random_batch, same

from dada.config import cfg, cfg_from_list
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training import loop as training_module
from dada.training import trainer as trainer_module
from dada.training.bad_files import BadFiles
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.prefetch import Prefetcher, paired
from dada.training.trainer import Trainer

CPU = torch.device("cpu")


class SmallNetwork(TinyNetwork):
    normalization = TORCHVISION_RGB


def names(pairs) -> list[tuple]:
    return [(source.name[0], target and target.name[0]) for source, target in pairs]


def batches(*seeds: int) -> list:
    return [random_batch(1, (4, 4), seed=seed) for seed in seeds]


@pytest.mark.parametrize("requests", [(), (0, 1, 2, 3), (1,), (0, 0, 2, 2)])
def test_requests_change_neither_order_nor_number(requests):
    prefetcher = Prefetcher(paired(batches(1, 2, 3), batches(4, 5, 6)), CPU, ahead=True)
    given = []
    for number in range(4):
        for _ in range(requests.count(number)):
            prefetcher.request()
        given += [next(prefetcher, None)]
    assert names(given[:3]) == [
        ("image_1_0.png", "image_4_0.png"),
        ("image_2_0.png", "image_5_0.png"),
        ("image_3_0.png", "image_6_0.png"),
    ]
    assert given[3] is None


def test_without_a_gpu_nothing_is_loaded_before_it_is_used():
    loaded = []
    prefetcher = Prefetcher(paired((loaded.append(b) or b for b in batches(1, 2)), None), CPU)
    prefetcher.request()
    assert not loaded
    next(prefetcher)
    assert len(loaded) == 1


def test_what_is_wrong_with_a_batch_is_raised_when_its_turn_comes():
    def broken():
        yield batches(1)[0]
        raise ValueError("the second file is broken")

    prefetcher = Prefetcher(paired(broken(), None), CPU, ahead=True)
    next(prefetcher)
    prefetcher.request()
    with pytest.raises(ValueError, match="the second file is broken"):
        next(prefetcher)


def test_bad_files_count_what_was_used_and_not_what_was_requested():
    skipping = [batch._replace(skipped=(("a.png", "a.png is broken"),)) for batch in batches(1, 2)]
    prefetcher, account = Prefetcher(paired(skipping, None), CPU, ahead=True), BadFiles()
    counted = account.counted(prefetcher)
    next(counted)
    prefetcher.request()
    assert account.state() == {"draws": 1, "times": {"a.png": 1}}
    next(counted)
    assert account.state() == {"draws": 2, "times": {"a.png": 2}}


@pytest.mark.parametrize("iter_size", [1, 2])
def test_a_run_that_loads_ahead_and_is_resumed_is_the_run_that_does_neither(tiny_cfg, monkeypatch, iter_size):
    cfg_from_list(
        [
            "TRAIN.MAX_ITERS=4",
            "TRAIN.CHECKPOINT_EVERY=2",
            f"TRAIN.ITER_SIZE={iter_size}",
            "DATA_TRANSFORM.COLOR_JITTER=0.2",
            "TRAIN.DA_METHOD=MinEnt",
            "DATA_TRANSFORM.CROPSIZE=32",
        ]
    )
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES))
    train(cfg, run_of(cfg))
    plain = read_checkpoint(run_of(cfg).snapshots / "checkpoint_4.pth")
    assert plain["bad_files"]["draws"] == 4 * iter_size * (2 + 2)

    requested = []
    monkeypatch.setattr(Trainer, "iterate", _stopped_after(2, Trainer.iterate))
    monkeypatch.setattr(training_module, "Prefetcher", partial(_Counting, requested))
    cfg_from_list(["EXP_NAME=ahead"])
    with pytest.raises(KeyboardInterrupt):
        train(cfg, run_of(cfg))
    train(cfg, run_of(cfg), resume="auto")
    ahead = read_checkpoint(run_of(cfg).snapshots / "checkpoint_4.pth")
    assert len(requested) == 4 * iter_size + iter_size  # the one iteration that was killed after the checkpoint is done again
    for key in ("state_dict", "optimizers", "rng", "bad_files"):
        assert same(plain[key], ahead[key]), key


class _Counting(Prefetcher):
    def __init__(self, requested, pairs, device):
        super().__init__(pairs, device, ahead=True)
        self._requested = requested

    def request(self):
        self._requested.append(self._next is None)
        super().request()


def _stopped_after(iteration, original):
    stopped = []

    def iterate(self, number, batches):
        result = original(self, number, batches)
        if number == iteration and not stopped:
            stopped.append(number)
            raise KeyboardInterrupt
        return result

    return iterate
