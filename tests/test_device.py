"""Which device a process takes, what it says about it, and that it touches no other process's GPU."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny import random_batch, trainer_without_values, untrained_snapshot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dada
from dada.cli.shared import load_cfg
from dada.config import ConfigError, cfg, cfg_from_list, reset
from dada.domain_adaptation.objectives import METHODS
from dada.parallel import device as module
from dada.parallel import distributed
from dada.parallel.device import choose_device, find_device
from dada.publishing.release_file import write_release

NO_CUDA = "no GPU found (this torch has no CUDA): running on the CPU"


@pytest.fixture(autouse=True)
def events(monkeypatch) -> list[tuple]:
    """A machine of our own making: no GPU, a torch without CUDA, no launcher; and what is called of it."""
    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_GPUS"):
        monkeypatch.delenv(name, raising=False)
    happened: list[tuple] = []
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: happened.append(("set_device", str(device))))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {torch.device(device).index}")
    module._log_once.cache_clear()
    yield happened
    module._log_once.cache_clear()


def with_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def without_answer(monkeypatch, reason: str) -> None:
    def init():
        raise RuntimeError(reason)

    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", init)


# ---- what is taken


@pytest.mark.parametrize(
    "name, gpu_id, taken",
    [
        ("auto", 0, "cuda:0"),
        ("auto", 2, "cuda:2"),
        ("auto", -1, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:2"),
        ("cuda", -1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
        ("cuda:1", -1, "cuda:1"),
    ],
)
def test_a_device_that_is_named_comes_before_gpu_id(name, gpu_id, taken, monkeypatch):
    with_gpus(monkeypatch, 3)
    cfg.DEVICE, cfg.GPU_ID = name, gpu_id
    assert choose_device(cfg) == torch.device(taken)


def test_apples_gpu_is_taken_when_it_is_asked_for_only_and_is_called_untested(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device, why = find_device("auto")
    assert device.type == "cpu" and "has to be asked for, as mps" in why
    device, why = find_device("mps")
    assert device.type == "mps" and "untested" in why and "PYTORCH_ENABLE_MPS_FALLBACK=1" in why


@pytest.mark.parametrize(
    "name, count, words",
    [
        ("cuda", 0, ["device cuda was asked for", "there is no GPU (this torch has no CUDA)", "cpu is always there"]),
        ("cuda:1", 0, ["device cuda:1 was asked for", "there is no GPU"]),
        ("cuda:7", 2, ["device cuda:7 was asked for", "2 GPUs, cuda:0 to cuda:1"]),
        ("cuda:1", 1, ["device cuda:1 was asked for", "one GPU, cuda:0"]),
        ("mps", 0, ["device mps was asked for", "built without it"]),
    ],
)
def test_a_device_that_is_not_there_is_one_message(name, count, words, monkeypatch):
    if count:
        with_gpus(monkeypatch, count)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    cfg.DEVICE = name
    with pytest.raises(ValueError) as error:
        choose_device(cfg)
    assert all(word in str(error.value) for word in words)


def test_a_gpu_id_that_is_not_there_is_an_error_that_names_the_way_out(monkeypatch):
    with_gpus(monkeypatch, 1)
    cfg.GPU_ID = 3
    with pytest.raises(ValueError, match="GPU_ID is 3, but this machine has one GPU, cuda:0; --device chooses"):
        choose_device(cfg)


# ---- what is said


def test_what_was_taken_is_told_once(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        choose_device(cfg)
    assert caplog.messages == [NO_CUDA]
    with_gpus(monkeypatch, 2)
    cfg.GPU_ID = 1
    for _ in range(3):
        choose_device(cfg)
    assert caplog.messages[1:] == ["running on cuda:1, of 2 GPUs here: Card 1"]


def test_the_cpu_that_was_asked_for_is_no_gpu_that_is_missing():
    assert find_device("cpu")[1] == "running on the CPU, as DEVICE cpu says"
    assert find_device("auto", -1)[1] == "running on the CPU, as GPU_ID -1 says"


@pytest.mark.parametrize(
    "visible, said",
    [
        (None, "was built for CUDA 12.8, but no device answers: Found no NVIDIA driver)"),
        ("", "(CUDA_VISIBLE_DEVICES is '', which hides all)"),
        ("-1", "(CUDA_VISIBLE_DEVICES is '-1', which hides all)"),
        ("5", "no device that CUDA_VISIBLE_DEVICES=5 names answers: Found no NVIDIA driver)"),
    ],
)
def test_why_there_is_no_gpu(visible, said, monkeypatch):
    without_answer(monkeypatch, "Found no NVIDIA driver.\nPlease install one.")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device, why = find_device("auto")
    assert device.type == "cpu" and why.startswith("no GPU found (") and said in why and why.endswith(": running on the CPU")


# ---- several processes


def rank(monkeypatch, number: int, of: int) -> None:
    values = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": of, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(logging.getLogger(), "level", logging.getLogger().level)  # put back what `processes` sets


def stand_in_for_a_group(monkeypatch, events: list[tuple]) -> None:
    """No process meets another one; what would be called is noted."""
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 0)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: events.append((backend, options.get("device_id"))))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: events.append(("destroy",)))
    monkeypatch.setattr(distributed, "_Watch", lambda *_: SimpleNamespace(done=SimpleNamespace(set=lambda: None)))


@pytest.mark.parametrize("number", range(3))
def test_each_rank_is_on_its_own_gpu_before_it_touches_any(number, events, monkeypatch):
    rank(monkeypatch, number, 3)
    with_gpus(monkeypatch, 4)
    stand_in_for_a_group(monkeypatch, events)
    cfg.GPU_ID = 1
    own = f"cuda:{1 + number}"
    for name in ("current_device", "mem_get_info", "init", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: events.append((name,)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: events.append(("name", str(device))))
    with distributed.processes(cfg):
        assert events[0] == ("set_device", own)
        assert ("cpu:gloo,cuda:nccl", torch.device(own)) in events
        assert {event[1] for event in events if event[0] == "name"} <= {own}


def test_ranks_without_a_gpu_talk_through_gloo(events, monkeypatch):
    rank(monkeypatch, 0, 2)
    stand_in_for_a_group(monkeypatch, events)
    with distributed.processes(cfg):
        assert events == [("gloo", None)]


@pytest.mark.parametrize("name, words", [("auto", "process 2 of this node needs cuda:2"), ("mps", "mps is for one process")])
def test_a_rank_without_a_device_of_its_own_is_told_so(name, words, events, monkeypatch):
    rank(monkeypatch, 2, 3)
    with_gpus(monkeypatch, 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    stand_in_for_a_group(monkeypatch, events)
    cfg.DEVICE = name
    with pytest.raises(ValueError, match=words), distributed.processes(cfg):
        raise AssertionError("it has begun")
    assert events == []


def test_a_task_that_sees_its_own_gpu_alone_takes_that(monkeypatch):
    with_gpus(monkeypatch, 1)
    monkeypatch.setenv("SLURM_STEP_GPUS", "3")
    assert find_device("auto", 0, process=3)[0] == torch.device("cuda", 0)


# ---- Segmenter and scripts


def test_a_segmenter_takes_the_same_names_and_changes_no_current_device(city, tmp_path, events, monkeypatch):
    snapshot = untrained_snapshot(tmp_path, city)
    assert dada.Segmenter.from_checkpoint(snapshot, device="auto").device.type == "cpu"
    assert dada.Segmenter.from_checkpoint(snapshot, options=["DEVICE=cpu"]).device.type == "cpu"
    with pytest.raises(ValueError, match="device cuda was asked for, but there is no GPU"):
        dada.Segmenter.from_checkpoint(snapshot, device="cuda")
    with pytest.raises(ValueError, match="expected one of 'auto', 'cpu', 'cuda', 'cuda:N', 'mps', got 'gpu'"):
        dada.Segmenter.from_checkpoint(snapshot, device="gpu")
    with_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match="device cuda:2 was asked for, but this machine has 2 GPUs"):
        dada.Segmenter.from_checkpoint(snapshot, device=torch.device("cuda", 2))
    assert events == []


@pytest.mark.parametrize("trained_with", ["GPU_ID=3", "DEVICE=cuda:3", "DEVICE=cpu"])
def test_a_release_runs_on_what_the_next_machine_has(trained_with, city, tmp_path, monkeypatch):
    snapshot, release = untrained_snapshot(tmp_path, city, trained_with), tmp_path / "model.safetensors"
    load_cfg(SimpleNamespace(cfg=[str(snapshot)], set=[]))
    write_release(cfg, snapshot, release)
    reset()
    load_cfg(SimpleNamespace(cfg=[str(release)], set=[]))
    assert choose_device(cfg) == torch.device("cpu")
    with_gpus(monkeypatch, 1)
    assert choose_device(cfg) == torch.device("cuda", 0)


@pytest.mark.parametrize("value", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_the_option_takes_every_name(value):
    cfg_from_list([f"DEVICE={value}"])
    assert value == cfg.DEVICE


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cuda:-1", "cuda:N", "cpu:0", "", "cpu "])
def test_the_option_refuses_other_names(value):
    with pytest.raises(ConfigError, match="DEVICE: expected one of 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'"):
        cfg_from_list([f"DEVICE={value}"])


# ---- a device without float64


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            assert not (isinstance(x, torch.Tensor) and x.device.type == "meta" and x.dtype == torch.float64), function
        return found


@pytest.mark.parametrize("method", METHODS)
def test_no_step_needs_float64_where_there_is_none(method, monkeypatch):
    meta = torch.device("meta")
    monkeypatch.setattr(module, "WITHOUT_FLOAT64", ("meta",))
    trainer = trainer_without_values(method, monkeypatch)
    with NoFloat64():
        step = trainer.step(random_batch(num_classes=7).to(meta), random_batch(num_classes=7, seed=1).to(meta))
        values, notes = trainer.backward(step, 0, check=False)
        torch.stack([v.to(module.widest(v.device)) for v in (*values.values(), *notes.scalars.values())])
