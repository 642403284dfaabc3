"""Products of float32 matrices: which way is taken where, for how long, and what a run says of it."""

import platform
import threading
from pathlib import Path

import pytest
import torch
from test_streaming_association import random_case, run
from tiny import TinyNetwork, untrained_snapshot
from torch import Tensor

import dada
from dada import matmul_precision as module
from dada.build import network as build
from dada.config import cfg, cfg_from_list
from dada.domain_adaptation import contrastive_learning
from dada.domain_adaptation.association import pixels
from dada.evaluation.predictor import Predictor
from dada.matmul_precision import (
    EXACT,
    PLAIN,
    Products,
    cpu_vendor,
    error_of,
    full_float32_products,
    matmul_precision,
    products_in_use,
    products_of,
)
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.trainer import Trainer

ONEDNN = Products("medium", "medium", "float32 by oneDNN")
BFLOAT16 = 2e-3  # the error of factors that are rounded to it
setting = torch.get_float32_matmul_precision


@pytest.fixture
def cpu_of(monkeypatch):
    """`cpu_of(vendor, error)`: run on a CPU of that maker, on which oneDNN has that error under "medium"."""

    def put(vendor, error=None):
        monkeypatch.setattr(module, "cpu_vendor", lambda: vendor)
        if error is not None:
            monkeypatch.setattr(module, "error_of", lambda _: error)
        module.onednn_is_the_exact_way.cache_clear()

    yield put
    module.onednn_is_the_exact_way.cache_clear()


@pytest.fixture
def cuda(monkeypatch):
    """A GPU of compute capability 9.0, as far as names go."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture(autouse=True)
def _switch_as_it_was():
    assert setting() == "highest", "another test has left it so"
    yield
    torch.set_float32_matmul_precision("highest")


# --- which way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vendor, error, choice, expected",
    [
        ("GenuineIntel", 4e-7, "", PLAIN),
        ("GenuineIntel", 4e-7, "highest", PLAIN),
        ("AuthenticAMD", 4e-7, "", ONEDNN),
        ("AuthenticAMD", 4e-7, "medium", ONEDNN),
        ("AuthenticAMD", 4e-7, "highest", PLAIN),
        ("AuthenticAMD", BFLOAT16, "", PLAIN),
        ("AuthenticAMD", 1.1 * EXACT, "", PLAIN),
        ("AuthenticAMD", float("nan"), "", PLAIN),
        ("", 4e-7, "", PLAIN),
    ],
)
def test_a_cpu_is_exact_by_onednn_if_its_maker_is_amd_and_the_error_is_that_of_float32(cpu_of, vendor, error, choice, expected):
    cpu_of(vendor, error)
    assert products_of(choice, "cpu") == expected


@pytest.mark.parametrize("choice", ["high", "medium"])
def test_a_cpu_gets_the_lower_precisions_as_torch_has_them(cpu_of, choice):
    cpu_of("GenuineIntel")
    assert products_of(choice, "cpu") == (choice, "highest", f"what torch makes of '{choice}' on this CPU")


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
def test_a_gpu_takes_tf32_unless_told_otherwise_whatever_the_cpu(cpu_of, cuda, vendor):
    cpu_of(vendor, 4e-7)
    assert products_of("", "cuda:0") == products_of("high", "cuda:0") == ("high", "highest", "TF32")
    assert products_of("highest", "cuda:0") == PLAIN
    assert products_of("medium", "cuda:0")[:2] == ("medium", "highest")
    assert "bfloat16" in products_of("medium", "cuda:0").name


def test_tf32_is_not_claimed_for_a_gpu_that_lacks_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert products_of("", "cuda").name == "float32 (this GPU has no TF32)"


def test_the_error_is_that_of_float32_and_the_same_each_time_and_draws_nothing():
    state = torch.get_rng_state()
    assert 1e-8 < error_of("highest") == error_of("highest") < EXACT
    assert torch.get_rng_state().equal(state)


def test_factors_that_are_rounded_to_bfloat16_are_noticed_by_the_error(cpu_of, monkeypatch):
    original = Tensor.__matmul__

    def as_matrix_units_do(a: Tensor, b: Tensor) -> Tensor:
        if setting() == "medium" and a.dtype is torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return original(a, b)

    monkeypatch.setattr(Tensor, "__matmul__", as_matrix_units_do)
    cpu_of("AuthenticAMD")
    assert error_of("medium") == pytest.approx(BFLOAT16, rel=0.5)
    assert products_of("", "cpu") == PLAIN


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux has /proc/cpuinfo")
def test_the_maker_is_that_of_the_system():
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id")]
    assert all(line.endswith(cpu_vendor()) for line in named) and bool(named) == bool(cpu_vendor())


@pytest.mark.parametrize(
    "said, vendor", [("AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", "AuthenticAMD"), ("arm", "arm"), ("", "")]
)
def test_without_proc_the_maker_is_what_windows_says(monkeypatch, said, vendor):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: said)
    assert cpu_vendor() == vendor


# --- for how long --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_a_precision_holds_in_its_block_and_the_callers_is_put_back(before):
    torch.set_float32_matmul_precision(before)
    with pytest.raises(ZeroDivisionError), matmul_precision("medium", "cpu"):
        assert setting() == "medium"
        with matmul_precision("high", "cpu"):
            assert setting() == "high"
        assert setting() == "medium"
        raise ZeroDivisionError
    assert setting() == before


def test_blocks_of_several_threads_may_end_in_any_order():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with matmul_precision("medium", "cpu"):
            inside.set()
            leave.wait(100)

    thread = threading.Thread(target=other)
    with matmul_precision("high", "cpu"):
        thread.start()
        assert inside.wait(100)
    assert setting() == "medium"  # the other one's, which was entered later and is not left
    leave.set()
    thread.join()
    assert setting() == "highest"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 has these names")
@pytest.mark.parametrize("cuda_part, cpu_part", [("none", "none"), ("tf32", "ieee"), ("ieee", "bf16")])
def test_parts_of_the_switch_that_were_set_by_their_newer_names_are_put_back(cpu_of, cuda_part, cpu_part):
    cpu_of("GenuineIntel")
    parts = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        for part, precision in zip(parts, (cuda_part, cpu_part)):
            part.fp32_precision = precision
        with matmul_precision("high", "cpu"), full_float32_products():
            assert setting() == "highest"
        assert [part.fp32_precision for part in parts] == [cuda_part, cpu_part]
    finally:
        for part in parts:
            part.fp32_precision = "none"


def test_products_that_decide_an_argmax_take_the_exact_way_of_the_device(cpu_of, cuda):
    with full_float32_products():
        assert setting() == "highest"
    with matmul_precision("", "cuda"), full_float32_products():
        assert setting() == "highest"
    cpu_of("AuthenticAMD", 4e-7)
    with matmul_precision("", "cpu"), full_float32_products():
        assert setting() == "medium" and products_in_use() == ONEDNN.name
    with matmul_precision("highest", "cpu"), full_float32_products():
        assert setting() == "highest"
    assert products_in_use() == PLAIN.name


def test_the_name_outside_of_any_block_is_that_of_the_callers_setting():
    torch.set_float32_matmul_precision("high")
    assert products_in_use() == "torch's 'high'"


@pytest.mark.parametrize("impl", ["dense", "streaming"])
@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_every_form_of_the_association_finds_its_cycles_with_exact_products(impl, metric, monkeypatch, cpu_of):
    """Counted where similarities are made: first those that cycles follow, then those of loss and gradient."""
    cpu_of("GenuineIntel")
    seen = []

    def spied(original):
        def product(*args, **kwargs):
            seen.append(setting())
            return original(*args, **kwargs)

        return product

    if impl == "dense":
        monkeypatch.setattr(contrastive_learning, "similarity", spied(contrastive_learning.similarity))
    else:
        monkeypatch.setattr(pixels, "mm", spied(pixels.mm))
    case = random_case(0, 1, 4, (5, 6), (6, 4), metric)
    want = run(*case, metric=metric, aggregate=False, impl=impl)
    assert set(seen) == {"highest"}
    seen.clear()
    with matmul_precision("high", "cpu"):
        got = run(*case, metric=metric, aggregate=False, impl=impl)
    assert seen[0] == "highest" and got[0].closed.equal(want[0].closed)
    assert (set(seen) == {"highest"}) if impl == "dense" else ("high" in seen)


# --- in a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def settings_of_steps(monkeypatch):
    """The settings under which the iterations of trainings run."""
    seen, original = [], Trainer.iterate

    def iterate(self, *args):
        seen.append((setting(), torch.backends.cudnn.benchmark))
        return original(self, *args)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    monkeypatch.setattr("dada.training.trainer.build_network", lambda cfg, weights, **_: TinyNetwork(cfg.NUM_CLASSES))
    monkeypatch.setattr(TinyNetwork, "normalization", TORCHVISION_RGB, raising=False)
    cfg_from_list(["TRAIN.MAX_ITERS=3", "TRAIN.CHECKPOINT_EVERY=1"])
    return seen


@pytest.mark.parametrize("choice, expected", [("", "highest"), ("high", "high"), ("medium", "medium")])
def test_a_training_takes_the_precision_of_its_cfg_and_leaves_none_behind(tiny_cfg, settings_of_steps, cpu_of, choice, expected):
    cpu_of("GenuineIntel")
    cfg_from_list([f"TRAIN.MATMUL_PRECISION={choice}", "TRAIN.EARLY_STOP=2"])
    train(cfg, run_of(cfg))
    assert settings_of_steps == [(expected, False)] * 2
    assert setting() == "highest"


def test_products_by_onednn_are_told_and_kept_and_what_differs_on_resuming_is_told(tiny_cfg, settings_of_steps, cpu_of, caplog):
    caplog.set_level("INFO")
    cpu_of("AuthenticAMD", 4e-7)
    cfg_from_list(["TRAIN.EARLY_STOP=1"])
    train(cfg, run_of(cfg))
    assert settings_of_steps == [("medium", False)]
    assert "on cpu, products in float32 by oneDNN: " in caplog.text
    path = run_of(cfg).snapshots / "checkpoint_1.pth"
    assert read_checkpoint(path)["versions"]["products"] == "float32 by oneDNN"

    cfg_from_list(["TRAIN.EARLY_STOP=2"])
    train(cfg, run_of(cfg), resume="auto")
    assert "last bits may differ" not in caplog.text
    cpu_of("GenuineIntel")
    cfg_from_list(["TRAIN.EARLY_STOP=3"])
    train(cfg, run_of(cfg), resume="auto")
    assert "was written with products float32 by oneDNN, this is float32: the last bits may differ" in caplog.text


@pytest.mark.parametrize("vendor, told", [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_a_checkpoint_that_names_no_products_had_plain_ones(tiny_cfg, settings_of_steps, cpu_of, caplog, vendor, told):
    cpu_of("GenuineIntel")
    cfg_from_list(["TRAIN.EARLY_STOP=1"])
    train(cfg, run_of(cfg))
    path = run_of(cfg).snapshots / "checkpoint_1.pth"
    content = torch.load(path, weights_only=True)
    del content["versions"]["products"]
    torch.save(content, path)
    cpu_of(vendor, 4e-7)
    cfg_from_list(["TRAIN.EARLY_STOP=2"])
    train(cfg, run_of(cfg), resume="auto")
    assert ("was written with products float32, this is float32 by oneDNN" in caplog.text) == told
    assert len(settings_of_steps) == 2


def test_a_run_keeps_its_precision(tiny_cfg, settings_of_steps):
    cfg_from_list(["TRAIN.EARLY_STOP=1"])
    train(cfg, run_of(cfg))
    cfg_from_list(["TRAIN.EARLY_STOP=2", "TRAIN.MATMUL_PRECISION=high"])
    with pytest.raises(ValueError, match="TRAIN.MATMUL_PRECISION: checkpoint has '', cfg has 'high'"):
        train(cfg, run_of(cfg), resume="auto")


def test_predictions_take_the_precision_of_the_cfg_and_leave_none_behind(city, tmp_path, monkeypatch):
    seen, original = [], Predictor._scores

    def scores(self, *args):
        seen.append(setting())
        return original(self, *args)

    monkeypatch.setattr(Predictor, "_scores", scores)
    path = untrained_snapshot(tmp_path, city)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    for options in ([], ["TRAIN.MATMUL_PRECISION=medium"]):
        dada.Segmenter.from_checkpoint(path, device="cpu", options=options).predict(image)
        assert setting() == "highest"
    assert seen == [products_of("", "cpu").setting, "medium"]


# --- cuDNN's search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed_sizes", [True, False])
def test_cudnn_searches_on_a_gpu_where_sizes_are_fixed(monkeypatch, cuda, fixed_sizes):
    monkeypatch.setattr(build, "choose_device", lambda cfg: torch.device("cuda", 1))
    with build.on_device(cfg, fixed_sizes=fixed_sizes) as device:
        assert device == torch.device("cuda", 1) and setting() == "high"
        assert torch.backends.cudnn.benchmark == fixed_sizes
        with build.cudnn_search(False):  # an evaluation on the way
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark == fixed_sizes
    assert not torch.backends.cudnn.benchmark


def test_who_asked_for_deterministic_convolutions_gets_no_search(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with build.cudnn_search(True):
        assert not torch.backends.cudnn.benchmark
