"""What batch norm does during training, as an explicit choice, and batch norm with one copy per domain."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BN_POLICIES = {
    "train": "batch statistics; weight and bias are trained",
    "frozen_affine": "batch statistics; weight and bias stay fixed (ADVENT, DADA)",
    "eval": "running statistics, weight and bias all stay fixed",
}

SOURCE, TARGET = 0, 1  # domains, as PLCA numbers its batch norms


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm layer of `model`, synchronised and per-domain copies included."""
    return (module for module in model.modules() if isinstance(module, _BatchNorm))


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, batch norms in training mode normalise as usual, but their running statistics do not change."""
    # Momentum 0 keeps them; running without them would save other tensors for the backward pass.
    tracking = [norm for norm in batch_norms(model) if norm.track_running_stats and norm.training]
    before = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in tracking]
    for norm in tracking:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(tracking, before):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)


class DomainBatchNorm2d(nn.Module):
    """One batch norm for each of the two domains; the selected one is used, the other sees nothing.

    PLCA's opt-in variant; its domains are SOURCE and TARGET. No domain is selected at first, since normalising one domain
    with the statistics of another gives wrong maps without an error.

    Args:
        norm: layer that every copy starts from.

    Raises:
        RuntimeError: in forward, as long as no domain is selected (see `select_domain`).
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm_layers = nn.ModuleList(copy.deepcopy(norm) for _ in (SOURCE, TARGET))
        self.domain: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.domain is None:
            raise RuntimeError(
                "this network has one batch norm per domain and none is selected; "
                "call select_domain(model, 0) for the source or select_domain(model, 1) for the target first"
            )
        return self.norm_layers[self.domain](x)


def convert_domain_batch_norm(model: nn.Module) -> nn.Module:
    """Replace every batch norm of `model`, in place, by a DomainBatchNorm2d whose copies all start from it.

    The copies are new parameters: convert before the optimizer is built.

    Returns:
        model, for chaining. State names become `<layer>.norm_layers.<domain>.<entry>`, as PLCA has them.

    Raises:
        ValueError: there is no batch norm in `model`.
    """
    if next(batch_norms(model), None) is None:
        raise ValueError(f"{type(model).__name__} has no batch norm to give each domain a copy of; set TRAIN.DOMAIN_BN to False")
    converted = {id(n) for m in model.modules() if isinstance(m, DomainBatchNorm2d) for n in m.norm_layers}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and id(child) not in converted:
                setattr(parent, name, DomainBatchNorm2d(child))
    return model


def without_domain(name: str) -> str:
    """State name of a batch norm's entry where all domains share it: `bn1.norm_layers.0.weight` -> `bn1.weight`."""
    return re.sub(r"\.norm_layers\.\d+\.", ".", name)


def for_every_domain(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each batch norm's entries repeated for every domain of `model`.

    Weights without domains, such as ImageNet's, start all of them. Nothing changes if `model` has no domains, or `state`
    has them already.
    """
    state = dict(state)
    copies = {own: without_domain(own) for own in model.state_dict() if own != without_domain(own)}
    repeated = {own: state[shared] for own, shared in copies.items() if shared in state}
    for shared in set(copies.values()):
        state.pop(shared, None)
    return {**state, **repeated}


def selected_domain(model: nn.Module) -> int | None:
    """The domain that `model` was last told to use; None before that, and if all domains share a batch norm."""
    return next((module.domain for module in model.modules() if isinstance(module, DomainBatchNorm2d)), None)


def select_domain(model: nn.Module, domain: int) -> None:
    """Choose the batch norm that the following forward passes use; does nothing if all domains share one.

    Raises:
        IndexError: the network has fewer domains.
    """
    for module in model.modules():
        if isinstance(module, DomainBatchNorm2d):
            if not 0 <= domain < len(module.norm_layers):
                raise IndexError(f"domain {domain} does not exist; the network holds {len(module.norm_layers)} domains")
            module.domain = domain
