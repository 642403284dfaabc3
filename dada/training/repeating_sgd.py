"""The optimizer of ADVENT, DADA and the fork, which visits a parameter several times in a step: LEGACY.DUPLICATE_STEPS."""

from __future__ import annotations

import torch

from dada.model import SegmentationModel


def times_listed(network: SegmentationModel) -> dict[torch.nn.Parameter, int]:
    """How often ADVENT, DADA and the fork enter each parameter of `network` in their optimizer.

    They walk over all modules inside every part of the backbone and list all parameters below each: a parameter comes
    once for every module that it lies in. That is once for the stem, three times for a convolution of a block, four
    times for one of a shortcut. Heads come once.
    """
    times = dict.fromkeys(network.parameters(), 1)
    for part in network.backbone_modules():
        times.update({parameter: 1 + name.count(".") for name, parameter in part.named_parameters()})
    return times


class RepeatingSGD(torch.optim.SGD):
    """SGD with momentum that visits a parameter several times in a step, as PyTorch 0.4 to 1.2 did with repeated ones.

    Each visit adds the weight decay to the gradient once more, decays the momentum and moves the parameter. ADVENT and
    DADA were published with these releases; a later one starts every repetition with a momentum of its own and adds the
    weight decay once a visit to the bare gradient, and its multi-tensor variant computes something else again.
    The state is that of SGD, so checkpoints of the two are interchangeable.

    Args:
        groups: parameter groups, every parameter once.
        times: visits of each parameter in a step.
        options: of torch.optim.SGD.
    """

    def __init__(self, groups: list[dict], times: dict[torch.nn.Parameter, int], **options) -> None:
        super().__init__(groups, **options)
        self.times = times

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter that has a gradient; the gradients are used up."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for _ in range(self.times[parameter]):
                    gradient = parameter.grad.add_(parameter, alpha=group["weight_decay"])
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                    parameter.add_(momentum, alpha=-group["lr"])
