"""How the tests are run, and the fixtures of several files: the cfg at its defaults, a small city, scripts, the device."""

import importlib.util
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import interpreted_triton  # noqa: F401 (first)
import on_device
import pytest
import torch
from tiny import tiny_options

from dada import cli, config
from dada.cli import main
from dada.config import cfg, cfg_from_list
from dada.domain_adaptation import contrastive_learning, cycle_association, losses

if os.environ.get(on_device.VARIABLE) and not on_device.missing():
    on_device.move_functions([losses, contrastive_learning, cycle_association], on_device.DEVICE)

SCRIPTS = Path(__file__).parent.parent / "scripts"

# Files that train, compile, draw or start processes, those of most seconds first. `--fast` leaves them out; without it
# they begin first, so that no worker is left alone with one of them in the end.
LONG = [
    "published_configs",
    "fused_association",
    "resume",
    "export",
    "distributed",
    "fake_cuda",
    "models",
    "methods",
    "explorer",
    "fuzz",
    "self_training",
    "tutorial",
    "notebook",
    "domain_batch_norm",
    "cuda_operators",
    "bench",
    "toycity",
    "trainer",
    "gpu_check",
    "objectives",
    "validation",
    "encoders",
    "folder_dataset",
    "streaming_association",
    "compiling",
    "tester",
    "segmenter",
    "report",
    "visualize",
    "faults",
    "own_code",
    "hub",
    "loggers",
    "scripts",
    "selection",
    "training_golden",
    "predict",
    "packed",
    "figures",
    "release",
    "models_golden",
    "legacy",
    "monitor",
]

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="leave out the files that take long, as `make check` does")
    if not importlib.util.find_spec("xdist"):  # as on a machine with a GPU and little else: everything in this process
        for name in ("--numprocesses", "--dist"):
            parser.addoption(name)
        parser.addoption("--no-loadscope-reorder", action="store_true")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--fast") and _place(collection_path) < len(LONG):
        return True
    return None


def pytest_collection_modifyitems(items):
    """Long files come first. Tests that have no device to run on, or are of another one, are skipped and say why."""
    items.sort(key=lambda item: _place(item.path))
    for item in items:
        reason = ""
        if item.get_closest_marker("gpu"):
            reason = on_device.missing()
            if on_device.DEVICE.type == "cpu" and "device" not in item.fixturenames:
                reason = "is about CUDA itself"
        elif item.get_closest_marker("looks_at_values") and os.environ.get(on_device.VARIABLE, "cpu") != "cpu":
            reason = "on a GPU nothing waits to look at values"
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _place(path: Path) -> int:
    name = path.stem.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """A worker for each core; none where files are named, or tests chosen that have a GPU or a cluster to themselves."""
    alone = config.option.markexpr in ("gpu", "slurm") or os.environ.get(on_device.VARIABLE, "cpu") != "cpu"
    if alone or any(".py" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.fixture
def device():
    """Where tests marked `gpu` run, with the float32 products and convolutions of a CPU."""
    tf32 = torch.backends.cudnn.allow_tf32
    precision = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield on_device.DEVICE
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def _fresh_globals():
    """The cfg and torch's generator are global: no test sees what another one left there."""
    config.reset()
    torch.manual_seed(0)
    yield
    config.reset()


@pytest.fixture(scope="session")
def city(tmp_path_factory) -> Path:
    """Toy city with 4 source, 4 target train and 2 target val images of 128x64; read it, never change it."""
    from dada.dataset.toycity import write_city

    return write_city(tmp_path_factory.mktemp("city") / "city", source=4, target=6, val=2, size=(128, 64), seed=1)


@pytest.fixture
def tiny_cfg(city, tmp_path):
    """The cfg of `tiny_options`, writing below tmp_path / "runs"."""
    cfg_from_list(tiny_options(city, tmp_path / "runs"))
    return cfg


@pytest.fixture
def run_script(monkeypatch) -> Callable[..., None]:
    """`run_script("train.py", *arguments)`: `python scripts/train.py ...`, but in this process: importing torch takes seconds.

    The cfg is at its defaults when the script starts, and afterwards as the script has filled it. A script that ends
    with an error raises SystemExit; its `code` is the message. One that does not must end with a command that can be pasted.
    """

    def tell_next(command: Sequence[object]) -> None:
        name, *flags = map(str, command)
        parser = cli.parser_of(name)
        (parser.parse_args if name == "visualize" else parser.parse_intermixed_args)(flags)
        told(command)

    told = cli._tell_next
    monkeypatch.setattr(cli, "_tell_next", tell_next)

    def run(name: str, *arguments: object) -> None:
        config.reset()
        monkeypatch.setitem(sys.modules, "_root", SimpleNamespace(main=main))  # which makes `dada` importable
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run
