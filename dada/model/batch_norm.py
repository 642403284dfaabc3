"""What batch norm does during training, as an explicit choice, and batch norm with one copy per domain."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BN_POLICIES = {
    "train": "batch statistics; weight and bias are trained",
    "frozen_affine": "batch statistics; weight and bias stay fixed (ADVENT, DADA)",
    "eval": "running statistics, weight and bias all stay fixed",
}


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm layer of `model`, synchronised and per-domain copies included."""
    return (module for module in model.modules() if isinstance(module, _BatchNorm))


def check_bn_policy(policy: str) -> None:
    """Raise ValueError unless `policy` is one of BN_POLICIES."""
    if policy not in BN_POLICIES:
        known = "; ".join(f"{name!r}: {meaning}" for name, meaning in BN_POLICIES.items())
        raise ValueError(f"unknown batch-norm policy {policy!r}; choose one of {known}")


def freeze_affine(model: nn.Module) -> None:
    """Stop the training of weight and bias of every batch norm in `model`; statistics are not touched."""
    for norm in batch_norms(model):
        if norm.affine:
            norm.weight.requires_grad_(False)
            norm.bias.requires_grad_(False)


class DomainBatchNorm2d(nn.Module):
    """One batch norm per domain; the selected one is used, the others see nothing.

    PLCA's opt-in variant: source 0, target 1. No domain is selected at first, since normalising one domain
    with the statistics of another gives wrong maps without an error.

    Args:
        norm: layer that every copy starts from.
        num_domains: number of copies.

    Raises:
        RuntimeError: in forward, as long as no domain is selected (see `select_domain`).
    """

    def __init__(self, norm: _BatchNorm, num_domains: int) -> None:
        super().__init__()
        if num_domains < 1:
            raise ValueError(f"num_domains must be at least 1, not {num_domains}")
        self.norm_layers = nn.ModuleList(copy.deepcopy(norm) for _ in range(num_domains))
        self.domain: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.domain is None:
            raise RuntimeError(
                "this network has one batch norm per domain and none is selected; "
                "call select_domain(model, 0) for the source or select_domain(model, 1) for the target first"
            )
        return self.norm_layers[self.domain](x)


def convert_domain_batch_norm(model: nn.Module, num_domains: int = 2) -> nn.Module:
    """Replace every batch norm of `model`, in place, by a DomainBatchNorm2d whose copies all start from it.

    The copies are new parameters: convert before the optimizer is built.

    Returns:
        model, for chaining. State names become `<layer>.norm_layers.<domain>.<entry>`, as PLCA has them.
    """
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, DomainBatchNorm2d(child, num_domains))
        elif not isinstance(child, DomainBatchNorm2d):
            convert_domain_batch_norm(child, num_domains)
    return model


def select_domain(model: nn.Module, domain: int) -> None:
    """Choose the batch norm that the following forward passes use; does nothing where there is one for all.

    Raises:
        IndexError: the network holds fewer domains.
    """
    for module in model.modules():
        if isinstance(module, DomainBatchNorm2d):
            if not 0 <= domain < len(module.norm_layers):
                raise IndexError(
                    f"domain {domain} does not exist; the network holds {len(module.norm_layers)} domains"
                )
            module.domain = domain
