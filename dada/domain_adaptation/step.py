"""One training step as the loss terms see it, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dada.dataset.sample import Batch
from dada.domain_adaptation.contrastive_learning import Cycles
from dada.domain_adaptation.losses import upsample
from dada.domain_adaptation.teacher import Teacher
from dada.model.batch_norm import SOURCE, TARGET, kept_statistics, select_domain
from dada.model.outputs import Outputs

T = TypeVar("T")

_NOTHING: Mapping = MappingProxyType({})


class Notes(NamedTuple):
    """What to log besides the losses of a step, by name and without gradient."""

    scalars: Mapping[str, Tensor] = _NOTHING
    by_class: Mapping[str, Tensor] = _NOTHING  # (K,); NaN for a class without any
    pictures: Mapping[str, Tensor] = _NOTHING  # normalised images (B, 3, H, W)
    cycles: Mapping[str, Cycles] = _NOTHING  # that were followed, by the level of the association

    @staticmethod
    def joined(notes: Iterable[Notes]) -> Notes:
        """All of them; a later one takes the place of an earlier one of its name."""
        return Notes(*({name: x for part in kind for name, x in part.items()} for kind in zip(Notes(), *notes)))


class TermValue(NamedTuple):
    """What a term returns that logs more than its loss."""

    loss: Tensor  # 0-dim, not weighted
    notes: Notes


class Step:
    """One batch of each domain and the network's outputs on it, each computed when it is first asked for.

    Source and target run through the network apart, so that batch norm never mixes the two domains in one batch; a
    network with batch norms for each domain (TRAIN.DOMAIN_BN) is told which one comes.

    Args:
        network: maps images (B, 3, H, W) to Outputs.
        source: labelled batch; None where a network adapts without its source.
        target: unlabelled batch; its label is dropped here, so that no term can train on it.
        labelled: batch of target images whose labels may be trained on.
        align_corners: how logits are upsampled.
        autocast: run the network in bfloat16.
        teacher: predicts the target images without a gradient, for terms that learn from pseudo-labels.
        num_classes: that the network must predict; 0: not checked.
        style: from source and target images to source images that look more like the target; None leaves them alone.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Outputs],
        source: Batch | None,
        target: Batch | None,
        *,
        align_corners: bool = True,
        autocast: bool = False,
        teacher: Teacher | None = None,
        num_classes: int = 0,
        style: Callable[[Tensor, Tensor], Tensor] | None = None,
        labelled: Batch | None = None,
    ) -> None:
        self._source = source
        self.labelled = labelled
        self.target = None if target is None else target._replace(label=None, depth=None)
        self.align_corners = align_corners
        self._network = network
        self._teacher = teacher
        self._style = style
        self._autocast = autocast
        self._num_classes = num_classes

    def forward(self, image: Tensor, domain: int, *, keep_statistics: bool = False) -> Outputs:
        """Outputs of the network on images of `domain`, SOURCE or TARGET of dada.model.batch_norm.

        Args:
            keep_statistics: leave the running statistics of batch norm alone, for images that no test will see.
        """
        kept = kept_statistics(self._network) if keep_statistics and isinstance(self._network, nn.Module) else nullcontext()
        with kept:
            return self._run(self._network, image, domain)

    def _run(self, network: Callable[[Tensor], Outputs], image: Tensor, domain: int) -> Outputs:
        if isinstance(network, nn.Module):
            select_domain(network, domain)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            outputs = network(image)
        self._check(network, outputs)
        if not self._autocast:
            return outputs
        return Outputs._make(None if o is None else o.float() for o in outputs)

    def _check(self, network: Callable[[Tensor], Outputs], outputs: Any) -> None:
        name = type(network).__name__
        if not isinstance(outputs, Outputs):
            raise ValueError(
                f"the network {name} returns a {type(outputs).__name__}, expected dada.model.Outputs(logits, features)"
            )
        found = outputs.logits.shape[1]
        if self._num_classes and found != self._num_classes:
            raise ValueError(f"the network {name} predicts {found} classes, but the cfg has {self._num_classes} (NUM_CLASSES)")

    @property
    def source(self) -> Batch:
        return _given(self._source, "images of the source")

    @property
    def batches(self) -> dict[str, Batch]:
        """Those that there are, as "source", "target" and "labelled"."""
        all_of_them = {"source": self._source, "target": self.target, "labelled": self.labelled}
        return {name: batch for name, batch in all_of_them.items() if batch is not None}

    @cached_property
    def source_image(self) -> Tensor:
        """Source images as the network sees them."""
        return self.source.image if self._style is None else self._style(self.source.image, self.target_image)

    @property
    def target_image(self) -> Tensor:
        return _given(self.target, "target images").image

    @cached_property
    def source_outputs(self) -> Outputs:
        return self.forward(self.source_image, SOURCE)

    @cached_property
    def target_outputs(self) -> Outputs:
        """Outputs on the target images: on their second photometric view, where they come with one."""
        view = _given(self.target, "target images").view
        return self.forward(self.target_image if view is None else view, TARGET)

    @cached_property
    def labelled_outputs(self) -> Outputs:
        """Outputs on the labelled images of the target."""
        return self.forward(_given(self.labelled, "labelled images of the target").image, TARGET)

    @cached_property
    def first_view_outputs(self) -> Outputs:
        """Outputs on the target images where `target_outputs` are those on their second view; without gradient.

        All terms learn from the second view, so that the first costs a forward pass and no backward pass.
        """
        _given(_given(self.target, "target images").view, "a second view")
        with torch.no_grad():
            return self.forward(self.target_image, TARGET)

    @cached_property
    def teacher_outputs(self) -> Outputs:
        """The teacher's outputs on the target images, without gradient; for terms with `teacher=True`."""
        with torch.no_grad():
            return self._run(_given(self._teacher, "a teacher").network, self.target_image, TARGET)

    @cached_property
    def _pseudo(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.upsample(self.teacher_outputs.logits, self.target_image).softmax(dim=1).max(dim=1)

    @property
    def pseudo_labels(self) -> Tensor:
        """(B, H, W) int64, the teacher's most likely class of every target pixel, at image resolution."""
        return self._pseudo[1]

    @property
    def pseudo_confidence(self) -> Tensor:
        """(B, H, W), the teacher's probability of `pseudo_labels`."""
        return self._pseudo[0]

    def upsample(self, x: Tensor, like: Tensor) -> Tensor:
        """Bilinear, (B, K, h, w) to the height and width of `like`."""
        height, width = like.shape[-2:]
        return upsample(x, (height, width), self.align_corners)

    @cached_property
    def source_logits(self) -> Tensor:
        """Main logits at the resolution of the source labels."""
        return self.upsample(self.source_outputs.logits, _given(self.source.label, "labels of the source"))


def _given(part: T | None, what: str) -> T:
    """`part`, which only some steps have."""
    if part is None:
        raise ValueError(f"a term of the objective needs {what}, which this step was not given")
    return part
