"""Low-rank adapters (LoRA): a few weights learn beside a product whose own stay as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

_OWN = ("lora_a", "lora_b", "lora_scale")


class LowRankLinear(nn.Module):
    r"""y = W x + b + alpha/r B A x: Hu et al., ICLR 2022 (arXiv:2106.09685), Eq. 3.

    W (out, in) and b stay as they are, A (r, in) and B (out, r) learn. B starts at 0, and the layer as the one whose place
    it takes, to the last bit. In a state dict W and b have the names that they had.

    `weight` is W + alpha/r B A, since some attention of timm (EVA's) reads the weight of a layer and never calls it.

    Args:
        linear: whose W and b these are.
        rank: r.
        alpha: see above; with alpha/r fixed, another rank needs no other learning rate.
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
        self.register_buffer("lora_scale", base.new_tensor(alpha / rank))  # beside them, as they mean nothing without it
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
    """`state` for a network without adapters, with W + alpha/r B A for W: the same function, one product a layer.

    Summed up in float64 and rounded once. Outputs of the two differ in the last bits, since they add in another order.
    """
    plain = {name: value for name, value in state.items() if not is_adapter(name)}
    for name in state:
        layer, _, own = name.rpartition(".")
        if own == "lora_b":
            a, b, scale = (state[f"{layer}.{part}"].double() for part in _OWN)
            weight = plain[f"{layer}.weight"]
            plain[f"{layer}.weight"] = (weight.double() + scale * (b @ a)).to(weight.dtype)
    return plain
