"""How the tests are run: which come first, which are left out, and in how many processes. Fixtures are in shared_fixtures.py."""

import importlib.util
import os
from pathlib import Path

import pytest

# Files that train, compile, draw or start processes, those of most seconds first. `--fast` leaves them out; without it
# they begin first, so that no worker is left alone with one of them in the end.
LONG = [
    "fake_cuda",
    "fused_association",
    "resume",
    "models",
    "export",
    "trainer",
    "bench",
    "cuda_operators",
    "published_configs",
    "fuzz",
    "methods",
    "weights",
    "toycity",
    "tutorial",
    "segmenter",
    "encoders",
    "domain_batch_norm",
    "adapt",
    "merge",
    "validation",
    "explorer",
    "distributed",
    "tester",
    "report",
    "gpu_check",
    "visualize",
    "notebook",
    "stopping",
    "self_training",
    "objectives",
    "folder_dataset",
    "streaming_association",
    "compiling",
    "faults",
    "own_code",
    "loader",
    "hub",
    "loggers",
    "scripts",
    "selection",
    "training_golden",
    "predict",
    "adapters",
    "packed",
    "figures",
    "release",
    "models_golden",
    "legacy",
    "monitor",
]

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the benchmarks and `make` have it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


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


def pytest_configure(config):
    if hasattr(config, "workerinput") or not getattr(config.option, "tx", None):  # not where tests are only handed out
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items):
    """Long files come first."""
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    name = path.stem.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """A worker for each core; none where files are named, or tests chosen that have a GPU or a cluster to themselves."""
    alone = config.option.markexpr in ("gpu", "slurm") or os.environ.get("DADA_TEST_DEVICE", "cpu") != "cpu"
    if alone or any(".py" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)
