"""TRAIN.LOGGERS: what Monitor writes reaches each service by the calls of its client, for which small modules stand in here."""

import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch

from dada.config import ConfigError, cfg, cfg_from_list
from dada.label_sets import label_set
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.loggers import open_loggers
from dada.training.loop import train
from dada.training.monitor import Monitor

# Signatures as in wandb 0.31, trackio 0.43 and mlflow 3.17.
CALLS = "calls = []\n"
IMAGE = "class Image:\n    def __init__(self, value, caption=None):\n        self.pixels = value\n"
WANDB = f"""{CALLS}{IMAGE}
class Run:
    id = "abc"
    def define_metric(self, name, step_metric=None): calls.append(("axis", name, step_metric))
    def log(self, data): calls.append(("log", data.pop("iteration"), data))
    def finish(self): calls.append(("end",))

def init(*, project, name, dir, config, id, resume):
    calls.append(("init", project, name, id, resume, config["NUM_CLASSES"]))
    return Run()
"""
TRACKIO = f"""{CALLS}{IMAGE}
class Run:
    def log(self, metrics, step=None): calls.append(("log", step, metrics))
    def finish(self): calls.append(("end",))

def init(project, name=None, *, config=None, resume="never", embed=True):
    calls.append(("init", project, name, resume, config["NUM_CLASSES"]))
    return Run()
"""
MLFLOW = f"""{CALLS}
from types import SimpleNamespace as N
entities = N(Metric=lambda key, value, timestamp, step: (key, value, step))

def set_experiment(name):
    calls.append(("experiment", name))
    return N(experiment_id="1")

class MlflowClient:
    def create_run(self, experiment_id, *, run_name):
        calls.append(("init", experiment_id, run_name))
        return N(info=N(run_id="abc"))
    def log_dict(self, run_id, dictionary, artifact_file): calls.append(("cfg", run_id, artifact_file))
    def log_batch(self, run_id, metrics=()):
        assert len({{step for _, _, step in metrics}}) == 1
        calls.append(("log", metrics[0][2], {{key: value for key, value, _ in metrics}}))
    def log_image(self, run_id, image, *, key, step): calls.append(("log", step, {{key: N(pixels=image)}}))
    def set_terminated(self, run_id): calls.append(("end",))
"""
CLIENTS = {"wandb": WANDB, "trackio": TRACKIO, "mlflow": MLFLOW}


@pytest.fixture(autouse=True)
def clients(tmp_path, monkeypatch):
    """Modules of these names, first on the path; the environment names no project."""
    folder = tmp_path / "clients"
    folder.mkdir()
    for name, text in CLIENTS.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield
    for name in CLIENTS:
        sys.modules.pop(name, None)


def calls(name: str, kind: str) -> list:
    return [call[1:] for call in sys.modules[name].calls if call[0] == kind]


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_scalars_of_an_iteration_are_one_message(name, tmp_path):
    cfg_from_list(["TRAIN.TENSORBOARD_VIZRATE=2"])
    with Monitor(tmp_path / "mine", cfg, TORCHVISION_RGB, label_set(16), loggers=(name,)) as monitor:
        for iteration in (0, 1):
            monitor.scalars(iteration, {"loss_x": 2.0 + iteration}, optimizer())
    first, second = calls(name, "log")
    assert first == (0, {"data/loss_x": 2.0, "lr/group_0": 0.5})
    assert second[0] == 1 and second[1].pop("cost/peak memory (GB)" if name != "mlflow" else "cost/peak memory _GB_") >= 0
    assert second[1] == {"data/loss_x": 3.0, "lr/group_0": 0.5}
    assert len(calls(name, "end")) == 1 and "mine" in calls(name, "init")[0]
    project = calls("mlflow", "experiment") if name == "mlflow" else [calls(name, "init")[0][:1]]
    assert project == [("dada",)]


@pytest.mark.parametrize("name", CLIENTS)
def test_pictures_are_bytes_and_may_come_late_from_another_thread(name, tmp_path):
    logger = open_loggers([name], tmp_path / "mine", cfg, 0)
    logger.add_scalar("a", 1.0, 5)
    logger.add_image("grey", torch.tensor([[[0.0, 0.5, 2.0]]]), 5)
    thread = threading.Thread(target=logger.add_image, args=("late", np.full((2, 3, 3), 7, np.uint8), 3, "HWC"))
    thread.start(), thread.join()
    logger.add_histogram("h", torch.zeros(3), 5)
    logger.close()
    (at_grey, grey), (at_late, late), scalars = calls(name, "log")
    assert at_grey == 5 and grey["grey"].pixels.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert at_late == 3 and late["late"].pixels.shape == (2, 3, 3) and late["late"].pixels.dtype == np.uint8
    assert scalars == (5, {"a": 1.0})


def test_a_run_that_goes_on_does_so_there_and_a_new_one_is_new(tmp_path):
    for start in (0, 7, 0):
        open_loggers(list(CLIENTS), tmp_path / "mine", cfg, start).close()
    assert [call[2:4] for call in calls("wandb", "init")] == [(None, None), ("abc", "allow"), (None, None)]
    assert [call[2] for call in calls("trackio", "init")] == ["never", "allow", "never"]
    assert len(calls("mlflow", "init")) == 2, "the second goes on with the first one's id"
    assert calls("wandb", "axis")[:2] == [("iteration", None), ("*", "iteration")]


def test_a_service_that_fails_ends_its_log_not_the_run(tmp_path, caplog):
    logger = open_loggers(["wandb", "trackio"], tmp_path / "mine", cfg, 0)

    def fails(self, metrics, step=None):
        raise ConnectionError("no route")

    sys.modules["trackio"].Run.log = fails
    for iteration in range(3):
        logger.add_scalar("a", 1.0, iteration)
    logger.close()
    assert caplog.text.count("nothing more is logged to trackio: ConnectionError: no route") == 1
    assert len(calls("wandb", "log")) == 3


def test_a_service_that_begins_no_run_says_why(tmp_path):
    import wandb

    del wandb.init
    with pytest.raises(ValueError, match="TRAIN.LOGGERS: wandb begins no run: AttributeError: "):
        open_loggers(["wandb"], tmp_path / "mine", cfg, 0)


def test_a_package_that_is_not_there_is_named_before_anything_is_trained(tiny_cfg, monkeypatch):
    find_spec = importlib.util.find_spec
    folder = ModuleSpec("wandb", None)  # such as wandb leaves where it runs
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder if name == "wandb" else find_spec(name))
    cfg_from_list(["TRAIN.LOGGERS=[tensorboard, wandb]", "CONTRASTIVE_LEARNING=False"])
    with pytest.raises(ImportError, match="TRAIN.LOGGERS names wandb, which is not installed: pip install wandb"):
        train(cfg, run_of(cfg))
    assert not run_of(cfg).logs.exists()
    with pytest.raises(ConfigError, match="TRAIN.LOGGERS: .*'comet'"):
        cfg_from_list(["TRAIN.LOGGERS=[comet]"])


def test_a_training_writes_to_all_that_it_names_and_to_tensorboard_by_its_flag(tiny_cfg):
    cfg_from_list(["TRAIN.LOGGERS=[mlflow, trackio]", "CONTRASTIVE_LEARNING=False", "TRAIN.MAX_ITERS=2"])
    run = run_of(cfg)
    train(cfg, run, tensorboard=True)
    for name in ("mlflow", "trackio"):
        assert [step for step, values in calls(name, "log") if "data/loss_seg_src_main" in values] == [0, 1]
    assert list(run.logs.glob("events.out.tfevents.*"))
