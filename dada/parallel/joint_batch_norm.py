"""Batch norm over the images of all processes, from outside the network: its layers are exchanged, names and parameters stay."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import dada.torchvision_compat  # noqa: F401  (timm imports torchvision)
from dada.parallel.ranks import world_size

from timm.layers import convert_sync_batchnorm  # isort: skip


def join_batch_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of `network` that trains take its statistics from the joint batch; nothing in a single process.

    Layers in eval mode use their running statistics as before. State names and parameters are those of before, so an
    optimizer may be built earlier or later.

    Args:
        device: CUDA gets torch's SyncBatchNorm, anything else JointBatchNorm, which needs no kernel of its own.

    Returns:
        The network; a new module only if it was a batch norm itself.
    """
    if world_size() == 1:
        return network
    if device.type == "cuda":
        return convert_sync_batchnorm(network)  # timm's: it knows batch norms with an activation inside
    return _joined(network)


def _joined(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm) and not isinstance(module, JointBatchNorm):
        return JointBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, _joined(child))
    return module


class JointBatchNorm(_BatchNorm):
    """The batch norm `norm`, whose batch in training is that of all ranks: value and gradient are those of the joint batch.

    The parameters and statistics of `norm` are taken over, and so are dropout and activation, where timm put them in.
    """

    num_batches_tracked: Tensor  # these three where statistics are tracked
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, value in [*norm._parameters.items(), *norm._buffers.items(), *norm._modules.items()]:
            setattr(self, name, value)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:  # any number of dimensions
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        x = self._jointly(input) if self.training and world_size() > 1 else super().forward(input)
        for name in ("drop", "act"):
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x

    def _jointly(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        others = [d for d in range(x.ndim) if d != 1]
        shape = (-1, *[1] * (x.ndim - 2))
        count = x.new_tensor([x.numel() // x.shape[1]])
        total, count = _SumOverRanks.apply(torch.cat([x.sum(others), count])).split([x.shape[1], 1])
        count = count.detach()
        mean = (total / count).view(shape)
        centred = x - mean
        variance = (_SumOverRanks.apply(centred.square().sum(others)) / count).view(shape)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.flatten(), share)
                self.running_var.lerp_(variance.flatten() * (count / (count - 1)), share)
        x = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks, on which the loss of every rank depends: so its gradient is their sum as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.apply(grad)
