"""The group of processes on the device, with one process: NCCL on a GPU, gloo on the CPU."""

import copy

import pytest
import torch
import torch.distributed as dist
from tiny import TinyNetwork

from dada.parallel import distributed

pytestmark = pytest.mark.gpu


@pytest.fixture
def group(device, tmp_path):
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_a_sum_over_one_process_is_its_own(dtype, group, device):
    values = torch.arange(5, dtype=dtype, device=device)
    dist.all_reduce(values)
    assert values.tolist() == [0, 1, 2, 3, 4]


def test_gradients_that_pass_through_the_group_are_those_that_do_not(group, device, monkeypatch):
    torch.manual_seed(0)
    alone = TinyNetwork(5).to(device)
    joined = copy.deepcopy(alone)
    image = torch.randn(2, 3, 32, 40).to(device)
    alone(image).logits.square().mean().backward()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # or one process would not go through the group at all
    losses = distributed.with_joint_gradients(lambda image: joined(image).logits.square().mean(), joined)
    losses(image).backward()
    for (name, want), got in zip(alone.named_parameters(), joined.parameters()):
        torch.testing.assert_close(got.grad, want.grad, msg=name)
