"""Fixtures of several files: a process as every test finds it, the cfg at its defaults, a small city, scripts, the device.

conftest.py takes them in where tests run; pytest-xdist's process that only hands them out need not import torch.
"""

import gc
import logging
import multiprocessing
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
from dada.config import cfg, cfg_from_list
from dada.dataset import DATASETS
from dada.domain_adaptation import contrastive_learning, cycle_association, losses
from dada.domain_adaptation.objectives import METHODS
from dada.matmul_precision import float32_precision
from dada.model import MODELS
from dada.training.rng import seed_all

if os.environ.get(on_device.VARIABLE) and not on_device.missing():
    on_device.move_functions([losses, contrastive_learning, cycle_association], on_device.DEVICE)
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core
    torch.set_num_threads(1)

SCRIPTS = Path(__file__).parent.parent / "scripts"


def pytest_collection_modifyitems(items):
    """Tests that have no device to run on, or are of another one, are skipped and say why."""
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


HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


def _give_back_signals() -> None:
    """Those of `dada train` stay until its process ends, and what is forked with them cannot be ended by SIGTERM."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _process_as_it_was():
    """No test sees what another one left in the process: it is put back where that is the product's way, else it is an error."""
    config.reset()
    seed_all(0)
    _give_back_signals()  # which a fixture of several tests may have taken
    before, children = _state_of_the_process(), set(multiprocessing.active_children())
    yield
    config.reset()
    _give_back_signals()
    for name, value in _state_of_the_process().items():
        assert value == before[name], f"this test leaves {name} changed for those after it"
    if set(multiprocessing.active_children()) - children:
        gc.collect()  # loaders end with their iterator, which an error that was raised may hold
        assert not set(multiprocessing.active_children()) - children, "this test leaves processes behind"


@pytest.fixture(autouse=True, scope="module")
def _compiled_anew():
    """torch keeps so many versions of what it compiled in a process, and then gives up: those of other files do not count."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def pytest_fixture_setup(fixturedef):
    """What several tests share is drawn alike, whichever of them asks first."""
    if fixturedef.scope != "function":
        seed_all(0)


def _state_of_the_process() -> dict[str, object]:
    """By name, what tests are to leave as they found it; packages may do as they like with what is theirs."""
    root, own = (logging.getLogger(name) for name in (None, "dada"))
    return {
        "the environment": {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "_TORCHINDUCTOR_"))},
        "the working directory": os.getcwd(),
        "sys.path": [path for path in sys.path if "site-packages" not in path],
        "the registries": [dict(registry) for registry in (METHODS, MODELS, DATASETS)],
        "logging": (root.level, own.level, own.handlers[:], own.propagate, logging.root.manager.disable),
        "the numbers of torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            float32_precision(),
        ),
        "the algorithms of torch": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
    }


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
        root = SimpleNamespace(main=lambda command: cli.main([command, *sys.argv[1:]]))
        monkeypatch.setitem(sys.modules, "_root", root)  # which makes `dada` importable
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run
