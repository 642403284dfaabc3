"""What every segmentation network of this project offers, whatever its layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dada.model.batch_norm import BN_POLICIES, batch_norms
from dada.model.outputs import Outputs
from dada.normalization import Normalization


class SegmentationModel(nn.Module):
    """Base class: images in, named maps out.

    A subclass sets `normalization`, names its parts in `backbone_modules` and `head_modules`, and calls
    `set_bn_policy` once its layers exist.

    Attributes:
        normalization: how images must be prepared; it follows the weights that the network starts from.
        encoder_name: timm's name of the encoder, if the trunk is one of timm's.
        bn_policy: one of dada.model.batch_norm.BN_POLICIES.
        frozen: names of the parameters that training does not change; see `freeze_backbone`.
    """

    normalization: Normalization
    encoder_name: str | None = None
    bn_policy: str = "train"
    frozen: tuple[str, ...] = ()
    recompute_blocks: bool | None = None  # None: this network cannot; see dada.model.recompute

    def forward(self, image: Tensor) -> Outputs:
        """(B, 3, H, W) normalised images of any size -> Outputs."""
        raise NotImplementedError

    def classify(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        """Features (B, C, h', w') as in Outputs.features, and Outputs.skip -> logits (B, K, h, w).

        For test-time aggregation, which changes the features before they are classified.
        """
        raise NotImplementedError

    def backbone_modules(self) -> Iterable[nn.Module]:
        """The pretrained part, trained at the base learning rate."""
        raise NotImplementedError

    def head_modules(self) -> Iterable[nn.Module]:
        """The part that is trained from scratch; the published recipes give it 10 times the learning rate."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters as {"backbone": [...], "head": [...]}, each in exactly one group.

        ADVENT and the fork list the backbone's convolutions three or four times, so that SGD steps them as
        often; here every parameter is listed once.

        Raises:
            ValueError: a trainable parameter is in no group or in two; the message names it.
        """
        groups = {}
        for name, modules in (("backbone", self.backbone_modules()), ("head", self.head_modules())):
            unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
            groups[name] = list(unique.values())
        check_parameter_groups(self, groups)
        return groups

    def set_bn_policy(self, policy: str) -> None:
        """Set what batch norm does during training; call it before the optimizer is built."""
        if policy not in BN_POLICIES:
            known = "; ".join(f"{name!r}: {meaning}" for name, meaning in BN_POLICIES.items())
            raise ValueError(f"unknown batch-norm policy {policy!r}; choose one of {known}")
        self.bn_policy = policy
        for norm in batch_norms(self):
            if norm.affine:
                norm.weight.requires_grad_(policy == "train")
                norm.bias.requires_grad_(policy == "train")
        self.train(self.training)

    def freeze_backbone(self) -> None:
        """Keep the backbone as it is from now on: no gradients for it, and eval mode, in which batch norm learns nothing."""
        parameters = {id(p) for module in self.backbone_modules() for p in module.parameters()}
        self.frozen = tuple(name for name, p in self.named_parameters() if id(p) in parameters)
        for name in self.frozen:
            self.get_parameter(name).requires_grad_(False)
        self.train(self.training)

    def add_low_rank(self, layers: Iterable[str], rank: int, alpha: float) -> None:
        """Freeze the backbone, and add trainable low-rank adapters beside its products; see dada.model.low_rank.

        Raises:
            ValueError: this network has no such products.
        """
        raise ValueError(
            f"TRAIN.ADAPTER lora is for vision transformers of timm, such as timm:vit_small_patch14_dinov2; "
            f"{type(self).__name__} is not one. Set it to '', or train the heads alone with TRAIN.FREEZE_ENCODER=True"
        )

    def set_recompute(self, on: bool) -> None:
        """Keep only the inputs of the encoder's blocks for the backward pass, or everything.

        Raises:
            ValueError: this network cannot.
        """
        if self.recompute_blocks is not None:
            self.recompute_blocks = on
        elif on:
            raise ValueError(f"{type(self).__name__} cannot recompute its blocks; set TRAIN.RECOMPUTE to False")

    def train(self, mode: bool = True) -> SegmentationModel:
        """As nn.Module.train, but a frozen backbone stays in eval mode, and so does batch norm under the policy "eval"."""
        super().train(mode)
        for module in self.backbone_modules() if self.frozen else ():
            module.eval()
        if self.bn_policy == "eval":
            for norm in batch_norms(self):
                norm.eval()
        return self

    def check_image(self, image: Tensor) -> None:
        """Raise ValueError unless `image` is (B, 3, H, W)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"expected a batch of images (B, 3, H, W), got shape {tuple(image.shape)}; "
                "add the batch dimension with image[None], and convert grey images to RGB"
            )


def check_parameter_groups(model: nn.Module, groups: dict[str, list[nn.Parameter]]) -> None:
    """Raise ValueError unless the groups hold every trainable parameter of `model` once, and nothing else."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed: dict[int, list[str]] = {}
    for group, parameters in groups.items():
        for parameter in parameters:
            listed.setdefault(id(parameter), []).append(group)
    problems = []
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in listed]
    if forgotten:
        problems.append(f"trainable but in no group: {', '.join(forgotten)}")
    repeated = [f"{names.get(i, 'unknown')} ({', '.join(where)})" for i, where in listed.items() if len(where) > 1]
    if repeated:
        problems.append(f"listed more than once: {', '.join(repeated)}")
    foreign = [group for i, where in listed.items() if i not in names for group in where]
    if foreign:
        problems.append(f"{len(foreign)} parameters that are not the network's, in {', '.join(sorted(set(foreign)))}")
    if problems:
        raise ValueError("optimizer groups do not match the network: " + "; ".join(problems))
