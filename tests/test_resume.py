"""A run that was stopped in any way and goes on is the run that was never stopped, and nothing else is let through."""

import errno
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TinyNetwork, same, tiny_options
from torch import nn

from dada import config
from dada.build import build_network
from dada.cli import main
from dada.config import cfg, cfg_from_list, flat_options
from dada.domain_adaptation import adversarial
from dada.domain_adaptation.objectives import METHODS
from dada.figures.scalars import read_scalars
from dada.model.discriminator import FCDiscriminator
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training import trainer as trainer_module
from dada.training.checkpoint import (
    DamagedCheckpoint,
    checkpoints,
    find_checkpoint,
    fixed_options,
    read_checkpoint,
    save_checkpoint,
)
from dada.training.lock import RunInUse
from dada.training.loop import train
from dada.training.prefetch import Prefetcher
from dada.training.rng import rng_state, seed_all, set_rng_state
from dada.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
AUGMENTED = ["DATA_TRANSFORM.COLOR_JITTER=0.2", "DATA_TRANSFORM.FLIP=0.5", "TRAIN.LEARNING_RATE=0.01"]
ASSOCIATED = ["CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_CONSISTENCY=1", "TRAIN.CONTRASTIVE_START=2"]


class SmallNetwork(TinyNetwork):
    """With all that a network can remember: statistics of batch norm, and a dropout that draws from the generator."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes: int, **heads) -> None:
        super().__init__(num_classes, **heads)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6), nn.Dropout(0.2))


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing of ours handles it."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(tiny_cfg, monkeypatch):
    """The tiny cfg for six iterations of small networks, with three checkpoints. Returns the run's folder."""
    monkeypatch.setattr(adversarial, "FCDiscriminator", partial(FCDiscriminator, ndf=4))
    monkeypatch.setattr(
        trainer_module,
        "build_network",
        lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES, aux=cfg.TRAIN.MULTI_LEVEL, depth=cfg.USE_DEPTH),
    )
    cfg_from_list(AUGMENTED)
    cfg_from_list(["TRAIN.MAX_ITERS=6", "TRAIN.CHECKPOINT_EVERY=2", "DATA_TRANSFORM.CROPSIZE=32"])
    return run_of(cfg).snapshots


@pytest.fixture
def during(monkeypatch):
    """`during(iteration, act)`: call `act` at the end of that iteration of the next run, before anything is written."""
    original = Trainer.iterate

    def install(at, act):
        def iterate(self, iteration, batches):
            result = original(self, iteration, batches)
            if iteration == at:
                monkeypatch.setattr(Trainer, "iterate", original)
                act()
            return result

        monkeypatch.setattr(Trainer, "iterate", iterate)

    return install


def kill() -> None:
    raise Killed


def run(*pairs: str, **options) -> None:
    cfg_from_list(pairs)
    train(cfg, run_of(cfg), **options)


def state_of(folder: Path, iteration: int = 6) -> dict:
    """Weights, discriminators, optimizers and generators of a checkpoint."""
    content = read_checkpoint(folder / f"checkpoint_{iteration}.pth")
    return {key: content[key] for key in ("state_dict", "discriminators", "optimizers", "rng")}


UNINTERRUPTED: dict[str, dict] = {}  # by the options that decide the weights: several tests compare with one run


def uninterrupted(*pairs: str) -> dict:
    cfg_from_list([*pairs, "EXP_NAME=uninterrupted"])
    if (key := repr(fixed_options(cfg))) not in UNINTERRUPTED:
        run()
        UNINTERRUPTED[key] = state_of(run_of(cfg).snapshots)
    cfg_from_list(["EXP_NAME=tiny"])
    return UNINTERRUPTED[key]


def disturb_generators() -> None:
    seed_all(99)


# --- exactness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("associated", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_a_random_step_and_resumed_is_the_uninterrupted_run(small, during, method, associated):
    cfg_from_list([f"TRAIN.DA_METHOD={method}", "TRAIN.MULTI_LEVEL=True", *(ASSOCIATED if associated else [])])
    if method == "DADA":
        cfg_from_list(["USE_DEPTH=True", "TRAIN.MODEL=DeepLabv2_depth"])
    whole = uninterrupted()
    during(random.Random(f"{method} {associated}").randrange(2, 6), kill)
    with pytest.raises(Killed):
        run()
    disturb_generators()
    run(resume="auto")
    assert same(state_of(small), whole)
    assert method != "AdvEnt" or len(whole["discriminators"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["TRAIN.ITER_SIZE=2", "NUM_WORKERS=2", "TRAIN.OPTIMIZER=AdamW"],
        ["TRAIN.BF16=True", "TRAIN.CHANNELS_LAST=True", "TRAIN.BN_POLICY=frozen_affine", *ASSOCIATED],
    ],
    ids=lambda options: options[0],
)
def test_a_timm_network_goes_on_exactly(tiny_cfg, during, options):
    cfg_from_list([*AUGMENTED, "TRAIN.MAX_ITERS=3", "TRAIN.CHECKPOINT_EVERY=1", *options])
    during(1, kill)
    with pytest.raises(Killed):
        run()
    run("NUM_WORKERS=0", resume="auto")
    folder = run_of(cfg).snapshots
    resumed = state_of(folder, 3)
    # A checkpoint is a snapshot too.
    assert same(dict(build_network(cfg, str(folder / "checkpoint_3.pth")).state_dict()), dict(resumed["state_dict"]))
    run("EXP_NAME=uninterrupted", "TRAIN.CHECKPOINT_EVERY=3")
    assert same(resumed, state_of(run_of(cfg).snapshots, 3))


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_network(small, during):
    # What a run reads may come from several sources and targets, and from a few labelled images of these.
    labelled = ["SOURCE=[SYNTHIA, SYNTHIA]", "SOURCE_SHARE=[2, 1]", "TRAIN.BATCH_SIZE_LABELLED=2"]
    labelled += ["TARGET=[Cityscapes, Cityscapes]", "TARGET_SHARE=[1, 3]", "TARGET_LABELLED=[random 3, 1]"]
    whole = uninterrupted(*ASSOCIATED, *labelled)
    for at in (0, 1, 2, 3, 5):
        during(at, kill)
        with pytest.raises(Killed):
            run(resume="auto")
    run(resume="auto")
    assert same(state_of(small), whole)


def test_all_generators_are_put_back_where_they_were():
    def draws():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]

    seed_all(2**40)
    draws()
    state = rng_state(CPU)
    expected = draws()
    disturb_generators()
    assert draws() != expected
    set_rng_state(state, CPU)
    assert draws() == expected


# --- processes that are really killed ------------------------------------------------------------------------


def wait_for(path: Path, process: multiprocessing.Process) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert process.is_alive() and time.monotonic() < until
        time.sleep(0.01)


def test_the_script_killed_by_the_system_goes_on_exactly(city, tmp_path, run_script, caplog):
    options = [*tiny_options(city, tmp_path), *AUGMENTED, "TRAIN.MAX_ITERS=8", "TRAIN.CHECKPOINT_EVERY=1"]
    script = ["train.py", "--cfg", "toycity.yml", "--set", "TRAIN.RESTORE_FROM=random", *options]
    folder = tmp_path / "snapshots" / "tiny"
    # A copy of this process, which has imported torch.
    process = multiprocessing.get_context("fork").Process(target=run_script, args=script)
    process.start()
    wait_for(folder / "checkpoint_2.pth", process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "run.lock").exists() and not (folder / "model_8.pth").exists()

    with caplog.at_level(logging.INFO):
        run_script(*script, "--resume", "auto")
    assert "is gone: its lock is taken over" in caplog.text and f"tiny continues from {folder}" in caplog.text
    resumed = torch.load(folder / "model_8.pth", weights_only=True)

    config.reset()
    config.cfg_from_file("toycity.yml")
    run("TRAIN.RESTORE_FROM=random", *options, f"EXP_ROOT={tmp_path / 'uninterrupted'}", "TRAIN.CHECKPOINT_EVERY=8")
    assert same(resumed["state_dict"], state_of(run_of(cfg).snapshots, 8)["state_dict"])


def test_the_same_command_goes_on_with_the_seed_that_it_drew_and_ends(city, tmp_path, monkeypatch, during, capsys):
    options = [*tiny_options(city, tmp_path), "CONTRASTIVE_LEARNING=False", "TRAIN.RESTORE_FROM=random"]
    command = [
        "train",
        "--random-train",
        "--resume",
        "auto",
        "--cfg",
        "toycity.yml",
        "--set",
        *options,
        "TRAIN.CHECKPOINT_EVERY=1",
    ]
    during(1, kill)
    with pytest.raises(Killed):
        main(command)
    seed = cfg.TRAIN.RANDOM_SEED
    for finished in (False, True):
        config.reset()
        main(command)
        assert seed == cfg.TRAIN.RANDOM_SEED
        assert ("tiny is finished" in capsys.readouterr().out) == finished
    assert read_checkpoint(tmp_path / "snapshots/tiny/checkpoint_2.pth")["cfg"]["TRAIN"]["RANDOM_SEED"] == seed


def _train_in_child(pairs: list[str]) -> None:
    # Loaders notice the death of the process that forked them, and a fork server would outlive the run.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    cfg_from_list(pairs)
    train(cfg, run_of(cfg), resume="auto")


@pytest.mark.slow
@pytest.mark.parametrize("method, workers", [*((method, 0) for method in METHODS), ("AdvEnt", 2)])
def test_fifty_kills_at_any_time_change_nothing(tiny_cfg, city, tmp_path, method, workers):
    options = [
        *tiny_options(city, tmp_path / "runs"),
        *AUGMENTED,
        *ASSOCIATED,
        f"TRAIN.DA_METHOD={method}",
        "TRAIN.MULTI_LEVEL=True",
        f"NUM_WORKERS={workers}",
        "TRAIN.MAX_ITERS=150",
        "TRAIN.CHECKPOINT_EVERY=1",
        f"USE_DEPTH={method == 'DADA'}",
    ]
    folder = tmp_path / "runs/snapshots/tiny"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dada.training.trainer", "dada.model.timm_encoder"])
    chance = random.Random(0)
    for _ in range(50):
        before = checkpoints(folder)[-1:]
        process = context.Process(target=_train_in_child, args=(options,))
        process.start()
        while checkpoints(folder)[-1:] == before and process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.08))
        process.kill()
        process.join()
    assert not (folder / "model_150.pth").exists()  # otherwise some kills hit nothing
    run(*options, "TRAIN.CHECKPOINT_EVERY=150", resume="auto")  # writing 70 MB an iteration takes longer than the rest
    resumed = state_of(folder, 150)
    run("EXP_NAME=uninterrupted")
    assert same(resumed, state_of(run_of(cfg).snapshots, 150))


# --- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_signal_lets_the_iteration_end_and_saves_it(small, during, caplog, name, code):
    whole = uninterrupted()
    during(2, lambda: os.kill(os.getpid(), getattr(signal, name)))
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == code
    last = small / "checkpoint_3.pth"
    assert f"{name} after iteration 3; --resume auto continues from {last}" in caplog.text
    assert last.exists() and not (small / "run.lock").exists()
    run(resume="auto")
    assert same(state_of(small), whole)


def waits_for_images(monkeypatch, number: int, name: str) -> None:
    """The next run gets a signal when it asks for batch `number`, and never that batch."""
    original, taken = Prefetcher.__next__, itertools.count()

    def next_pair(self):
        if next(taken) == number:
            monkeypatch.setattr(Prefetcher, "__next__", original)
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(1000)
        return original(self)

    monkeypatch.setattr(Prefetcher, "__next__", next_pair)


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_signal_ends_the_wait_for_images_and_the_run_goes_on_exactly(small, monkeypatch, name, code):
    whole = uninterrupted()
    waits_for_images(monkeypatch, 3, name)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == code
    assert [p.name for p in checkpoints(small)] == ["checkpoint_2.pth", "checkpoint_3.pth"]
    run(resume="auto")
    assert same(state_of(small), whole)


@pytest.mark.parametrize("name, code", [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_that_ends_the_wait_for_the_first_images_leaves_nothing_behind(small, monkeypatch, name, code):
    waits_for_images(monkeypatch, 0, name)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == code and not small.exists()


def test_loaders_outlive_a_signal_to_all_processes_but_not_the_run(small, during):
    def signal_loaders():  # from outside, as a scheduler does
        loaders = [str(process.pid) for process in multiprocessing.active_children()]
        assert loaders
        for name in ("TERM", "USR1", "INT"):
            subprocess.run(["kill", f"-{name}", *loaders], check=True)
        time.sleep(0.3)  # for those that die of it

    whole = uninterrupted()
    during(1, signal_loaders)
    run("NUM_WORKERS=1")
    assert same(state_of(small), whole)
    assert not multiprocessing.active_children()


def test_a_run_that_fails_does_not_wait_for_its_loaders(small, during):
    def fail():
        raise ValueError("fails")

    during(1, fail)
    with pytest.raises(ValueError, match="fails"):
        run("NUM_WORKERS=1")
    for process in multiprocessing.active_children():  # as the interpreter does at its end
        process.terminate()
        process.join(100)
        assert not process.is_alive()


def test_the_second_interrupt_ends_the_run_at_once(small, during):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    during(2, twice)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [p.name for p in checkpoints(small)] == ["checkpoint_2.pth"]


def test_signals_are_those_of_the_caller_again_after_a_run(small):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run("TRAIN.EARLY_STOP=1")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# --- which checkpoint ----------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, iteration: int, keep: int = 9) -> Path:
    state = {"state_dict": {"weight": torch.arange(5000.0)}, "discriminators": [], "optimizers": [], "rng": {}}
    return save_checkpoint(folder, iteration, state, cfg={}, data={}, keep=keep)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def leave_out(path: Path) -> None:
    torch.save({"format": 1, "iter": 1}, path)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, leave_out])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, caplog, damage):
    good, bad = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "auto")[0] == bad
    damage(bad)
    path, content = find_checkpoint(tmp_path, "auto")
    assert path == good and content["iter"] == 9
    assert str(bad) in caplog.text and "trying the one before" in caplog.text
    with pytest.raises(DamagedCheckpoint, match="checkpoint_10.pth"):
        find_checkpoint(tmp_path, str(bad))
    damage(good)
    with pytest.raises(DamagedCheckpoint, match="none of the 2 checkpoints in .* Start again without --resume"):
        find_checkpoint(tmp_path, "auto")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(small, during, tmp_path):
    whole = uninterrupted()
    run("TRAIN.EARLY_STOP=4")
    cut(small / "checkpoint_4.pth")
    during(3, kill)  # before there is a new checkpoint 4
    with pytest.raises(Killed):
        run("TRAIN.EARLY_STOP=0", resume="auto")
    # What was written after the point from which the run went on would be taken for its own otherwise.
    assert {p.name for p in (small / "former_1").iterdir()} == {"checkpoint_4.pth", "model_4.pth"}
    assert [p.name for p in checkpoints(small)] == ["checkpoint_2.pth"]
    run(resume="auto")
    assert same(state_of(small), whole)


def test_a_named_checkpoint_of_another_run_is_the_start_of_a_run_of_its_own(small):
    whole = uninterrupted()
    run("TRAIN.EARLY_STOP=2", "EXP_NAME=other")
    other = run_of(cfg).snapshots / "checkpoint_2.pth"
    run("TRAIN.EARLY_STOP=1", "EXP_NAME=tiny")
    run("TRAIN.EARLY_STOP=0", resume=str(other))
    assert same(state_of(small), whole) and other.exists()
    assert (small / "former_1" / "checkpoint_1.pth").exists() and not (small / "checkpoint_1.pth").exists()


def test_only_the_newest_checkpoints_are_kept_and_snapshots_all(small):
    run("TRAIN.CHECKPOINT_EVERY=0", "TRAIN.SAVE_PRED_EVERY=1", "TRAIN.KEEP_CHECKPOINTS=3", "TRAIN.MAX_ITERS=12")
    assert [p.name for p in checkpoints(small)] == ["checkpoint_10.pth", "checkpoint_11.pth", "checkpoint_12.pth"]
    assert len(list(small.glob("model_*.pth"))) == 12


def test_without_checkpoint_a_run_starts_and_says_so(small, caplog):
    caplog.set_level(logging.INFO)
    whole = uninterrupted()
    run(resume="auto")
    assert f"{small} holds no checkpoint: tiny starts from scratch" in caplog.text
    assert same(state_of(small), whole)


def test_a_fresh_run_sets_aside_what_a_resumed_one_keeps(small):
    run("TRAIN.SAVE_PRED_EVERY=1", "TRAIN.EARLY_STOP=3")
    run("TRAIN.EARLY_STOP=4", resume="auto")
    assert sorted(p.name for p in small.glob("model_*")) == [f"model_{n}.pth" for n in (1, 2, 3, 4)]
    run("TRAIN.EARLY_STOP=1")
    assert sorted(p.name for p in small.glob("model_*")) == ["model_1.pth"]
    assert [p.name for p in checkpoints(small / "former_1")] == ["checkpoint_3.pth", "checkpoint_4.pth"]


def test_a_finished_run_is_left_as_it_is(small, caplog):
    caplog.set_level(logging.INFO)
    run()
    before = {p.name: p.stat().st_mtime_ns for p in small.iterdir()}
    run(resume="auto")
    assert "tiny is finished" in caplog.text
    run("TRAIN.EARLY_STOP=5", resume="auto")  # it has got further
    assert {p.name: p.stat().st_mtime_ns for p in small.iterdir()} == before


@pytest.mark.parametrize(
    "name, message", [("missing.pth", "does not exist; --resume takes"), ("model_6.pth", "is not a checkpoint")]
)
def test_a_file_that_is_no_checkpoint_is_refused(small, name, message):
    run()
    with pytest.raises((FileNotFoundError, ValueError), match=f"{name} {message}"):
        run(resume=str(small / name))


def test_parts_of_files_that_a_kill_has_left_are_removed(small):
    small.mkdir(parents=True)
    (small / ".checkpoint_2.pth.abc.part").write_bytes(b"half")
    run("TRAIN.EARLY_STOP=1")
    assert not list(small.glob(".*"))


# --- what may change -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair, message",
    [
        ("NUM_CLASSES=19", "NUM_CLASSES: checkpoint has 16, cfg has 19"),
        ("TRAIN.MODEL=resnet-18", "TRAIN.MODEL: checkpoint has 'timm:test_efficientnet', cfg has 'resnet-18'"),
        ("TRAIN.MULTI_LEVEL=True", "TRAIN.MULTI_LEVEL: checkpoint has False, cfg has True"),
        ("TRAIN.HEAD_BIAS=False", "TRAIN.HEAD_BIAS: checkpoint has True, cfg has False"),
        ("TRAIN.OUTPUT_STRIDE=16", "TRAIN.OUTPUT_STRIDE: checkpoint has 8, cfg has 16"),
        ("TRAIN.DA_METHOD=AdvEnt", "TRAIN.DA_METHOD: checkpoint has 'source_only', cfg has 'AdvEnt'"),
        ("TRAIN.OPTIMIZER=AdamW", "TRAIN.OPTIMIZER: checkpoint has 'SGD', cfg has 'AdamW'"),
        ("TRAIN.RANDOM_SEED=7", "TRAIN.RANDOM_SEED: checkpoint has 1234, cfg has 7"),
        ("TRAIN.MAX_ITERS=60", "TRAIN.MAX_ITERS: checkpoint has 6, cfg has 60"),
        ("TRAIN.BATCH_SIZE_SOURCE=3", "TRAIN.BATCH_SIZE_SOURCE: checkpoint has 2, cfg has 3"),
        ("TRAIN.ITER_SIZE=2", "TRAIN.ITER_SIZE: checkpoint has 1, cfg has 2"),
        ("SOURCE=GTA5", "SOURCE: checkpoint has 'SYNTHIA', cfg has 'GTA5'"),
        ("CONTRASTIVE_LEARNING=True", "CONTRASTIVE_LEARNING: checkpoint has False, cfg has True"),
        ("DATA_LIST_SOURCE=list.txt", "DATA_LIST_SOURCE: checkpoint has '', cfg has 'list.txt'"),
        ("LEGACY.DUPLICATE_STEPS=True", "LEGACY.DUPLICATE_STEPS: checkpoint has False, cfg has True"),
        ("TRAIN.INPUT_SIZE_SOURCE=[64, 64]", "TRAIN.INPUT_SIZE_SOURCE: checkpoint has [1280, 760], cfg has [64, 64]"),
    ],
)
def test_what_decides_the_weights_cannot_change(small, during, pair, message):
    run("TRAIN.EARLY_STOP=2")
    with pytest.raises(ValueError) as error:
        run("TRAIN.EARLY_STOP=0", pair, resume="auto")
    assert str(error.value).splitlines()[1:-1] == [f"  {message}"]
    assert str(small / "checkpoint_2.pth") in str(error.value)


def test_what_decides_no_weight_may_change(small, city, tmp_path):
    whole = uninterrupted()
    run("TRAIN.EARLY_STOP=2")
    small.rename(small.with_name("other"))
    small.parent.parent.rename(tmp_path / "moved")
    (tmp_path / "copy").symlink_to(city)
    changed = [
        f"DATA_DIRECTORY_SOURCE={tmp_path}/copy/SYNTHIA",
        f"DATA_DIRECTORY_TARGET={tmp_path}/copy/Cityscapes",
        "ON_BAD_FILE=skip",
        "NUM_WORKERS=1",
        "EXP_NAME=other",
        f"EXP_ROOT={tmp_path / 'moved'}",
        "DEVICE=cpu",
        "GPU_ID=5",
        "TRAIN.EARLY_STOP=0",
        "TRAIN.SAVE_PRED_EVERY=3",
        "TRAIN.CHECKPOINT_EVERY=3",
        "TRAIN.KEEP_CHECKPOINTS=1",
        "TRAIN.EVAL_EVERY=7",
        "TRAIN.EVAL_SPLIT=source:all",
        "TRAIN.TENSORBOARD_VIZRATE=1",
        "TRAIN.LOGGERS=[]",
        "TRAIN.RESTORE_FROM=gone.pth",
        "TRAIN.RESTORE_HEAD=False",
        "TRAIN.ACCEPT_LICENCE=any",
        "TEST.MODE=best",
        "TEST.MODEL=[DeepLabv2]",
        "TEST.MODEL_WEIGHT=[0.5]",
        "TEST.MULTI_LEVEL=[True]",
        "TEST.RESTORE_FROM=[gone.pth]",
        "TEST.SET_TARGET=test",
        "TEST.BATCH_SIZE_TARGET=3",
        "TEST.PROTOCOL=advent",
        "TEST.INPUT_SIZE_TARGET=[32, 16]",
        "TEST.KEEP_RATIO=True",
        "TEST.OUTPUT_SIZE_TARGET=[32, 16]",
        "TEST.INFO_TARGET=gone.json",
        "TEST.RESAMPLE=bilinear",
        "TEST.UPSAMPLE_VIA_INPUT=True",
        "TEST.SLIDE_CROP=[16, 16]",
        "TEST.SLIDE_STRIDE=[8, 8]",
        "TEST.CLASS_RULE=count",
        "TEST.WITH_AGGREGATION=True",
        "TEST.FLIP=True",
        "TEST.SCALES=[0.5]",
        "LEGACY.LOGIT_ENSEMBLE=True",
    ]
    assert {pair.partition("=")[0] for pair in changed} == {n for n, o in flat_options().items() if o.role != "weights"}
    run(*changed, resume="auto")
    assert same(state_of(tmp_path / "moved" / "snapshots" / "other"), whole)


def test_other_images_in_the_folder_are_noticed(small, city, tmp_path):
    run("TRAIN.EARLY_STOP=2")
    shutil.copytree(city / "SYNTHIA", tmp_path / "SYNTHIA")
    min((tmp_path / "SYNTHIA/RGB").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"source images: checkpoint has '4 images, names \w+', the run has '3 images"):
        run("TRAIN.EARLY_STOP=0", f"DATA_DIRECTORY_SOURCE={tmp_path / 'SYNTHIA'}", resume="auto")


def test_an_option_that_the_checkpoint_does_not_know_is_at_its_default_there(small):
    run("TRAIN.EARLY_STOP=2")
    path = small / "checkpoint_2.pth"
    content = torch.load(path, weights_only=True)
    del content["cfg"]["TRAIN"]["RECOMPUTE"]
    content["cfg"]["TRAIN"]["FDA_BETA"] = 0.0  # an option of an earlier version
    torch.save(content, path)
    run("TRAIN.EARLY_STOP=3", resume="auto")
    with pytest.raises(ValueError, match="TRAIN.LSR_W: checkpoint has 0.01, cfg has 0.5"):
        run("TRAIN.LSR_W=0.5", resume="auto")


def test_another_version_is_told(small, caplog):
    run("TRAIN.EARLY_STOP=2")
    path = small / "checkpoint_2.pth"
    content = torch.load(path, weights_only=True)
    content["versions"]["torch"] = "1.0"
    torch.save(content, path)
    run("TRAIN.EARLY_STOP=3", resume="auto")
    assert f"{path} was written with torch 1.0, this is {torch.__version__}" in caplog.text


# --- one process in a folder ---------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(small, during):
    refused = []

    def second():
        with pytest.raises(RunInUse) as error:
            run(resume="auto")
        refused.append(str(error.value))

    during(2, second)
    run()
    (text,) = refused
    assert text.startswith(f"process {os.getpid()} on host {socket.gethostname()} trains in {small}.")
    assert f"delete {small / 'run.lock'}" in text
    assert not (small / "run.lock").exists() and (small / "model_6.pth").exists()


# --- the disk, and what is drawn -----------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_can_go_on(small, monkeypatch):
    whole = uninterrupted()
    save = torch.save

    def fills_up(content, file):
        if content.get("iter") == 4:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(OSError, match=r"no space left to write .*checkpoint_4.pth .*\d+ MB free"):
        run()
    assert {p.name for p in small.iterdir()} == {"checkpoint_2.pth", "train_cfg.yml"}
    monkeypatch.setattr(torch, "save", save)
    run(resume="auto")
    assert same(state_of(small), whole)


def test_curves_of_a_new_run_under_an_old_name_are_its_own(small):
    run("TRAIN.EARLY_STOP=4", tensorboard=True)
    run("TRAIN.EARLY_STOP=2", "TRAIN.RANDOM_SEED=7", tensorboard=True)
    logs = run_of(cfg).logs
    assert read_scalars(logs)["data/loss_seg_src_main"].step.tolist() == [0, 1]
    assert read_scalars(small / "former_1")["data/loss_seg_src_main"].step.tolist() == [0, 1, 2, 3]
    run("TRAIN.EARLY_STOP=1")  # without curves: those of the run before are not its own
    assert not list(logs.iterdir())


def test_curves_of_a_resumed_run_do_not_double(small, during):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    during(3, lambda: during(4, kill))
    with pytest.raises(Killed):
        run(tensorboard=True)
    time.sleep(1.1)  # event files are told apart and ordered by the second
    run(resume="auto", tensorboard=True)
    written = EventAccumulator(str(run_of(cfg).logs)).Reload()
    assert [e.step for e in written.Scalars("data/loss_seg_src_main")] == list(range(6))
