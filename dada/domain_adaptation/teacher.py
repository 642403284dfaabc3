"""A slow copy of the network whose predictions on the target serve as labels."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dada.model.batch_norm import batch_norms


class Teacher:
    r"""Exponential moving average of a network's weights: Tarvainen & Valpola, NeurIPS 2017 (arXiv:1703.01780).

    After the optimizer's step of iteration t = 0, 1, ..., with student weights w,

        teacher <- a teacher + (1 - a) w,   a = min(1 - 1 / (t + 1), decay)

    so that the first one copies the student, and the average is a plain mean until the decay is reached (DACS, DAFormer).

    Batch norm: weight and bias are averaged like all others. In a pass it does what the student's does in training,
    under any TRAIN.BN_POLICY: the statistics of the student's running averages hold both domains, while the batch that a
    teacher sees is of the target alone. Running statistics are not averaged but the teacher's own: those of the target
    images that it has seen. Dropout and stochastic depth are off: a label should not depend on chance.

    Args:
        network: the student, on its device and in training mode; it is copied.
        decay: of the average, at least 0 and less than 1; 0 repeats the student.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        for norm, students in zip(batch_norms(self.network), batch_norms(network)):
            norm.train(students.training)

    @torch.no_grad()
    def averaged(self, network: nn.Module) -> nn.Module:
        """A copy of `network`, the student, with the average of its weights; running statistics are the student's."""
        copied = copy.deepcopy(network)
        for own, average in zip(copied.parameters(), self.network.parameters()):
            own.copy_(average)
        return copied

    @torch.no_grad()
    def update(self, network: nn.Module, iteration: int) -> None:
        """Move towards `network`, whose optimizer has made the step of `iteration`."""
        share = 1 - min(1 - 1 / (iteration + 1), self.decay)
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), share)
