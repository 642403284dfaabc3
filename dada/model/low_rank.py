"""Low-rank adapters (LoRA): a few weights are trained beside a product whose own weights stay fixed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_OWN = ("lora_a", "lora_b", "lora_scale")


class LowRankLinear(nn.Module):
    r"""y = W x + b + alpha/r B A x: Hu et al., ICLR 2022 (arXiv:2106.09685), Eq. 3.

    W (out, in) and b stay fixed, A (r, in) and B (out, r) are trained. B starts at 0, so that the layer starts as the one it
    replaces, to the last bit. In a state dict W and b keep their names.

    `weight` is W + alpha/r B A, since some attention of timm (EVA's) reads the weight of a layer and never calls it.

    Args:
        linear: the layer that W and b come from.
        rank: r.
        alpha: see above; with alpha/r fixed, another rank does not need another learning rate.
    """

    bias: Tensor | None
    lora_scale: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        base: Any = linear.weight  # nn.Parameter, which torch's annotation does not say
        self._parameters["weight"] = base  # so called in a state dict, while `self.weight` is the property
        self.register_parameter("bias", linear.bias)
        self.lora_a = nn.Parameter(base.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(base.new_zeros(linear.out_features, rank))
        self.register_buffer("lora_scale", base.new_tensor(alpha / rank))  # saved with them: without it they mean nothing
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as nn.Linear begins

    @property
    def base(self) -> Tensor:
        """W (out, in)."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        return self.base + self.lora_scale * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.base, self.bias) + F.linear(self.lora_scale * F.linear(x, self.lora_a), self.lora_b)


def is_adapter(name: str) -> bool:
    """Whether the entry of a state dict is an adapter's."""
    return name.rpartition(".")[2] in _OWN


def has_adapters(names: Iterable[str]) -> bool:
    return any(map(is_adapter, names))


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` for a network without adapters, with W + alpha/r B A for W: the same function, one product per layer.

    Summed in float64 and rounded once. The outputs of the two differ in the last bits, since the order of summation differs.
    """
    plain = {name: value for name, value in state.items() if not is_adapter(name)}
    for name in state:
        layer, _, own = name.rpartition(".")
        if own == "lora_b":
            a, b, scale = (state[f"{layer}.{part}"].double() for part in _OWN)
            weight = plain[f"{layer}.weight"]
            plain[f"{layer}.weight"] = (weight.double() + scale * (b @ a)).to(weight.dtype)
    return plain
